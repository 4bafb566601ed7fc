"""A float32 bundle becomes a quantized one by every recipe, near enough, without its run, and never by halves."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from drawings import write_drawings
from untrained import untrained

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow converts; KERAS_BACKEND is another", allow_module_level=True)

from captionlite.export import quantization
from captionlite.export.bundle_quantizer import quantize_bundle
from captionlite.export.calibration import Photographs, decoder_samples, refine_samples
from captionlite.export.errors import ExportError
from captionlite.export.exporter import export_run
from captionlite.export.recipes import GraphRecipe, Override, Recipe, recipe
from captionlite.export.tflite_file import FORBIDDEN_OPS, is_quantized, op_names, read_ops, signature_specs
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.cli import cli
from captionlite.runtime.decoding import DecodingOptions
from captionlite.runtime.errors import BundleError
from captionlite.runtime.image import load_image
from captionlite.runtime.manifest import ConfidenceSpec
from captionlite.runtime.verify import read_golden, verify
from captionlite.training.datasets import load_dataset
from captionlite.training.run import Run

FAMILIES = ("transformer", "lstm", "gru_attention", "masked_lm")
# Relative RMS error of any encoder output and of the logits, against float32, that random weights may have.
TOLERANCES = {
    "weight-only-int8": 0.03,
    "legacy": 0.03,
    "dynamic-int8": 0.06,
    "int8": 0.06,
    "float16": 0.005,
    "int4": 0.3,
    "int16x8": 0.12,
    "full-int8": 0.12,
}


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawings(tmp_path_factory.mktemp("drawings"))


@pytest.fixture(scope="module")
def photographs(drawings: Path) -> Photographs:
    return Photographs.of_data(f"jsonl:{drawings}")


@pytest.fixture(scope="module", params=FAMILIES)
def road(
    request: pytest.FixtureRequest, drawings: Path, photographs: Photographs, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Bundle]:
    folder = tmp_path_factory.mktemp(request.param)
    run = untrained(request.param, drawings, folder)
    export_run(run, recipe("float32"), folder / "float32", photographs=photographs.photos[:2], scores=SCORES)
    return run, Bundle.open(folder / "float32")


SCORES = {"test": {"n": 3, "bleu_1": 0.5, "bleu_4": 0.25, "rouge_l": 0.4, "cider": 0.75}}


@pytest.fixture(scope="module")
def transformer(
    drawings: Path, photographs: Photographs, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Run, Bundle]:
    folder = tmp_path_factory.mktemp("transformer")
    run = untrained("transformer", drawings, folder)
    export_run(run, recipe("float32"), folder / "float32", photographs=photographs.photos[:2], scores=SCORES)
    return run, Bundle.open(folder / "float32")


@pytest.mark.parametrize("name", TOLERANCES)
def test_every_recipe_gives_a_bundle_near_float32(
    name: str, road: tuple[Run, Bundle], photographs: Photographs, tmp_path: Path
) -> None:
    _, bundle = road
    few = dataclasses.replace(photographs, photos=photographs.photos[:6])
    result = quantize_bundle(bundle, recipe(name), tmp_path / name, photographs=few)
    written = Bundle.open(result.bundle)
    assert verify(written).passed
    for graph, spec in written.manifest.graphs.items():
        content = written.read(spec.file)
        assert is_quantized(content)
        assert len(content) < len(bundle.read(spec.file))
        for found, expected in zip(signature_specs(content), (spec.inputs, spec.outputs), strict=True):
            assert {tensor.name: tensor.dtype for tensor in found} == {t.name: t.dtype for t in expected}
        assert not [op for op in op_names(content) if op.startswith(FORBIDDEN_OPS)]
        assert result.ops[graph] == op_names(content)
    caption = Captioner(written).caption(photographs.photos[0], DecodingOptions(beams=3))  # the batch is still dynamic
    assert caption.tokens
    errors = {tensor.name: tensor.relative_rms for tensor in result.parity.tensors}
    assert {"decoder/logits"} < errors.keys()
    assert all(0 <= error < TOLERANCES[name] for error in errors.values()), errors
    assert result.parity.photographs == 8  # two golden ones and six to train on
    assert result.parity.reference == "the float32 bundle"


@pytest.mark.parametrize("name", ["int8", "full-int8"])
def test_a_bundle_quantized_here_equals_the_one_that_export_makes(
    name: str, transformer: tuple[Run, Bundle], photographs: Photographs, tmp_path: Path
) -> None:
    run, bundle = transformer
    quantize_bundle(bundle, recipe(name), tmp_path / "quantized", photographs=photographs)
    export_run(run, recipe(name), tmp_path / "exported", photographs=photographs)
    quantized, exported = Bundle.open(tmp_path / "quantized"), Bundle.open(tmp_path / "exported")
    for file in ("encoder.tflite", "decoder.tflite", "vocabulary.json"):
        assert quantized.read(file) == exported.read(file), file
    for key in ("recipe", "calibration"):
        assert quantized.manifest.provenance[key] == exported.manifest.provenance[key]
    assert quantized.manifest.graphs == exported.manifest.graphs


def test_the_manifest_says_what_it_was_made_of(
    transformer: tuple[Run, Bundle], photographs: Photographs, drawings: Path, tmp_path: Path
) -> None:
    _, bundle = transformer
    fitted = dataclasses.replace(bundle.manifest.decoding, confidence=ConfidenceSpec(1.0, 0.5, "it fits", "drawings"))
    bundle = Bundle.open(bundle.location)
    bundle.manifest = dataclasses.replace(bundle.manifest, decoding=fitted)
    said: list[str] = []
    quantize_bundle(bundle, recipe("int8"), tmp_path / "out", photographs=photographs, name="small", report=said.append)
    manifest = Bundle.open(tmp_path / "out").manifest
    assert manifest.name == "small"
    assert {spec.recipe for spec in manifest.graphs.values()} == {"int8"}
    assert manifest.golden.tolerance == recipe("int8").tolerance
    facts = manifest.provenance
    assert facts["recipe"] == recipe("int8").provenance()
    assert facts["calibration"] == photographs.provenance()
    dev = {example.id for example in load_dataset(f"jsonl:{drawings}").split("dev")}
    assert facts["calibration"]["photographs"] == 18
    assert not dev & set(facts["calibration"]["ids"])
    assert facts["quantized_from"]["sha256"] == {
        file: bundle.manifest.files[file].sha256 for file in ("encoder.tflite", "decoder.tflite")
    }
    # What was measured on the float32 bundle is not said of this one.
    assert facts["quantized_from"]["scores"] == SCORES
    assert manifest.scores == {}
    assert manifest.decoding.confidence is None
    assert [line for line in said if "captionlite confidence" in line]
    assert "captions equal word for word those of the float32 bundle." in (tmp_path / "out/README.md").read_text()


def test_recipes_without_static_modes_want_no_photographs(transformer: tuple[Run, Bundle], tmp_path: Path) -> None:
    _, bundle = transformer
    quantize_bundle(bundle, recipe("weight-only-int8"), tmp_path / "out")
    written = Bundle.open(tmp_path / "out")
    assert written.manifest.provenance["calibration"] == {"photographs": 0}
    np.testing.assert_array_equal(read_golden(written).images, read_golden(bundle).images)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("float32", "recipe float32: it quantizes nothing, and the bundle is float32 already"),
        ("int8", "recipe int8 needs calibration photographs; give --calibrate FOLDER with 100 or more"),
    ],
)  # fmt: skip
def test_what_a_bundle_is_not_enough_for_is_refused(
    name: str, message: str, transformer: tuple[Run, Bundle], tmp_path: Path
) -> None:
    with pytest.raises(ExportError, match=message):
        quantize_bundle(transformer[1], recipe(name), tmp_path / "out")
    assert not list(tmp_path.iterdir())


def test_a_quantized_bundle_is_refused(transformer: tuple[Run, Bundle], tmp_path: Path) -> None:
    quantize_bundle(transformer[1], recipe("weight-only-int8"), tmp_path / "once")
    with pytest.raises(ExportError, match=r"encoder\.tflite: quantized already \(recipe weight-only-int8\), expec"):
        quantize_bundle(Bundle.open(tmp_path / "once"), recipe("dynamic-int8"), tmp_path / "twice")
    assert [path.name for path in tmp_path.iterdir()] == ["once"]


def test_what_stands_there_stays_unless_forced(
    transformer: tuple[Run, Bundle], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, bundle = transformer
    out = tmp_path / "out"
    quantize_bundle(bundle, recipe("weight-only-int8"), out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(ExportError, match="exists already; give --force to replace it"):
        quantize_bundle(bundle, recipe("dynamic-int8"), out)

    def full_disk(*args: object, **kwargs: object) -> None:
        raise BundleError("no space left")

    with monkeypatch.context() as patched:
        patched.setattr("captionlite.runtime.bundle.os.fsync", full_disk)
        with pytest.raises(BundleError, match="no space left"):
            quantize_bundle(bundle, recipe("dynamic-int8"), out, force=True)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    quantize_bundle(bundle, recipe("dynamic-int8"), out, force=True)
    assert Bundle.open(out).manifest.graphs["decoder"].recipe == "dynamic-int8"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_masks_and_banned_words_do_not_reach_into_integer_scales(
    transformer: tuple[Run, Bundle], photographs: Photographs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a scale that reaches to -1e9 nothing of the scores is left: so do full int8 decoders lose the image."""
    _, bundle = transformer

    def logits_error(out: Path) -> float:
        result = quantize_bundle(bundle, recipe("full-int8"), out, photographs=photographs)
        return {tensor.name: tensor.relative_rms for tensor in result.parity.tensors}["decoder/logits"]

    assert logits_error(tmp_path / "around") < TOLERANCES["full-int8"]
    content = (tmp_path / "around/decoder.tflite").read_bytes()
    kinds = {(op.name, *list(op.inputs.values())[:2]) for op in read_ops(content)}
    assert {("FULLY_CONNECTED", "INT8", "INT8"), ("FULLY_CONNECTED", "FLOAT32", "INT8")} < kinds  # layers, and logits
    assert {("SOFTMAX", "INT8"), ("SOFTMAX", "FLOAT32")} < kinds  # over the regions, and over masked words
    monkeypatch.setattr(quantization, "HIDDEN_BELOW", -np.inf)
    assert logits_error(tmp_path / "through") > 0.9


def test_the_decoder_is_calibrated_on_the_states_of_real_decoding(
    transformer: tuple[Run, Bundle], photographs: Photographs
) -> None:
    _, bundle = transformer
    captioner = Captioner(bundle)
    pixels = photographs.load(bundle.manifest.image)[:2]
    samples = list(decoder_samples(captioner, pixels))
    captions = [captioner.caption(image).tokens for image in pixels]
    assert len(samples) == sum(map(len, captions))
    first, second = samples[0], samples[1]
    assert first["token"].tolist() == [[bundle.manifest.decoding.start_id]]
    assert second["token"].tolist() == [[captions[0][0]]]
    assert [int(sample["position"][0]) for sample in samples[: len(captions[0])]] == list(range(len(captions[0])))
    assert not first["self_key_0"].any()
    assert second["self_key_0"][:, :, 0].any()  # what the first step wrote
    assert not second["self_key_0"][:, :, 1:].any()
    np.testing.assert_array_equal(second["cross_key_0"], captioner.encode(pixels[0])["cross_key_0"])


def test_parallel_passes_are_calibrated_on_canvases_of_real_decoding(
    drawings: Path, photographs: Photographs, tmp_path: Path
) -> None:
    run = untrained("masked_lm", drawings, tmp_path)
    export_run(run, recipe("float32"), tmp_path / "float32")
    bundle = Bundle.open(tmp_path / "float32")
    spec = bundle.manifest.decoding
    samples = list(refine_samples(Captioner(bundle), photographs.load(bundle.manifest.image)[:1]))
    inputs = {tensor.name for tensor in bundle.manifest.graphs["refine"].inputs}
    assert all(set(sample) == inputs for sample in samples)
    tokens = np.concatenate([sample["tokens"] for sample in samples])
    assert tokens.shape[1] == spec.max_length + 1
    assert (tokens[:, 0] == spec.start_id).all()
    masked = (tokens == spec.mask_id).sum(axis=1)
    assert masked.max() == spec.max_length - 1  # a first pass: nothing but masks
    assert ((tokens > spec.mask_id).any(axis=1) & (masked > 0)).any()  # a later one: words among masks


def test_photographs_are_drawn_by_seed_and_from_the_train_split_only(tmp_path: Path, drawings: Path) -> None:
    paths = [Path(f"{i:04}.jpg") for i in range(500)]
    drawn = [Photographs._drawn(list(paths), "x", seed) for seed in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0].photos)) == 200
    few = Photographs._drawn(list(paths[:7]), "x", 1)
    assert (few.photos, few.seed) == (tuple(paths[:7]), None)
    folder = drawings.parent / "images"
    left = Photographs.of_folder(folder, held_out={"red-circle-left.png"})
    assert len(left.photos) == 23
    assert Photographs.of_data(str(folder)).photos == Photographs.of_folder(folder).photos
    (tmp_path / "empty").mkdir()
    with pytest.raises(ExportError, match=r"empty: no photographs there \(\.avif, .*expected 100 or more"):
        Photographs.of_folder(tmp_path / "empty")


def test_a_graph_of_its_own_recipe(transformer: tuple[Run, Bundle], tmp_path: Path) -> None:
    """Recipes may leave one graph alone, and name single tensors of the other."""
    _, bundle = transformer
    rule = Override("weight_only_wi8_afp32", "FULLY_CONNECTED", "feed_forward_1/")
    mine = Recipe("mine", "", 1e-3, GraphRecipe(), GraphRecipe(overrides=(rule,)))
    quantize_bundle(bundle, mine, tmp_path / "out")
    written = Bundle.open(tmp_path / "out")
    assert written.read("encoder.tflite") == bundle.read("encoder.tflite")
    expanded = [op for op in read_ops(written.read("decoder.tflite")) if op.name == "DEQUANTIZE"]
    assert len(expanded) == 2  # widen and narrow


def test_the_command(transformer: tuple[Run, Bundle], drawings: Path, tmp_path: Path) -> None:
    _, bundle = transformer
    recipe_file = tmp_path / "mine.json"
    recipe_file.write_text(json.dumps({**recipe("int8").to_json(), "tolerance": 0.04}))
    out = tmp_path / "out"
    arguments = ["quantize", str(bundle.location), "--recipe", str(recipe_file), "--out", str(out)]
    arguments += ["--calibrate", f"jsonl:{drawings}"]
    done = CliRunner().invoke(cli, [*arguments, "--json"])
    assert done.exit_code == 0, done.output
    printed: dict[str, Any] = json.loads(done.stdout)
    assert printed["bundle"] == str(out)
    assert printed["sizes_bytes"]["decoder.tflite"] < printed["float32_sizes_bytes"]["decoder.tflite"]
    assert printed["parity"]["photographs"] == 20
    manifest = Bundle.open(out).manifest
    assert (manifest.graphs["encoder"].recipe, manifest.golden.tolerance) == ("mine", 0.04)
    done = CliRunner().invoke(cli, [*arguments, "--force"])
    assert done.exit_code == 0, done.output
    assert "of 20 captions equal those of the float32 bundle" in done.stdout
    captioner = Captioner.from_bundle(out)
    captioner.caption(load_image(drawings.parent / "images/red-circle-left.png", manifest.image))
