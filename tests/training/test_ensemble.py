"""Several captioners as one: the mean of their log-probabilities, in Keras, stepwise and as a bundle."""

import json
from pathlib import Path
from typing import Any

import harness
import keras
import numpy as np
import pytest
from click.testing import CliRunner
from drawings import TINY_PRESET, write_drawings

from captionlite.export.exporter import export_run
from captionlite.export.recipes import recipe
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.cli import cli
from captionlite.runtime.decoding import DecodingOptions
from captionlite.training.config import RunConfig, from_json
from captionlite.training.ensemble import ensemble_runs
from captionlite.training.errors import ConfigError, RunError
from captionlite.training.families.ensemble import EnsembleDecoder
from captionlite.training.run import CONFIG, load_run
from captionlite.training.trainer import train

STEPWISE = {name: config for name, config in harness.CONFIGS.items() if config["name"] != "masked_lm"}


@pytest.mark.parametrize("name", STEPWISE)
def test_every_stepwise_family(name: str) -> None:
    members = [harness.build(STEPWISE[name], seed) for seed in (0, 1)]
    model = EnsembleDecoder(members)
    harness.assert_full_call_equals_steps(model)
    harness.assert_no_peeking(model)
    harness.assert_photograph_matters(model)
    harness.assert_state_table(model)
    features, tokens = harness.features_and_tokens(model)
    logs = [keras.ops.convert_to_numpy(keras.ops.log_softmax(member(features, tokens))) for member in members]
    np.testing.assert_allclose(keras.ops.convert_to_numpy(model(features, tokens)), np.mean(logs, axis=0), atol=1e-5)


def test_one_of_itself_twice_says_what_it_says() -> None:
    one = harness.build(STEPWISE["transformer"])
    twice = EnsembleDecoder([one, one])
    features, _ = harness.features_and_tokens(one)
    expected = harness.generator(one).generate(features)
    assert [list(row) for row in harness.generator(twice).generate(features)] == [list(row) for row in expected]


def test_a_model_of_all_words_at_once_has_none() -> None:
    masked = harness.build(harness.CONFIGS["masked_lm"])
    with pytest.raises(ConfigError, match="predicts all words at once"):
        EnsembleDecoder([masked, masked])


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run, and one gone on from it with trained blocks of the encoder; and one with another seed of its own."""
    folder = tmp_path_factory.mktemp("ensemble")
    data = [{"spec": f"jsonl:{write_drawings(folder / 'drawings')}"}]

    def trained(name: str, **changes: Any) -> Path:
        config: RunConfig = from_json(RunConfig, {**TINY_PRESET, "epochs": 2, "data": data, **changes}, name)
        train(config, folder / name, folder / "cache")
        return folder / name

    first = trained("first")
    tuning = {"blocks": 2, "epochs": 1, "optimizer": {"learning_rate": 0.003}}
    wide = {**TINY_PRESET["family"], "units": 24}  # type: ignore[dict-item]
    return {
        "first": first,
        "tuned": trained("tuned", epochs=0, fine_tuning=tuning, start=str(first)),
        "wide": trained("wide", family=wide, epochs=1),
    }


def test_runs_become_one_that_is_exported_like_any(runs: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "both"
    done = CliRunner().invoke(cli, ["ensemble", str(runs["first"]), str(runs["tuned"]), "--out", str(out), "--json"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["ensemble_of"] == [str(runs["first"]), str(runs["tuned"])]
    both = load_run(out)
    assert both.best["ensemble_of"] == ["first", "tuned"]
    pictures = sorted((runs["first"].parent / "drawings" / "images").glob("*.png"))
    pixels = np.stack([captioner_pixels(picture) for picture in pictures])
    members = [load_run(runs[name]) for name in ("first", "tuned")]
    tokens = np.array([[2, 4, 5, 6]] * len(pixels), np.int32)
    logs = []
    for member in members:
        logits = member.model(member.features(pixels), tokens)
        logs.append(keras.ops.convert_to_numpy(keras.ops.log_softmax(logits)))
    found = keras.ops.convert_to_numpy(both.model(both.features(pixels), tokens))
    words = slice(3, None)  # of banned tokens the bundle keeps less
    np.testing.assert_allclose(found[..., words], np.mean(logs, axis=0)[..., words], atol=1e-3)
    made = export_run(both, recipe("float32"), tmp_path / "bundle")
    captioner = Captioner(Bundle.open(made.bundle))
    assert [captioner.caption(p, DecodingOptions()).text for p in pictures] == [both.caption(p) for p in pictures]


def captioner_pixels(picture: Path) -> np.ndarray:
    from captionlite.runtime.image import load_image
    from captionlite.runtime.manifest import ImageSpec

    return load_image(picture, ImageSpec(32, 32))


def test_what_does_not_belong_together_is_refused(runs: dict[str, Path], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="found 1 run, expected at least two"):
        ensemble_runs([runs["first"]], tmp_path / "out")
    with pytest.raises(ConfigError, match="another family, encoder or vocabulary than"):
        ensemble_runs([runs["first"], runs["wide"]], tmp_path / "out")
    with pytest.raises(RunError, match="exists already"):
        ensemble_runs([runs["first"], runs["tuned"]], runs["first"])
    assert not (tmp_path / "out").exists()


def test_an_ensemble_is_not_trained(runs: dict[str, Path], tmp_path: Path) -> None:
    config = json.loads((runs["first"] / CONFIG).read_text())
    with pytest.raises(ConfigError, match="an ensemble is not trained"):
        train(from_json(RunConfig, {**config, "members": 2}, "test"), tmp_path / "run", tmp_path / "cache")
