"""captionlite itself: what the others are held against, each round anew."""

from __future__ import annotations

from typing import Any

from captionlite.benchmarks.peers.base import Peer, Pixels, Task, Weights
from captionlite.runtime.interpreter import core_count


class Own(Peer):
    """`Captioner` on a bundle, as everybody gets it: log-probabilities, attention and text included."""

    title = "captionlite"
    packages = ("captionlite", "ai-edge-litert")

    def __init__(self, weights: Weights, task: Task) -> None:
        super().__init__(weights)
        self._captioner = task.captioner(weights)
        self.facts.threads = {"encoder": core_count(), "decoder": 1}

    def encode(self, pixels: Pixels) -> Any:
        return self._captioner.encode_pixels(pixels)

    def decode(self, encoded: Any) -> list[int]:
        return list(self._captioner.decode(encoded).tokens)


def prepare(task: Task, weights: Weights) -> Peer:
    return Own(weights, task)
