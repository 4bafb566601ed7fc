"""The whole decoding loop as one TensorFlow graph: `tf.function` at its best, with no return to Python in between."""

from __future__ import annotations

from typing import Any

from captionlite.benchmarks.peers.base import Peer, Pixels, Task, Weights
from captionlite.benchmarks.peers.keras_parts import NO_CACHE, encoder_function, greedy_step, require_tensorflow


class KerasLoop(Peer):
    """`tf.while_loop` over the same step; one call a caption."""

    title = "Keras, whole loop in one tf.function"
    timed_photographs = 16
    packages = ("tensorflow", "keras")

    def __init__(self, task: Task) -> None:
        import tensorflow as tf

        super().__init__("float32")
        self._encode = encoder_function(task)
        decoding, step = task.manifest.decoding, greedy_step(task)

        def going_on(position: Any, token: Any, state: Any, tokens: Any) -> Any:
            return (position < decoding.max_length) & (token[0, 0] != decoding.end_id)

        def body(position: Any, token: Any, state: Any, tokens: Any) -> Any:
            token, state = step(token, position[tf.newaxis], state)
            return position + 1, token, state, tokens.write(position, token[0, 0])

        def decode(state: Any) -> Any:
            tokens = tf.TensorArray(tf.int32, size=0, dynamic_size=True, element_shape=())
            first = tf.constant(0), tf.constant([[decoding.start_id]], tf.int32), state, tokens
            return tf.while_loop(going_on, body, first, parallel_iterations=1)[3].stack()

        self._decode = tf.function(decode, autograph=False)
        self.facts.threads = {"encoder": None, "decoder": None}
        if task.manifest.family == "masked_lm":
            self.facts.note = NO_CACHE

    def encode(self, pixels: Pixels) -> Any:
        return self._encode(pixels[None])

    def decode(self, encoded: Any) -> list[int]:
        found: list[int] = self._decode(encoded).numpy().tolist()
        return found


def prepare(task: Task, weights: Weights) -> Peer:
    require_tensorflow()
    return KerasLoop(task)
