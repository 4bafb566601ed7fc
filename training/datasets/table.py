"""The generic form as a table: CSV or TSV with a header, a column `image`, and captions in one column or another.

`caption` holds one caption a row, and rows of the same image are joined. `captions` holds a JSON list of them. A
column `split` is optional; other columns are ignored.
"""

import csv
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from captionlite.training.datasets.base import Dataset, read_text
from captionlite.training.datasets.rows import Row, join_rows
from captionlite.training.errors import DatasetError

SUFFIXES = (".csv", ".tsv")
CAPTIONS_FILES = ("captions.csv", "captions.tsv")


def detect(path: Path) -> bool:
    """Whether `path` is such a table, or a folder with exactly one (or one named captions.csv or captions.tsv)."""
    file = _find_file(path)
    if file is None:
        return False
    try:
        with file.open(encoding="utf-8-sig", newline="") as stream:
            header = stream.readline(4096)
    except (OSError, UnicodeDecodeError):
        return False
    names = _names(next(csv.reader([header], delimiter=_delimiter(file, header)), []))
    return "image" in names and ("caption" in names or "captions" in names)


def load(path: Path) -> Dataset:
    """Read a table of images and captions. The delimiter is a tab in .tsv, and in .csv a comma, or a semicolon where
    the header has no comma. Without a column `split`, images 10, 20, 30, ... are `dev` and the rest `train`.

    Raises:
        DatasetError: the file cannot be read, a column or cell is missing or malformed, or an image is in two splits.
    """
    file = _find_file(path)
    if file is None:
        raise DatasetError(
            f"{path}: expected a .csv or .tsv file, or a folder that holds {' or '.join(CAPTIONS_FILES)} (or a single "
            "such file)."
        )
    rows = list(_rows(file))
    if not rows:
        raise DatasetError(f"{file}: holds no rows below its header; expected an image and a caption a row.")
    return join_rows(file, file.parent.resolve().name if file.name in CAPTIONS_FILES else file.stem, rows)


def _find_file(path: Path) -> Path | None:
    if path.is_file():
        return path if path.suffix.lower() in SUFFIXES else None
    if not path.is_dir():
        return None
    named = next((path / name for name in CAPTIONS_FILES if (path / name).is_file()), None)
    if named is not None:
        return named
    found = sorted(entry for entry in path.iterdir() if entry.suffix.lower() in SUFFIXES and entry.is_file())
    return found[0] if len(found) == 1 else None


def _delimiter(file: Path, header: str) -> str:
    if file.suffix.lower() == ".tsv":
        return "\t"
    return ";" if ";" in header and "," not in header else ","


def _names(header: list[str]) -> list[str]:
    return [name.strip().lower() for name in header]


def _rows(file: Path) -> Iterator[Row]:
    text = read_text(file)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(file, text.partition("\n")[0]))
    numbers: dict[str, int] = {}  # images are counted, not rows: five rows an image would leave no tenth first row
    try:
        names = _names(next(reader, []))
        column = _columns(file, names)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{file}, line {reader.line_num}"
            if len(cells) != len(names):
                raise DatasetError(
                    f"{where}: {len(cells)} cells, expected {len(names)} as in the header ({', '.join(names)}); put "
                    'text that holds the delimiter in double quotes ("...").'
                )
            image = cells[column["image"]].strip()
            number = numbers.setdefault(image, len(numbers) + 1)
            yield _row(where, number, {name: cells[place].strip() for name, place in column.items()})
    except csv.Error as error:
        raise DatasetError(f"{file}, line {reader.line_num}: not a row of cells ({error}).") from None


def _columns(file: Path, names: list[str]) -> dict[str, int]:
    known: dict[str, int] = {
        name: names.index(name) for name in ("image", "caption", "captions", "split") if name in names
    }
    found = f"found {', '.join(names) or 'none'}"
    if "image" not in known:
        raise DatasetError(f"{file}, line 1: no column 'image'; {found}. The first line must name the columns.")
    if ("caption" in known) == ("captions" in known):
        raise DatasetError(f"{file}, line 1: expected one of the columns 'caption' and 'captions'; {found}.")
    return known


def _row(where: str, number: int, cells: dict[str, str]) -> Row:
    image, split = cells["image"], cells.get("split")
    if not image or "\0" in image:
        raise DatasetError(f"{where}, column 'image': expected a path relative to the file, found {image!r}.")
    if "split" in cells and not split:
        split = None
    if "caption" in cells:
        captions: Any = [cells["caption"]]
    else:
        try:
            captions = json.loads(cells["captions"] or "[]")
        except (ValueError, RecursionError):
            captions = None
        if not isinstance(captions, list) or not all(isinstance(caption, str) for caption in captions):
            raise DatasetError(
                f'{where}, column \'captions\': expected a JSON list of strings such as ["A dog.", "A big dog."], '
                f"found {cells['captions']!r:.80}. (For one caption a row, name the column 'caption'.)"
            )
    return Row(where, number, image, tuple(c.strip() for c in captions if c.strip()), split)
