"""A run becomes a bundle: exact against Keras, complete, checked, and never half-written."""

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from drawings import TINY_PRESET, write_drawings

from captionlite.export.errors import ExportError
from captionlite.export.exporter import export_run
from captionlite.export.recipes import recipe
from captionlite.export.tflite_file import check_ops, op_names, signature_specs
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.cli import cli
from captionlite.runtime.errors import BundleError
from captionlite.runtime.manifest import FORMAT, AttentionSpec
from captionlite.runtime.verify import verify
from captionlite.training.checkpoints import load_variables, save_variables
from captionlite.training.config import DataConfig, RunConfig, from_json
from captionlite.training.datasets import load_dataset
from captionlite.training.errors import RunError
from captionlite.training.run import Run, load_run
from captionlite.training.trainer import train


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    captions = write_drawings(tmp_path_factory.mktemp("drawings"))
    return sorted((captions.parent / "images").iterdir())


@pytest.fixture(scope="module")
def run(photographs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    config: RunConfig = from_json(RunConfig, {**TINY_PRESET, "epochs": 1, "flip": False}, "tiny")
    data = (DataConfig(f"jsonl:{photographs[0].parent.parent / 'captions.jsonl'}"),)
    out = tmp_path_factory.mktemp("run") / "run"
    train(RunConfig(**{**vars(config), "data": data}), out, tmp_path_factory.mktemp("cache"))
    return load_run(out)


RECIPES = ("float32", "float16", "int8")  # all others: test_recipes.py


@pytest.fixture(scope="module", params=RECIPES)
def bundle(
    request: pytest.FixtureRequest, run: Run, photographs: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("bundles") / str(request.param)
    name = run.best["datasets"][0]["name"]
    export_run(
        run, recipe(request.param), out, photographs=photographs, scores={"test": SCORES}, licences={name: "drawn here"}
    )
    return out


SCORES = {"n": 3, "bleu_1": 0.5, "bleu_4": 0.25, "rouge_l": 0.4, "cider": 0.75}


def test_a_bundle_opens_verifies_and_captions(bundle: Path, photographs: list[Path]) -> None:
    captioner = Captioner.from_bundle(bundle)
    assert verify(captioner.bundle).passed
    caption = captioner.caption(photographs[0])
    assert caption.attention is not None
    np.testing.assert_allclose(caption.attention.sum(axis=1), 1.0, atol=1e-5)


def test_float32_captions_equal_keras_and_logits_are_within_1e_4(
    run: Run, photographs: list[Path], tmp_path: Path
) -> None:
    result = export_run(run, recipe("float32"), tmp_path / "bundle", photographs=photographs)
    assert result.parity.photographs == result.parity.equal_captions == 20
    assert {t.name for t in result.parity.tensors} == {
        "encoder/cross_key_0",
        "encoder/cross_value_0",
        "decoder/logits",
    }
    assert all(t.max_abs < 1e-4 and t.relative_rms < 1e-5 for t in result.parity.tensors)


def test_recipes_do_what_they_say(run: Run, photographs: list[Path], tmp_path: Path) -> None:
    sizes = {}
    for name in RECIPES:
        result = export_run(run, recipe(name), tmp_path / name, photographs=photographs)
        sizes[name] = result.sizes_bytes["encoder.tflite"]
        assert ("QUANTIZE" in result.ops["encoder"]) == (name == "int8")
    # Of a network this small the weights, 22 kB in float32, are not all of the file.
    assert sizes["float32"] - sizes["float16"] > 8_000
    assert sizes["float16"] - sizes["int8"] > 2_000


def test_the_manifest_says_where_it_comes_from(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    assert manifest.format == FORMAT
    assert manifest.attention == AttentionSpec((4, 4))
    assert manifest.provenance["preset"] == "tiny"
    assert manifest.provenance["training"]["datasets"][0]["train"] == 18
    name = manifest.graphs["encoder"].recipe
    assert manifest.provenance["recipe"] == recipe(name).provenance()
    calibration = manifest.provenance["calibration"]
    assert calibration["photographs"] == (24 if name == "int8" else 0)
    if name == "int8":
        assert len(calibration["ids"]) == 24
        assert "red-circle-left.png" in calibration["ids"]
        listed = "".join(f"{photograph}\n" for photograph in calibration["ids"])
        assert calibration["sha256"] == hashlib.sha256(listed.encode()).hexdigest()
    assert manifest.scores == {"test": SCORES}
    card = (bundle / "README.md").read_text()
    assert "| test | 3 | 0.500 | 0.250 | 0.400 | 0.750 |" in card
    assert "18 photographs trained on, 6 to choose the best epoch. drawn here" in card


def test_an_existing_bundle_stays_unless_forced(run: Run, photographs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    export_run(run, recipe("float32"), out)
    before = (out / "manifest.json").read_bytes()
    with pytest.raises(ExportError, match="exists already; give --force"):
        export_run(run, recipe("float32"), out, name="other")
    assert (out / "manifest.json").read_bytes() == before
    export_run(run, recipe("float32"), out, name="other", force=True)
    assert Bundle.open(out).manifest.name == "other"
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_int8_without_photographs_is_refused_before_anything_is_written(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="recipe int8 needs calibration photographs"):
        export_run(run, recipe("int8"), tmp_path / "bundle")
    assert not list(tmp_path.iterdir())


def test_a_licence_of_a_data_set_that_is_not_there_is_refused(run: Run, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="licence of flickr: the run has no data set of that name; it has drawings"):
        export_run(run, recipe("float32"), tmp_path / "bundle", licences={"flickr": "x"})


def test_a_wrong_weight_does_not_pass_as_float32(run: Run, photographs: list[Path], tmp_path: Path) -> None:
    """The parity check looks at numbers: a step that strays from the full model is refused."""
    broken = load_run(run.directory)
    original = broken.model.step

    def strayed(*args: object) -> object:
        logits, updates, attention = original(*args)
        return logits * 1.001, updates, attention

    broken.model.step = strayed
    generator = load_run(run.directory).generator
    broken._generator = generator  # Keras's own captions come from the true step
    with pytest.raises(ExportError, match=r"float32 logits differ from Keras by up to"):
        export_run(broken, recipe("float32"), tmp_path / "bundle", photographs=photographs)
    assert not (tmp_path / "bundle").exists()


def test_ops_are_read_from_the_written_file(bundle: Path) -> None:
    content = (bundle / "decoder.tflite").read_bytes()
    assert {"FULLY_CONNECTED", "SOFTMAX", "GATHER"} <= set(op_names(content))
    assert check_ops(content) == op_names(content)
    inputs, outputs = signature_specs(content)
    assert {"token", "position", "cross_key_0", "self_key_0"} <= {spec.name for spec in inputs}
    assert {"logits", "attention", "self_key_0", "self_value_0"} == {spec.name for spec in outputs}


def test_tensorflow_only_ops_are_refused() -> None:
    import tensorflow as tf

    from captionlite.export.convert import convert

    class Module(tf.Module):  # type: ignore[misc]
        @tf.function(input_signature=[tf.TensorSpec((1, 4), tf.float32, name="x")])  # type: ignore[untyped-decorator]
        def serve(self, x: tf.Tensor) -> dict[str, tf.Tensor]:
            return {"y": tf.raw_ops.Betainc(a=x, b=x, x=x)}

    with pytest.raises(ExportError, match="the TFLite converter refused the graph"):
        convert(Module())


def test_the_command_prints_parity_and_writes_the_bundle(run: Run, photographs: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    arguments = ["export", str(run.directory), "--out", str(out), "--calibration", str(photographs[0].parent), "--json"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    printed = json.loads(done.stdout)
    assert printed["bundle"] == str(out)
    assert printed["parity"]["photographs"] == 18
    manifest = Bundle.open(out).manifest
    assert manifest.graphs["encoder"].recipe == "int8"
    dev = {example.id for example in load_dataset(run.config.data[0].spec).split("dev")}
    assert len(dev) == 6
    assert not dev & set(manifest.provenance["calibration"]["ids"])  # the folder holds them; they are left out


def test_weights_that_are_missing_or_damaged(run: Run, tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"config\.json: no such file; .* is not a run directory"):
        load_run(tmp_path)
    path = tmp_path / "weights.safetensors"
    save_variables(path, {"model": run.model.weights[1:]}, {})
    with pytest.raises(Exception, match="has no tensor model/0000/"):
        load_variables(path, {"model": run.model.weights})
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(RunError, match="damaged"):
        load_variables(path, {"model": run.model.weights})


def test_a_bundle_that_was_tampered_with_does_not_open(bundle: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy"
    copy.mkdir()
    for path in bundle.iterdir():
        (copy / path.name).write_bytes(path.read_bytes())
    content = bytearray((copy / "decoder.tflite").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "decoder.tflite").write_bytes(bytes(content))
    with pytest.raises(BundleError, match=r"decoder\.tflite"):
        Bundle.open(copy)
