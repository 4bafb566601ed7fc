"""tf.Module -> TFLite bytes, by recipe, with the written file's ops checked."""

from __future__ import annotations

import contextlib
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorflow as tf

from captionlite.export.errors import ExportError
from captionlite.export.recipes import GraphRecipe
from captionlite.runtime.interpreter import core_count

SIGNATURE = "serving_default"
Calibration = Callable[[], Iterator[dict[str, np.ndarray]]]  # inputs by name, one dict a sample

# Ops that betray a file which needs TensorFlow's own kernels, or whose weights were not frozen into it.
FORBIDDEN_OPS = ("CUSTOM", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE", "HASHTABLE")


def convert(module: Any, recipe: GraphRecipe, calibration: Calibration | None = None) -> tuple[bytes, list[str]]:
    """The TFLite file of ``module.serve``, with signature names kept, and its ops.

    Raises ExportError when the converter refuses, when an op is not a TFLite builtin, or when a recipe that needs
    calibration samples gets none.
    """
    with tempfile.TemporaryDirectory(prefix="captionlite-export-") as directory:
        tf.saved_model.save(module, directory, signatures={SIGNATURE: module.serve})
        converter = tf.lite.TFLiteConverter.from_saved_model(directory, signature_keys=[SIGNATURE])
        converter.target_spec.supported_ops = [tf.lite.OpsSet.TFLITE_BUILTINS]
        if recipe.converter != "float32":
            converter.optimizations = [tf.lite.Optimize.DEFAULT]
        if recipe.converter == "float16":
            converter.target_spec.supported_types = [tf.float16]
        try:
            content = bytes(converter.convert())
        except Exception as error:
            raise ExportError(f"the TFLite converter refused the graph: {str(error).splitlines()[0]}") from error
    if recipe.rules:
        if recipe.needs_calibration and calibration is None:
            raise ExportError("this recipe needs calibration photographs; give --calibration FOLDER")
        content = quantize(content, recipe, calibration)
    return content, check_ops(content)


def quantize(content: bytes, recipe: GraphRecipe, calibration: Calibration | None) -> bytes:
    """The file with the recipe's rules applied by litert-quantizer."""
    from litert_quantizer import qtyping, quantizer

    with tempfile.TemporaryDirectory(prefix="captionlite-quantize-") as directory, _quiet():
        path = Path(directory) / "float.tflite"
        path.write_bytes(content)
        work = quantizer.Quantizer(str(path))
        for rule in recipe.rules:
            op = qtyping.TFLOperationName(rule.op)
            if rule.mode == "static-int8":
                work.add_static_config(rule.regex, op, activation_num_bits=8, weight_num_bits=8)
            else:
                work.add_dynamic_config(rule.regex, op, num_bits=8)
        samples = {SIGNATURE: list(calibration())} if calibration else {}
        measured = work.calibrate(samples, num_threads=core_count()) if recipe.needs_calibration else None
        return bytes(work.quantize(measured).quantized_model)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """litert-quantizer prints its progress and a summary, and warns of its own debugging mode and of channels without
    range.
    """
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        yield


def op_names(content: bytes) -> list[str]:
    """The distinct ops of a TFLite file, sorted; custom ops (Flex among them) as CUSTOM:name."""
    from ai_edge_litert import schema_py_generated as schema

    names = {value: name for name, value in vars(schema.BuiltinOperator).items() if not name.startswith("_")}
    found = set()
    for code in schema.ModelT.InitFromPackedBuf(content, 0).operatorCodes:
        builtin = max(code.builtinCode, code.deprecatedBuiltinCode)  # the old field holds codes below 127
        custom = (code.customCode or b"").decode()
        found.add(f"CUSTOM:{custom}" if names[builtin] == "CUSTOM" else names[builtin])
    return sorted(found)


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
