"""What the Edge TPU's compiler would take of an encoder, by its published rules, and an input that it can take.

The rules are those of Coral's page "TensorFlow models on the Edge TPU" (coral.ai/docs/edgetpu/models-intro: the
requirements, and the table of supported operations up to runtime 14). The compiler maps the ops from the first one up
to the first that breaks a rule; that one and everything after it run on the CPU. It is closed and refuses some ops for
reasons of its own ("some unspecified limitation"), so this says what it cannot map, never what it certainly does.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator

import numpy as np

from captionlite.export.flat_model import MainGraph, Op, builtin_names, op_name, pack_model, type_names, unpack_model

EIGHT_BITS = ("INT8", "UINT8")
MAX_SOFTMAX = 16_000


@dataclasses.dataclass(frozen=True)
class Violation:
    """An op that breaks a rule: its place in the graph (from 0) and name, the tensor in question, and the rule."""

    place: int
    op: str
    tensor: str
    rule: str

    def __str__(self) -> str:
        return f"Op {self.place}, {self.op}, breaks a rule with {self.tensor}: {self.rule}"


@dataclasses.dataclass(frozen=True)
class Verdict:
    """The names of all ops in order, and every violation."""

    ops: tuple[str, ...]
    violations: tuple[Violation, ...]

    @property
    def mapped(self) -> tuple[str, ...]:
        """The ops before the first that breaks a rule: what the Edge TPU gets."""
        return self.ops[: self.violations[0].place] if self.violations else self.ops

    @property
    def on_cpu(self) -> tuple[str, ...]:
        """That one and all after it."""
        return self.ops[len(self.mapped) :]

    def __str__(self) -> str:
        """One line: how many ops go where, and why not more."""
        told = f"Edge TPU: {len(self.mapped)} of {len(self.ops)} ops ({_counted(self.mapped) or 'none'})"
        if not self.violations:
            return f"{told}, by the rules of its compiler all of them"
        return f"{told}. {self.violations[0]}; so that and all after it is the CPU's: {_counted(self.on_cpu)}"


def check_edge_tpu(content: bytes) -> Verdict:
    """Every op of a TFLite file held to the compiler's rules."""
    graph = MainGraph(content)
    violations = []
    for place, op in enumerate(graph.ops):
        violations += [Violation(place, op.name, tensor, rule) for tensor, rule in _broken(op)]
    return Verdict(tuple(op.name for op in graph.ops), tuple(violations))


def integer_input(content: bytes) -> bytes:
    """The same graph without a CAST of its uint8 input to float32: pixels are integers of scale 1 as they come.

    Where the first op makes pixels float32 only for the next to make them int8, the Edge TPU could map nothing at all:
    CAST is none of its ops. The QUANTIZE behind it reads the pixels themselves instead, to the same integers. A graph
    that does not begin so is returned as it is.
    """
    model = unpack_model(content)
    graph = model.subgraphs[0]
    names, types = builtin_names(), type_names()
    casts = [
        op
        for op in graph.operators
        if op_name(model, op, names) == "CAST"
        and int(op.inputs[0]) in {int(i) for i in graph.inputs}
        and types[graph.tensors[op.inputs[0]].type] == "UINT8"
        and types[graph.tensors[op.outputs[0]].type] == "FLOAT32"
    ]
    if len(casts) != 1:
        return content
    (cast,) = casts
    pixels, floats = int(cast.inputs[0]), int(cast.outputs[0])
    readers = [op for op in graph.operators if floats in {int(i) for i in op.inputs}]
    if floats in {int(i) for i in graph.outputs} or any(op_name(model, op, names) != "QUANTIZE" for op in readers):
        return content
    from ai_edge_litert import schema_py_generated as schema

    scale = schema.QuantizationParametersT()
    scale.scale, scale.zeroPoint = [1.0], [0]
    graph.tensors[pixels].quantization = scale
    for op in readers:
        op.inputs = [pixels if int(i) == floats else int(i) for i in op.inputs]
    graph.operators = [op for op in graph.operators if op is not cast]
    return pack_model(model)


_Broken = Iterator[tuple[str, str]]  # the tensor's name, and the rule


def _broken(op: Op) -> _Broken:
    """What the op breaks: the rules of all ops, then its own."""
    if op.name not in _RULES:
        yield op.outputs[0].name, "none of the Edge TPU's ops"
        return
    for tensor in (*op.inputs, *op.outputs):
        if not tensor.static:
            yield tensor.name, "a dynamic size, expected one that is known when compiling"
        eight = tensor.type in EIGHT_BITS
        if not eight and not (tensor.data is not None and tensor.type == "INT32"):
            yield tensor.name, f"{tensor.type.lower()}, expected int8 or uint8"
        if any(size != 1 for size in tensor.shape[:-3]) and tensor.data is None:
            yield tensor.name, f"shape {list(tensor.shape)}, expected only the 3 innermost sizes above 1"
    for rule in _RULES[op.name]:
        yield from rule(op)


def _constant_weights(op: Op) -> _Broken:
    for tensor in op.inputs[1:]:
        if tensor.data is None:
            yield tensor.name, "weights that are computed, expected constants"


def _no_activation(op: Op) -> _Broken:
    if op.option("fusedActivationFunction"):
        yield op.outputs[0].name, "a fused activation function, expected none"


def _one_dilation(op: Op) -> _Broken:
    if op.option("dilationWFactor") != op.option("dilationHFactor"):
        yield op.outputs[0].name, "another dilation along x than along y"


def _one_dimensional(op: Op) -> _Broken:
    if op.option("weightsFormat"):
        yield op.inputs[1].name, "weights that are shuffled, expected the default format"
    if op.outputs[0].rank > 1:
        yield op.outputs[0].name, f"output of shape {list(op.outputs[0].shape)}, expected one dimension"


def _zero_padding(op: Op) -> _Broken:
    for tensor in op.inputs:
        if tensor.data is not None and (len(op.inputs) != 2 or any(tensor.data)):
            yield tensor.name, "a constant to concatenate, expected zeros and one other input"


def _no_batch(op: Op) -> _Broken:
    """Of reductions: the axes are the second input."""
    source = op.inputs[0]
    axes = {axis % len(source.shape) for axis in op.inputs[1].integers()} if source.shape else set()
    if len(source.shape) >= 4 and 0 in axes:
        yield source.name, "a reduction over the batch"
    if op.name == "MEAN" and axes and max(axes) == len(source.shape) - 1 and source.shape[-1] % 4:
        yield source.name, f"a mean over z of {source.shape[-1]}, expected a multiple of 4"


def _no_batch_padding(op: Op) -> _Broken:
    padding = op.inputs[1].integers()
    if len(op.inputs[0].shape) >= 4 and any(padding[:2]):
        yield op.inputs[0].name, "padding of the batch"


def _softmax(op: Op) -> _Broken:
    source = op.inputs[0]
    if source.rank > 1 or int(np.prod(source.shape)) > MAX_SOFTMAX:
        yield source.name, f"softmax of shape {list(source.shape)}, expected one dimension of at most {MAX_SOFTMAX:,}"


def _leading_ones(op: Op) -> _Broken:
    source, target = op.inputs[0], op.outputs[0]
    if source.shape[len(source.shape) - len(target.shape) :] != target.shape:
        yield source.name, f"shape {list(source.shape)}, expected only leading ones to be squeezed"


def _strides_of_one(op: Op) -> _Broken:
    if any(stride != 1 for stride in op.inputs[3].integers()):
        yield op.inputs[0].name, "strides, expected all of them 1"
    if op.option("ellipsisMask") or op.option("newAxisMask"):
        yield op.inputs[0].name, "an ellipsis or a new axis"


def _three_dimensional(op: Op) -> _Broken:
    if op.inputs[0].rank > 3:
        yield op.inputs[0].name, "expected three dimensions"


def _one_dimensional_alpha(op: Op) -> _Broken:
    if op.inputs[1].rank > 1:
        yield op.inputs[1].name, "an alpha of several dimensions, expected one"


_RULES: dict[str, tuple[Callable[[Op], _Broken], ...]] = {
    "ADD": (),
    "AVERAGE_POOL_2D": (_no_activation,),
    "CONCATENATION": (_no_activation, _zero_padding),
    "CONV_2D": (_constant_weights, _one_dilation),
    "DEPTHWISE_CONV_2D": (_constant_weights, _one_dilation),
    "EXPAND_DIMS": (),
    "FULLY_CONNECTED": (_constant_weights, _one_dimensional),
    "L2_NORMALIZATION": (),
    "LOGISTIC": (),
    "MAXIMUM": (),
    "MAX_POOL_2D": (_no_activation,),
    "MEAN": (_no_batch,),
    "MINIMUM": (),
    "MUL": (),
    "PACK": (),
    "PAD": (_no_batch_padding,),
    "PRELU": (_one_dimensional_alpha,),
    "QUANTIZE": (),
    "REDUCE_MAX": (_no_batch,),
    "REDUCE_MIN": (_no_batch,),
    "RELU": (),
    "RELU6": (),
    "RELU_N1_TO_1": (),
    "RESHAPE": (),
    "RESIZE_BILINEAR": (_three_dimensional,),
    "RESIZE_NEAREST_NEIGHBOR": (_three_dimensional,),
    "RSQRT": (),
    "SLICE": (),
    "SOFTMAX": (_softmax,),
    "SPACE_TO_DEPTH": (),
    "SPLIT": (),
    "SQUARED_DIFFERENCE": (),
    "SQUEEZE": (_leading_ones,),
    "STRIDED_SLICE": (_strides_of_one,),
    "SUB": (),
    "SUM": (_no_batch,),
    "TANH": (),
    "TRANSPOSE": (),
    "TRANSPOSE_CONV": (),
}


def _counted(names: tuple[str, ...]) -> str:
    return ", ".join(name if count == 1 else f"{name} x {count}" for name, count in Counter(names).items())
