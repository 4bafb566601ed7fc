"""ONNX graphs quantized by onnxruntime.quantization: several ways, of which the peer takes the fastest that is right.

The encoder: its convolutions statically, calibrated on photographs, as its TFLite recipe has them, the matrix products
behind them in float or dynamically; or matrix products alone. The step: dynamically, with signed or unsigned weights.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy.typing as npt

from captionlite.benchmarks.peers.base import PeerUnavailable
from captionlite.benchmarks.peers.onnx_session import distance

Sample = Mapping[str, npt.NDArray[Any]]
Found = tuple[dict[str, Path], dict[str, float]]
"""Files by name that are right, and the error of every one that could be made."""

RIGHT = 0.3
"""Relative RMS error up to which a quantized graph counts as right; captionlite's own int8 encoder has 0.15."""
CHECKED = 8  # samples that tell right from wrong
_CONVOLUTION = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
_FOLLOWING = ("Clip", "Relu", "Add")


def quantized_encoders(float32: Path, samples: Sequence[Sample], folder: Path) -> Found:
    """Raises PeerUnavailable when none is right."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    found: dict[str, Path] = {}
    with _quiet():
        prepared = _prepared(float32, folder)
        convolutions = _convolutions(prepared)
        if convolutions:
            found["static convolutions"] = _static(prepared, convolutions, samples, folder / "encoder-static.onnx")
            found["static convolutions, dynamic products"] = folder / "encoder-static-dynamic.onnx"
            first = folder / "encoder-products.onnx"
            quantize_dynamic(prepared, first, op_types_to_quantize=["MatMul", "Gemm"], weight_type=QuantType.QInt8)
            target = found["static convolutions, dynamic products"]
            _static(first, _convolutions(first), samples, target)
        found["dynamic products"] = folder / "encoder-dynamic.onnx"
        quantize_dynamic(
            prepared,
            found["dynamic products"],
            op_types_to_quantize=["MatMul", "Gemm"],
            weight_type=QuantType.QInt8,
        )
    return _right(found, float32, samples)


def quantized_decoders(float32: Path, samples: Sequence[Sample], folder: Path) -> Found:
    """As `quantized_encoders`, for the step."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    ways: dict[str, dict[str, Any]] = {
        "dynamic, signed": {"weight_type": QuantType.QInt8},
        "dynamic, unsigned": {"weight_type": QuantType.QUInt8},
        "dynamic, signed, by channel": {"weight_type": QuantType.QInt8, "per_channel": True},
        "dynamic products, signed": {"weight_type": QuantType.QInt8, "op_types_to_quantize": ["MatMul", "Gemm"]},
    }
    found = {}
    with _quiet():
        prepared = _prepared(float32, folder)
        for number, (name, options) in enumerate(ways.items()):
            found[name] = folder / f"decoder-{number}.onnx"
            quantize_dynamic(prepared, found[name], **options)
    return _right(found, float32, samples)


def _right(found: dict[str, Path], float32: Path, samples: Sequence[Sample]) -> Found:
    errors = {name: round(distance(path, float32, samples[:CHECKED]), 4) for name, path in found.items()}
    right = {name: path for name, path in found.items() if errors[name] <= RIGHT}
    if not right:
        raise PeerUnavailable(f"no way to quantize {float32.stem} is right: relative RMS errors {errors}")
    return right, errors


def _prepared(float32: Path, folder: Path) -> Path:
    """Shapes inferred and constants folded, as onnxruntime advises before it quantizes."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    path = folder / f"{float32.stem}-prepared.onnx"
    quant_pre_process(float32, path, skip_symbolic_shape=True)
    return path


def _convolutions(path: Path) -> list[str]:
    """Names of the convolutions, and of what follows them in integers just as well: clips and sums of two of them."""
    import onnx

    chosen: dict[str, str] = {}  # output: node
    for node in onnx.load(path).graph.node:  # in topological order
        follows = node.op_type in _FOLLOWING and node.input[0] in chosen
        if node.op_type == "Add":
            follows = follows and node.input[1] in chosen
        if node.op_type in _CONVOLUTION or follows:
            chosen[node.output[0]] = node.name
    return list(chosen.values())


def _static(source: Path, nodes: list[str], samples: Sequence[Sample], target: Path) -> Path:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._left = iter(samples)

        def get_next(self) -> Any:
            return next(self._left, None)

    quantize_static(
        source,
        target,
        Reader(),
        quant_format=QuantFormat.QDQ,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
        per_channel=True,
        nodes_to_quantize=nodes,
    )
    return target


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """onnxruntime.quantization prints advice and warns of what it skips, through the root logger."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
