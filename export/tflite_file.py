"""What stands in a TFLite file: its ops, and which tensors they read and write. Read without running it."""

from __future__ import annotations

import dataclasses
from functools import lru_cache
from typing import Any

import numpy as np

from captionlite.export.errors import ExportError
from captionlite.runtime.manifest import TensorSpec

SIGNATURE = "serving_default"

# Ops that betray a file which needs TensorFlow's own kernels, or whose weights were not frozen into it.
FORBIDDEN_OPS = ("CUSTOM", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "HASHTABLE")


@dataclasses.dataclass(frozen=True)
class Op:
    """One op of the main subgraph: its name, and the tensors it reads and writes as name -> type."""

    name: str
    inputs: dict[str, str]
    outputs: dict[str, str]

    @property
    def scope(self) -> str:
        """What the regular expressions of recipes are searched in: the names of the outputs, each with a semicolon."""
        return "".join(f"{name};" for name in self.outputs)


def read_ops(content: bytes) -> list[Op]:
    """The ops of a TFLite file in order; custom ops (Flex among them) are named CUSTOM:name."""
    return list(_read(content)[0])


@lru_cache(4)  # unpacking takes a fifth of a second, and a search lays hundreds of recipes over the same two files
def _read(content: bytes) -> tuple[tuple[Op, ...], frozenset[str]]:
    """The ops, and the names of the tensors that the main subgraph gives out."""
    from ai_edge_litert import schema_py_generated as schema

    file = schema.ModelT.InitFromPackedBuf(content, 0)
    builtin, types = _names(schema.BuiltinOperator), _names(schema.TensorType)
    graph = file.subgraphs[0]

    def tensors(indices: Any) -> dict[str, str]:
        found = (graph.tensors[i] for i in indices if i >= 0)
        return {tensor.name.decode(): types[tensor.type] for tensor in found}

    ops = []
    for op in graph.operators:
        code = file.operatorCodes[op.opcodeIndex]
        name = builtin[max(code.builtinCode, code.deprecatedBuiltinCode)]  # the old field holds codes below 127
        if name == "CUSTOM":
            name = f"CUSTOM:{(code.customCode or b'').decode()}"
        ops.append(Op(name, tensors(op.inputs), tensors(op.outputs)))
    return tuple(ops), frozenset(graph.tensors[i].name.decode() for i in graph.outputs)


def stored_sizes(content: bytes) -> dict[str, int]:
    """Bytes of each float32 tensor that the file holds (weights, biases, tables), by name."""
    from ai_edge_litert import schema_py_generated as schema

    file = schema.ModelT.InitFromPackedBuf(content, 0)
    found = {}
    for tensor in file.subgraphs[0].tensors:
        data = file.buffers[tensor.buffer].data
        if tensor.type == schema.TensorType.FLOAT32 and data is not None and len(data):
            found[tensor.name.decode()] = len(data)
    return found


def output_names(content: bytes) -> set[str]:
    """The tensors that the main subgraph gives out."""
    return set(_read(content)[1])


def _names(enumeration: Any) -> dict[int, str]:
    return {value: name for name, value in vars(enumeration).items() if not name.startswith("_")}


def op_names(content: bytes) -> list[str]:
    """The distinct ops of a TFLite file, sorted."""
    return sorted({op.name for op in read_ops(content)})


def check_ops(content: bytes) -> list[str]:
    """The file's ops; raises ExportError when there is anything but TFLite builtins over frozen weights."""
    names = op_names(content)
    bad = [name for name in names if name.startswith(FORBIDDEN_OPS)]
    if bad:
        raise ExportError(
            f"the converted file has ops that a plain TFLite interpreter cannot run: {', '.join(bad)}; "
            "build the model from ops that convert (LSTMCell instead of LSTM, static lengths), see CONTRIBUTING.md"
        )
    return names


def is_quantized(content: bytes) -> bool:
    """Whether any tensor is stored or computed in another way than float32: float16, or integers with a scale."""
    from ai_edge_litert import schema_py_generated as schema

    file = schema.ModelT.InitFromPackedBuf(content, 0)
    for graph in file.subgraphs:
        for tensor in graph.tensors:
            scale = None if tensor.quantization is None else tensor.quantization.scale
            if tensor.type == schema.TensorType.FLOAT16 or (scale is not None and len(scale)):
                return True
    return False


def signature_specs(content: bytes) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a TFLite file by name; a dynamic dimension (-1) is the batch."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=content).get_signature_runner(SIGNATURE)
    sides = []
    for details in (runner.get_input_details(), runner.get_output_details()):
        specs = []
        for name, detail in details.items():
            shape = tuple(None if size < 0 else int(size) for size in detail["shape_signature"])
            specs.append(TensorSpec(name, np.dtype(detail["dtype"]).name, shape))
        sides.append(tuple(specs))
    return sides[0], sides[1]
