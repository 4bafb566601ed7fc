"""Recipes are data: strictly read, and what they name is what changes."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import harness
import keras
import pytest
from click.testing import CliRunner

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow converts; KERAS_BACKEND is another", allow_module_level=True)

from captionlite.export import quantization
from captionlite.export.convert import convert
from captionlite.export.errors import ExportError
from captionlite.export.graphs import DecoderGraph
from captionlite.export.quantization import quantize
from captionlite.export.recipes import GraphRecipe, Override, recipe, recipe_names
from captionlite.export.tflite_file import Op, is_quantized, read_ops
from captionlite.runtime.cli import cli

BUILT_IN = {
    "float32", "float16", "dynamic-int8", "weight-only-int8", "int8", "full-int8", "int16x8", "int4",
    "legacy",
}  # fmt: skip
WEIGHT_ONLY = "weight_only_wi8_afp32"
# Weights of a channel enough for rounding to average out, as in a real model.
WIDER = {**harness.TRANSFORMER, "units": 64, "key_dim": 32, "feed_forward": 96}


@cache
def decoder() -> bytes:
    return convert(DecoderGraph(harness.build(WIDER)))


def write(tmp_path: Path, obj: Any, name: str = "mine") -> Path:
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(obj))
    return path


def valid() -> dict[str, Any]:
    return {
        "description": "mine",
        "tolerance": 0.05,
        "encoder": {"default": WEIGHT_ONLY},
        "decoder": {"overrides": [{"operation": "FULLY_CONNECTED", "mode": "dynamic_wi8_afp32"}]},
    }


def test_the_package_has_the_recipes_that_it_promises() -> None:
    assert set(recipe_names()) == BUILT_IN


def test_the_help_of_export_names_them_all() -> None:
    told = CliRunner().invoke(cli, ["export", "--help"]).output
    assert {name for name in BUILT_IN if re.search(rf"^ +{name} ", told, re.MULTILINE)} == BUILT_IN


@pytest.mark.parametrize("name", sorted(BUILT_IN))
def test_a_recipe_round_trips_through_its_file(name: str, tmp_path: Path) -> None:
    built_in = recipe(name)
    read = recipe(str(write(tmp_path, built_in.to_json(), name)))
    assert read == built_in
    assert read.provenance() == built_in.provenance()
    assert re.fullmatch("[0-9a-f]{64}", built_in.provenance()["sha256"])


def test_the_hash_is_of_what_a_recipe_does_and_not_of_how_it_is_written(tmp_path: Path) -> None:
    spelled = valid()
    spelled["encoder"] |= {"ranges": "moving_average"}
    hashes = [recipe(str(write(tmp_path, obj))).provenance()["sha256"] for obj in (valid(), spelled)]
    assert hashes[0] == hashes[1]
    changed = {**valid(), "tolerance": 0.04}
    assert recipe(str(write(tmp_path, changed))).provenance()["sha256"] != hashes[0]


def test_parallel_passes_are_stored_as_the_decoder_unless_said_otherwise(tmp_path: Path) -> None:
    assert recipe(str(write(tmp_path, valid()))).graph("refine") == recipe(str(write(tmp_path, valid()))).decoder
    own = recipe(str(write(tmp_path, {**valid(), "refine": {"default": WEIGHT_ONLY}})))
    assert own.graph("refine") == GraphRecipe(default="weight_only_wi8_afp32")


def test_only_what_a_bundle_has_decides_whether_photographs_are_needed() -> None:
    assert {name for name in BUILT_IN if recipe(name).needs_calibration} == {
        "int8", "int4", "full-int8", "int16x8",
    }  # fmt: skip
    assert not recipe("int8").decoder.needs_calibration


def place(obj: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    *parents, leaf = path.split(".")
    inner = obj
    for parent in parents:
        inner = inner[int(parent)] if isinstance(inner, list) else inner.setdefault(parent, {})
    inner[leaf] = value
    return obj


FC = {"operation": "FULLY_CONNECTED", "mode": "dynamic_wi8_afp32"}
BAD = [
    (
        "decodr",
        {},
        r"mine\.json\.decodr: no such setting; there are description, tolerance, encoder, decoder, refi",
    ),
    ("encoder.defaults", "x", r"mine\.json\.encoder\.defaults: no such setting; there are default, ranges, overrid"),
    ("encoder.default", "int8", r"mine\.json\.encoder\.default: found 'int8', expected one of 'no_quantize', 'float"),
    ("decoder.overrides.0.mode", "dynamic", r"decoder\.overrides\[0\]\.mode: found 'dynamic', expected one of"),
    (
        "decoder.overrides.0.operation",
        "CONV",
        r"overrides\[0\]\.operation: found 'CONV', expected one of ., ADD",
    ),
    (
        "decoder.overrides.0.operation",
        "OUTPUT",
        r"operation: found 'OUTPUT', but what goes in and out of a graph",
    ),
    ("decoder.overrides.0.operation", "SOFTMAX", r"overrides\[0\]\.mode: found 'dynamic_wi8_afp32' for SOFTMAX"),
    ("decoder.overrides.0.regex", "(", r"decoder\.overrides\[0\]\.regex: found '\(', expected a regular expression"),
    ("decoder.overrides.0.granularity", "ROWWISE", r"granularity: found 'ROWWISE', expected one of 'CHANNELWISE'"),
    ("decoder.overrides", FC, r"mine\.json\.decoder\.overrides: found dict, expected a list"),
    ("tolerance", "much", r"mine\.json\.tolerance: found 'much', expected float"),
    ("tolerance", 0, r"mine\.json\.tolerance: found 0\.0, expected a relative error above 0, at most 1"),
    ("min_cider_ratio", 1.5, r"mine\.json\.min_cider_ratio: found 1\.5, expected a part of float32's CIDEr above 0"),
    ("encoder", None, r"mine\.json\.encoder: found NoneType, expected an object"),
]


@pytest.mark.parametrize(("path", "value", "message"), BAD, ids=[f"{path}-{i}" for i, (path, *_) in enumerate(BAD)])
def test_a_bad_recipe_is_refused_by_file_and_field(path: str, value: Any, message: str, tmp_path: Path) -> None:
    assert recipe(str(write(tmp_path, valid()))).tolerance == 0.05
    with pytest.raises(ExportError, match=message):
        recipe(str(write(tmp_path, place(valid(), path, value))))


def test_what_is_no_recipe_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="recipe 'int9': neither a file nor a recipe of captionlite; there are dynam"):
        recipe("int9")
    path = tmp_path / "broken.json"
    path.write_text("{")
    with pytest.raises(ExportError, match=r"broken\.json: not JSON"):
        recipe(str(path))
    path.write_bytes(b"\xff\xfe{")
    with pytest.raises(ExportError, match=r"broken\.json: not readable as a recipe .*expected JSON in UTF-8"):
        recipe(str(path))
    missing = valid()
    del missing["decoder"]
    with pytest.raises(ExportError, match=r"mine\.json\.decoder: missing"):
        recipe(str(write(tmp_path, missing)))


def quantized_products(content: bytes) -> set[str]:
    """Scopes of the matrix products whose weights are not float32 in the file."""
    ops = read_ops(content)
    expanded = {name for op in ops if op.name == "DEQUANTIZE" for name in op.outputs}

    def small(op: Op) -> bool:
        name, kind = list(op.inputs.items())[1]
        return kind != "FLOAT32" or name in expanded

    return {op.scope for op in ops if op.name == "FULLY_CONNECTED" and small(op)}


@pytest.mark.parametrize("mode", ["dynamic_wi8_afp32", "weight_only_wi8_afp32", "dynamic_wi4_afp32", "float_casting"])
def test_a_regex_changes_exactly_the_tensors_that_it_names(mode: Any) -> None:
    products = {op.scope for op in read_ops(decoder()) if op.name == "FULLY_CONNECTED"}
    named = {scope for scope in products if re.search("feed_forward_1/", scope)}
    assert 0 < len(named) < len(products)
    rule = Override(mode, "FULLY_CONNECTED", "feed_forward_1/")
    changed = quantize(decoder(), GraphRecipe(overrides=(rule,)), None, "decoder")
    assert quantized_products(decoder()) == set()
    assert quantized_products(changed) == named
    others = quantize(
        decoder(),
        GraphRecipe(default=mode, overrides=(Override("no_quantize", "*", "feed_forward_1/"),)),
        None,
        "decoder",
    )
    assert quantized_products(others) == products - named


def test_the_last_override_counts_whatever_the_expressions() -> None:
    """litert-quantizer alone keeps rules of one expression together, at the place of the first."""
    everything = Override("dynamic_wi8_afp32", "FULLY_CONNECTED")
    nothing = Override("no_quantize", "FULLY_CONNECTED", "feed_forward_")
    products = {op.scope for op in read_ops(decoder()) if op.name == "FULLY_CONNECTED"}
    fed = {scope for scope in products if "feed_forward_" in scope}
    rules = (everything, nothing)
    assert quantized_products(quantize(decoder(), GraphRecipe(overrides=rules), None, "decoder")) == products - fed
    again = (everything, nothing, Override("weight_only_wi8_afp32", "FULLY_CONNECTED"))
    assert quantized_products(quantize(decoder(), GraphRecipe(overrides=again), None, "decoder")) == products


def test_a_regex_that_finds_nothing_is_refused() -> None:
    rule = Override("weight_only_wi8_afp32", "FULLY_CONNECTED", "feed_foward")
    with pytest.raises(
        ExportError, match=r"decoder\.overrides\[0\]\.regex: found 'feed_foward', .*names there are like"
    ):
        quantize(decoder(), GraphRecipe(overrides=(rule,)), None, "decoder")
    absent = Override("weight_only_wi8_afp32", "CONV_2D", "x")
    with pytest.raises(ExportError, match=r"output tensor of a CONV_2D; there is no such op"):
        quantize(decoder(), GraphRecipe(overrides=(absent,)), None, "decoder")
    everywhere = Override("weight_only_wi8_afp32", "CONV_2D")  # a family need not have every op of a recipe
    assert not is_quantized(quantize(decoder(), GraphRecipe(overrides=(everywhere,)), None, "decoder"))


def test_static_modes_without_samples_are_refused() -> None:
    with pytest.raises(ExportError, match="decoder: this recipe needs photographs to calibrate on"):
        quantize(decoder(), recipe("full-int8").decoder, None, "decoder")


def test_the_same_file_and_recipe_give_the_same_bytes() -> None:
    graph = recipe("dynamic-int8").decoder
    assert quantize(decoder(), graph, None, "decoder") == quantize(decoder(), graph, None, "decoder")


def test_embedding_tables_are_int8_without_photographs() -> None:
    def tables(content: bytes) -> list[str]:
        return [next(iter(op.inputs.values())) for op in read_ops(content) if op.name == "GATHER"]

    assert set(tables(decoder())) == {"FLOAT32"}
    assert set(tables(quantize(decoder(), recipe("int8").decoder, None, "decoder"))) == {"INT8"}


def test_a_file_that_the_interpreter_cannot_run_is_refused_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ExportError, match=r"decoder: the interpreter cannot run what this recipe makes: .*Leave that"):
        quantization._try(decoder()[:200], "decoder")
    quantization._try(decoder(), "decoder")
    monkeypatch.setattr(quantization, "_TRIAL", "import os; os.abort()")  # what some scales make a kernel do
    with pytest.raises(ExportError, match="it ends with SIGABRT: a scale is beyond what a kernel can hold"):
        quantization._try(decoder(), "decoder")
