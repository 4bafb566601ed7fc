"""What the published training loops have: rotating checkpoints, samples, early stopping, one drawn caption."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from drawings import TINY_PRESET, write_drawings
from safetensors.numpy import load_file

from captionlite.training import trainer
from captionlite.training.config import DataConfig, RunConfig, from_json
from captionlite.training.run import load_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("features")
    write_drawings(path / "drawn")
    return path


def config(folder: Path, **changes: Any) -> RunConfig:
    made: RunConfig = from_json(RunConfig, {**TINY_PRESET, "flip": False, **changes}, "tiny")
    return RunConfig(**{**vars(made), "data": (DataConfig(f"jsonl:{folder / 'drawn/captions.jsonl'}"),)})


@pytest.fixture(scope="module")
def rotated(folder: Path) -> Path:
    changes = {"epochs": 7, "patience": 9, "keep_every_epochs": 2, "keep_newest": 2, "draw": "random_caption"}
    trainer.train(config(folder, **changes), folder / "rotated", folder / "cache")
    return folder / "rotated"


def test_every_second_epochs_checkpoint_is_kept_and_of_those_the_newest_two(rotated: Path) -> None:
    checkpoints = rotated / "checkpoints"
    names = {file.name for file in checkpoints.iterdir()}
    assert names == {"epoch-0004.safetensors", "epoch-0006.safetensors", "last.safetensors"}
    values = [load_file(checkpoints / name) for name in sorted(names)]
    assert values[0].keys() == values[1].keys() == values[2].keys()
    assert any(not np.array_equal(values[0][name], values[1][name]) for name in values[0])


def test_a_kept_checkpoint_in_the_place_of_the_last_goes_on_from_its_epoch(
    rotated: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "again"
    shutil.copytree(rotated, out)
    shutil.copy(out / "checkpoints/epoch-0004.safetensors", out / "checkpoints/last.safetensors")
    reports: list[str] = []
    trainer.train(config(folder), out, folder / "cache", resume=True, report=reports.append)
    assert [line.split(":")[0] for line in reports if line.startswith("epoch")] == ["epoch 5", "epoch 6", "epoch 7"]
    losses = [
        [record["train"]["loss"] for record in json.loads((run / "history.json").read_text())] for run in (rotated, out)
    ]
    assert losses[0] == losses[1]


def test_samples_at_three_temperatures_after_each_epoch(rotated: Path) -> None:
    lines = (rotated / "samples.txt").read_text().splitlines()
    assert [line for line in lines if line.startswith("epoch")] == [f"epoch {i}" for i in range(1, 8)]
    photographs = [line for line in lines if line.startswith("drawn/")]
    assert len(photographs) == 7 * trainer.SAMPLES
    for temperature in ("0.0", "0.5", "1.0"):
        assert sum(line.startswith(f"  {temperature}  ") for line in lines) == len(photographs)
    greedy, hot = ({line[7:] for line in lines if line.startswith(f"  {t}  ")} for t in ("0.0", "1.0"))
    assert len(hot) > len(greedy)  # drawn, not chosen


def test_one_random_caption_a_photograph_is_half_the_batches(rotated: Path, folder: Path) -> None:
    reports: list[str] = []
    changes = {"epochs": 1, "batch_size": 3}
    for draw in ("every_caption", "random_caption"):
        made = config(folder, draw=draw, **changes)
        trainer.train(made, folder / draw, folder / "cache", report=reports.append)
    counts = [line.rsplit(", ", 1)[1] for line in reports if "batches an epoch" in line]
    assert counts == ["12 batches an epoch", "6 batches an epoch"]  # 18 photographs of two captions


def test_early_stopping_keeps_the_best_weights(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    losses = iter([3.0, 2.0, 2.5, 2.4, 2.3, 0.1])
    kept = []
    evaluate = trainer.DevEvaluator.evaluate

    def scripted(self: Any) -> dict[str, Any]:
        return {**evaluate(self), "loss": next(losses)}

    def save(path: Path, groups: Any, metadata: dict[str, Any]) -> None:
        original(path, groups, metadata)
        if path.name == "best.safetensors":
            kept.append(metadata["epoch"])

    original = trainer.save_variables
    monkeypatch.setattr(trainer.DevEvaluator, "evaluate", scripted)
    monkeypatch.setattr(trainer, "save_variables", save)
    made = config(folder, epochs=20, patience=3, monitor="loss")
    summary = trainer.train(made, tmp_path / "run", folder / "cache")
    assert (summary["epochs"], summary["best_epoch"]) == (5, 2)
    assert kept == [1, 2]
    assert load_run(tmp_path / "run").best["dev"]["loss"] == 2.0
