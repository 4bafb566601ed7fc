"""The generic form: JSON Lines, one photograph a line, such as `{"image": "a.jpg", "captions": ["A dog runs."]}`."""

import json
from collections.abc import Iterator
from pathlib import Path

from captionlite.training.datasets.base import Dataset, read_text
from captionlite.training.datasets.rows import Row, join_rows
from captionlite.training.errors import DatasetError

CAPTIONS_FILE = "captions.jsonl"


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
    return join_rows(file, file.parent.resolve().name if file.name == CAPTIONS_FILE else file.stem, rows)


def _find_file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() in (".jsonl", ".ndjson") else None
    if not path.is_dir():
        return None
    if (path / CAPTIONS_FILE).is_file():
        return path / CAPTIONS_FILE
    found = sorted(path.glob("*.jsonl"))
    return found[0] if len(found) == 1 else None


def _rows(file: Path) -> Iterator[Row]:
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
        yield Row(where, number, image, tuple(caption.strip() for caption in captions if caption.strip()), split)
