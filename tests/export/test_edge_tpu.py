"""What the Edge TPU's compiler would take of our full-int8 encoders, by its published rules."""

from collections import Counter
from collections.abc import Callable, Iterable
from functools import cache
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from converted import graph
from drawings import write_drawings
from untrained import untrained

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow converts; KERAS_BACKEND is another", allow_module_level=True)

from captionlite.export.convert import convert
from captionlite.export.edge_tpu import _broken, check_edge_tpu, integer_input
from captionlite.export.flat_model import Op, Tensor
from captionlite.export.graphs import EncoderGraph
from captionlite.export.quantization import quantize, quantize_graphs
from captionlite.export.recipes import recipe
from captionlite.export.tflite_file import read_ops, signature_specs

BACKBONE = ("QUANTIZE", "MUL", "ADD", "CONV_2D", "CONV_2D", "CONV_2D")  # of the tests' encoder: all of it
# By family: what of the decoder's side of the encoder still maps, and how many ops of each kind break a rule.
NORMALISATION = {"DEQUANTIZE": 3, "NEG": 3, "QUANTIZE": 3}  # of one layer over the grid, with three of them
VERDICTS: dict[str, tuple[tuple[str, ...], dict[str, int]]] = {
    "transformer": ((), {"FULLY_CONNECTED": 4, "DEQUANTIZE": 4}),
    "transformer_memory": (
        (),
        {**NORMALISATION, "DEQUANTIZE": 7, "FULLY_CONNECTED": 11, "BATCH_MATMUL": 2, "SOFTMAX": 1},
    ),
    "lstm": (("MEAN", "FULLY_CONNECTED"), {"DEQUANTIZE": 2, "ELU": 2, "QUANTIZE": 1}),
    "gru_attention": ((), {"FULLY_CONNECTED": 2, "DEQUANTIZE": 1, "RESHAPE": 1}),
    "masked_lm": (
        ("RESHAPE", "TRANSPOSE"),
        {
            **NORMALISATION, "DEQUANTIZE": 8, "FULLY_CONNECTED": 13, "BATCH_MATMUL": 2, "SOFTMAX": 1, "RESHAPE": 3,
            "TRANSPOSE": 2,
        },
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], bytes]:
    """A family's float32 encoder, converted once."""
    drawings = write_drawings(tmp_path_factory.mktemp("drawings"))

    @cache
    def converted(family: str) -> bytes:
        run = untrained(family, drawings, tmp_path_factory.mktemp(family))
        return convert(EncoderGraph(run.encoder, run.model, run.image_spec))

    return converted


def photographs(content: bytes, count: int = 6) -> list[dict[str, np.ndarray]]:
    (image,) = signature_specs(content)[0]
    rng = np.random.default_rng(0)
    return [{"image": rng.integers(0, 256, [size or 1 for size in image.shape], np.uint8)} for _ in range(count)]


@pytest.mark.parametrize("family", VERDICTS)
def test_the_backbone_maps_and_the_rest_stays_on_the_cpu(family: str, encoder: Callable[[str], bytes]) -> None:
    content = encoder(family)
    told: list[str] = []
    samples = photographs(content)
    written = quantize_graphs({"encoder": content}, recipe("full-int8"), lambda name: samples, told.append)["encoder"]
    verdict = check_edge_tpu(written)
    also, broken = VERDICTS[family]
    assert verdict.mapped == BACKBONE + also
    assert Counter(op for _, op in {(v.place, v.op) for v in verdict.violations}) == broken
    assert verdict.ops == tuple(op.name for op in read_ops(written))
    assert told == ["quantizing the encoder", str(verdict)]
    assert str(verdict).startswith(
        f"Edge TPU: {len(verdict.mapped)} of {len(verdict.ops)} ops (QUANTIZE, MUL, ADD, CONV_"
    )
    assert "; so that and all after it is the CPU's: " in str(verdict)


def test_pixels_as_integers_change_no_number(encoder: Callable[[str], bytes]) -> None:
    content = encoder("transformer")
    samples = photographs(content)
    before = quantize(content, recipe("full-int8").encoder, lambda: samples, "encoder")
    after = integer_input(before)
    assert check_edge_tpu(before).mapped == ()  # nothing at all, because of the very first op
    assert [op.name for op in read_ops(before)] == ["CAST", *(op.name for op in read_ops(after))]
    assert signature_specs(after) == signature_specs(before)
    one, other = graph(before), graph(after)
    rng = np.random.default_rng(1)
    shape = one.inputs["image"]().shape
    for pixels in (rng.integers(0, 256, shape, np.uint8), np.arange(np.prod(shape)).reshape(shape) % 256):
        for side in (one, other):
            side.inputs["image"]()[...] = pixels
            side.invoke()
        for name, view in one.outputs.items():
            assert np.array_equal(view(), other.outputs[name]()), name
    assert integer_input(after) == after
    assert integer_input(content) == content  # float32: what reads the pixels is no QUANTIZE


def test_other_recipes_are_left_alone(encoder: Callable[[str], bytes]) -> None:
    content = encoder("lstm")
    told: list[str] = []
    samples = photographs(content)
    written = quantize_graphs({"encoder": content}, recipe("int8"), lambda name: samples, told.append)["encoder"]
    assert read_ops(written)[0].name == "CAST"
    assert told == ["quantizing the encoder"]


# --- the rules, one by one


def tensor(
    shape: Iterable[int] = (1, 8, 8, 4), type_: str = "INT8", data: bytes | None = None, static: bool = True
) -> Any:
    return Tensor("t", type_, tuple(shape), static, data)


def axes(*values: int) -> Any:
    return tensor((len(values),), "INT32", np.array(values, np.int32).tobytes())


def op(name: str, *inputs: Any, out: Any = None, **options: int) -> Any:
    return Op(name, inputs or (tensor(),), (out or tensor(),), SimpleNamespace(**options))


WEIGHTS = tensor((4, 3, 3, 4), data=b"\1" * 144)
BIAS = tensor((4,), "INT32", b"\1" * 16)
KEPT = {
    "conv": op("CONV_2D", tensor(), WEIGHTS, BIAS, dilationWFactor=2, dilationHFactor=2),
    "relu6 of a convolution": op("CONV_2D", tensor(), WEIGHTS, fusedActivationFunction=3),
    "dense": op("FULLY_CONNECTED", tensor((1, 4)), WEIGHTS, out=tensor((1, 9))),
    "pool": op("AVERAGE_POOL_2D"),
    "mean": op("MEAN", tensor(), axes(1, 2), out=tensor((1, 4))),
    "mean over z": op("MEAN", tensor(), axes(-1)),
    "zeros": op("CONCATENATION", tensor(), tensor(data=bytes(256))),
    "pad": op("PAD", tensor(), axes(0, 0, 1, 1, 1, 1, 0, 0)),
    "softmax": op("SOFTMAX", tensor((1, 16_000))),
    "squeeze": op("SQUEEZE", tensor((1, 1, 10)), out=tensor((10,))),
    "slice": op("STRIDED_SLICE", tensor(), axes(0), axes(1), axes(1, 1)),
    "uint8": op("QUANTIZE", tensor(type_="UINT8")),
    "resize": op("RESIZE_BILINEAR", tensor(), axes(16, 16)),
}
BROKEN = {
    "none of the Edge TPU's ops": op("CAST"),
    "float32, expected int8 or uint8": op("ADD", tensor(), tensor(type_="FLOAT32")),
    "int32, expected int8 or uint8": op("ADD", tensor(), tensor(type_="INT32")),
    "a dynamic size": op("ADD", tensor(static=False)),
    "only the 3 innermost sizes above 1": op("ADD", tensor((2, 8, 8, 4))),
    "weights that are computed": op("CONV_2D", tensor(), tensor()),
    "another dilation": op("CONV_2D", tensor(), WEIGHTS, dilationWFactor=1, dilationHFactor=2),
    "expected one dimension": op("FULLY_CONNECTED", tensor((2, 4)), WEIGHTS, out=tensor((2, 9))),
    "the default format": op("FULLY_CONNECTED", tensor((1, 4)), WEIGHTS, out=tensor((1, 9)), weightsFormat=1),
    "a fused activation function": op("MAX_POOL_2D", fusedActivationFunction=1),
    "a reduction over the batch": op("MEAN", tensor(), axes(0)),
    "expected a multiple of 4": op("MEAN", tensor((1, 8, 8, 3)), axes(3)),
    "a constant to concatenate": op("CONCATENATION", tensor(), tensor(data=b"\1" * 256)),
    "padding of the batch": op("PAD", tensor(), axes(1, 0, 0, 0, 0, 0, 0, 0)),
    "of at most 16,000": op("SOFTMAX", tensor((1, 16_001))),
    "leading ones to be squeezed": op("SQUEEZE", tensor((5, 1, 10)), out=tensor((5, 10))),
    "strides, expected all of them 1": op("STRIDED_SLICE", tensor(), axes(0), axes(1), axes(2)),
    "an ellipsis": op("STRIDED_SLICE", tensor(), axes(0), axes(1), axes(1), ellipsisMask=1),
    "expected three dimensions": op("RESIZE_BILINEAR", tensor((2, 8, 8, 4)), axes(16, 16)),
    "an alpha of several dimensions": op("PRELU", tensor(), tensor((8, 8, 4), data=b"\1" * 256)),
}


@pytest.mark.parametrize("what", KEPT)
def test_what_keeps_the_rules(what: str) -> None:
    assert list(_broken(KEPT[what])) == []


@pytest.mark.parametrize("rule", BROKEN)
def test_what_breaks_one(rule: str) -> None:
    assert [told for _, told in _broken(BROKEN[rule]) if rule in told], list(_broken(BROKEN[rule]))
