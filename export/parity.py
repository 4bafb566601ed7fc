"""How far a bundle's numbers are from the Keras model that it was made of."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from captionlite.runtime.captioner import Captioner
from captionlite.training.run import Run


@dataclasses.dataclass(frozen=True)
class TensorParity:
    """One tensor over all photographs (and steps): largest absolute difference, and RMS difference over RMS."""

    name: str
    max_abs: float
    relative_rms: float


@dataclasses.dataclass(frozen=True)
class Parity:
    """Differences by tensor, and how many captions came out equal to Keras's own."""

    tensors: tuple[TensorParity, ...]
    photographs: int
    equal_captions: int

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


def measure_parity(run: Run, captioner: Captioner, photographs: Sequence[np.ndarray]) -> Parity:
    """Runs photographs, uint8 (H, W, 3), through Keras and through the bundle.

    Encoder outputs are compared by name; logits along Keras's own greedy caption, each side feeding its own state
    forward. Banned words are left out: their logits are constants that only differ in how large a negative number
    stands for never.
    """
    differences: dict[str, _Difference] = {}
    generator, decoding = run.generator, captioner.bundle.manifest.decoding
    allowed = np.setdiff1d(np.arange(run.model.vocabulary_size), decoding.suppressed_ids)
    equal = 0
    for pixels in photographs:
        features = run.features(pixels[None])
        expected = run.model.initial_state(features)
        encoded = captioner.encode(pixels)
        for name, value in encoded.items():
            differences.setdefault(f"encoder/{name}", _Difference()).add(value, np.asarray(expected[name]))
        tokens = generator.generate(features)[0]
        fed = np.array([[decoding.start_id, *tokens][: decoding.max_length]], np.int32)
        reference = generator.logits(features, fed)[0]  # (T, V)
        loop = captioner.decoder
        loop.begin(encoded)
        logits = differences.setdefault("decoder/logits", _Difference())
        for t, token in enumerate(fed[0]):
            loop.step(int(token), t)
            logits.add(loop.logits[0][allowed], reference[t][allowed])
            loop.advance(t)
        found = [token for token in captioner.caption(pixels).tokens if token != decoding.end_id]
        equal += found == tokens
    return Parity(tuple(d.result(name) for name, d in differences.items()), len(photographs), equal)
