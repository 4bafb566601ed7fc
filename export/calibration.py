"""Photographs to calibrate on, and what a graph sees of them: pixels, or the states of real decoding."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from captionlite.export.errors import ExportError
from captionlite.export.recipes import Recipe
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.commands.photographs import IMAGE_SUFFIXES
from captionlite.runtime.image import load_image
from captionlite.runtime.manifest import ImageSpec
from captionlite.runtime.masked import mask_predict
from captionlite.training.datasets import load_dataset
from captionlite.training.datasets.photos import Photo
from captionlite.training.errors import DatasetError

if TYPE_CHECKING:
    from captionlite.training.run import Run

CALIBRATION_PHOTOGRAPHS = 200
DECODED_PHOTOGRAPHS = 40  # of these, decoded for the decoder's calibration: some ten steps each
REFINED_PHOTOGRAPHS = 10  # of these, captioned in parallel passes: tens of canvases each
REFINE_PASSES = 4


@dataclasses.dataclass(frozen=True)
class Photographs:
    """Which photographs, where they come from, and the seed that they were drawn with (None: all that there are)."""

    photos: tuple[Photo, ...]
    source: str
    seed: int | None = None

    @classmethod
    def of_run(cls, run: Run) -> Photographs:
        """A seeded sample of the run's training photographs: none of its dev or test splits is among them."""
        photos = run.training_photographs(CALIBRATION_PHOTOGRAPHS)
        return cls(tuple(photos), "the run's training photographs", run.config.seed)

    @classmethod
    def of_folder(cls, folder: Path, held_out: Collection[str] = (), seed: int = 0) -> Photographs:
        """The photographs of a folder by name, or a seeded sample of so many, without those named in ``held_out``."""
        paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in IMAGE_SUFFIXES)
        return cls._drawn([path for path in paths if path.name not in held_out], str(folder), seed)

    @classmethod
    def of_data(cls, spec: str, seed: int = 0) -> Photographs:
        """A seeded sample of the train split of a data set ("kind:path"), or of a folder of photographs."""
        folder = Path(spec).expanduser()
        if folder.is_dir() and any(path.suffix.lower() in IMAGE_SUFFIXES for path in folder.iterdir()):
            return cls.of_folder(folder, seed=seed)
        dataset = load_dataset(spec)
        held_out = {e.id for name, split in dataset.splits.items() if name != "train" for e in split}
        photos = [e.image for e in dataset.split("train") if e.id not in held_out]
        return cls._drawn(photos, f"{dataset.name} train", seed)

    @classmethod
    def _drawn(cls, photos: list[Photo], source: str, seed: int) -> Photographs:
        if not photos:
            raise ExportError(
                f"{source}: no photographs there ({', '.join(sorted(IMAGE_SUFFIXES))}), expected 100 or more"
            )
        if len(photos) <= CALIBRATION_PHOTOGRAPHS:
            return cls(tuple(photos), source)
        chosen = np.random.default_rng(seed).permutation(len(photos))[:CALIBRATION_PHOTOGRAPHS]
        return cls(tuple(photos[i] for i in chosen), source, seed)

    def load(self, image: ImageSpec) -> list[np.ndarray]:
        """uint8 (H, W, 3) each, in order."""
        return [load_image(photo, image) for photo in self.photos[:CALIBRATION_PHOTOGRAPHS]]

    def provenance(self) -> dict[str, Any]:
        """For the manifest; the hash is of the ids, each with a line feed."""
        ids = [photo.name for photo in self.photos[:CALIBRATION_PHOTOGRAPHS]]
        digest = hashlib.sha256("".join(f"{name}\n" for name in ids).encode()).hexdigest()
        return {"photographs": len(ids), "source": self.source, "seed": self.seed, "sha256": digest, "ids": ids}


NO_CALIBRATION: dict[str, Any] = {"photographs": 0}


def held_out_names(run: Run) -> set[str]:
    """File names of everything that the run's data sets hold outside their train splits; what is gone is left out."""
    names: set[str] = set()
    for data in run.config.data:
        try:
            splits = load_dataset(data.spec).splits
        except DatasetError:
            continue
        names |= {example.image.name for name, split in splits.items() if name != "train" for example in split}
    return names


def require_photographs(recipe: Recipe, graphs: Iterable[str], given: bool, option: str) -> None:
    """Raises ExportError when one of a bundle's graphs is to be calibrated and there is nothing to do it on."""
    if not given and any(recipe.graph(graph).needs_calibration for graph in graphs):
        raise ExportError(
            f"recipe {recipe.name} needs calibration photographs; give {option} with 100 or more training photographs"
        )


class Calibration:
    """The inputs that each graph is calibrated on. The float captioner that decodes is made when it is first needed."""

    def __init__(self, photographs: Sequence[np.ndarray], captioner: Callable[[], Captioner]) -> None:
        self._photographs, self._make = photographs, captioner
        self._captioner: Captioner | None = None

    def samples(self, graph: str) -> Iterator[dict[str, np.ndarray]]:
        """For "encoder", "decoder" or "refine": inputs by name, one dict a run of the graph."""
        if graph == "encoder":
            yield from ({"image": pixels[None]} for pixels in self._photographs)
            return
        self._captioner = self._captioner or self._make()
        if graph == "decoder":
            yield from decoder_samples(self._captioner, self._photographs[:DECODED_PHOTOGRAPHS])
        else:
            yield from refine_samples(self._captioner, self._photographs[:REFINED_PHOTOGRAPHS])


def decoder_samples(captioner: Captioner, photographs: Sequence[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """What the decoder is fed at every step of its own greedy captions."""
    manifest = captioner.bundle.manifest
    for pixels in photographs:
        encoded = captioner.encode(pixels)
        tokens = captioner.decode(encoded).tokens
        constants = {row.name: encoded[row.name] for row in manifest.state if row.kind == "constant"}
        loop = captioner.decoder
        loop.begin(encoded)
        for position, token in enumerate([manifest.decoding.start_id, *tokens][: len(tokens)]):
            loop.step(int(token), position)
            views = loop.graph.inputs
            yield {name: constants[name] if name in constants else view().copy() for name, view in views.items()}
            loop.advance(position)


def refine_samples(captioner: Captioner, photographs: Sequence[np.ndarray]) -> Iterator[dict[str, np.ndarray]]:
    """What the parallel passes are fed while they write captions, a canvas a sample."""
    manifest = captioner.bundle.manifest
    refine = captioner.refiner("calibration")
    for pixels in photographs:
        encoded = captioner.encode(pixels)
        constants = {row.name: encoded[row.name] for row in manifest.state if row.kind == "constant"}
        refine.begin(encoded)
        fed: list[np.ndarray] = []

        def recorded(tokens: Any, fed: list[np.ndarray] = fed) -> Any:
            fed.extend(row[None].copy() for row in tokens)
            return refine(tokens)

        mask_predict(recorded, manifest.decoding, REFINE_PASSES)
        yield from ({"tokens": row, **constants} for row in fed)
