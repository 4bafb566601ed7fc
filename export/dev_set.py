"""Photographs with captions by which a search compares recipes: never test ones, never those it calibrates on."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence

import numpy as np

from captionlite.export.errors import ExportError
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.errors import ImageError
from captionlite.runtime.image import load_image
from captionlite.training.datasets import load_dataset
from captionlite.training.datasets.photos import Photo

SCORED_PHOTOGRAPHS = 1000


@dataclasses.dataclass(frozen=True)
class DevSet:
    """Photographs with captions that a search is judged by. ``sha256``: of photographs and captions, in their order."""

    name: str
    photographs: tuple[np.ndarray, ...]  # uint8 (H, W, 3)
    references: tuple[tuple[str, ...], ...]
    hashes: frozenset[str]  # of the photographs' files
    sha256: str
    unreadable: int = 0

    @classmethod
    def load(cls, spec: str, split: str, bundle: Bundle, seed: int = 0) -> DevSet:
        """A split of a data set, or a seeded sample of `SCORED_PHOTOGRAPHS` of it.

        Raises ExportError for the test split: what a recipe was chosen by cannot say how good the chosen one is.
        """
        if split.casefold().startswith("test"):
            raise ExportError(
                f"--split {split}: a search chooses by the captions of this split, so its scores are no longer a test. "
                "Give --split dev, and score the chosen bundle on the test split once, with `captionlite evaluate`"
            )
        dataset = load_dataset(spec)
        examples = dataset.split(split)
        order = np.random.default_rng(seed).permutation(len(examples))[:SCORED_PHOTOGRAPHS]
        photographs, references, hashes, unreadable = [], [], [], 0
        total = hashlib.sha256()
        for i in order:
            example = examples[int(i)]
            try:
                data = example.image.read_bytes()
                photographs.append(load_image(data, bundle.manifest.image))
            except (ImageError, OSError):
                unreadable += 1
                continue
            references.append(example.captions)
            hashes.append(hashlib.sha256(data).hexdigest())
            total.update(json.dumps([example.id, hashes[-1], example.captions]).encode())
        if len(photographs) < 2:
            raise ExportError(
                f"{dataset.name} {split}: {len(photographs)} photographs can be read, expected 100 or more"
            )
        return cls(
            f"{dataset.name} {split}",
            tuple(photographs),
            tuple(references),
            frozenset(hashes),
            total.hexdigest(),
            unreadable,
        )


def require_disjoint(calibration: Sequence[Photo], dev: DevSet) -> None:
    """Raises ExportError when a photograph is in both, by what its file holds."""
    both = [photo.name for photo in calibration if hashlib.sha256(photo.read_bytes()).hexdigest() in dev.hashes]
    if both:
        raise ExportError(
            f"{len(both)} photographs ({', '.join(both[:3])}, ...) are to calibrate and are in {dev.name} as well, "
            "expected none: a recipe must not be judged on what its ranges were fitted to; give --calibrate training "
            "photographs"
        )
