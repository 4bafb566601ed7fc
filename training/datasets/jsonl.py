"""The generic form: JSON Lines, one photograph a line, such as `{"image": "a.jpg", "captions": ["A dog runs."]}`."""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from captionlite.training.datasets.base import Dataset, DatasetReport, Example, read_text
from captionlite.training.errors import DatasetError

LICENCE = "as stated by whoever supplied the data"
DEV_EVERY = 10  # without "split" fields, lines 10, 20, 30, ... are dev
CAPTIONS_FILE = "captions.jsonl"


@dataclass(frozen=True)
class _Row:
    line: int
    image: str
    captions: tuple[str, ...]
    split: str | None


def detect(path: Path) -> bool:
    """Whether `path` is a .jsonl file, or a folder with exactly one (or one named captions.jsonl)."""
    return _find_file(path) is not None


def load(path: Path) -> Dataset:
    """Read a JSONL data set.

    Each line is an object with `image` (a path relative to the file) and `captions` (a list of strings); an optional
    `split` names the line's split, on all lines or none. Without it, lines 10, 20, 30, ... are `dev` and the rest
    `train`. Lines of the same image are joined, in the split of the first. Other fields are ignored.

    Raises:
        DatasetError: the file cannot be read, a line is malformed, or an image stands in two splits.
    """
    file = _find_file(path)
    if file is None:
        raise DatasetError(
            f"{path}: expected a .jsonl file, or a folder that holds {CAPTIONS_FILE} (or a single .jsonl file)."
        )
    rows = list(_rows(file))
    if not rows:
        raise DatasetError(f'{file}: holds no lines; expected {{"image": "a.jpg", "captions": ["..."]}} a line.')
    _refuse_partly_split(file, rows)
    captions: dict[str, list[str]] = {}
    splits_by_image: dict[str, str] = {}
    for row in rows:
        split = row.split or ("dev" if row.line % DEV_EVERY == 0 else "train")
        first = splits_by_image.setdefault(row.image, split)
        if row.split is not None and first != split:
            raise DatasetError(
                f"{file}, line {row.line}, field 'split': {row.image} is {split!r} here and {first!r} further up; a "
                "photograph may stand in one split only."
            )
        captions.setdefault(row.image, []).extend(row.captions)

    ids = _unique_ids(list(captions))
    splits: dict[str, list[Example]] = {}
    missing = []
    without_captions = 0
    for image, split in splits_by_image.items():
        photo = file.parent / image
        if not captions[image]:
            without_captions += 1
        elif not photo.is_file():
            missing.append(image)
        else:
            splits.setdefault(split, []).append(Example(photo, tuple(captions[image]), ids[image]))
    if not splits:
        raise DatasetError(
            f"{file}: not one photograph with captions is there ({len(missing)} missing, {without_captions} without "
            f"captions); 'image' is taken relative to {file.parent}."
        )
    report = DatasetReport(missing_photos=tuple(missing), photos_without_captions=without_captions)
    name = file.parent.resolve().name if file.name == CAPTIONS_FILE else file.stem
    return Dataset(name, {split: tuple(examples) for split, examples in splits.items()}, report, LICENCE)


def _find_file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() in (".jsonl", ".ndjson") else None
    if not path.is_dir():
        return None
    if (path / CAPTIONS_FILE).is_file():
        return path / CAPTIONS_FILE
    found = sorted(path.glob("*.jsonl"))
    return found[0] if len(found) == 1 else None


def _rows(file: Path) -> Iterator[_Row]:
    # Not splitlines(): a caption may hold U+2028, which JSON allows inside a string.
    for number, line in enumerate(read_text(file).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{file}, line {number}"
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DatasetError(f"{where}: not JSON ({error}); expected one object a line.") from None
        if not isinstance(row, dict):
            raise DatasetError(f"{where}: expected a JSON object, found {type(row).__name__}.")
        image, captions, split = row.get("image"), row.get("captions"), row.get("split")
        if not isinstance(image, str) or not image or "\0" in image:
            raise DatasetError(f"{where}, field 'image': expected a path relative to the file, found {image!r}.")
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise DatasetError(f"{where}, field 'captions': expected a list of strings, found {captions!r:.80}.")
        if split is not None and (not isinstance(split, str) or not split):
            raise DatasetError(f"{where}, field 'split': expected a name such as 'train', found {split!r}.")
        yield _Row(number, image, tuple(caption.strip() for caption in captions if caption.strip()), split)


def _refuse_partly_split(file: Path, rows: list[_Row]) -> None:
    unsplit = [row.line for row in rows if row.split is None]
    if unsplit and len(unsplit) != len(rows):
        raise DatasetError(
            f"{file}, line {unsplit[0]}, field 'split': missing here but given on other lines; give it on every line, "
            "or on none for the automatic train and dev parts."
        )


def _unique_ids(images: list[str]) -> dict[str, str]:
    """File names as ids; where two folders hold the same file name, the paths as written."""
    names = [Path(image).name for image in images]
    if len(set(names)) == len(names):
        return dict(zip(images, names, strict=True))
    return {image: image for image in images}
