"""How far a bundle's numbers are from the Keras model that it was made of, or from the float32 bundle."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from captionlite.runtime.captioner import Captioner

if TYPE_CHECKING:
    from captionlite.training.imagenet_head import LowRankHead
    from captionlite.training.run import Run


@dataclasses.dataclass(frozen=True)
class TensorParity:
    """One tensor over all photographs (and steps): largest absolute difference, and RMS difference over RMS."""

    name: str
    max_abs: float
    relative_rms: float


@dataclasses.dataclass(frozen=True)
class Parity:
    """Differences by tensor, and how many captions came out equal to the reference's own."""

    tensors: tuple[TensorParity, ...]
    photographs: int
    equal_captions: int
    reference: str = "the Keras model"

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


class _Difference:
    def __init__(self) -> None:
        self.max_abs = self.squares = self.reference = 0.0

    def add(self, found: np.ndarray, expected: np.ndarray) -> None:
        difference = found.astype(np.float64) - expected
        self.max_abs = max(self.max_abs, float(np.abs(difference).max()))
        self.squares += float(np.square(difference).sum())
        self.reference += float(np.square(expected, dtype=np.float64).sum())

    def result(self, name: str) -> TensorParity:
        return TensorParity(name, self.max_abs, float(np.sqrt(self.squares / max(self.reference, 1e-30))))


class _Comparison:
    """Sums up what a bundle does against a reference that is told photograph by photograph."""

    def __init__(self, captioner: Captioner) -> None:
        self.captioner = captioner
        manifest = captioner.bundle.manifest
        self.decoding = manifest.decoding
        # Banned words are left out: their logits are constants that only differ in how large a negative number stands
        # for never.
        self._allowed = np.setdiff1d(np.arange(manifest.vocabulary.size), self.decoding.suppressed_ids)
        self._differences: dict[str, _Difference] = {}
        self._photographs = self._equal = 0

    def fed(self, tokens: Sequence[int]) -> list[int]:
        """What the decoder is fed to give the logits of ``tokens``, which have no end token."""
        return [self.decoding.start_id, *tokens][: self.decoding.max_length]

    def add(
        self, pixels: np.ndarray, expected: Mapping[str, Any], tokens: Sequence[int], reference: np.ndarray
    ) -> None:
        """A photograph: the reference's encoder outputs, greedy tokens, and logits (T, V) along these tokens."""
        captioner = self.captioner
        encoded = captioner.encode(pixels)
        for name, value in encoded.items():
            difference = self._differences.setdefault(f"encoder/{name}", _Difference())
            difference.add(value, np.asarray(expected[name]))
        logits = self._differences.setdefault("decoder/logits", _Difference())
        found = logits_along(captioner, encoded, self.fed(tokens))
        logits.add(found[:, self._allowed], reference[: len(found), self._allowed])
        own = [token for token in captioner.caption(pixels).tokens if token != self.decoding.end_id]
        self._photographs += 1
        self._equal += own == list(tokens)

    def result(self, reference: str) -> Parity:
        tensors = tuple(difference.result(name) for name, difference in self._differences.items())
        return Parity(tensors, self._photographs, self._equal, reference)


def logits_along(captioner: Captioner, encoded: Mapping[str, Any], fed: Sequence[int]) -> np.ndarray:
    """Logits (T, V) of a decoder that is fed these tokens and its own state."""
    loop = captioner.decoder
    loop.begin(encoded)
    logits = []
    for t, token in enumerate(fed):
        loop.step(int(token), t)
        logits.append(loop.logits[0].copy())
        loop.advance(t)
    return np.stack(logits)


def measure_parity(
    run: Run, captioner: Captioner, photographs: Sequence[np.ndarray], head: LowRankHead | None = None
) -> Parity:
    """Runs photographs, uint8 (H, W, 3), through Keras and through the bundle; `head` is what its labels are made by.

    Encoder outputs are compared by name; logits along Keras's own greedy caption, each side feeding its own state
    forward.
    """
    comparison, generator = _Comparison(captioner), run.generator
    for pixels in photographs:
        features = run.features(pixels[None])
        tokens = generator.generate(features)[0]
        fed = np.array([comparison.fed(tokens)], np.int32)
        logits = generator.logits(features, fed)[0]
        expected = dict(run.model.initial_state(features))
        labels = captioner.bundle.manifest.labels
        if head is not None and labels is not None:
            found = head.logits(run.grids(pixels[None]).mean(axis=(1, 2)))
            expected[labels.output] = found - found.mean()
        comparison.add(pixels, expected, tokens, logits)
    return comparison.result("the Keras model")


def measure_bundle_parity(reference: Captioner, captioner: Captioner, photographs: Sequence[np.ndarray]) -> Parity:
    """The same against another bundle of the same model, in place of Keras."""
    comparison = _Comparison(captioner)
    for pixels in photographs:
        encoded = reference.encode(pixels)
        caption = reference.decode(encoded).tokens
        tokens = [token for token in caption if token != comparison.decoding.end_id]
        logits = logits_along(reference, encoded, comparison.fed(tokens))
        comparison.add(pixels, encoded, tokens, logits)
    return comparison.result("the float32 bundle")
