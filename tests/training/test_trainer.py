"""Training runs: what they leave behind, and that stopping and going on changes nothing."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawings import TINY_PRESET, write_drawings
from safetensors.numpy import load_file

from captionlite.training import trainer
from captionlite.training.compiled import TrainStep
from captionlite.training.config import DataConfig, RunConfig, from_json
from captionlite.training.errors import ConfigError, RunError
from captionlite.training.run import load_run

PRESET = {**TINY_PRESET, "feature_noise": 0.1}  # its random state is one more thing to lose


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawings(tmp_path_factory.mktemp("drawings"))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def config(drawings: Path, **changes: Any) -> RunConfig:
    made: RunConfig = from_json(RunConfig, {**PRESET, **changes}, "tiny")
    return RunConfig(**{**vars(made), "data": (DataConfig(f"jsonl:{drawings}"),)})


@pytest.fixture(scope="module")
def finished(drawings: Path, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of three epochs that nothing interrupted."""
    out = tmp_path_factory.mktemp("runs") / "whole"
    trainer.train(config(drawings), out, cache)
    return out


def without_times(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in record.items() if not k.endswith("seconds")} for record in history]


def assert_same_run(found: Path, expected: Path) -> None:
    """The same curve to the last digit and the same weights to the last bit."""
    histories = [without_times(json.loads((d / "history.json").read_text())) for d in (found, expected)]
    assert histories[0] == histories[1]
    for name in ("best.safetensors", "checkpoints/last.safetensors"):
        a, b = (load_file(d / name) for d in (found, expected))
        assert a.keys() == b.keys()
        for key in a:
            np.testing.assert_array_equal(a[key], b[key], err_msg=key)


def test_a_run_leaves_behind_what_people_look_at(finished: Path) -> None:
    history = json.loads((finished / "history.json").read_text())
    assert [record["epoch"] for record in history] == [1, 2, 3]
    assert {"loss", "accuracy"} == history[0]["train"].keys()
    assert {"loss", "accuracy", "cider", "bleu_4", "by_dataset"} == history[0]["dev"].keys()
    assert history[-1]["train"]["loss"] < history[0]["train"]["loss"]
    assert (finished / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert "epoch 3" in (finished / "samples.txt").read_text()
    assert list((finished / "tensorboard").glob("events.out.tfevents.*"))
    assert not list(finished.rglob("*.tmp"))


def test_the_best_epoch_is_what_loads(finished: Path, drawings: Path) -> None:
    run = load_run(finished)
    history = json.loads((finished / "history.json").read_text())
    best = max(range(3), key=lambda i: history[i]["dev"]["cider"])
    assert run.best["epoch"] == best + 1
    assert run.best["datasets"][0]["train"] == 18
    caption = run.caption(next((drawings.parent / "images").glob("*.png")))
    assert set(caption.split()) <= set(run.vocabulary.pieces)


def test_a_directory_that_holds_a_run_is_not_overwritten(finished: Path, drawings: Path, cache: Path) -> None:
    before = (finished / "best.safetensors").read_bytes()
    with pytest.raises(RunError, match="holds a run already; give --resume"):
        trainer.train(config(drawings), finished, cache)
    assert (finished / "best.safetensors").read_bytes() == before


def test_resuming_a_finished_run_does_nothing(finished: Path, drawings: Path, cache: Path) -> None:
    before = (finished / "checkpoints/last.safetensors").read_bytes()
    summary = trainer.train(config(drawings), finished, cache, resume=True)
    assert summary["epochs"] == 3
    assert (finished / "checkpoints/last.safetensors").read_bytes() == before


def test_no_data_is_refused(tmp_path: Path, cache: Path) -> None:
    with pytest.raises(ConfigError, match="no data; give --data"):
        trainer.train(from_json(RunConfig, TINY_PRESET, "tiny"), tmp_path / "run", cache)


@pytest.mark.parametrize("how", ["crash", "ctrl-c"])
def test_a_stopped_run_continues_the_same_curve(
    how: str, finished: Path, drawings: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "CHECKPOINT_SECONDS", 0.0)
    original, calls = TrainStep.__call__, 0

    def interrupted(self: TrainStep, *batch: Any) -> dict[str, Any]:
        nonlocal calls
        calls += 1
        if calls == 13 and how == "crash":
            raise MemoryError("out of memory")
        if calls == 13:
            os.kill(os.getpid(), signal.SIGINT)
        return original(self, *batch)

    monkeypatch.setattr(TrainStep, "__call__", interrupted)
    out = tmp_path / "run"
    with pytest.raises(MemoryError if how == "crash" else trainer.Interrupted):
        trainer.train(config(drawings), out, cache)
    monkeypatch.undo()
    trainer.train(config(drawings), out, cache, resume=True)
    assert_same_run(out, finished)


def test_kill_9_at_five_random_moments(finished: Path, drawings: Path, cache: Path, tmp_path: Path) -> None:
    """SIGKILL a real process five times wherever it is; the run that is left finishes as if nothing had happened."""
    preset = tmp_path / "tiny.json"
    preset.write_text(json.dumps(PRESET))
    out = tmp_path / "run"
    command = [sys.executable, "-c", _KILLABLE, str(preset), str(drawings), str(out), str(cache)]
    rng = random.Random(os.getpid())
    for _ in range(5):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        process.stdout.readline()  # imports are over, training begins
        time.sleep(rng.uniform(0.0, 4.0))
        process.kill()
        process.wait()
        process.stdout.close()
    subprocess.run(command, check=True, capture_output=True)
    assert_same_run(out, finished)
    assert {p.name for p in out.iterdir()} >= {"config.json", "history.json", "curves.png", "best.safetensors"}


# A checkpoint after every step, so that a kill meets files being written as often as possible.
_KILLABLE = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parents[1])!r})
import drawings as _  # adds the tiny encoder
from pathlib import Path
from captionlite.training import trainer
from captionlite.training.config import DataConfig, load_config
import dataclasses
trainer.CHECKPOINT_SECONDS = 0.0
preset, drawings, out, cache = sys.argv[1:]
config = dataclasses.replace(load_config(preset), data=(DataConfig("jsonl:" + drawings),))
print("begin", flush=True)
trainer.train(config, Path(out), Path(cache), resume=True)
"""
