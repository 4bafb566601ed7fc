"""Which captions form a batch: seeded, resumable, bucketed by length.

The order of an epoch is a pure function of (seed, epoch), so a resumed run continues with the batch after the last
one done.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import numpy as np

from captionlite.training.augmentation import FIRST_VIEW, MIRRORED, PLAIN

BUCKET = 4  # lengths are rounded up to a multiple of this: few shapes to compile, little padding

Draw = Literal["every_caption", "random_caption"]


Row = tuple[int, str, int]  # source number, example id, which copy (see augmentation)
Group = tuple[Row, Sequence[Sequence[int]]]  # a photograph and the captions it has in a batch


@dataclasses.dataclass(frozen=True)
class Source:
    """The training part of one data set: example ids and their encoded captions, and how much of it an epoch takes.

    ``weight`` 1 takes each photograph once an epoch, 2 twice, 0.5 a random half of them.
    """

    name: str
    ids: tuple[str, ...]
    captions: Mapping[str, Sequence[Sequence[int]]]  # id -> token ids with start and end
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class Batch:
    """P photographs with K captions each. tokens int32 (P * K, T + 1): inputs are [:, :-1], labels [:, 1:]; padded."""

    rows: tuple[Row, ...]  # of each photograph
    tokens: np.ndarray


class BatchPlan:
    """The batches of each epoch.

    ``every_caption``: every caption once an epoch, in groups of K of the same photograph. ``random_caption``: every
    photograph once an epoch with K random captions (the published Show and Tell notebook draws so, K = 1). ``steps``
    cuts an epoch to that many batches; the next epoch goes on where it stopped.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        batch_size: int,
        captions_per_photo: int,
        max_length: int,
        pad_id: int,
        seed: int,
        flip: bool,
        views: int = 0,
        draw: Draw = "every_caption",
        steps: int | None = None,
    ) -> None:
        self._sources = sources
        self._photos = max(1, batch_size // captions_per_photo)
        self._k = captions_per_photo
        self._max_length, self._pad_id, self._seed = max_length, pad_id, seed
        self._flip, self._views, self._draw, self._steps = flip, views, draw, steps
        self._pass_cache: tuple[int, list[Batch]] | None = None
        self.batches_per_pass = len(self._whole_pass(0))

    @property
    def batches_per_epoch(self) -> int:
        return self._steps or self.batches_per_pass

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches ``start``.. of epoch number ``epoch`` (from 0)."""
        for i in range(start, self.batches_per_epoch):
            number, index = divmod(epoch * self.batches_per_epoch + i, self.batches_per_pass)
            yield self._whole_pass(number)[index]

    def _whole_pass(self, number: int) -> list[Batch]:
        if self._pass_cache is None or self._pass_cache[0] != number:
            self._pass_cache = number, self._make_pass(np.random.default_rng([self._seed, number]))
        return self._pass_cache[1]

    def _make_pass(self, rng: np.random.Generator) -> list[Batch]:
        groups: list[Group] = []
        for number, source in enumerate(self._sources):
            for example_id in self._draw_photos(source, rng):
                for captions in self._draw_captions(source.captions[example_id], rng):
                    groups.append(((number, example_id, self._draw_copy(rng)), captions))
        buckets: dict[int, list[int]] = {}
        for i in rng.permutation(len(groups)):
            longest = min(max(map(len, groups[i][1])), self._max_length + 1) - 1
            buckets.setdefault(-(-longest // BUCKET), []).append(int(i))
        batches: list[list[int]] = []
        left: list[int] = []
        for bucket in sorted(buckets):  # what does not fill a batch moves up to the next bucket
            members = left + buckets[bucket]
            whole = len(members) // self._photos * self._photos
            batches += [members[i : i + self._photos] for i in range(0, whole, self._photos)]
            left = members[whole:]
        if left and not batches:  # a data set smaller than a batch is one batch, filled by repetition
            left = [left[i % len(left)] for i in range(self._photos)]
        if len(left) == self._photos or (left and self._draw == "every_caption"):
            batches.append([left[i % len(left)] for i in range(self._photos)])  # equal batch sizes: one shape a bucket
        order = rng.permutation(len(batches))
        return [make_batch([groups[i] for i in batches[j]], self._max_length, self._pad_id) for j in order]

    def _draw_photos(self, source: Source, rng: np.random.Generator) -> list[str]:
        whole, part = divmod(source.weight, 1.0)
        drawn = list(source.ids) * int(whole)
        if part:
            chosen = rng.permutation(len(source.ids))[: round(part * len(source.ids))]
            drawn += [source.ids[i] for i in chosen]
        return drawn

    def _draw_copy(self, rng: np.random.Generator) -> int:
        """Each copy of a photograph as likely as the others."""
        if self._views:
            copies = [PLAIN, *([MIRRORED] if self._flip else []), *range(FIRST_VIEW, FIRST_VIEW + self._views)]
            return int(rng.choice(copies))
        return MIRRORED if self._flip and rng.random() < 0.5 else PLAIN

    def _draw_captions(
        self, captions: Sequence[Sequence[int]], rng: np.random.Generator
    ) -> Iterator[list[Sequence[int]]]:
        order = rng.permutation(len(captions))
        if self._draw == "random_caption":
            yield [captions[order[i % len(order)]] for i in range(self._k)]
            return
        for start in range(0, len(order), self._k):
            yield [captions[order[(start + i) % len(order)]] for i in range(self._k)]


def make_batch(groups: Sequence[Group], max_length: int, pad_id: int) -> Batch:
    """Photographs with equally many captions each -> a padded batch, at most ``max_length`` steps wide."""
    captions = [caption[: max_length + 1] for _, chosen in groups for caption in chosen]
    longest = max(map(len, captions)) - 1
    width = min(-(-longest // BUCKET) * BUCKET, max_length)
    tokens = np.full((len(captions), width + 1), pad_id, np.int32)
    for row, caption in zip(tokens, captions, strict=True):
        row[: len(caption)] = caption
    return Batch(tuple(row for row, _ in groups), tokens)
