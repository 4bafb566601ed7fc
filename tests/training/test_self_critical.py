"""The self-critical stage: it follows the plain one from its best weights, raises the reward, and resumes exactly."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import stage_steps
from click.testing import CliRunner
from drawings import TINY_PRESET, write_drawings
from safetensors.numpy import load_file

from captionlite.runtime.cli import cli
from captionlite.training import trainer
from captionlite.training.average import average_runs
from captionlite.training.compiled import TrainStep
from captionlite.training.config import DataConfig, RunConfig, from_json
from captionlite.training.errors import ConfigError, RunError, WeightsError
from captionlite.training.losses import weighted_cross_entropy
from captionlite.training.run import load_run

STAGE: dict[str, Any] = {
    "epochs": 2,
    "photographs": 6,
    "samples": 4,
    "captions": 2,
    "optimizer": {"learning_rate": 0.002, "average": 0.5},
}
PRESET = {**TINY_PRESET, "epochs": 2, "self_critical": STAGE}


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawings(tmp_path_factory.mktemp("drawings"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def config(drawings: Path, **changes: Any) -> RunConfig:
    made: RunConfig = from_json(RunConfig, {**PRESET, **changes}, "tiny")
    return replace(made, data=(DataConfig(f"jsonl:{drawings}"),))


@pytest.fixture(scope="module")
def finished(drawings: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("runs") / "whole"
    trainer.train(config(drawings), out, cache)
    return out


def history(run: Path) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = json.loads((run / "history.json").read_text())
    return [{k: v for k, v in record.items() if not k.endswith("seconds")} for record in records]


def test_the_stages_follow_each_other(finished: Path) -> None:
    records = history(finished)
    assert [r["stage"] for r in records] == ["cross_entropy"] * 2 + ["self_critical"] * 2
    assert [r["epoch"] for r in records] == [1, 2, 3, 4]
    for record in records[2:]:
        train = record["train"]
        assert train.keys() == {"loss", "reward", "cider", "bleu_4", "words"}
        assert 0 <= train["bleu_4"] <= 1
        assert 0 < train["words"] <= 7  # max_length 8, the end token one of them
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_reward_rises() -> None:
    """From weights that NumPy drew, so that the start is no backend's luck: 0.48, and about 3 after 25 steps."""
    rewards = stage_steps.rewards(25)
    assert rewards[0] == pytest.approx(0.4806, abs=0.05)
    assert np.mean(rewards[-3:]) > 2.0


@pytest.mark.parametrize("after", [9, 15])  # in the plain stage (5 batches an epoch) and in the self-critical one
def test_a_stopped_run_continues_the_same_curve(
    after: int, finished: Path, drawings: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    original, calls = TrainStep.__call__, 0

    def interrupted(self: TrainStep, *batch: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == after:
            raise MemoryError("out of memory")
        return original(self, *batch)

    monkeypatch.setattr(TrainStep, "__call__", interrupted)
    with pytest.raises(MemoryError):
        trainer.train(config(drawings), tmp_path / "run", cache)
    monkeypatch.undo()
    trainer.train(config(drawings), tmp_path / "run", cache, resume=True)
    assert history(tmp_path / "run") == history(finished)
    a, b = (load_file(run / "checkpoints/last.safetensors") for run in (tmp_path / "run", finished))
    assert a.keys() == b.keys()
    for key in a:
        np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_a_run_starts_from_anothers_words_and_weights(
    finished: Path, drawings: Path, cache: Path, tmp_path: Path
) -> None:
    stage = {**STAGE, "epochs": 1, "optimizer": {"learning_rate": 0.0}}
    out = tmp_path / "run"
    trainer.train(config(drawings, epochs=0, start=str(finished), self_critical=stage), out, cache)
    assert (out / "tokenizer.json").read_text() == (finished / "tokenizer.json").read_text()
    a, b = (load_file(run / "best.safetensors") for run in (out, finished))
    for key in a:
        if "seed" not in key:  # of the dropout, which a learning rate of 0 does not stop
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_another_shape_is_no_start(finished: Path, drawings: Path, cache: Path, tmp_path: Path) -> None:
    family = {**TINY_PRESET["family"], "units": 24}  # type: ignore[dict-item]
    with pytest.raises(WeightsError, match="expected"):
        trainer.train(config(drawings, start=str(finished), family=family), tmp_path / "run", cache)


def test_what_cannot_be_trained_so_is_refused(drawings: Path, cache: Path, tmp_path: Path) -> None:
    masked = {"name": "masked_lm", "text": "transformer", "units": 16, "heads": 2, "layers": 1, "feed_forward": 16,
              "embedding": 8, "max_length": 8}  # fmt: skip
    with pytest.raises(ConfigError, match="masked_lm predicts masked words"):
        trainer.train(config(drawings, family=masked, vocabulary={"mask": True}), tmp_path / "a", cache)
    with pytest.raises(ConfigError, match="samples: found 1, expected 2"):
        trainer.train(config(drawings, self_critical={**STAGE, "samples": 1}), tmp_path / "b", cache)
    with pytest.raises(ConfigError, match="epochs: found 0"):
        trainer.train(config(drawings, epochs=0, self_critical=None), tmp_path / "c", cache)


def test_a_weight_a_caption() -> None:
    rng = np.random.default_rng(1)
    logits = rng.normal(size=(3, 2, 5)).astype(np.float32)
    labels = np.array([[1, 2], [3, 0], [4, 4]], np.int32)
    weights = np.array([2.0, -1.0, 0.5], np.float32)
    log_probs = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    expected = -sum(weights[b] * log_probs[b, t, labels[b, t]] for b in range(3) for t in range(2) if labels[b, t] != 0)
    found = float(weighted_cross_entropy(labels, logits, weights, 0))
    assert math.isclose(found, expected / 5, rel_tol=1e-5)


def test_runs_are_averaged_weight_by_weight(finished: Path, drawings: Path, cache: Path, tmp_path: Path) -> None:
    stage = {**STAGE, "epochs": 1}
    trainer.train(config(drawings, epochs=0, start=str(finished), self_critical=stage), tmp_path / "other", cache)
    average_runs([(finished, 0.25), (tmp_path / "other", 0.75)], tmp_path / "mean")
    a, b, mean = (load_file(run / "best.safetensors") for run in (finished, tmp_path / "other", tmp_path / "mean"))
    moved = 0
    for key, value in mean.items():
        if value.dtype == np.float32:
            np.testing.assert_allclose(value, 0.25 * a[key] + 0.75 * b[key], atol=1e-6, err_msg=key)
            moved += not np.array_equal(value, a[key])
    assert moved > 5
    run = load_run(tmp_path / "mean")
    assert run.best["average_of"] == [{"run": "whole", "share": 0.25}, {"run": "other", "share": 0.75}]
    with pytest.raises(RunError, match="exists already"):
        average_runs([(finished, 0.5), (tmp_path / "other", 0.5)], tmp_path / "mean")


def test_the_command_averages_and_says_what(finished: Path, tmp_path: Path) -> None:
    out = tmp_path / "mean"
    arguments = ["average", f"{finished}:0.25", f"{finished}:0.75", "--out", str(out), "--json"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    parts = [{"run": str(finished), "share": share} for share in (0.25, 0.75)]
    assert json.loads(done.stdout) == {"run": str(out), "average_of": parts}
    a, b = (load_file(run / "best.safetensors") for run in (out, finished))
    for key in a:
        np.testing.assert_allclose(a[key], b[key], rtol=1e-6, err_msg=key)
    for wrong in (str(finished), f"{finished}:half"):
        refused = CliRunner().invoke(cli, ["average", wrong, "--out", str(tmp_path / "none")])
        assert refused.exit_code == 2
        assert "expected RUN:SHARE" in refused.stderr
    again = CliRunner().invoke(cli, arguments)
    assert (again.exit_code, again.stdout) == (1, "")
    assert "exists already" in again.stderr


def test_what_cannot_be_averaged_is_refused(finished: Path, drawings: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found 2 that sum to 1\.5"):
        average_runs([(finished, 0.5), (finished, 1.0)], tmp_path / "mean")
    family = {**TINY_PRESET["family"], "units": 24}  # type: ignore[dict-item]
    trainer.train(config(drawings, epochs=1, self_critical=None, family=family), tmp_path / "wide", cache)
    with pytest.raises(ConfigError, match="another family, encoder or vocabulary"):
        average_runs([(finished, 0.5), (tmp_path / "wide", 0.5)], tmp_path / "mean")
    assert not (tmp_path / "mean").exists()
