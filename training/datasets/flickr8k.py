"""Flickr8k as its archives unpack: photographs in one folder, captions and official splits in text files.

M. Hodosh, P. Young and J. Hockenmaier (2013), "Framing Image Description as a Ranking Task", JAIR 47, 853-899.
"""

import csv
import io
import re
from collections.abc import Iterator
from pathlib import Path

from captionlite.training.datasets.base import Dataset, DatasetReport, Example, read_text
from captionlite.training.errors import DatasetError

LICENCE = "Flickr8k: research and education only; the photographs belong to their Flickr owners"

# The official archive, misspelt as it was published, then the names under which copies of it circulate.
PHOTO_FOLDERS = ("Flicker8k_Dataset", "Flickr8k_Dataset", "Images", "images")
CAPTION_FILES = ("Flickr8k.token.txt", "captions.txt")
SPLIT_FILES = {
    "train": "Flickr_8k.trainImages.txt",
    "dev": "Flickr_8k.devImages.txt",
    "test": "Flickr_8k.testImages.txt",
}

# One caption of the published file is filed under "2258277193_586949ec62.jpg.1#0".
_NUMBERED_NAME = re.compile(r"^(.+\.jpe?g)\.\d+$", re.IGNORECASE)


def detect(path: Path) -> bool:
    """Whether `path` looks like Flickr8k: captions and photographs where its archives put them."""
    return path.is_dir() and _find_captions(path) is not None and _find_photos(path) is not None


def load(path: Path) -> Dataset:
    """Read Flickr8k from `path`, the folder that holds the photo folder and the text files (or folders of them).

    Captions without a photograph are skipped and reported, as are split entries without captions. A split whose file
    is missing is left out with a note that says so; asking for it then raises with that note.

    Raises:
        DatasetError: no photo folder, no caption file, none of the split files, or a malformed line.
    """
    if not path.is_dir():
        raise DatasetError(f"{path}: not a folder; give the folder that holds {PHOTO_FOLDERS[0]}/.")
    photo_folder = _find_photos(path)
    if photo_folder is None:
        raise DatasetError(
            f"{path}: no photo folder; expected one of {', '.join(f'{name}/' for name in PHOTO_FOLDERS)} in it."
        )
    caption_file = _find_captions(path)
    if caption_file is None:
        raise DatasetError(
            f"{path}: no caption file; expected {' or '.join(CAPTION_FILES)} in it or beside the photographs."
        )
    captions = _read_captions(caption_file)
    photos = {entry.name for entry in photo_folder.iterdir()}
    notes: list[str] = []
    splits: dict[str, tuple[Example, ...]] = {}
    missing = [name for name in captions if name not in photos]
    without_captions = {name for name in photos if name not in captions and name.lower().endswith((".jpg", ".jpeg"))}
    for split, file_name in SPLIT_FILES.items():
        split_file = _find_file(path, file_name)
        if split_file is None:
            notes.append(
                f"The split {split!r} is left out: its file {file_name} is neither in {path} nor in a folder beside "
                "the photographs; it comes with Flickr8k_text.zip."
            )
            continue
        examples = []
        for name in _read_split(split_file):
            if name not in photos:
                missing.append(name)
            elif name not in captions:
                without_captions.add(name)
            else:
                examples.append(Example(photo_folder / name, tuple(captions[name]), name))
        splits[split] = tuple(examples)
    if not splits:
        raise DatasetError(
            f"{path}: none of the split files {', '.join(SPLIT_FILES.values())} is there or in a folder beside the "
            "photographs; they come with Flickr8k_text.zip. (For splits of your own use the JSONL form.)"
        )
    _refuse_overlap(splits)
    report = DatasetReport(
        missing_photos=tuple(dict.fromkeys(missing)),
        photos_without_captions=len(without_captions),
        notes=tuple(notes),
    )
    return Dataset("flickr8k", splits, report, LICENCE)


def _folders(root: Path) -> Iterator[Path]:
    """`root` and the folders in it; when `root` is the photo folder itself, its siblings too."""
    yield root
    yield from _subfolders(root)
    if root.name in PHOTO_FOLDERS:
        yield root.parent
        yield from _subfolders(root.parent)


def _subfolders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and entry.name != "__MACOSX")


def _find_file(root: Path, name: str) -> Path | None:
    return next((folder / name for folder in _folders(root) if (folder / name).is_file()), None)


def _find_captions(root: Path) -> Path | None:
    return next((found for name in CAPTION_FILES if (found := _find_file(root, name)) is not None), None)


def _find_photos(root: Path) -> Path | None:
    if root.name in PHOTO_FOLDERS and not any((root / name).is_dir() for name in PHOTO_FOLDERS):
        return root
    for folder in (root, *_subfolders(root)):
        for name in PHOTO_FOLDERS:
            if (folder / name).is_dir():
                # Some copies unpack to Flickr8k_Dataset/Flicker8k_Dataset/.
                return next(
                    (folder / name / inner for inner in PHOTO_FOLDERS if (folder / name / inner).is_dir()),
                    folder / name,
                )
    return None


def _read_captions(path: Path) -> dict[str, list[str]]:
    text = read_text(path)
    rows = _csv_rows(text) if text.startswith("image,caption") else _token_rows(text)
    captions: dict[str, list[str]] = {}
    for number, name, caption in rows:
        if not name or not caption:
            raise DatasetError(
                f"{path}, line {number}: expected 'NAME.jpg#NUMBER<tab>caption' (or 'NAME.jpg,caption' after an "
                f"'image,caption' header); found name {name!r} and caption {caption!r}. Correct or remove the line."
            )
        numbered = _NUMBERED_NAME.match(name)
        captions.setdefault(numbered[1] if numbered else name, []).append(caption)
    if not captions:
        raise DatasetError(f"{path}: holds no captions; download Flickr8k_text.zip again.")
    return captions


def _token_rows(text: str) -> Iterator[tuple[int, str, str]]:
    for number, line in enumerate(text.splitlines(), start=1):
        if line.strip():
            key, _, caption = line.partition("\t")
            yield number, key.rpartition("#")[0].strip(), caption.strip()


def _csv_rows(text: str) -> Iterator[tuple[int, str, str]]:
    reader = csv.reader(io.StringIO(text, newline=""))
    next(reader)
    for row in reader:
        if row:
            yield reader.line_num, row[0].strip(), ",".join(row[1:]).strip()


def _read_split(path: Path) -> list[str]:
    names = [line.strip() for line in read_text(path).splitlines() if line.strip()]
    if not names:
        raise DatasetError(
            f"{path}: empty; expected one photograph's file name a line. Download Flickr8k_text.zip again."
        )
    return list(dict.fromkeys(names))


def _refuse_overlap(splits: dict[str, tuple[Example, ...]]) -> None:
    seen: dict[str, str] = {}
    for split, examples in splits.items():
        for example in examples:
            if seen.setdefault(example.id, split) != split:
                raise DatasetError(
                    f"{SPLIT_FILES[split]}: {example.id} is also in {SPLIT_FILES[seen[example.id]]}; a photograph may "
                    "stand in one split only. Use the published split files."
                )
