"""TFLite files of one op each, to measure what the very interpreter that runs a bundle's graphs can do on this machine.

Written straight into the format's schema, which ai-edge-litert carries: no converter, no TensorFlow. The weights are
drawn at random, because some kernels pass over zeros.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from captionlite.benchmarks.tflite_model import pack, tflite_schema

Kind = Literal["float32", "int8_weights", "int8"]
"""How a product is computed: float32 alone; float32 activations with int8 weights, rounded to int8 on the way (dynamic
range quantization); int8 activations with int8 weights."""

KINDS: tuple[Kind, ...] = ("float32", "int8_weights", "int8")


@dataclass(frozen=True)
class _Tensor:
    name: str
    shape: tuple[int, ...]
    dtype: str  # a name of the schema's TensorType
    data: npt.NDArray[Any] | None = None
    scales: tuple[float, ...] = ()
    channel_axis: int = 0


@lru_cache(64)
def fully_connected(kind: Kind, rows: int, depth: int, units: int) -> bytes:
    """(rows, depth) x (units, depth) -> (rows, units): rows * depth * units multiply-adds."""
    schema = tflite_schema()
    options = schema.FullyConnectedOptionsT()
    tensors = _product(kind, (rows, depth), (units, depth), (rows, units))
    return _file(
        schema.BuiltinOperator.FULLY_CONNECTED, 12, schema.BuiltinOptions.FullyConnectedOptions, options, tensors
    )


@lru_cache(64)
def pointwise(kind: Kind, side: int, depth: int, units: int) -> bytes:
    """A 1 x 1 CONV_2D over (1, side, side, depth) -> (1, side, side, units): side^2 * depth * units multiply-adds."""
    schema = tflite_schema()
    options = schema.Conv2DOptionsT()
    options.strideH = options.strideW = options.dilationHFactor = options.dilationWFactor = 1
    tensors = _product(kind, (1, side, side, depth), (units, 1, 1, depth), (1, side, side, units))
    return _file(schema.BuiltinOperator.CONV_2D, 3, schema.BuiltinOptions.Conv2DOptions, options, tensors)


@lru_cache(64)
def row_sums(rows: int, columns: int) -> bytes:
    """SUM over the columns of float32 (rows, columns): reads 4 * rows * columns bytes and writes next to nothing."""
    schema = tflite_schema()
    options = schema.ReducerOptionsT()
    options.keepDims = False
    tensors = [
        _Tensor("input", (rows, columns), "FLOAT32"),
        _Tensor("axes", (1,), "INT32", np.array([1], np.int32)),
        _Tensor("output", (rows,), "FLOAT32"),
    ]
    return _file(schema.BuiltinOperator.SUM, 1, schema.BuiltinOptions.ReducerOptions, options, tensors)


@lru_cache(4)
def small_ops(count: int) -> bytes:
    """A chain of so many MUL of 16 float32 by 16 constants: next to nothing to do, and all of it one after another."""
    schema = tflite_schema()
    options = schema.MulOptionsT()
    tensors = [
        _Tensor("input", (16,), "FLOAT32"),
        _Tensor("factor", (16,), "FLOAT32", np.linspace(0.9, 1.1, 16, dtype=np.float32)),
    ]
    tensors += [_Tensor(f"product_{number}", (16,), "FLOAT32") for number in range(count)]
    chain = [([0 if number == 0 else number + 1, 1], [number + 2]) for number in range(count)]
    return _file(schema.BuiltinOperator.MUL, 1, schema.BuiltinOptions.MulOptions, options, tensors, chain)


def _product(
    kind: Kind, activations: tuple[int, ...], weights: tuple[int, ...], output: tuple[int, ...]
) -> list[_Tensor]:
    """Input, weights (one scale a unit, the first axis), bias and output of a product of this kind."""
    random = np.random.default_rng(0)
    units = weights[0]
    outer, zeros = ("INT8", np.zeros(units, np.int32)) if kind == "int8" else ("FLOAT32", np.zeros(units, np.float32))
    scale = 1 / 64
    of_input, of_output = ((scale,), (1.0,)) if kind == "int8" else ((), ())
    if kind == "float32":
        stored = _Tensor("weights", weights, "FLOAT32", random.normal(size=weights).astype(np.float32))
    else:
        integers = random.integers(-127, 128, weights, np.int8)
        stored = _Tensor("weights", weights, "INT8", integers, (scale,) * units)
    bias = _Tensor("bias", (units,), "INT32", zeros, (scale * scale,) * units)
    if kind != "int8":
        bias = _Tensor("bias", (units,), "FLOAT32", zeros)
    return [
        _Tensor("input", activations, outer, None, of_input),
        stored,
        bias,
        _Tensor("output", output, outer, None, of_output),
    ]


def _file(
    code: int,
    version: int,
    options_type: int,
    options: Any,
    tensors: list[_Tensor],
    ops: list[tuple[list[int], list[int]]] | None = None,
) -> bytes:
    """A model of `ops`, (inputs, outputs) by number of tensor and all of them the same op; the first tensor goes in.

    Without `ops` it is one that reads all tensors but the last, and writes that. What the last op writes comes out.
    """
    ops = ops or [(list(range(len(tensors) - 1)), [len(tensors) - 1])]
    schema = tflite_schema()
    model = schema.ModelT()
    model.version = 3
    model.buffers = [schema.BufferT()]  # number 0 means: no data
    operator_code = schema.OperatorCodeT()
    operator_code.builtinCode = code
    operator_code.deprecatedBuiltinCode = min(code, 127)
    operator_code.version = version
    model.operatorCodes = [operator_code]
    graph = schema.SubGraphT()
    graph.tensors = []
    for tensor in tensors:
        made = schema.TensorT()
        made.name, made.shape, made.type = tensor.name, list(tensor.shape), getattr(schema.TensorType, tensor.dtype)
        made.buffer = 0
        if tensor.data is not None:
            made.buffer = len(model.buffers)
            buffer = schema.BufferT()
            buffer.data = np.frombuffer(tensor.data.tobytes(), np.uint8)
            model.buffers.append(buffer)
        if tensor.scales:
            made.quantization = schema.QuantizationParametersT()
            made.quantization.scale = list(tensor.scales)
            made.quantization.zeroPoint = [0] * len(tensor.scales)
            made.quantization.quantizedDimension = tensor.channel_axis
        graph.tensors.append(made)
    graph.operators = []
    for inputs, outputs in ops:
        operator = schema.OperatorT()
        operator.opcodeIndex = 0
        operator.inputs, operator.outputs = inputs, outputs
        operator.builtinOptionsType, operator.builtinOptions = options_type, options
        graph.operators.append(operator)
    graph.inputs, graph.outputs = [0], ops[-1][1]
    model.subgraphs = [graph]
    return pack(model)
