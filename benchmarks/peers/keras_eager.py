"""The published way: Keras eagerly, the whole caption so far through the model again for every new token.

This is the loop `simple_gen` of TensorFlow's tutorial "Image captioning with visual attention"
(https://www.tensorflow.org/text/tutorials/image_captioning) at temperature 0, op by op.
"""

from __future__ import annotations

import warnings
from typing import Any

from captionlite.benchmarks.peers.base import Peer, Pixels, Task, Weights, suppression
from captionlite.benchmarks.peers.keras_parts import require_tensorflow


class KerasEager(Peer):
    """The tutorial's loop; what a caption never changes (projected features) is computed anew for every token."""

    title = "Keras eager, growing prefix (the published way)"
    timed_photographs = 4
    packages = ("tensorflow", "keras")

    def __init__(self, task: Task) -> None:
        super().__init__("float32")
        self._encoder, self._model = task.run.encoder, task.run.model
        self._suppression = suppression(task.manifest)
        self._start, self._end = task.manifest.decoding.start_id, task.manifest.decoding.end_id
        self.facts.threads = {"encoder": None, "decoder": None}
        if self._model.family in ("lstm", "gru_attention"):
            self.facts.note = "published loops of recurrent captioners feed the state forward instead"

    def encode(self, pixels: Pixels) -> Any:
        return self._encoder(pixels[None].astype("float32"), training=False)

    def decode(self, encoded: Any) -> list[int]:
        import tensorflow as tf

        tokens = tf.constant([[self._start]], tf.int32)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the first token's softmax, which has a single position to look at
            for _ in range(self._model.max_length):
                logits = self._model(encoded, tokens).numpy()[:, -1, :]
                following = tf.argmax(logits + self._suppression, axis=-1, output_type=tf.int32)[:, tf.newaxis]
                tokens = tf.concat([tokens, following], axis=1)
                if following.numpy().item() == self._end:
                    break
        return [int(token) for token in tokens.numpy()[0, 1:]]


def prepare(task: Task, weights: Weights) -> Peer:
    require_tensorflow()
    return KerasEager(task)
