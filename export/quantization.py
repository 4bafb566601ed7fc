"""Float32 TFLite bytes -> quantized TFLite bytes by a recipe's rules, with litert-quantizer. No TensorFlow here."""

from __future__ import annotations

import contextlib
import io
import re
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from captionlite.export.edge_tpu import check_edge_tpu, integer_input
from captionlite.export.errors import ExportError
from captionlite.export.recipes import EVERY_NAME, EVERY_OPERATION, GraphRecipe, Mode, Override, Ranges, Recipe
from captionlite.export.tflite_file import SIGNATURE, Op, output_names, read_ops, signature_specs
from captionlite.runtime.interpreter import core_count

Samples = Callable[[], Iterable[dict[str, np.ndarray]]]  # inputs by name, one dict a sample

BOUNDARY = ("INPUT", "OUTPUT")
EVERYTHING_INT8: Mode = "static_wi8_ai8"
HIDDEN_BELOW = -1e3  # masks and banned words hold -1e9 and -1e4: no integer scale has room for them beside real scores
NAMES_SHOWN = 5


def quantize_graphs(
    contents: dict[str, bytes],
    recipe: Recipe,
    samples: Callable[[str], Iterable[dict[str, np.ndarray]]],
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, bytes]:
    """A bundle's float32 graphs by name, each as the recipe has it; ``samples(name)`` is what one is calibrated on.

    An encoder whose recipe is integers by default takes its pixels as integers too, and what the Edge TPU's compiler
    would take of it is reported.
    """
    quantized = {}
    for graph, content in contents.items():
        if recipe.graph(graph).rules:
            report(f"quantizing the {graph}")
        quantized[graph] = quantize(content, recipe.graph(graph), partial(samples, graph), graph)
        if graph == "encoder" and recipe.encoder.default == EVERYTHING_INT8:
            quantized[graph] = integer_input(quantized[graph])
            report(str(check_edge_tpu(quantized[graph])))
    return quantized


def quantize(
    content: bytes,
    recipe: GraphRecipe,
    samples: Samples | None,
    where: str,
    *,
    known: dict[str, Any] | None = None,
    tried: bool = True,
) -> bytes:
    """A float32 file with the recipe's rules laid over it; inputs and outputs of the graph keep their types.

    ``samples`` gives the inputs to calibrate on. For those who lay many recipes over one file: ``known`` is what
    `every_range` found on them; without ``tried`` the result is not run once before it is returned. ``where`` names the
    graph in errors. Raises ExportError when a regular expression finds nothing, when samples are wanted and there are
    none, when litert-quantizer refuses, or when the interpreter cannot run the result.
    """
    if not recipe.rules:
        return content
    ops = read_ops(content)
    _check_names(recipe, ops, where)
    if recipe.needs_calibration and samples is None and known is None:
        raise ExportError(f"{where}: this recipe needs photographs to calibrate on")
    rules = list(recipe.rules)
    with _quiet():
        try:
            if known is not None and recipe.needs_calibration:
                ranges: dict[str, Any] | None = known
            else:
                fed = samples() if recipe.needs_calibration and samples else _zeros(content)
                ranges = _calibrate(content, rules, recipe.ranges, fed)
            rules += _exceptions(content, rules, ops, ranges or {})
            quantized = bytes(_quantizer(content, rules).quantize(ranges).quantized_model)
        except (ValueError, RuntimeError, NotImplementedError, KeyError) as error:
            raise ExportError(f"{where}: litert-quantizer refused the recipe: {_first_line(error)}") from error
    if tried and any(rule.mode.startswith("static_") for rule in rules):
        _try(quantized, where)
    return quantized


def every_range(content: bytes, ranges: Ranges, samples: Iterable[dict[str, np.ndarray]]) -> dict[str, Any]:
    """The ranges of all tensors, those that any recipe's calibration on these samples would find: by tensor name."""
    with _quiet():
        return _calibrate(content, [Override("static_wi8_ai8")], ranges, samples) or {}


def check_override(rule: Override, where: str) -> None:
    """Raises ExportError when litert-quantizer does not know the op, or when no kernel has the op in this mode."""
    from litert_quantizer import qtyping

    known = sorted(op.value for op in qtyping.TFLOperationName if op.value not in BOUNDARY)
    if rule.operation in BOUNDARY:
        raise ExportError(
            f"{where}.operation: found {rule.operation!r}, but what goes in and out of a graph keeps its type: that is "
            "the contract of a bundle; name an op"
        )
    if rule.operation not in known:
        raise ExportError(f"{where}.operation: found {rule.operation!r}, expected one of {', '.join(known)}")
    try:
        _quantizer(None, [rule])
    except ValueError as error:
        raise ExportError(
            f"{where}.mode: found {rule.mode!r} for {rule.operation} ({rule.granularity}, {rule.algorithm_key}), which "
            f"litert-quantizer does not have: {_first_line(error)}"
        ) from error


def litert_recipe(rules: Iterable[Override]) -> list[dict[str, Any]]:
    """The rules in litert-quantizer's own form, with the graph's inputs and outputs left alone.

    There, rules of one regular expression are kept together; a comment inside the expression makes each its own, so
    that they count in the order in which they stand.
    """
    from litert_quantizer import algorithm_manager, qtyping, recipe_manager

    names, algorithms = qtyping.TFLOperationName, algorithm_manager.AlgorithmName
    manager = recipe_manager.RecipeManager()
    for number, rule in enumerate(rules):
        regex, op = f"{rule.regex}(?#{number})", names(rule.operation)
        common = {"granularity": qtyping.QuantGranularity(rule.granularity), "algorithm_key": rule.algorithm_key}
        match rule.mode:
            case "no_quantize":
                manager.add_quantization_config(regex, op, None, algorithms.NO_QUANTIZE)
            case "float_casting":
                manager.add_weight_only_config(regex, op, num_bits=16, algorithm_key=algorithms.FLOAT_CASTING)
            case "dynamic_wi8_afp32" | "dynamic_wi4_afp32":
                manager.add_dynamic_config(regex, op, num_bits=4 if "wi4" in rule.mode else 8, **common)
            case "weight_only_wi8_afp32" | "weight_only_wi4_afp32":
                manager.add_weight_only_config(regex, op, num_bits=4 if "wi4" in rule.mode else 8, **common)
            case "static_wi8_ai8" | "static_wi8_ai16":
                bits = 16 if rule.mode.endswith("ai16") else 8
                granularity, key = common["granularity"], common["algorithm_key"]
                manager.add_static_config(regex, op, bits, 8, granularity, key)
    for name in BOUNDARY:
        manager.add_quantization_config(".*(?#boundary)", names(name), None, algorithms.NO_QUANTIZE)
    recipe: list[dict[str, Any]] = manager.get_quantization_recipe()
    return recipe


def _quantizer(content: bytes | None, rules: Iterable[Override]) -> Any:
    """litert-quantizer's Quantizer for a file; without one the rules are only checked."""
    from litert_quantizer import quantizer

    recipe = litert_recipe(rules)
    return None if content is None else quantizer.Quantizer(bytearray(content), recipe)


def _calibrate(
    content: bytes, rules: list[Override], ranges: Ranges, samples: Iterable[dict[str, np.ndarray]]
) -> dict[str, Any] | None:
    """By tensor, the range that its values have over the samples; None where no rule asks for one."""
    from litert_quantizer import calibrator, recipe_manager
    from litert_quantizer.utils import qsv_utils

    manager = recipe_manager.RecipeManager()
    manager.load_quantization_recipe(litert_recipe(rules))
    if not manager.need_calibration():
        return None
    update = qsv_utils.min_max_update if ranges == "min_max" else qsv_utils.moving_average_update
    work = calibrator.Calibrator(content, num_threads=core_count(), qsv_update_func=update)
    work.calibrate({SIGNATURE: list(samples)}, manager)
    found: dict[str, Any] = work.get_model_qsvs()
    return found


def _zeros(content: bytes) -> list[dict[str, np.ndarray]]:
    """One sample for recipes whose only ranges are those of stored tables, which do not depend on it."""
    return [
        {spec.name: np.zeros([size or 1 for size in spec.shape], spec.dtype) for spec in signature_specs(content)[0]}
    ]


def _exceptions(content: bytes, rules: list[Override], ops: list[Op], ranges: dict[str, Any]) -> list[Override]:
    """Rules that keep static modes off the ops that would come out wrong: their tensors stay float32.

    Those that touch masks or banned words: a scale that reaches to -1e9 leaves nothing of scores between -10 and 10.
    And those that touch what the graph gives out and reads on itself: there litert-quantizer confuses the integers with
    their float32 copy, and the output is garbage or missing. Products with weights are dynamic instead.
    """
    aside = {name for name, found in ranges.items() if "min" in found and np.min(found["min"]) < HIDDEN_BELOW}
    aside |= output_names(content) & {name for op in ops for name in op.inputs}
    kept = []
    for op in ops:
        if aside & (op.inputs.keys() | op.outputs.keys()) and _mode(rules, op).startswith("static_"):
            mode: Mode = "dynamic_wi8_afp32" if op.name == "FULLY_CONNECTED" else "no_quantize"
            kept.append(Override(mode, EVERY_OPERATION, f"^{re.escape(op.scope)}$"))
    return kept


def _mode(rules: list[Override], op: Op) -> str:
    modes = [r.mode for r in rules if r.operation in (EVERY_OPERATION, op.name) and re.search(r.regex, op.scope)]
    return modes[-1] if modes else "no_quantize"


def _check_names(recipe: GraphRecipe, ops: list[Op], where: str) -> None:
    """An expression that finds no tensor is a slip; "*" and operations that a family happens not to have are none."""
    for i, rule in enumerate(recipe.overrides):
        of_kind = [op for op in ops if rule.operation in (EVERY_OPERATION, op.name)]
        if rule.optional or rule.regex == EVERY_NAME or any(re.search(rule.regex, op.scope) for op in of_kind):
            continue
        names = [op.scope for op in of_kind][:NAMES_SHOWN]
        like = f"names there are like {', '.join(map(repr, names))}" if names else "there is no such op"
        raise ExportError(
            f"{where}.overrides[{i}].regex: found {rule.regex!r}, expected an expression that finds the output tensor "
            f"of a {rule.operation}; {like}"
        )


_TRIAL = """
import sys
import numpy as np
from ai_edge_litert.interpreter import Interpreter
runner = Interpreter(sys.argv[1], num_threads=1).get_signature_runner()
details = runner.get_input_details().items()
runner(**{name: np.zeros([abs(size) for size in d["shape_signature"]], d["dtype"]) for name, d in details})
"""


def _try(content: bytes, where: str) -> None:
    """Runs the file once in a process of its own: kernels refuse integer types, and some scales end the process."""
    with tempfile.TemporaryDirectory(prefix="captionlite-trial-") as directory:
        path = Path(directory) / "quantized.tflite"
        path.write_bytes(content)
        done = subprocess.run([sys.executable, "-c", _TRIAL, str(path)], capture_output=True, text=True, check=False)
    if done.returncode == 0:
        return
    lines = [line for line in done.stderr.splitlines() if line.strip() and not line.startswith("INFO")]
    if done.returncode < 0:
        said = f"it ends with {signal.Signals(-done.returncode).name}: a scale is beyond what a kernel can hold"
    else:
        said = lines[-1] if lines else f"exit code {done.returncode}"
    raise ExportError(
        f"{where}: the interpreter cannot run what this recipe makes: {said}. Leave that op as it is with an override "
        '{"operation": "OP", "mode": "no_quantize"} in a recipe file of your own, or take the recipe int8'
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


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
