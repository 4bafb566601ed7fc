"""A Keras captioner as the two TensorFlow functions that become TFLite files.

The functions close over the Keras models: a tf.Module that holds a multi-input Keras model cannot be saved, and one
that does not track the variables would be converted without freezing them. Hence ``_tracked``.
"""

from __future__ import annotations

from typing import Any

import tensorflow as tf

from captionlite.export.labels import LABELS
from captionlite.runtime.manifest import ImageSpec, TensorSpec
from captionlite.training.families.base import EXPORTED_BANNED_LOGIT, DecoderFamily
from captionlite.training.imagenet_head import LowRankHead


class EncoderGraph(tf.Module):  # type: ignore[misc]
    """``image`` uint8 (1, H, W, 3) -> what the family computes once per photograph, by name."""

    def __init__(self, encoder: Any, model: DecoderFamily, image: ImageSpec, head: LowRankHead | None = None) -> None:
        """With a ``head``, its logits are one more output, `LABELS`: (1, classes)."""
        super().__init__()
        self._tracked = [v.value for v in (*encoder.variables, *model.variables)]
        signature = tf.TensorSpec((1, image.height, image.width, 3), tf.uint8, name="image")

        @tf.function(input_signature=[signature])  # type: ignore[untyped-decorator]
        def serve(image: tf.Tensor) -> dict[str, tf.Tensor]:
            state, features = model.state_and_grid(encoder(tf.cast(image, tf.float32), training=False))
            outputs = {name: tf.identity(value, name) for name, value in state.items()}
            if head is not None:
                outputs[LABELS] = tf.identity(_logits(head, features), LABELS)
            return outputs

        self.serve = serve


def _logits(head: LowRankHead, features: tf.Tensor) -> tf.Tensor:
    """The head on a grid (1, h, w, C); its tensors' names begin with `LABELS`, by which recipes find them.

    An output of the graph loses its name, so something has to come after the last product: its mean is taken off.
    """
    with tf.name_scope(LABELS):
        pooled = tf.reduce_mean(features, axis=(1, 2), name="pooled")
        inner = tf.nn.bias_add(tf.matmul(pooled, head.inner, name="inner"), head.inner_bias)
        outer = tf.nn.bias_add(tf.matmul(inner, head.outer, name="outer"), head.outer_bias)
        return outer - tf.reduce_mean(outer, axis=1, keepdims=True, name="mean")


class DecoderGraph(tf.Module):  # type: ignore[misc]
    """``token`` int32 (B, 1), ``position`` int32 (1,) and the state by name -> ``logits``, state updates,
    ``attention``.
    """

    def __init__(self, model: DecoderFamily) -> None:
        super().__init__()
        self._tracked = [v.value for v in model.variables]
        bias = model.output_bias_layer()
        if bias is not None:
            bias.bias.assign(tf.maximum(bias.bias.value, EXPORTED_BANNED_LOGIT))
        signature = {
            "token": tf.TensorSpec((None, 1), tf.int32, name="token"),
            "position": tf.TensorSpec((1,), tf.int32, name="position"),
        }
        for row in model.state_specs():
            signature[row.name] = tf.TensorSpec(row.shape, row.dtype, name=row.name)

        @tf.function(input_signature=[signature])  # type: ignore[untyped-decorator]
        def serve(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            state = {name: value for name, value in inputs.items() if name not in ("token", "position")}
            logits, updates, attention = model.step(inputs["token"], inputs["position"], state)
            outputs = {"logits": logits, **updates}
            if attention is not None:
                outputs["attention"] = attention
            return outputs

        self.serve = serve


class RefineGraph(tf.Module):  # type: ignore[misc]
    """``tokens`` int32 (B, L + 1) and the constants by name -> the outputs of the family's ``refine``."""

    def __init__(self, model: DecoderFamily) -> None:
        super().__init__()
        self._tracked = [v.value for v in model.variables]
        signature = {"tokens": tf.TensorSpec((None, model.max_length + 1), tf.int32, name="tokens")}
        for row in model.state_specs():
            if row.kind == "constant":
                signature[row.name] = tf.TensorSpec(row.shape, row.dtype, name=row.name)

        @tf.function(input_signature=[signature])  # type: ignore[untyped-decorator]
        def serve(inputs: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
            state = {name: value for name, value in inputs.items() if name != "tokens"}
            return model.refine(inputs["tokens"], state)

        self.serve = serve


def decoder_inputs(model: DecoderFamily) -> tuple[TensorSpec, ...]:
    """What the step takes, as the manifest says it."""
    rows = tuple(TensorSpec(row.name, row.dtype, row.shape) for row in model.state_specs())
    return (TensorSpec("token", "int32", (None, 1)), TensorSpec("position", "int32", (1,)), *rows)
