"""Is a quantized bundle still the model it was made of? Its captions on a thousand photographs decide, and its numbers.

Both sides see the same photographs. What is compared: the encoder's outputs by name (cosine, signal-to-noise ratio);
the logits along the reference's own caption, each side feeding its own state forward (teacher forcing: cosine, relative
RMS error, agreement on the likeliest token, by position); the captions (equal token by token, first step that differs);
their scores, with intervals from `bootstrap`. Of `refine`, the graph of parallel passes, only captions are compared,
where the decoding options ask for passes.

CIDEr decides: the bundle's by the reference's must reach what its recipe promises. But CIDEr can hide a broken graph:
with the scale of the output layer doubled, greedy captions stay as they are and only their probabilities are wrong,
and a doubled scale elsewhere has scored better than float by luck. So some floors hold whatever the captions score:
`gate_verdict.Floors`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import numpy as np
import numpy.typing as npt

from captionlite.benchmarks.bootstrap import PairedBootstrap, PhotoStatistics, paired_bootstrap
from captionlite.benchmarks.evaluation import Evaluation, evaluate
from captionlite.benchmarks.gate_reference import Reference, Shown
from captionlite.export.parity import logits_along
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.decoding import Caption, DecodingOptions
from captionlite.runtime.errors import CaptionliteError, ImageError, InterpreterError
from captionlite.runtime.image import ImageSource, load_image
from captionlite.training.datasets import Example
from captionlite.training.scoring import bleu_counts

BATCH = 32  # photographs whose encoder outputs and logits are in memory at once

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class OutputSimilarity:
    """One encoder output: its cosine to the reference's, photograph by photograph, and the SNR over all of them.

    The signal is the reference, the noise the difference; `snr_db` is None where there is no difference at all.
    """

    name: str
    cosines: Floats  # (photographs,)
    snr_db: float | None
    worst_photograph: str

    @property
    def mean_cosine(self) -> float:
        return float(self.cosines.mean())

    @property
    def worst_cosine(self) -> float:
        return float(self.cosines.min())


@dataclass(frozen=True)
class StepSimilarity:
    """The logits of one position, or of all: over `n` steps, without the banned words, and less their mean.

    Less their mean, because a constant changes no probability and yet is most of a logit (verify's error, of the logits
    as they are, is several times smaller). `relative_rms` is the RMS of the difference by the RMS of the reference;
    `top1` is how often the likeliest token is the same.
    """

    n: int
    cosine: float
    relative_rms: float
    top1: float


@dataclass(frozen=True)
class PhotoComparison:
    """One photograph: both captions, the first step at which they differ (from 0; None: never), and its numbers."""

    id: str
    reference: str
    candidate: str
    first_difference: int | None
    cosines: dict[str, float]
    top1: float
    reference_cider: float
    candidate_cider: float


@dataclass(frozen=True)
class Measured:
    """Everything that is compared, over the photographs that both sides could read."""

    outputs: tuple[OutputSimilarity, ...]
    logits: StepSimilarity
    steps: tuple[StepSimilarity, ...]  # by position
    reference: Evaluation
    candidate: Evaluation
    bootstrap: PairedBootstrap
    photographs: tuple[PhotoComparison, ...]

    @property
    def n(self) -> int:
        return len(self.photographs)

    @property
    def unreadable(self) -> tuple[str, ...]:
        """What was wrong with each photograph that was left out."""
        return tuple(photo.error or "" for photo in self.reference.failed)

    @property
    def equal_captions(self) -> int:
        return sum(photo.first_difference is None for photo in self.photographs)

    @property
    def first_differences(self) -> list[int]:
        """How many captions differ first at step 0, 1, ..."""
        steps = [photo.first_difference for photo in self.photographs if photo.first_difference is not None]
        return np.bincount(steps).tolist() if steps else []

    @property
    def median_first_difference(self) -> float | None:
        steps = [photo.first_difference for photo in self.photographs if photo.first_difference is not None]
        return float(median(steps)) if steps else None

    @property
    def worst_top1(self) -> PhotoComparison:
        return min(self.photographs, key=lambda photo: photo.top1)


class NotComputableError(CaptionliteError):
    """The bundle computes no finite numbers: there is nothing to score."""


def measure(
    reference: Reference,
    captioner: Captioner,
    examples: Sequence[Example],
    options: DecodingOptions | None = None,
    advance: Callable[[int], None] = lambda done: None,
) -> Measured:
    """Both sides on all photographs; those that cannot be read are left out on both. `advance` counts photographs.

    Raises NotComputableError when the bundle's encoder outputs or logits are NaN or infinite, CaptionliteError when no
    photograph could be read, when the reference is no yardstick (its CIDEr is 0), or when it cannot decode so.
    """
    options = options or DecodingOptions()
    comparison = _Comparison(reference, captioner, options)
    for start in range(0, len(examples), BATCH):
        batch = examples[start : start + BATCH]
        comparison.add(batch)
        advance(len(batch))
    return comparison.result(examples)


class _Comparison:
    """Sums up batches of photographs."""

    def __init__(self, reference: Reference, captioner: Captioner, options: DecodingOptions) -> None:
        self._reference, self._captioner, self._options = reference, captioner, options
        manifest = captioner.bundle.manifest
        self._image, self._start = manifest.image, manifest.decoding.start_id
        self._allowed = np.setdiff1d(np.arange(manifest.vocabulary.size), manifest.decoding.suppressed_ids)
        self._said: list[tuple[Caption, Caption] | ImageError] = []  # in the order of the photographs
        self._ids: list[str] = []  # of those that could be read
        self._cosines: dict[str, list[float]] = {}
        self._energies: dict[str, list[tuple[float, float]]] = {}  # of signal and noise
        self._steps: list[Floats] = []  # (T, 4): cosine, squares of the difference and the reference, agreement

    def add(self, batch: Sequence[Example]) -> None:
        loaded: list[npt.NDArray[np.uint8] | ImageError] = []
        for example in batch:
            try:
                loaded.append(load_image(example.image, self._image))
            except ImageError as error:
                loaded.append(error.with_traceback(None))
        pixels = [one for one in loaded if not isinstance(one, ImageError)]
        shown = iter(self._reference.show(pixels, self._options) if pixels else [])
        encoded = [self._captioner.encode_pixels(one) for one in pixels]
        ids = [e.id for e, one in zip(batch, loaded, strict=True) if not isinstance(one, ImageError)]
        for name, outputs in zip(ids, encoded, strict=True):
            _require_finite(outputs, name)
        try:
            captions = iter(self._captioner.decode_many(encoded, self._options))
        except InterpreterError as error:
            raise NotComputableError(str(error)) from error
        outputs_of = iter(encoded)
        for example, one in zip(batch, loaded, strict=True):
            if isinstance(one, ImageError):
                self._said.append(one)
            else:
                self._compare(example.id, next(shown), next(outputs_of), next(captions))

    def _compare(self, photograph: str, shown: Shown, encoded: dict[str, Array], caption: Caption) -> None:
        self._ids.append(photograph)
        self._said.append((shown.caption, caption))
        for name, expected in shown.encoded.items():
            ours, theirs = (values.astype(np.float64).ravel() for values in (encoded[name], expected))
            self._cosines.setdefault(name, []).append(float(_cosine(ours, theirs)))
            # Not by products of vectors: NumPy gives long ones to threads, which wait for each other on a busy machine.
            energies = float(np.square(theirs).sum()), float(np.square(ours - theirs).sum())
            self._energies.setdefault(name, []).append(energies)
        found = logits_along(self._captioner, encoded, [self._start, *shown.caption.tokens[:-1]])
        _require_finite({"logits": found}, photograph)
        ours, theirs = (logits[:, self._allowed].astype(np.float64) for logits in (found, shown.logits))  # (T, words)
        same = ours.argmax(axis=1) == theirs.argmax(axis=1)
        ours, theirs = (logits - logits.mean(axis=1, keepdims=True) for logits in (ours, theirs))
        differences = np.square(ours - theirs).sum(axis=1), np.square(theirs).sum(axis=1)
        self._steps.append(np.stack([_cosine(ours, theirs), *differences, same], axis=1))

    def result(self, examples: Sequence[Example]) -> Measured:
        sides = [evaluate(_Said(self._said, side), examples, options=self._options) for side in (0, 1)]
        theirs, ours = (self._statistics(side) for side in sides)
        if not theirs.cider.sum() > 0:
            raise CaptionliteError(
                f"{self._reference.location}: the reference's captions have a CIDEr of 0 on these {len(self._ids)} "
                f"photographs, so nothing can be held to it. Give photographs that it was made for, or more of them."
            )
        return Measured(
            outputs=tuple(map(self._output, self._cosines)),
            logits=_similarity(self._steps),
            steps=tuple(
                _similarity([rows[t : t + 1] for rows in self._steps if len(rows) > t])
                for t in range(max(map(len, self._steps)))
            ),
            reference=sides[0],
            candidate=sides[1],
            bootstrap=paired_bootstrap(theirs, ours),
            photographs=tuple(self._photographs(theirs.cider, ours.cider)),
        )

    def _statistics(self, side: Evaluation) -> PhotoStatistics:
        captions = {photo.example.id: photo.caption.text for photo in side.photos if photo.caption is not None}
        references = {photo.example.id: photo.example.captions for photo in side.photos}
        scores = {photo.example.id: photo.scores for photo in side.photos if photo.scores is not None}
        return PhotoStatistics.of(self._ids, bleu_counts(captions, references), scores)

    def _output(self, name: str) -> OutputSimilarity:
        cosines = np.array(self._cosines[name])
        signal, noise = np.sum(self._energies[name], axis=0)
        snr_db = float(10 * np.log10(max(signal, 1e-30) / noise)) if noise > 0 else None
        return OutputSimilarity(name, cosines, snr_db, self._ids[int(cosines.argmin())])

    def _photographs(self, reference_cider: Floats, candidate_cider: Floats) -> Iterator[PhotoComparison]:
        pairs = [pair for pair in self._said if not isinstance(pair, ImageError)]
        for i, (photograph, (theirs, ours)) in enumerate(zip(self._ids, pairs, strict=True)):
            yield PhotoComparison(
                id=photograph,
                reference=theirs.text,
                candidate=ours.text,
                first_difference=first_difference(theirs.tokens, ours.tokens),
                cosines={name: cosines[i] for name, cosines in self._cosines.items()},
                top1=float(self._steps[i][:, 3].mean()),
                reference_cider=float(reference_cider[i]),
                candidate_cider=float(candidate_cider[i]),
            )


class _Said:
    """Captions of one side that are there already, for `evaluate`, which is what scores."""

    def __init__(self, said: Sequence[tuple[Caption, Caption] | ImageError], side: int) -> None:
        self._said, self._side = said, side

    def caption_many(
        self, images: Iterable[ImageSource], options: DecodingOptions | None = None
    ) -> Iterator[Caption | ImageError]:
        for pair in self._said:
            yield pair if isinstance(pair, ImageError) else pair[self._side]


def first_difference(one: Sequence[int], other: Sequence[int]) -> int | None:
    """The first step at which two captions differ, counted from 0; None when they are equal."""
    for step, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return step
    return None if len(one) == len(other) else min(len(one), len(other))


def _similarity(rows: Sequence[Floats]) -> StepSimilarity:
    """Over the steps (T, 4) of several photographs."""
    steps = np.concatenate(rows)
    cosine, _, _, top1 = steps.mean(axis=0)
    _, difference, reference, _ = steps.sum(axis=0)
    return StepSimilarity(len(steps), float(cosine), float(np.sqrt(difference / max(reference, 1e-30))), float(top1))


def _cosine(ours: Floats, theirs: Floats) -> Any:
    """Along the last axis; 1 where both are zero, 0 where one is."""
    products = (ours * theirs).sum(axis=-1)
    lengths = np.sqrt((ours * ours).sum(axis=-1) * (theirs * theirs).sum(axis=-1))
    both_zero = ~(ours.any(axis=-1) | theirs.any(axis=-1))
    return np.where(lengths > 0, products / np.where(lengths > 0, lengths, 1.0), both_zero.astype(np.float64))


def _require_finite(values: dict[str, Array], photograph: str) -> None:
    for name, found in values.items():
        if not np.isfinite(found).all():
            what = "the decoder's logits are" if name == "logits" else f"the encoder output {name} is"
            raise NotComputableError(f"{what} NaN or infinite on the photograph {photograph}")
