"""COCO captions of 2014 and 2017 as their archives are published, unpacked or not.

    annotations/captions_train2014.json  annotations/captions_val2014.json  (or annotations_trainval2014.zip)
    train2014/  val2014/  (or below images/, or train2014.zip and val2014.zip, which are read in place)

COCO keeps the captions of its test photographs to itself: its train part is `train` here and its val part `dev`.

T.-Y. Lin et al. (2014), "Microsoft COCO: Common Objects in Context"; X. Chen et al. (2015), "Microsoft COCO Captions".
"""

import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from captionlite.training.datasets.base import Dataset, DatasetReport, Example, read_text
from captionlite.training.datasets.photos import Photo, ZippedPhoto, zip_members
from captionlite.training.errors import DatasetError

LICENCE = "COCO: captions CC BY 4.0; the photographs carry the licences that their owners gave them on Flickr"
PARTS = {"train": "train", "dev": "val"}


@dataclass(frozen=True)
class Coco:
    """The layout of one year."""

    year: int

    @property
    def name(self) -> str:
        return f"coco{self.year}"

    def detect(self, path: Path) -> bool:
        """Whether `path` holds captions of this year."""
        return path.is_dir() and any(self._captions(path, part) for part in PARTS.values())

    def load(self, path: Path) -> Dataset:
        """Read COCO from the folder that holds annotations/ and the photographs.

        A part whose captions or photographs are missing is left out with a note that says so; captions whose
        photograph is not there are skipped and reported.

        Raises:
            DatasetError: no part is whole, or a captions file is malformed.
        """
        splits: dict[str, tuple[Example, ...]] = {}
        missing: list[str] = []
        silent = 0
        notes = []
        for split, part in PARTS.items():
            captions_file = self._captions(path, part) if path.is_dir() else None
            photos = self._photos(path, part) if path.is_dir() else None
            if captions_file is None or photos is None:
                lacking = self._captions_name(part) if captions_file is None else f"{part}{self.year}/ or its .zip"
                notes.append(f"The split {split!r} (COCO's {part}) is left out: {lacking} is not in {path}.")
                continue
            captions = _read_captions(captions_file)
            missing += [name for name in captions if name not in photos]
            silent += sum(1 for name in photos if name not in captions)
            splits[split] = tuple(
                Example(photos[name], texts, name) for name, texts in captions.items() if name in photos
            )
        if not any(splits.values()):
            raise DatasetError(
                f"{path}: no photographs with captions of COCO {self.year}. {' '.join(notes)} Expected annotations/ "
                f"and train{self.year}/ in it, or the archives as they come from cocodataset.org."
            )
        report = DatasetReport(missing_photos=tuple(missing), photos_without_captions=silent, notes=tuple(notes))
        return Dataset(self.name, splits, report, LICENCE)

    def _captions_name(self, part: str) -> str:
        return f"annotations/captions_{part}{self.year}.json"

    def _captions(self, root: Path, part: str) -> Photo | None:
        """The captions file of a part, or the zip's member that is it."""
        name = self._captions_name(part)
        for file in (root / name, root / PurePosixPath(name).name):
            if file.is_file():
                return file
        archive = root / f"annotations_trainval{self.year}.zip"
        if archive.is_file():
            member = next((m for m in zip_members(archive) if m.endswith(PurePosixPath(name).name)), None)
            return None if member is None else ZippedPhoto(archive, member)
        return None

    def _photos(self, root: Path, part: str) -> dict[str, Photo] | None:
        """The photographs of a part by file name: in a folder if there is one, else in a zip."""
        name = f"{part}{self.year}"
        for parent in (root, root / "images"):
            if (parent / name).is_dir():
                return {entry.name: entry for entry in sorted((parent / name).iterdir())}
            archive = parent / f"{name}.zip"
            if archive.is_file():
                return {PurePosixPath(member).name: ZippedPhoto(archive, member) for member in zip_members(archive)}
        return None


def _read_captions(file: Photo) -> dict[str, tuple[str, ...]]:
    """File name -> captions, in the order of the list of images."""
    try:
        text = read_text(file) if isinstance(file, Path) else file.read_bytes().decode("utf-8-sig")
        top = json.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise DatasetError(f"{file}: not whole JSON ({error}); download it again.") from None
    names = {_field(file, "images", i, row, "id", int): row for i, row in enumerate(_list(file, top, "images"))}
    texts: dict[int, list[str]] = {number: [] for number in names}
    for i, row in enumerate(_list(file, top, "annotations")):
        number = _field(file, "annotations", i, row, "image_id", int)
        caption = " ".join(_field(file, "annotations", i, row, "caption", str).split())  # some end in a line break
        if number not in texts:
            raise DatasetError(f"{file}, annotations[{i}].image_id: {number} is not the id of one of 'images'.")
        if caption:
            texts[number].append(caption)
    captions: dict[str, tuple[str, ...]] = {}
    for i, (number, row) in enumerate(names.items()):
        name = _field(file, "images", i, row, "file_name", str)
        if texts[number]:
            captions[name] = (*captions.get(name, ()), *texts[number])
    if not captions:
        raise DatasetError(f"{file}: holds no captions; download it again.")
    return captions


def _list(file: Photo, top: Any, key: str) -> list[Any]:
    value = top.get(key) if isinstance(top, dict) else None
    if not isinstance(value, list):
        raise DatasetError(
            f"{file}, field {key!r}: expected a list, found {type(value).__name__}; is it a captions_*.json of COCO?"
        )
    return value


def _field(file: Photo, key: str, i: int, row: Any, field: str, kind: type) -> Any:
    value = row.get(field) if isinstance(row, dict) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise DatasetError(f"{file}, {key}[{i}].{field}: expected {kind.__name__}, found {value!r:.80}.")
    return value


COCO_2014, COCO_2017 = Coco(2014), Coco(2017)
