"""Graphs broken as a converter's bug or a slip in a script breaks them: valid files, right shapes, wrong numbers."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import flatbuffers
import numpy as np
import toy_bundle
from ai_edge_litert import schema_py_generated as schema

WEIGHTED = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
_OPS = {code: name for name, code in vars(schema.BuiltinOperator).items() if not name.startswith("_")}


class Model:
    """A TFLite file taken apart: change `file`, the schema's own objects, then ask for `content`."""

    def __init__(self, content: bytes) -> None:
        self.file = schema.ModelT.InitFromPackedBuf(content, 0)
        self.graph = self.file.subgraphs[0]
        for buffer in self.file.buffers:  # litert-quantizer writes weights behind the flatbuffer; bring them inside
            if buffer.offset > 1:
                buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
                buffer.offset = buffer.size = 0

    @property
    def content(self) -> bytes:
        builder = flatbuffers.Builder(1 << 20)
        builder.Finish(self.file.Pack(builder), b"TFL3")
        return bytes(builder.Output())

    def weighted(self) -> list[Any]:
        """The ops with weights as their second input, in order."""
        return [op for op in self.graph.operators if self.op_name(op) in WEIGHTED and self.values(op) is not None]

    def op_name(self, op: Any) -> str:
        code = self.file.operatorCodes[op.opcodeIndex]
        return _OPS[max(code.builtinCode, code.deprecatedBuiltinCode)]

    def weights(self, op: Any) -> Any:
        """The tensor of an op's weights."""
        return self.graph.tensors[op.inputs[1]]

    def values(self, op: Any) -> Any:
        """A writable array of an op's weights in their own shape; None where they are computed or stored in nibbles."""
        tensor = self.weights(op)
        buffer = self.file.buffers[tensor.buffer]
        dtype = {schema.TensorType.FLOAT32: np.float32, schema.TensorType.INT8: np.int8}.get(tensor.type)
        if buffer.data is None or not len(buffer.data) or dtype is None:
            return None
        buffer.data = np.array(buffer.data, np.uint8)
        return buffer.data.view(dtype).reshape(tensor.shape)

    def largest(self, name: str = "") -> Any:
        """The op with the most weights, of those with this in the weights' name."""
        ops = [op for op in self.weighted() if name in self.weights(op).name.decode()]
        return max(ops, key=lambda op: self.values(op).size)

    def middle(self, kinds: tuple[str, ...] = WEIGHTED) -> Any:
        """The op in the middle of those with weights."""
        ops = [op for op in self.weighted() if self.op_name(op) in kinds]
        return ops[len(ops) // 2]

    def scale(self, op: Any, factor: float) -> None:
        """The weights of an op count `factor` times; an integer bias, whose scale is theirs by the input's, follows."""
        scaled = [self.weights(op)]
        if scaled[0].quantization is None or scaled[0].quantization.scale is None:
            self.values(op)[...] *= factor
            return
        if len(op.inputs) > 2 and op.inputs[2] >= 0:
            bias = self.graph.tensors[op.inputs[2]]
            scaled += [bias] if bias.type == schema.TensorType.INT32 else []
        for tensor in scaled:
            tensor.quantization.scale = np.asarray(tensor.quantization.scale, np.float32) * np.float32(factor)

    def swap_inputs(self, one: str, other: str) -> None:
        self._swap(self.file.signatureDefs[0].inputs, one, other)

    def swap_outputs(self, one: str, other: str) -> None:
        self._swap(self.file.signatureDefs[0].outputs, one, other)

    @staticmethod
    def _swap(tensors: Any, one: str, other: str) -> None:
        found = {tensor.name.decode(): tensor for tensor in tensors}
        a, b = found[one], found[other]
        a.tensorIndex, b.tensorIndex = b.tensorIndex, a.tensorIndex


def break_graph(bundle: Path, graph: str, edit: Callable[[Model], object]) -> Path:
    """Change encoder.tflite or decoder.tflite of a bundle directory; the checksums are right again afterwards."""
    model = Model((bundle / f"{graph}.tflite").read_bytes())
    edit(model)
    return toy_bundle.forge(bundle, changed={f"{graph}.tflite": model.content})
