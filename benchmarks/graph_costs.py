"""What a graph has to do, read from its TFLite file: multiply-adds by type, and bytes that must move, op by op.

Counted is what no kernel can avoid. A product of matrices or a convolution takes its multiply-adds; its weights and all
activations are read once and written once; an embedding table is read at the rows that are looked up; a reshape moves
nothing. Weights that the file stores smaller than they are computed with (float16, weight-only integers, behind a
DEQUANTIZE of a constant) are unpacked when the file is loaded, and count as what is then read. Additions outside of
products, activation functions and the rounding to integers count by their bytes alone.

Shapes are the file's, with a batch of one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from captionlite.benchmarks.probe_files import KINDS, Kind
from captionlite.benchmarks.tflite_model import load_model, op_names, tflite_schema

_BITS = {
    "FLOAT32": 32, "FLOAT16": 16, "FLOAT64": 64, "BFLOAT16": 16, "INT2": 2, "INT4": 4, "UINT4": 4, "INT8": 8,
    "UINT8": 8, "BOOL": 8, "INT16": 16, "UINT16": 16, "INT32": 32, "UINT32": 32, "INT64": 64, "UINT64": 64,
}  # fmt: skip
_INTEGERS = ("INT2", "INT4", "UINT4", "INT8", "UINT8", "INT16")
_VIEWS = ("RESHAPE", "SQUEEZE", "EXPAND_DIMS")
_LOOKUPS = ("GATHER", "EMBEDDING_LOOKUP")  # the table, then the ids; EMBEDDING_LOOKUP has them the other way round
_SLICES = ("SLICE", "STRIDED_SLICE")


@dataclass(frozen=True)
class TensorFact:
    """One tensor of the main subgraph; `constant`: its values are in the file, or follow from the file alone."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str
    constant: bool

    @property
    def elements(self) -> int:
        return prod(self.shape)

    @property
    def size_bytes(self) -> int:
        """Bytes of it packed without gaps."""
        return -(-self.elements * _BITS[self.dtype] // 8)


@dataclass(frozen=True)
class OpCost:
    """What one op has to do. Weights are counted at the first op that reads them."""

    index: int
    name: str
    outputs: tuple[str, ...]
    shape: tuple[int, ...]  # of its first output
    kind: Kind | None  # how its products are computed
    multiply_adds: int
    weight_bytes: int
    read_bytes: int  # activations
    written_bytes: int

    @property
    def moved_bytes(self) -> int:
        return self.read_bytes + self.written_bytes

    @property
    def label(self) -> str:
        """The op's type as tables have it, with how its products are computed."""
        return f"{self.name} {self.kind}" if self.kind else self.name


@dataclass(frozen=True)
class GraphCost:
    """A whole graph; `working_set_bytes` is what one run touches: weights, inputs and outputs of the graph, and the
    activations of the op that has most of them.
    """

    ops: tuple[OpCost, ...]
    weight_bytes: int
    boundary_bytes: int  # the graph's own inputs and outputs
    working_set_bytes: int

    @property
    def multiply_adds(self) -> dict[Kind, int]:
        return {kind: sum(op.multiply_adds for op in self.ops if op.kind == kind) for kind in KINDS}

    @property
    def activation_bytes(self) -> int:
        return sum(op.moved_bytes for op in self.ops)

    def to_json(self) -> dict[str, Any]:
        return {
            "ops": len(self.ops),
            "multiply_adds": self.multiply_adds,
            "weight_bytes": self.weight_bytes,
            "activation_bytes": self.activation_bytes,
            "bytes": self.weight_bytes + self.activation_bytes,
            "boundary_bytes": self.boundary_bytes,
            "working_set_bytes": self.working_set_bytes,
        }


def read_costs(content: bytes, where: str) -> GraphCost:
    """The costs of a file's main subgraph. Raises InterpreterError for what is no TFLite file."""
    model = load_model(content, where)
    graph, names, tensors = model.subgraphs[0], op_names(model), read_tensors(model)
    seen: set[int] = set()  # weights that an op before has read
    unpacked: set[int] = set()  # what a DEQUANTIZE of a constant gives
    ops = []
    for index, (name, op) in enumerate(zip(names, graph.operators, strict=True)):
        inputs = [_as_computed(tensors[i], unpacked) for i in op.inputs if i >= 0]
        outputs = [tensors[i] for i in op.outputs if i >= 0]
        if name == "DEQUANTIZE" and inputs[0].constant:
            unpacked.update(tensor.index for tensor in outputs)
            ops.append(OpCost(index, name, _names(outputs), outputs[0].shape, None, 0, 0, 0, 0))
            continue
        ops.append(_cost(index, name, op, inputs, outputs, seen))
    boundary = sum(tensors[i].size_bytes for i in (*graph.inputs, *graph.outputs))
    weights = sum(op.weight_bytes for op in ops)
    most = max((op.moved_bytes for op in ops), default=0)
    return GraphCost(tuple(ops), weights, boundary, weights + boundary + most)


def read_tensors(model: Any) -> list[TensorFact]:
    """All tensors of the main subgraph."""
    schema = tflite_schema()
    types = {value: name for name, value in vars(schema.TensorType).items() if not name.startswith("_")}
    found = []
    for index, tensor in enumerate(model.subgraphs[0].tensors):
        data = model.buffers[tensor.buffer].data
        shape = tuple(int(size) for size in tensor.shape) if tensor.shape is not None else ()
        name = (tensor.name or b"").decode(errors="replace")
        found.append(TensorFact(index, name, shape, types[tensor.type], data is not None and len(data) > 0))
    return found


def _as_computed(tensor: TensorFact, unpacked: set[int]) -> TensorFact:
    if tensor.index not in unpacked:
        return tensor
    return TensorFact(tensor.index, tensor.name, tensor.shape, tensor.dtype, True)


def _names(tensors: Sequence[TensorFact]) -> tuple[str, ...]:
    return tuple(tensor.name for tensor in tensors)


def _cost(
    index: int, name: str, op: Any, inputs: list[TensorFact], outputs: list[TensorFact], seen: set[int]
) -> OpCost:
    written = sum(tensor.size_bytes for tensor in outputs)
    shape = outputs[0].shape if outputs else ()
    weights = read = 0
    if name in _VIEWS:
        return OpCost(index, name, _names(outputs), shape, None, 0, 0, 0, 0)
    if name in _LOOKUPS:
        table, ids = (inputs[1], inputs[0]) if name == "EMBEDDING_LOOKUP" else (inputs[0], inputs[1])
        rows = -(-outputs[0].elements * _BITS[table.dtype] // 8)
        weights, read = (rows, ids.size_bytes) if table.constant else (0, rows + ids.size_bytes)
    elif name in _SLICES and not inputs[0].constant:
        read = written
    else:
        for tensor in inputs:
            if not tensor.constant:
                read += tensor.size_bytes
            elif tensor.index not in seen:
                seen.add(tensor.index)
                weights += tensor.size_bytes
    products = _MULTIPLY_ADDS[name](op, inputs, outputs) if name in _MULTIPLY_ADDS else 0
    kind = _kind(inputs[0], inputs[1]) if products else None
    return OpCost(index, name, _names(outputs), shape, kind, products, weights, read, written)


def _kind(activations: TensorFact, weights: TensorFact) -> Kind:
    if weights.dtype not in _INTEGERS:
        return "float32"
    return "int8" if activations.dtype in _INTEGERS else "int8_weights"


def _convolution(op: Any, inputs: list[TensorFact], outputs: list[TensorFact]) -> int:
    return outputs[0].elements * prod(inputs[1].shape[1:])  # weights (channels, height, width, depth)


def _depthwise(op: Any, inputs: list[TensorFact], outputs: list[TensorFact]) -> int:
    return outputs[0].elements * prod(inputs[1].shape[1:3])  # weights (1, height, width, channels)


def _fully_connected(op: Any, inputs: list[TensorFact], outputs: list[TensorFact]) -> int:
    return outputs[0].elements * inputs[1].shape[-1]  # weights (units, depth)


def _matmul(op: Any, inputs: list[TensorFact], outputs: list[TensorFact]) -> int:
    return outputs[0].elements * inputs[0].shape[-2 if op.builtinOptions.adjX else -1]


_MULTIPLY_ADDS: Mapping[str, Callable[[Any, list[TensorFact], list[TensorFact]], int]] = {
    "CONV_2D": _convolution,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _fully_connected,
    "BATCH_MATMUL": _matmul,
}
