"""Conceptual Captions: a TSV of caption and address a row, and photographs that were downloaded already.

    Train_GCC-training.tsv                 training/     (or train/, or a folder named after the file)
    Validation_GCC-1.1.0-Validation.tsv    validation/   (or val/)

Addresses die, so many rows have no photograph: they are skipped and counted. A photograph's name says which row it
belongs to, in one of the ways in which downloaders name them, with any suffix and in any folder below:

    000012345.jpg        the row's number from 0 (img2dataset's files format with its default shards of 10,000)
    12345_2864434397     the row's number and the CRC-32 of its address
    2864434397           the CRC-32 of the address alone (ViLBERT's downloader)

P. Sharma, N. Ding, S. Goodman and R. Soricut (2018), "Conceptual Captions: A Cleaned, Hypernymed, Image Alt-text
Dataset for Automatic Image Captioning".
"""

import os
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from captionlite.training.datasets.base import Dataset, DatasetReport, Example
from captionlite.training.errors import DatasetError

LICENCE = "Conceptual Captions: captions free for any use with attribution to Google; the photographs are their owners'"
FILES = {"train": "*GCC*[Tt]raining*.tsv", "dev": "*GCC*[Vv]alidation*.tsv"}
FOLDERS = {"train": ("training", "train"), "dev": ("validation", "val")}

# Other files that downloaders leave beside a photograph: img2dataset's caption and metadata.
_NO_PHOTOS = (".json", ".txt", ".parquet", ".tsv", ".csv", ".tar", ".gz")
_STEM = re.compile(r"(\d{1,12})(?:_(\d{1,10}))?", re.ASCII)


def detect(path: Path) -> bool:
    """Whether `path` holds one of the two TSV files."""
    return path.is_dir() and any(_find_file(path, split) for split in FILES)


def load(path: Path) -> Dataset:
    """Read Conceptual Captions from the folder that holds the TSV files. Its validation part is `dev`.

    Raises:
        DatasetError: no TSV or no photograph is there, or a line is malformed.
    """
    splits: dict[str, tuple[Example, ...]] = {}
    notes = []
    for split in FILES:
        file = _find_file(path, split) if path.is_dir() else None
        if file is None:
            notes.append(f"The split {split!r} is left out: no file {FILES[split]} in {path}.")
            continue
        folder = next((path / n for n in (*FOLDERS[split], file.stem) if (path / n).is_dir()), None)
        if folder is None:
            notes.append(f"The split {split!r} is left out: no photographs in {path / FOLDERS[split][0]}.")
            continue
        splits[split], rows, strangers = _read(file, folder, split)
        if rows > len(splits[split]):
            lost = rows - len(splits[split])
            notes.append(f"{split}: {lost} of {rows} captions have no downloaded photograph, skipped")
        if strangers:
            notes.append(f"{split}: {strangers} files in {folder} belong to no caption, skipped")
    if not any(splits.values()):
        raise DatasetError(
            f"{path}: no photographs with captions. {' '.join(notes)} Expected Train_GCC-training.tsv and the "
            "downloaded photographs in training/, named by row number or by the CRC-32 of the address."
        )
    return Dataset("conceptual", splits, DatasetReport(notes=tuple(notes)), LICENCE)


def _find_file(root: Path, split: str) -> Path | None:
    # The labels of the same photographs are published in a file whose name fits as well.
    return next((f for f in sorted(root.glob(FILES[split])) if "Labels" not in f.name and f.is_file()), None)


def _read(file: Path, folder: Path, split: str) -> tuple[tuple[Example, ...], int, int]:
    """-> the examples in the order of the rows, the number of rows, the number of photographs that fit none."""
    captions: list[str] = []
    checksums: list[int] = []
    for caption, address in _lines(file):
        captions.append(caption)
        checksums.append(zlib.crc32(address.encode()))
    names = list(_numbered(folder))
    row_by_checksum = {checksum: row for row, checksum in enumerate(checksums)}
    # A bare number is a row or a checksum; row numbers are no checksums but by an accident of one in a thousand.
    bare = [number for _, number, checksum in names if checksum is None]
    is_checksum = 2 * sum(number in row_by_checksum for number in bare) > len(bare)
    photos: dict[int, Path] = {}
    strangers = 0
    for photo, number, checksum in names:
        row: int | None = number
        if checksum is None and is_checksum:
            row = row_by_checksum.get(number)
        if row is None or row >= len(captions) or (checksum is not None and checksums[row] != checksum):
            strangers += 1
        else:
            photos.setdefault(row, photo)
    found = tuple(Example(photos[row], (captions[row],), f"{split}-{row:09d}") for row in sorted(photos))
    return found, len(captions), strangers


def _lines(file: Path) -> Iterator[tuple[str, str]]:
    """Caption and address of each row, line by line: the file of the training part is half a gigabyte."""
    number = 0
    try:
        with file.open(encoding="utf-8-sig", newline="\n") as stream:
            for number, line in enumerate(stream, start=1):
                caption, tab, address = line.rstrip("\r\n").partition("\t")
                address = address.partition("\t")[0].strip()
                if not tab or not caption.strip() or not address:
                    raise DatasetError(
                        f"{file}, line {number}: expected 'caption<tab>address', found {line.rstrip()!r:.80}. Download "
                        "the file again; its rows must not be moved, for photographs are named by them."
                    )
                yield caption.strip(), address
    except UnicodeDecodeError:
        raise DatasetError(f"{file}, after line {number}: not UTF-8 text; download the file again.") from None
    except OSError as error:
        raise DatasetError(f"{file}: cannot be read: {error.strerror or error}.") from None


def _numbered(folder: Path) -> Iterator[tuple[Path, int, int | None]]:
    """The photographs below a folder: path, the number that begins the name, the checksum behind it if any."""
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in sorted(files):
            stem, suffix = os.path.splitext(name)
            match = _STEM.fullmatch(stem)
            if match is not None and suffix.lower() not in _NO_PHOTOS:
                yield Path(parent, name), int(match[1]), int(match[2]) if match[2] else None
