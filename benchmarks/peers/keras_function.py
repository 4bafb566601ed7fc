"""Keras compiled by `tf.function`, a step at a time, with the state (the cache of keys and values) fed forward."""

from __future__ import annotations

from typing import Any

from captionlite.benchmarks.peers.base import Peer, Pixels, Task, Weights
from captionlite.benchmarks.peers.keras_parts import NO_CACHE, encoder_function, greedy_step, require_tensorflow


class KerasFunction(Peer):
    """The state never leaves TensorFlow, the token is chosen in the graph; one number a step comes back to Python."""

    title = "Keras tf.function with KV cache"
    timed_photographs = 16
    packages = ("tensorflow", "keras")

    def __init__(self, task: Task) -> None:
        import tensorflow as tf

        super().__init__("float32")
        self._encode = encoder_function(task)
        self._step = tf.function(greedy_step(task), autograph=False)
        self._start = tf.constant([[task.manifest.decoding.start_id]], tf.int32)
        self._end = task.manifest.decoding.end_id
        self._positions = [tf.constant([i], tf.int32) for i in range(task.manifest.decoding.max_length)]
        self.facts.threads = {"encoder": None, "decoder": None}
        if task.manifest.family == "masked_lm":
            self.facts.note = NO_CACHE

    def encode(self, pixels: Pixels) -> Any:
        return self._encode(pixels[None])

    def decode(self, encoded: Any) -> list[int]:
        token, state, tokens = self._start, encoded, []
        for position in self._positions:
            token, state = self._step(token, position, state)
            tokens.append(token.numpy().item())
            if tokens[-1] == self._end:
                break
        return tokens


def prepare(task: Task, weights: Weights) -> Peer:
    require_tensorflow()
    return KerasFunction(task)
