"""One trained model has one id, whatever was made of it; another has another."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import toy_bundle as toy
from drawings import write_drawings
from untrained import untrained

from captionlite.benchmarks.model_identity import describe_bundle, describe_run, model_id
from captionlite.export.bundle_quantizer import quantize_bundle
from captionlite.export.exporter import export_run
from captionlite.export.recipes import recipe
from captionlite.runtime.bundle import Bundle, pack_bundle
from captionlite.training.run import Run

DRAWN = {"name": "drawn", "train": 18, "dev": 6}
PARTS: dict[str, Any] = {
    "family": "lstm",
    "vocabulary": b"{}",
    "encoder": {"name": "tiny", "weights": None},
    "decoder": {"units": 3},
    "training": {"epoch": 2, "datasets": [{"name": "drawn", "train": 3, "licence": "CC0"}]},
}


def test_the_datas_licences_and_weights_are_no_part_of_the_model() -> None:
    training = {"weights": [2.0], "datasets": [{"licence": "CC BY", "train": 3, "name": "drawn"}], "epoch": 2}
    assert model_id(**{**PARTS, "training": training}) == model_id(**PARTS)


@pytest.mark.parametrize(
    "other",
    [
        {"family": "transformer"},
        {"vocabulary": b"{ }"},
        {"encoder": {"name": "tiny", "weights": "imagenet"}},
        {"decoder": {"units": 4}},
        {"training": {**PARTS["training"], "epoch": 3}},
        {"training": {"epoch": 2, "datasets": [{"name": "drawn", "train": 4}]}},
        {"training": None},
    ],
)
def test_everything_else_is(other: dict[str, Any]) -> None:
    assert model_id(**{**PARTS, **other}) != model_id(**PARTS)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    drawings = write_drawings(tmp_path_factory.mktemp("drawings") / "drawn")
    made = untrained("lstm", drawings, tmp_path_factory.mktemp("run"))
    made.best.update(epoch=4, dev={"cider": 0.123456}, datasets=[{**DRAWN, "licence": "unknown"}])
    return made


def test_a_run_and_its_bundles_are_one_model(run: Run, tmp_path: Path) -> None:
    export_run(run, recipe("float32"), tmp_path / "float32", licences={"drawn": "CC0"})
    plain = Bundle.open(tmp_path / "float32")
    quantize_bundle(plain, recipe("dynamic-int8"), tmp_path / "int8")
    quantized = describe_bundle(Bundle.open(tmp_path / "int8"))
    described, trained = describe_bundle(plain), describe_run(run)
    assert trained.id == described.id == quantized.id
    assert (described.recipe, quantized.recipe) == ("float32", "dynamic-int8")
    assert described.bundle_sha256 != quantized.bundle_sha256
    assert quantized.size_bytes < described.size_bytes
    run.best["epoch"] = 5
    assert describe_run(run).id != trained.id


def test_a_zip_is_the_bundle_that_it_holds(tmp_path: Path) -> None:
    toy.write(tmp_path / "toy")
    pack_bundle(tmp_path / "toy", tmp_path / "toy.zip")
    directory, packed = (describe_bundle(Bundle.open(tmp_path / name)) for name in ("toy", "toy.zip"))
    assert directory == packed
    manifest = json.loads((tmp_path / "toy" / "manifest.json").read_text())
    assert directory.graphs_bytes["encoder"] == manifest["files"]["encoder.tflite"]["size_bytes"]
    assert replace(directory, id="") != directory
