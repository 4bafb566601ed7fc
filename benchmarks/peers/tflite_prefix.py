"""One TFLite graph for the whole caption, run again on all of it for every token: what converting `call` gives.

No state, no cache: the decoder takes the features and the tokens so far, filled up to the greatest length, and returns
the logits of every position, of which one is read. Its files are made here, from the family's full-sequence call.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from captionlite.benchmarks.peers.base import Peer, PeerUnavailable, Pixels, Task, Weights
from captionlite.benchmarks.peers.keras_parts import require_tensorflow
from captionlite.runtime.interpreter import Graph, core_count


class TflitePrefix(Peer):
    """Quantized by the bundle's own recipes; rules that name tensors find others here, so its numbers are its own."""

    title = "one TFLite graph, whole prefix again"
    own_numerics = frozenset({"quantized"})
    timed_photographs = 16
    packages = ("ai-edge-litert", "tensorflow", "litert-quantizer")

    def __init__(self, weights: Weights, task: Task, encoder: bytes, decoder: bytes) -> None:
        super().__init__(weights)
        from captionlite.export.tflite_file import signature_specs

        self._encoder = Graph(encoder, *signature_specs(encoder), threads=core_count(), where="the features' graph")
        self._decoder = Graph(decoder, *signature_specs(decoder), threads=1, where="the prefix's graph")
        self._decoding = task.manifest.decoding
        self._suppressed = list(self._decoding.suppressed_ids)
        self.facts.threads = {"encoder": core_count(), "decoder": 1}

    def encode(self, pixels: Pixels) -> Any:
        self._encoder.inputs["image"]()[0] = pixels
        self._encoder.invoke()
        return self._encoder.outputs["features"]().copy()

    def decode(self, encoded: Any) -> list[int]:
        decoding, decoder = self._decoding, self._decoder
        fed = np.full((1, decoding.max_length), decoding.pad_id, np.int32)
        fed[0, 0] = decoding.start_id
        decoder.inputs["features"]()[...] = encoded
        tokens: list[int] = []
        for position in range(decoding.max_length):
            decoder.inputs["tokens"]()[...] = fed
            decoder.invoke()
            logits = decoder.outputs["logits"]()[0, position].copy()
            logits[self._suppressed] = -np.inf
            tokens.append(int(logits.argmax()))
            if tokens[-1] == decoding.end_id:
                break
            if position + 1 < decoding.max_length:
                fed[0, position + 1] = tokens[-1]
        return tokens


def prepare(task: Task, weights: Weights) -> Peer:
    require_tensorflow()
    from captionlite.export.errors import ExportError
    from captionlite.export.quantization import quantize
    from captionlite.export.recipes import recipe

    def photographs() -> Iterable[dict[str, Any]]:
        return ({"image": pixels[None]} for pixels in task.calibration)

    task.captioner(weights)
    try:
        contents = _float32(task)
        if weights == "quantized":
            manifest = task.captioner(weights).bundle.manifest
            for name, content in contents.items():
                rules = recipe(manifest.graphs[name].recipe).graph(name)
                samples = photographs if name == "encoder" else None
                contents[name] = quantize(content, rules, samples, f"{name} of the prefix peer")
    except ExportError as error:
        raise PeerUnavailable(f"the graph cannot be made: {error}") from error
    return TflitePrefix(weights, task, contents["encoder"], contents["decoder"])


def _float32(task: Task) -> dict[str, bytes]:
    """Both files, converted once for both weights. Raises ExportError."""
    from captionlite.export.convert import convert

    folder = task.scratch / "prefix"
    makers = {"encoder": _features_graph, "decoder": _prefix_graph}
    if not folder.is_dir():
        contents = {name: convert(make(task)) for name, make in makers.items()}
        folder.mkdir()
        for name, content in contents.items():
            (folder / name).write_bytes(content)
    return {name: (folder / name).read_bytes() for name in makers}


def _features_graph(task: Task) -> Any:
    """``image`` uint8 (1, H, W, 3) -> ``features`` float32 (1, h, w, C)."""
    import tensorflow as tf

    encoder, image = task.run.encoder, task.manifest.image

    class FeaturesGraph(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._tracked = [v.value for v in encoder.variables]

        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[tf.TensorSpec((1, image.height, image.width, 3), tf.uint8, name="image")]
        )
        def serve(self, image: Any) -> Any:
            return {"features": encoder(tf.cast(image, tf.float32), training=False)}

    return FeaturesGraph()


def _prefix_graph(task: Task) -> Any:
    """``features`` (1, h, w, C) and ``tokens`` int32 (1, L) -> ``logits`` (1, L, V)."""
    import tensorflow as tf

    model = task.run.model

    class PrefixGraph(tf.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self._tracked = [v.value for v in model.variables]

        @tf.function(  # type: ignore[untyped-decorator]
            input_signature=[
                tf.TensorSpec((1, *model.feature_shape), tf.float32, name="features"),
                tf.TensorSpec((1, model.max_length), tf.int32, name="tokens"),
            ]
        )
        def serve(self, features: Any, tokens: Any) -> Any:
            return {"logits": model(features, tokens, training=False)}

    return PrefixGraph()
