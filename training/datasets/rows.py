"""What the generic forms share: rows of an image, its captions and perhaps a split, joined into a data set."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from captionlite.training.datasets.base import Dataset, DatasetReport, Example
from captionlite.training.errors import DatasetError

LICENCE = "as stated by whoever supplied the data"
DEV_EVERY = 10  # without splits, every tenth row is dev


@dataclass(frozen=True)
class Row:
    """One row: where it stands in the file, for messages; its number, which decides the split where none is given."""

    where: str
    number: int
    image: str
    captions: tuple[str, ...]
    split: str | None


def join_rows(file: Path, name: str, rows: Sequence[Row]) -> Dataset:
    """Join the rows of each image, in the split of the first; images are taken relative to the file.

    Without splits, rows whose number is 10, 20, 30, ... are `dev` and the rest `train`.

    Raises:
        DatasetError: the split is given on some rows only, an image stands in two, or no photograph is there.
    """
    _refuse_partly_split(rows)
    captions: dict[str, list[str]] = {}
    splits_by_image: dict[str, str] = {}
    for row in rows:
        split = row.split or ("dev" if row.number % DEV_EVERY == 0 else "train")
        first = splits_by_image.setdefault(row.image, split)
        if row.split is not None and first != split:
            raise DatasetError(
                f"{row.where}, field 'split': {row.image} is {split!r} here and {first!r} further up; a photograph may "
                "stand in one split only."
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
    return Dataset(name, {split: tuple(examples) for split, examples in splits.items()}, report, LICENCE)


def _refuse_partly_split(rows: Sequence[Row]) -> None:
    unsplit = [row.where for row in rows if row.split is None]
    if unsplit and len(unsplit) != len(rows):
        raise DatasetError(
            f"{unsplit[0]}, field 'split': missing here but given on other lines; give it on every line, or on none "
            "for the automatic train and dev parts."
        )


def _unique_ids(images: list[str]) -> dict[str, str]:
    """File names as ids; where two folders hold the same file name, the paths as written."""
    names = [Path(image).name for image in images]
    if len(set(names)) == len(names):
        return dict(zip(images, names, strict=True))
    return {image: image for image in images}
