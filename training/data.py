"""The data of a run in memory: examples, encoded captions and memory-mapped features, by data set."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from captionlite.training.augmentation import FIRST_VIEW, MIRRORED, PLAIN
from captionlite.training.batches import Batch, Source
from captionlite.training.config import RunConfig
from captionlite.training.datasets import load_dataset
from captionlite.training.datasets.base import Dataset, Example
from captionlite.training.encoders import front_name
from captionlite.training.features import FeatureStore, extract_features
from captionlite.training.vocabulary import WordVocabulary


@dataclasses.dataclass(frozen=True)
class RunData:
    """Data sets by name, with the features of their train and dev photographs."""

    names: tuple[str, ...]
    datasets: tuple[Dataset, ...]
    copies: tuple[dict[int, FeatureStore], ...]  # by number, as `augmentation` counts them

    @property
    def plain(self) -> tuple[FeatureStore, ...]:
        """Features of the photographs as they are."""
        return tuple(stores[PLAIN] for stores in self.copies)

    def examples(self, number: int, split: str) -> tuple[Example, ...]:
        """The split's examples whose photograph could be read; () where the data set has no such split."""
        dataset, store = self.datasets[number], self.plain[number]
        return tuple(e for e in dataset.splits.get(split, ()) if e.id in store)

    def facts(self) -> list[dict[str, Any]]:
        """Name, photographs and licence of each data set, for whoever publishes what was trained."""
        return [
            {
                "name": name,
                "train": len(self.examples(i, "train")),
                "dev": len(self.examples(i, "dev")),
                "licence": d.licence,
            }
            for i, (name, d) in enumerate(zip(self.names, self.datasets, strict=True))
        ]

    def report(self) -> list[str]:
        """What was left out of each data set, a line each."""
        return [
            f"{name}: {line}" for name, d in zip(self.names, self.datasets, strict=True) for line in d.report.lines()
        ]

    def train_captions(self) -> list[str]:
        return [c for i in range(len(self.datasets)) for e in self.examples(i, "train") for c in e.captions]

    def sources(self, config: RunConfig, vocabulary: WordVocabulary) -> list[Source]:
        made = []
        for number, data in enumerate(config.data):
            examples = self.examples(number, "train")
            encoded = {e.id: vocabulary.encode_batch(list(e.captions)) for e in examples}
            made.append(Source(self.names[number], tuple(e.id for e in examples), encoded, data.weight))
        return made

    def features(self, batch: Batch) -> np.ndarray:
        """float16 (P, h, w, C) of a batch's photographs, of the copy that the batch says."""
        first = self.plain[0]
        out = np.empty((len(batch.rows), *first.shape[1:]), np.float16)
        places: dict[tuple[int, int], list[int]] = {}
        for i, (number, _, copy) in enumerate(batch.rows):
            places.setdefault((number, copy), []).append(i)
        for (number, copy), members in places.items():
            out[members] = self.copies[number][copy].rows([batch.rows[i][1] for i in members])
        return out


def load_data(config: RunConfig, cache_dir: Path, splits: Sequence[str] = ("train", "dev")) -> RunData:
    """Reads every data set of the run and extracts (or finds in the cache) the features of its photographs."""
    datasets = tuple(load_dataset(data.spec) for data in config.data)
    names: list[str] = []
    for dataset in datasets:
        names.append(dataset.name if dataset.name not in names else f"{dataset.name}_{len(names) + 1}")
    numbers = [PLAIN, *([MIRRORED] if config.flip else []), *range(FIRST_VIEW, FIRST_VIEW + config.views)]
    copies = []
    for dataset in datasets:
        wanted = [e for split in splits for e in dataset.splits.get(split, ())]
        seen = [e for e in dataset.splits.get("train", ()) if "train" in splits]  # views are for training only
        arguments = (front_name(config.encoder.name, config.trained_blocks), config.encoder.weights)
        copies.append(
            {
                copy: extract_features(*arguments, wanted if copy < FIRST_VIEW else seen, cache_dir, copy=copy)
                for copy in numbers
                if copy < FIRST_VIEW or seen
            }
        )
    return RunData(tuple(names), datasets, tuple(copies))
