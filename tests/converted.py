"""Converted graphs of a family without an encoder in front, for tests that feed features."""

import tensorflow as tf

from captionlite.export.exporter import signature_specs
from captionlite.runtime.interpreter import Graph
from captionlite.training.families.base import DecoderFamily


class FirstState(tf.Module):  # type: ignore[misc]
    """What a family computes once per photograph, without an encoder in front: features -> constants, first states."""

    def __init__(self, model: DecoderFamily) -> None:
        super().__init__()
        self._tracked = [v.value for v in model.variables]
        signature = tf.TensorSpec((1, *model.feature_shape), tf.float32, name="features")

        @tf.function(input_signature=[signature])
        def serve(features: tf.Tensor) -> dict[str, tf.Tensor]:
            return {name: tf.identity(value, name) for name, value in model.initial_state(features).items()}

        self.serve = serve


def graph(content: bytes) -> Graph:
    return Graph(content, *signature_specs(content), threads=1, where="the test's graph")
