"""ONNX Runtime, float32 and int8: both graphs by tf2onnx, bound to memory of their own, each on its best threads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from captionlite.benchmarks.peers.base import Peer, Pixels, Task, Weights, require
from captionlite.benchmarks.peers.keras_parts import require_tensorflow
from captionlite.benchmarks.peers.onnx_export import COMPUTED, export_graphs
from captionlite.benchmarks.peers.onnx_session import Session, fastest

SAMPLED = 4  # calibration photographs whose steps are samples for the decoder


class OnnxRuntime(Peer):
    """captionlite's own loop over ONNX Runtime: columns of the cache written in place, no copies of what is constant
    but at the start of a caption."""

    title = "ONNX Runtime"
    own_numerics = frozenset({"quantized"})
    packages = ("onnxruntime", "onnx", "tf2onnx", "tensorflow")

    def __init__(self, weights: Weights, task: Task, encoder: Session, decoder: Session) -> None:
        super().__init__(weights)
        self._encoder, self._decoder = encoder, decoder
        decoding = task.manifest.decoding
        self._start, self._end = decoding.start_id, decoding.end_id
        suppressed = sorted(decoding.suppressed_ids)
        neighbours = suppressed and suppressed[-1] - suppressed[0] == len(suppressed) - 1
        self._suppressed: Any = slice(suppressed[0], suppressed[-1] + 1) if neighbours else suppressed
        self._rows = [row.name for row in task.manifest.state]
        inputs, outputs = decoder.inputs, decoder.outputs
        rows = task.manifest.state
        self._carried = [(inputs[row.name], outputs[COMPUTED + row.name]) for row in rows if row.kind == "carried"]
        appended = [(inputs[row.name], outputs[COMPUTED + row.name], row.axis) for row in rows if row.axis is not None]
        self._columns = [
            [(np.moveaxis(state, axis, 0)[p], np.moveaxis(new, axis, 0)[0]) for state, new, axis in appended]
            for p in range(decoding.max_length)
        ]

    def encode(self, pixels: Pixels) -> Any:
        self._encoder.inputs["image"][0] = pixels
        self._encoder.run()
        return {name.removeprefix(COMPUTED): array.copy() for name, array in self._encoder.outputs.items()}

    def decode(self, encoded: Any) -> list[int]:
        decoder = self._decoder
        for name in self._rows:
            decoder.inputs[name][...] = encoded.get(name, 0)
        run, row, suppressed, carried = decoder.run, decoder.outputs["logits"][0], self._suppressed, self._carried
        fed, fed_position = decoder.inputs["token"], decoder.inputs["position"]
        token, end, tokens = self._start, self._end, []
        for position, columns in enumerate(self._columns):
            fed[0, 0] = token
            fed_position[0] = position
            run()
            row[suppressed] = -np.inf
            token = int(row.argmax())
            tokens.append(token)
            if token == end:
                break
            for state, new in carried:
                state[...] = new
            for column, new in columns:
                column[...] = new
        return tokens


def prepare(task: Task, weights: Weights) -> Peer:
    """Convert (once for both weights), quantize, try, and take the fastest of each graph."""
    require_tensorflow()
    for module, distribution in (("onnx", "onnx"), ("onnxruntime", "onnxruntime"), ("tf2onnx", "tf2onnx")):
        require(module, distribution)
    task.captioner(weights)
    folder = task.scratch / "onnx"
    float32 = _float32(task, folder)
    photographs = [{"image": pixels[None]} for pixels in task.calibration]
    steps = _steps(task)
    candidates: dict[str, dict[str, Path]] = {name: {"float32": path} for name, path in float32.items()}
    choices: dict[str, Any] = {}
    if weights == "quantized":
        from captionlite.benchmarks.peers.onnx_int8 import quantized_decoders, quantized_encoders

        candidates["encoder"], choices["encoder_errors"] = quantized_encoders(float32["encoder"], photographs, folder)
        candidates["decoder"], choices["decoder_errors"] = quantized_decoders(float32["decoder"], steps, folder)
    sessions, threads = {}, {}
    for graph, sample in (("encoder", photographs[0]), ("decoder", steps[0])):
        name, threads[graph], tried = fastest(candidates[graph], sample)
        sessions[graph] = Session(candidates[graph][name], threads[graph])
        choices[graph] = {"taken": name, "tried_ms": tried}
    peer = OnnxRuntime(weights, task, sessions["encoder"], sessions["decoder"])
    peer.facts.threads.update(threads)
    peer.facts.choices = choices
    return peer


def _float32(task: Task, folder: Path) -> dict[str, Path]:
    import onnx

    paths = {name: folder / f"{name}.onnx" for name in ("encoder", "decoder")}
    if not folder.is_dir():
        graphs = export_graphs(task)
        folder.mkdir()
        for name, path in paths.items():
            onnx.save(graphs[name], path)
    return paths


def _steps(task: Task) -> list[dict[str, Any]]:
    """What a decoder is fed at steps of real captions, those in the middle of a caption first."""
    from captionlite.export.calibration import decoder_samples

    steps = list(decoder_samples(task.float32, task.calibration[:SAMPLED]))
    return steps[len(steps) // 2 :] + steps[: len(steps) // 2]
