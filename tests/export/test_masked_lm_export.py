"""Masked language models on their whole road: trained on drawings, exported, and every way of asking them."""

import json
import shutil
from pathlib import Path
from typing import Any

import harness
import keras
import numpy as np
import pytest
import toy_bundle
from click.testing import CliRunner
from drawings import TINY_PRESET, write_drawings

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow converts; KERAS_BACKEND is another", allow_module_level=True)

from captionlite.export.exporter import export_run
from captionlite.export.recipes import recipe
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.cli import cli
from captionlite.runtime.decoding import DecodingOptions
from captionlite.runtime.errors import OptionsError
from captionlite.runtime.image import load_image
from captionlite.runtime.masked import mask_predict, pseudo_log_likelihood
from captionlite.runtime.verify import verify
from captionlite.training.config import DataConfig, RunConfig, from_json
from captionlite.training.run import Run, load_run
from captionlite.training.trainer import train
from captionlite.training.vocabulary import END_ID, MASK_ID, START_ID

ROADS: dict[str, dict[str, Any]] = {
    "small": {
        "family": {**harness.MASKED_LM, "prefix_attention": "causal", "prefix_weight": 0.5, "mask_share": None},
        "vocabulary": {"mask": True},
    },
    "albert": {"family": {**harness.ALBERT, "frozen": True, "max_length": 18}},
}


def tokenizer_source(folder: Path) -> str:
    """A SentencePiece tokenizer of the drawings' words, as a Hugging Face directory."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
    from transformers import PreTrainedTokenizerFast

    specials = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    text = [
        "a red square on the left",
        "there is a blue circle",
        "a green triangle on the right",
        "a yellow square",
    ] * 9
    tokenizer.train_from_iterator(
        text,
        trainers.UnigramTrainer(vocab_size=60, special_tokens=specials, unk_token="<unk>", show_progress=False),
    )
    ids = [("[CLS]", 2), ("[SEP]", 3)]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    names = dict(zip(("pad", "unk", "cls", "sep", "mask"), specials, strict=True))
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{role}_token": name for role, name in names.items()}
    ).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=ROADS)
def road(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path, list[Path]]:
    """A trained run, its float32 bundle, and pictures."""
    folder = tmp_path_factory.mktemp(request.param)
    settings = dict(ROADS[request.param])
    if request.param == "albert":
        settings["vocabulary"] = {"sentencepiece": tokenizer_source(folder / "tokenizer")}
    drawings = write_drawings(folder / "drawings")
    data = [vars(DataConfig(f"jsonl:{drawings}"))]
    config: RunConfig = from_json(RunConfig, {**TINY_PRESET, **settings, "epochs": 2, "data": data}, "tiny")
    train(config, folder / "run", tmp_path_factory.getbasetemp() / "features")
    run = load_run(folder / "run")
    pictures = sorted((folder / "drawings/images").iterdir())
    result = export_run(run, recipe("float32"), folder / "bundle", photographs=pictures[:3])
    assert set(result.ops) == {"encoder", "decoder", "refine"}
    assert Bundle.open(result.bundle).manifest.attention is None
    assert result.parity.equal_captions == 3
    return run, folder / "bundle", pictures


class KerasRefine:
    """The same function as the bundle's refine graph, from the Keras model: of one photograph."""

    def __init__(self, run: Run, picture: Path) -> None:
        features = run.features(load_image(picture, run.image_spec)[None])
        self.model = run.model
        self.state = {name: keras.ops.convert_to_numpy(x) for name, x in run.model.initial_state(features).items()}

    def __call__(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        state = {name: np.repeat(value, len(tokens), axis=0) for name, value in self.state.items()}
        found = {name: keras.ops.convert_to_numpy(x) for name, x in self.model.refine(tokens, state).items()}
        return found["logits"], found.get("length_logits")


def test_bundle_says_what_it_can(road: tuple[Run, Path, list[Path]]) -> None:
    run, path, _ = road
    manifest = Bundle.open(path).manifest
    assert manifest.family == "masked_lm"
    assert manifest.decoding.mask_id == 4
    assert manifest.decoding.suppressed_ids == (0, 1, 2, 4)
    assert manifest.vocabulary.kind == run.vocabulary.runtime_vocabulary()["kind"]
    report = verify(Bundle.open(path))
    assert report.passed
    assert "refine" in {check.name for check in report.tensors}


def test_verify_notices_other_passes(road: tuple[Run, Path, list[Path]], tmp_path: Path) -> None:
    """Golden vectors of the graph of parallel passes: another number there, and the bundle is not what it was."""
    directory = tmp_path / "bundle"
    shutil.copytree(road[1], directory)
    with np.load(directory / "golden.npz") as golden:
        arrays = dict(golden)
    run, first = road[0], arrays["refine"][0].copy()
    words = [int(t) for t in arrays["tokens"][0] if t not in (-1, END_ID)][: run.model.max_length - 1]
    canvas = [START_ID, MASK_ID, *words[1:], END_ID]
    tokens = np.zeros((1, run.model.max_length + 1), np.int32)
    tokens[0, : len(canvas)] = canvas
    state = run.model.initial_state(run.features(arrays["images"][:1]))
    expected = np.asarray(run.model.refine(tokens, state)["logits"])[0, 1]
    np.testing.assert_allclose(first, expected, atol=1e-4)

    arrays["refine"] = arrays["refine"] * 1.1
    toy_bundle.forge(directory, changed={"golden.npz": toy_bundle.npz(arrays)})
    report = verify(Bundle.open(directory))
    assert [check.name for check in report.tensors if not check.passed] == ["refine"]


def test_both_ways_of_decoding_equal_keras(road: tuple[Run, Path, list[Path]]) -> None:
    run, path, pictures = road
    captioner = Captioner.from_bundle(path)
    spec = captioner.bundle.manifest.decoding
    for picture in pictures[::4]:
        assert captioner.caption(picture).text == run.caption(picture)
        for passes in (1, 3):
            expected = mask_predict(KerasRefine(run, picture), spec, passes)
            found = captioner.caption(picture, DecodingOptions(passes=passes))
            assert list(found.tokens) == expected.tokens
            np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)
            assert found.text == run.vocabulary.decode(expected.tokens)
            assert found.tokens[-1] == spec.end_id


def test_a_step_and_a_parallel_pass_agree_where_they_are_asked_the_same(road: tuple[Run, Path, list[Path]]) -> None:
    """The first word: [MASK] alone behind the start token."""
    run, path, pictures = road
    captioner = Captioner.from_bundle(path)
    encoded = captioner.encode(pictures[0])
    captioner.decoder.begin(encoded)
    captioner.decoder.step(2, 0)
    step = captioner.decoder.logits[0].copy()
    refine = captioner.refiner("test")
    refine.begin(encoded)
    tokens = np.zeros((1, run.model.max_length + 1), np.int32)
    tokens[0, :2] = 2, 4
    if run.model.config.prefix_attention == "bidirectional":
        np.testing.assert_allclose(refine(tokens)[0][0, 1], step, atol=1e-4)
    else:  # there the start token does not see the mask
        assert np.abs(refine(tokens)[0][0, 1] - step).max() > 1e-6


def test_scores_equal_keras(road: tuple[Run, Path, list[Path]]) -> None:
    run, path, pictures = road
    captioner = Captioner.from_bundle(path)
    rows = captioner.score(pictures[0], "a BLUE square")
    ids = captioner.bundle.vocabulary.tokenize("a blue square")
    expected = pseudo_log_likelihood(KerasRefine(run, pictures[0]), captioner.bundle.manifest.decoding, ids)
    assert [piece for piece, _ in rows] == [run.vocabulary.pieces[i] for i in ids]
    np.testing.assert_allclose([p for _, p in rows], expected, atol=1e-4)


def test_int8_verifies_and_decodes(road: tuple[Run, Path, list[Path]], tmp_path: Path) -> None:
    run, _, pictures = road
    export_run(run, recipe("int8"), tmp_path / "bundle", photographs=pictures[:8])
    assert verify(Bundle.open(tmp_path / "bundle")).passed
    caption = Captioner.from_bundle(tmp_path / "bundle").caption(pictures[0], DecodingOptions(passes=2))
    assert caption.stop_reason == "end"
    assert len(caption.tokens) >= 2


def test_the_command_line(road: tuple[Run, Path, list[Path]]) -> None:
    run, path, pictures = road
    captioner, picture = Captioner.from_bundle(path), str(pictures[2])
    runner = CliRunner()

    def ask(*arguments: str) -> Any:
        result = runner.invoke(cli, [*arguments, "--bundle", str(path), "--json"], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return json.loads(result.stdout)

    passed = ask("caption", picture, "--passes", "2")
    assert passed["caption"] == captioner.caption(picture, DecodingOptions(passes=2)).text
    filled = ask("caption", picture, "--fill", "a [MASK] square on the [MASK]")
    assert len(filled["tokens"]) == 2
    first, second = (run.vocabulary.pieces[i].strip("\u2581") for i in filled["tokens"])
    assert filled["caption"].replace(" ", "") == f"a{first}squareonthe{second}"
    scored = ask("score", picture, "a red square")
    assert scored["kind"] == "pseudo-log-likelihood"
    assert scored["logprob_sum"] == pytest.approx(sum(t["logprob"] for t in scored["tokens"]))
    both = runner.invoke(cli, ["caption", picture, "--fill", "a", "--passes", "2", "--bundle", str(path)])
    assert both.exit_code == 2
    assert "takes no decoding options" in both.output
    for arguments, message in (
        (["caption", picture, "--fill", "a square"], "there is no [MASK]"),
        (["score", picture, "a ζebra"], "ζebra"),
    ):
        failed = runner.invoke(cli, [*arguments, "--bundle", str(path)])
        assert failed.exit_code == 1
        assert message in failed.output


def test_families_that_go_word_by_word_say_so_and_score_all_the_same(tmp_path: Path) -> None:
    drawings = write_drawings(tmp_path / "drawings")
    data = [vars(DataConfig(f"jsonl:{drawings}"))]
    config: RunConfig = from_json(RunConfig, {**TINY_PRESET, "epochs": 1, "data": data}, "tiny")
    train(config, tmp_path / "run", tmp_path / "features")
    run = load_run(tmp_path / "run")
    picture = sorted((tmp_path / "drawings/images").iterdir())[0]
    export_run(run, recipe("float32"), tmp_path / "bundle", photographs=[picture])
    captioner = Captioner.from_bundle(tmp_path / "bundle")
    with pytest.raises(OptionsError, match="is of the family transformer, which predicts one after another"):
        captioner.caption(picture, DecodingOptions(passes=2))
    failed = CliRunner().invoke(cli, ["caption", str(picture), "--passes", "2", "--bundle", str(tmp_path / "bundle")])
    assert failed.exit_code == 1
    assert "--passes needs a bundle that predicts all words" in failed.output

    rows = captioner.score(picture, "there is a blue square")
    ids = [2, *captioner.bundle.vocabulary.tokenize("there is a blue square")]
    features = run.features(load_image(picture, run.image_spec)[None])
    logits = run.generator.logits(features, np.array([ids], np.int32))[0].astype(np.float64)
    logits[:, [0, 1, 2]] = -np.inf
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = [log_probs[t, token] for t, token in enumerate([*ids[1:], 3])]
    np.testing.assert_allclose([p for _, p in rows], expected, atol=1e-4)
    assert [piece for piece, _ in rows] == ["there", "is", "a", "blue", "square", ""]
