"""A TFLite file as objects: the flatbuffer's own, to be changed and written again, and plain ones to look through."""

from __future__ import annotations

import dataclasses
import struct
from typing import Any

import numpy as np


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor of a graph; ``static`` when no axis is left open, ``data`` the bytes of a constant."""

    name: str
    type: str
    shape: tuple[int, ...]
    static: bool
    data: bytes | None  # None: computed, no constant

    @property
    def rank(self) -> int:
        """The number of dimensions without leading ones."""
        sizes = list(self.shape)
        while sizes and sizes[0] == 1:
            del sizes[0]
        return len(sizes)

    def integers(self) -> list[int]:
        """The values of a constant of int32."""
        return [int(value) for value in np.frombuffer(self.data or b"", np.int32)]


@dataclasses.dataclass(frozen=True)
class Op:
    """An op of a graph, by the name that the schema gives it, with the schema's own options."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    options: Any

    def option(self, name: str) -> int:
        """A number of the op's options, 0 where it has none."""
        return int(getattr(self.options, name, 0) or 0)


class MainGraph:
    """The ops of a file's main subgraph."""

    def __init__(self, content: bytes) -> None:
        model = unpack_model(content)
        graph = model.subgraphs[0]
        names, types = builtin_names(), type_names()

        def tensor(i: int) -> Tensor:
            found = graph.tensors[i]
            data = model.buffers[found.buffer].data
            signature = found.shapeSignature
            return Tensor(
                name=found.name.decode().split(";")[0],
                type=types[found.type],
                shape=() if found.shape is None else tuple(int(size) for size in found.shape),
                static=signature is None or all(int(size) >= 0 for size in signature),
                data=None if data is None or len(data) == 0 else bytes(bytearray(data)),
            )

        self.ops = [
            Op(
                name=op_name(model, op, names),
                inputs=tuple(tensor(i) for i in op.inputs if i >= 0),
                outputs=tuple(tensor(i) for i in op.outputs if i >= 0),
                options=op.builtinOptions,
            )
            for op in graph.operators
        ]


def builtin_names() -> dict[int, str]:
    """The ops that TFLite has, by code."""
    from ai_edge_litert import schema_py_generated as schema

    return {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}


def type_names() -> dict[int, str]:
    """The element types that TFLite has, by code."""
    from ai_edge_litert import schema_py_generated as schema

    return {value: name for name, value in vars(schema.TensorType).items() if not name.startswith("_")}


def op_name(model: Any, op: Any, names: dict[int, str]) -> str:
    """What an OperatorT of a ModelT is called; ``names`` are `builtin_names()`."""
    code = model.operatorCodes[op.opcodeIndex]
    return names[max(code.builtinCode, code.deprecatedBuiltinCode)]  # the old field holds codes below 127


def unpack_model(content: bytes) -> Any:
    """The file's ModelT; `offset` of a buffer stays, to tell that its data stood behind the flatbuffer."""
    from ai_edge_litert import schema_py_generated as schema

    model = schema.ModelT.InitFromPackedBuf(content, 0)
    for buffer in model.buffers:
        if buffer.data is None and buffer.offset > 1 and buffer.size:  # 0 and 1 mean: none
            buffer.data = np.frombuffer(content, np.uint8, buffer.size, buffer.offset)
    return model


def pack_model(model: Any) -> bytes:
    """The file of a ModelT: what stood behind the flatbuffer stands there again, each at a multiple of 16."""
    import flatbuffers  # type: ignore[import-untyped]
    from ai_edge_litert import schema_py_generated as schema

    behind = {number: buffer.data for number, buffer in enumerate(model.buffers) if buffer.offset > 1}
    for number, data in behind.items():
        model.buffers[number].data, model.buffers[number].size = None, len(data)
    builder = flatbuffers.Builder(1 << 16)
    builder.Finish(model.Pack(builder), b"TFL3")
    packed = bytearray(builder.Output())
    root = schema.Model.GetRootAs(packed)
    for number, data in behind.items():
        packed += bytes(-len(packed) % 16)
        table = root.Buffers(number)._tab
        struct.pack_into("<Q", packed, table.Pos + table.Offset(6), len(packed))  # Buffer.offset is its second field
        packed += bytes(data)
    return bytes(packed)
