"""Fewer words in a bundle: what stays is as it was, what goes is said, and what it costs is measured."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import harness
import keras
import numpy as np
import pytest
from click.testing import CliRunner, Result
from drawings import write_drawings
from untrained import untrained

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow converts; KERAS_BACKEND is another", allow_module_level=True)

from captionlite.export.errors import ExportError
from captionlite.export.recipes import recipe
from captionlite.export.shortlist import (
    FEWEST_WORDS,
    export_shortlisted,
    shortened_model,
    shortlist,
    vocabulary_axis,
)
from captionlite.export.shortlist_loss import DevSplits, describe_shortlist, shortlist_loss
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.cli import cli
from captionlite.runtime.verify import verify
from captionlite.training.albert_vocabulary import SentencePieceVocabulary
from captionlite.training.checkpoints import save_variables
from captionlite.training.config import DataConfig
from captionlite.training.datasets.base import Example
from captionlite.training.run import BEST, CONFIG, VOCABULARY, Run, load_run, write_json
from captionlite.training.scoring import score_captions
from captionlite.training.vocabulary import MASK_ID, UNKNOWN_ID, WordVocabulary, build_word_vocabulary

KEPT = (0, 1, 2, 3, 4, 6, 7, 11, 12, 19, 22)  # of the harness's 23 pieces, the first five special


def counted(counts: dict[str, int], mask: bool = False) -> WordVocabulary:
    """A vocabulary of words seen so often."""
    return build_word_vocabulary([word for word, count in counts.items() for _ in range(count)], mask=mask)


# Words "w00" to "w11", of which the first three are seen three times, the next six twice and the others once.
COUNTS = {f"w{i:02}": 3 if i < 3 else 2 if i < 9 else 1 for i in range(12)}


# Embeddings, heads and biases of every kind, embeddings that are the head as well, parallel passes.
FAMILIES = ("lstm_token_bias", "gru_attention", "transformer_memory", "transformer_tied", "masked_lm")


@pytest.mark.parametrize("name", FAMILIES)
def test_kept_words_have_the_logits_they_had(name: str) -> None:
    config = harness.CONFIGS[name]
    full = harness.build(config)
    short = shortened_model(full, config, KEPT)
    assert short.vocabulary_size == len(KEPT)
    assert short.count_params() < full.count_params()
    features, short_tokens = harness.features_and_tokens(full)
    short_tokens %= len(KEPT)
    tokens = np.array(KEPT, "int32")[short_tokens]

    def equal(found: Any, expected: Any, kept: Any = KEPT) -> None:
        found, expected = (keras.ops.convert_to_numpy(each) for each in (found, expected))
        np.testing.assert_allclose(found, expected[..., kept], rtol=0, atol=1e-5)

    equal(short(features, short_tokens), full(features, tokens))
    state = full.full_state(np.repeat(features, 3, axis=0))
    start = np.zeros(1, "int32")
    equal(short.step(short_tokens[:, :1], start, state)[0], full.step(tokens[:, :1], start, state)[0])
    if full.refines:
        passes = [m.refine(np.pad(t, ((0, 0), (0, 1))), state) for m, t in ((short, short_tokens), (full, tokens))]
        equal(passes[0]["logits"], passes[1]["logits"])
        equal(passes[0]["length_logits"], passes[1]["length_logits"], slice(None))


def test_a_weight_whose_shape_changes_in_another_way_is_refused() -> None:
    assert vocabulary_axis("a", (7, 5), (7, 5), (23, 11)) is None
    assert vocabulary_axis("a", (7, 23), (7, 11), (23, 11)) == 1
    for full, short in (((46,), (22,)), ((23, 23), (11, 11)), ((23,), (11, 1)), ((23, 4), (11, 5))):
        with pytest.raises(ExportError, match="head/kernel: its shape goes from"):
            vocabulary_axis("head/kernel", full, short, (23, 11))


def test_the_most_frequent_words_stay_and_ties_by_id() -> None:
    vocabulary = counted(COUNTS)
    kept = shortlist(vocabulary, words=10)
    assert [vocabulary.pieces[i] for i in kept.ids] == ["[PAD]", "[UNK]", "[START]", "[END]", *sorted(COUNTS)[:10]]
    assert (kept.words, kept.all_words, kept.drops_nothing) == (10, 12, False)
    assert kept.share == pytest.approx(22 / 24)
    assert kept == shortlist(vocabulary, words=10)


def test_the_order_is_that_of_the_frequencies_not_of_the_ids() -> None:
    vocabulary = counted(COUNTS)
    vocabulary.frequencies[-1] = 9
    kept = shortlist(vocabulary, words=10)
    assert [vocabulary.pieces[i] for i in kept.ids[4:]] == [*sorted(COUNTS)[:9], "w11"]


def test_words_seen_often_enough_stay() -> None:
    counts = {f"w{i:02}": 2 if i < 11 else 1 for i in range(15)}
    vocabulary = counted(counts, mask=True)
    kept = shortlist(vocabulary, min_count=2)
    assert [vocabulary.pieces[i] for i in kept.ids[:6]] == ["[PAD]", "[UNK]", "[START]", "[END]", "[MASK]", "w00"]
    assert len(kept.ids) == 5 + 11
    assert shortlist(vocabulary, min_count=1).drops_nothing


def test_more_words_than_there_are_drop_nothing() -> None:
    kept = shortlist(counted(COUNTS), words=500)
    assert kept.drops_nothing
    assert kept.words == 12


def test_too_few_words_are_refused() -> None:
    with pytest.raises(ExportError, match=f"9 of 12 words would be left, expected at least {FEWEST_WORDS}$"):
        shortlist(counted(COUNTS), words=9)
    with pytest.raises(ExportError, match="3 of 12 words would be left, expected at least 10; min_count 1 leaves"):
        shortlist(counted(COUNTS), min_count=3)


def test_pieces_of_words_are_refused() -> None:
    words = counted(COUNTS)
    pieces = SentencePieceVocabulary(words.tokenizer, words.frequencies, "sentencepiece")
    with pytest.raises(ExportError, match=r"SentencePiece vocabulary .*: its pieces are parts of words.*bimodal_small"):
        shortlist(pieces, words=10)


def test_a_shorter_vocabulary_is_a_vocabulary(tmp_path: Path) -> None:
    whole = counted(COUNTS)
    short = whole.shortened(shortlist(whole, words=10).ids)
    assert short.pieces == whole.pieces[:14]
    assert short.frequencies.sum() == whole.frequencies.sum()
    assert short.frequencies[UNKNOWN_ID] == 2
    assert short.suppressed_ids == whole.suppressed_ids
    assert short.encode_batch(["w00 w11 w09"]) == [[2, 4, UNKNOWN_ID, 13, 3]]
    assert short.decode([4, UNKNOWN_ID, 13, 3, 5]) == "w00 w09"
    short.save(tmp_path / "tokenizer.json")
    assert WordVocabulary.load(tmp_path / "tokenizer.json").pieces == short.pieces


WORDS = 11  # of the drawings' 14


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawings(tmp_path_factory.mktemp("shortlist") / "drawings")


@pytest.fixture(scope="module")
def run(drawings: Path) -> Run:
    """A run directory, as `captionlite export` reads it."""
    made = untrained("lstm_token_bias", drawings, drawings.parent / "run")
    rng = np.random.default_rng(0)
    for weight in made.model.weights:  # so much noise that it says something else of every picture
        weight.assign(weight + rng.normal(0.0, 0.8, weight.shape))
    made.directory.mkdir()
    write_json(made.directory / CONFIG, made.config.to_json())
    made.vocabulary.save(made.directory / VOCABULARY)
    save_variables(made.directory / BEST, {"model": made.model.weights}, made.best)
    return load_run(made.directory)


def export(run: Run, out: Path, *options: str) -> Result:
    return CliRunner().invoke(cli, ["export", str(run.directory), "--out", str(out), "--recipe", "float32", *options])


def test_export_with_a_shortlist(run: Run, tmp_path: Path) -> None:
    """Smaller, verified, and word for word what Keras says with every word, where that has no word left out."""
    done = export(run, tmp_path / "bundle", "--shortlist", str(WORDS), "--json")
    assert done.exit_code == 0, done.output
    bundle = Bundle.open(tmp_path / "bundle")
    manifest, specials = bundle.manifest, len(run.vocabulary.special_ids)
    assert manifest.vocabulary.size == specials + WORDS
    assert list(bundle.vocabulary.pieces) == run.vocabulary.pieces[: specials + WORDS]
    assert manifest.provenance["parity"]["equal_captions"] == manifest.provenance["parity"]["photographs"] == 18
    report = verify(bundle)
    assert report.passed, report

    dev = DevSplits.of_run(run)
    said = {"drawings": {e.id: run.caption(e.image) for e in dev.examples["drawings"]}}
    found = dev.captions(Captioner(bundle))
    left_out = set(run.vocabulary.pieces[specials + WORDS :])
    untouched = {i for i, caption in said["drawings"].items() if not left_out & set(caption.split())}
    assert 0 < len(untouched) < 6
    assert all(found["drawings"][i] == said["drawings"][i] for i in untouched)

    facts = manifest.provenance["shortlist"]
    counts = run.vocabulary.frequencies[specials:]
    assert (facts["words"], facts["all_words"]) == (WORDS, len(counts))
    assert facts["share_of_training_words"] == pytest.approx(counts[:WORDS].sum() / counts.sum(), abs=1e-5)
    assert facts["loss"] == shortlist_loss(dev, said, found)
    assert facts["loss"]["photographs"] == {"drawings": 6}
    assert facts["loss"]["changed_captions"] == 6 - len(untouched)
    assert 0 < facts["loss"]["cider_all_words"] != facts["loss"]["cider"]
    assert describe_shortlist(facts) in (tmp_path / "bundle/README.md").read_text()
    assert json.loads(done.stdout)["measured"] == {"shortlist": facts}


def test_a_masked_language_model_whose_data_is_gone(drawings: Path, tmp_path: Path) -> None:
    """Parallel passes as well; what cannot be measured is said, and the bundle written all the same."""
    whole = untrained("masked_lm", drawings, tmp_path / "run", layers=1)
    whole.config = dataclasses.replace(whole.config, data=(DataConfig("jsonl:/nowhere/captions.jsonl"),))
    dev = DevSplits.of_run(whole)
    assert dev.photographs == 0
    said: list[str] = []
    kept = shortlist(whole.vocabulary, words=WORDS)
    out = tmp_path / "bundle"
    result = export_shortlisted(whole, kept, recipe=recipe("float32"), out=out, dev=dev, report=said.append)
    assert any(line.startswith("no dev photographs: /nowhere/captions.jsonl") for line in said)
    bundle = Bundle.open(out)
    assert bundle.manifest.provenance["shortlist"]["loss"] is None
    assert result.measured["shortlist"]["loss"] is None
    assert "was not measured" in (out / "README.md").read_text()
    assert bundle.manifest.decoding.mask_id == MASK_ID
    assert bundle.manifest.decoding.suppressed_ids == whole.vocabulary.suppressed_ids
    report = verify(bundle)
    assert report.passed
    assert "refine" in {check.name for check in report.tensors}


def test_usage(run: Run, tmp_path: Path) -> None:
    for options, complaint in (
        (("--shortlist", str(FEWEST_WORDS - 1)), "9 of 14 words would be left"),
        (("--shortlist-min-count", "99"), "0 of 14 words would be left"),
        (("--shortlist", "0"), "0 is not in the range"),
        (("--shortlist", "11", "--shortlist-min-count", "2"), "give one of them"),
    ):
        done = export(run, tmp_path / "bundle", *options)
        assert done.exit_code == 2, done.output
        assert complaint in " ".join(done.stderr.split())
    assert not (tmp_path / "bundle").exists()


def test_a_shortlist_of_every_word_exports_the_run_as_it_is(run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    exported: list[Run] = []

    def export_run(run: Run, **options: Any) -> None:
        exported.append(run)
        raise ExportError("far enough")

    monkeypatch.setattr("captionlite.export.exporter.export_run", export_run)
    done = export(run, tmp_path / "bundle", "--shortlist", "99")
    assert "--shortlist: the vocabulary has 14 words and all of them stay" in done.stderr
    assert "far enough" in done.stderr
    assert [len(each.vocabulary) for each in exported] == [len(run.vocabulary)]


def test_the_loss_is_that_of_the_scores() -> None:
    captions = ("a red square on the left", "there is a red square", "a blue circle")
    examples = {
        "one": tuple(Example(Path(f"{i}.png"), captions[i:], f"{i}.png") for i in range(3)),
        "two": tuple(Example(Path(f"{i}.png"), (f"a green dog number {i}",), f"{i}.png") for i in range(4)),
    }
    dev = DevSplits(examples)
    said = {name: {e.id: e.captions[0] for e in each} for name, each in examples.items()}
    worse = {name: dict(each) for name, each in said.items()}
    worse["one"]["0.png"] = "a square on the left"
    del worse["two"]["3.png"]  # could not be read
    loss = shortlist_loss(dev, said, worse)
    assert loss is not None

    def cider(found: dict[str, dict[str, str]]) -> float:
        each = {}
        for name, count in (("one", 3), ("two", 3)):
            references = {e.id: e.captions for e in examples[name][:count]}
            each[name] = score_captions({i: found[name][i] for i in references}, references).cider
        return (each["one"] + each["two"]) / 2

    assert loss["photographs"] == {"one": 3, "two": 3}
    assert loss["cider_all_words"] == pytest.approx(cider(said), abs=1e-5)
    assert loss["cider"] == pytest.approx(cider(worse), abs=1e-5)
    assert loss["difference"] == pytest.approx(cider(worse) - cider(said), abs=2e-5)
    assert loss["difference"] < 0
    assert loss["changed_captions"] == 1
    low, high = loss["interval_95"]
    # One photograph of six lost: its mean is a sixth of it, and so is the standard error.
    assert [low, high] == pytest.approx([loss["difference"] * (1 + 1.96), loss["difference"] * (1 - 1.96)], abs=1e-4)
    assert "6 dev photographs (one 3, two 3)" in describe_shortlist(
        {"words": 2, "all_words": 3, "rule": "x", "share_of_training_words": 0.9, "recipe": "int8", "loss": loss}
    )
    assert shortlist_loss(DevSplits({}), {}, {}) is None
