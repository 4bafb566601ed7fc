"""Graphs that load, run and are wrong: every one is caught by `captionlite verify`, and by `captionlite gate`.

A trained tiny captioner, quantized, with a scale changed, a layer zeroed or two states swapped in its files; checksums
are right again, and the golden vectors are those of the whole bundle.
"""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import keras
import pytest
from broken_graphs import Model, break_graph
from click.testing import CliRunner, Result
from drawings import TINY_PRESET, write_drawings

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow converts; KERAS_BACKEND is another", allow_module_level=True)

from captionlite.export.bundle_quantizer import quantize_bundle
from captionlite.export.calibration import Photographs
from captionlite.export.exporter import export_run
from captionlite.export.recipes import recipe
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.cli import cli
from captionlite.training.config import DataConfig, RunConfig, from_json
from captionlite.training.run import load_run
from captionlite.training.trainer import train

FAMILY = {**TINY_PRESET["family"], "units": 32, "dropout": 0.0, "norm": "pre"}  # type: ignore[dict-item]


@pytest.fixture(scope="module")
def road(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with drawings, a run that has learned them, and its bundles float32 and int8."""
    folder = tmp_path_factory.mktemp("road")
    data = f"jsonl:{write_drawings(folder / 'drawings')}"
    settings = {**TINY_PRESET, "epochs": 12, "flip": False, "optimizer": {"learning_rate": 0.02}, "family": FAMILY}
    config: RunConfig = from_json(RunConfig, {**settings, "data": [vars(DataConfig(data))]}, "tiny")
    train(config, folder / "run", folder / "cache")
    photographs = Photographs.of_data(data)
    export_run(load_run(folder / "run"), recipe("float32"), folder / "float32", photographs=photographs.photos[:2])
    quantize_bundle(Bundle.open(folder / "float32"), recipe("int8"), folder / "int8", photographs=photographs)
    return folder


def gate(bundle: Path, reference: Path, road: Path) -> Result:
    arguments = ["--reference", str(reference), "--data", f"jsonl:{road}/drawings/captions.jsonl", "--split", "train"]
    return CliRunner().invoke(cli, ["gate", str(bundle), *arguments, "--allow-fewer", "--json"])


def verify(bundle: Path) -> Result:
    return CliRunner().invoke(cli, ["verify", str(bundle), "--json"])


@pytest.mark.parametrize(("bundle", "reference"), [("int8", "float32"), ("float32", "run"), ("int8", "run")])
def test_what_is_whole_passes(bundle: str, reference: str, road: Path) -> None:
    """The run is Keras itself: its encoder, its steps, its captions."""
    result = gate(road / bundle, road / reference, road)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["reference_kind"] == ("Keras run" if reference == "run" else "float32 bundle")
    assert report["scores"]["cider"]["reference"] > 1
    if bundle == "float32":
        assert report["captions"]["equal"] == report["photographs"] == 18
        assert report["logits"]["relative_rms"] < 1e-5
        assert all(output["worst_cosine"] > 1 - 1e-9 for output in report["encoder"].values())
    else:
        assert all(10 < output["snr_db"] < 60 for output in report["encoder"].values())
    assert verify(road / bundle).exit_code == 0


def test_keras_decodes_greedily(road: Path) -> None:
    arguments = ["--reference", str(road / "run"), "--data", f"jsonl:{road}/drawings/captions.jsonl", "--beams", "3"]
    result = CliRunner().invoke(cli, ["gate", str(road / "int8"), *arguments, "--split", "train", "--allow-fewer"])
    assert result.exit_code == 1
    assert "a Keras run decodes greedily only" in result.stderr


def test_a_quantized_bundle_is_no_reference(road: Path) -> None:
    result = gate(road / "float32", road / "int8", road)
    assert result.exit_code == 1
    assert "quantized (recipe int8), and no yardstick" in result.stderr


def double_scale(name: str = "") -> Callable[[Model], object]:
    return lambda model: model.scale(model.largest(name), 2.0)


def zero(name: str = "") -> Callable[[Model], object]:
    def edit(model: Model) -> None:
        model.values(model.largest(name))[...] = 0

    return edit


BREAKS: dict[str, tuple[str, Callable[[Model], object]]] = {
    "a scale doubled in the encoder": ("encoder", double_scale("conv_1")),
    "a scale doubled in the decoder": ("decoder", double_scale("head")),
    "a layer of the encoder zeroed": ("encoder", zero("conv_1")),
    "a layer of the decoder zeroed": ("decoder", zero("feed_forward")),
    "states swapped going in": ("decoder", lambda model: model.swap_inputs("cross_key_0", "cross_value_0")),
    "states swapped coming out": ("encoder", lambda model: model.swap_outputs("cross_key_0", "cross_value_0")),
    "caches swapped": ("decoder", lambda model: model.swap_inputs("self_key_0", "self_value_0")),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_broken_passes_neither(name: str, road: Path, tmp_path: Path) -> None:
    graph, edit = BREAKS[name]
    shutil.copytree(road / "int8", tmp_path / "broken")
    break_graph(tmp_path / "broken", graph, edit)
    assert (tmp_path / "broken/golden.npz").read_bytes() == (road / "int8/golden.npz").read_bytes()
    Bundle.open(tmp_path / "broken")  # nothing is wrong with its checksums
    checked = verify(tmp_path / "broken")
    assert checked.exit_code == 1, checked.stderr
    assert json.loads(checked.stdout)["passed"] is False
    result = gate(tmp_path / "broken", road / "float32", road)
    assert result.exit_code == 3, result.stdout or result.stderr
    assert json.loads(result.stdout)["verdict"]["problems"]


def test_taking_a_file_apart_and_putting_it_together_changes_nothing(road: Path, tmp_path: Path) -> None:
    """Or it would be this that verify notices."""
    for bundle in ("int8", "float32"):
        shutil.copytree(road / bundle, tmp_path / bundle)
        for graph in ("encoder", "decoder"):
            break_graph(tmp_path / bundle, graph, lambda model: None)
        checked = verify(tmp_path / bundle)
        assert checked.exit_code == 0
        assert [tensor["error"] for tensor in json.loads(checked.stdout)["tensors"].values()] == pytest.approx(
            [0.0] * 3, abs=1e-6
        )
