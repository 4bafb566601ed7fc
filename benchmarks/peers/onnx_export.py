"""The bundle's two graphs as ONNX, by tf2onnx from the very functions that become TFLite files (export/graphs.py).

What an expert would do besides is done: the batch is fixed to 1, attention maps, which a caption does not need, are
left out, and what Keras spells in a dozen small operations is put back into one (onnx_tidy.py).
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable
from typing import Any

from captionlite.benchmarks.peers.base import PeerUnavailable, Task

OPSET = 17  # the first with LayerNormalization
COMPUTED = "computed_"
"""Before the names of all outputs but `logits`: tf2onnx cannot tell an output from an input of the same name."""


def export_graphs(task: Task) -> dict[str, Any]:
    """onnx.ModelProto of "encoder" and "decoder" with a batch of 1. Raises PeerUnavailable where tf2onnx refuses."""
    import tensorflow as tf

    from captionlite.benchmarks.peers.onnx_tidy import tidy
    from captionlite.export.graphs import DecoderGraph, EncoderGraph

    run, manifest = task.run, task.manifest
    encoder, decoder = EncoderGraph(run.encoder, run.model, manifest.image), DecoderGraph(run.model)
    serve, step = encoder.serve.python_function, decoder.serve.python_function
    rows = [(row.name, [size or 1 for size in row.shape], row.dtype) for row in manifest.state]
    inputs = [("token", [1, 1], "int32"), ("position", [1], "int32"), *rows]

    def positional(*arrays: Any) -> dict[str, Any]:
        outputs = step({name: array for (name, _, _), array in zip(inputs, arrays, strict=True)})
        wanted = {name: value for name, value in outputs.items() if name != "attention"}
        return {name if name == "logits" else COMPUTED + name: value for name, value in wanted.items()}

    def encode(pixels: Any) -> dict[str, Any]:
        return {COMPUTED + name: value for name, value in serve(pixels).items()}

    image = tf.TensorSpec((1, manifest.image.height, manifest.image.width, 3), tf.uint8, name="image")
    graphs = {
        "encoder": _convert(tf.function(encode), [image]),
        "decoder": _convert(
            tf.function(positional), [tf.TensorSpec(shape, dtype, name=name) for name, shape, dtype in inputs]
        ),
    }
    for model in graphs.values():
        tidy(model)
    return graphs


def _convert(function: Callable[..., Any], signature: list[Any]) -> Any:
    logging.getLogger("tf2onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside tf2onnx
        import tf2onnx

        try:
            model, _ = tf2onnx.convert.from_function(function, input_signature=signature, opset=OPSET)
        except Exception as error:  # it raises what its rewriters stumble over
            first = (str(error).splitlines() or [type(error).__name__])[0]
            raise PeerUnavailable(f"tf2onnx cannot convert the graph: {first}") from error
    return model
