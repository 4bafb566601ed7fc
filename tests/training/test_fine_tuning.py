"""The encoder's last blocks, trained: cut where they should be, part of the captioner, and nothing else moves."""

import json
from pathlib import Path
from typing import Any

import harness
import keras
import numpy as np
import pytest
from drawings import TINY_PRESET, write_drawings

from captionlite.export.exporter import export_run
from captionlite.export.recipes import recipe
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.decoding import DecodingOptions
from captionlite.training.config import RunConfig, from_json, load_config, parse_data
from captionlite.training.encoders import build_encoder, build_trained_blocks, encoder_spec, front_name
from captionlite.training.errors import WeightsError
from captionlite.training.families.tuned import TunedDecoder
from captionlite.training.run import HISTORY, load_run
from captionlite.training.trainer import Interrupted, train

GRID = (3, 5, 6)  # what the frozen part gives, not to be confused with what the decoder looks at


def tuned(config: dict[str, Any]) -> TunedDecoder:
    given = keras.Input(GRID)
    wide = keras.layers.Conv2D(harness.FEATURE_SHAPE[-1], (1, 2), name="wide")(given)
    return TunedDecoder(keras.Model(given, wide), harness.build(config))


@pytest.fixture(params=harness.CONFIGS)
def any_tuned(request: pytest.FixtureRequest) -> TunedDecoder:
    return tuned(harness.CONFIGS[request.param])


def test_every_family_behind_trained_blocks(any_tuned: TunedDecoder) -> None:
    assert any_tuned.feature_shape == GRID
    assert any_tuned.grid == harness.FEATURE_SHAPE[:2]
    harness.assert_full_call_equals_steps(any_tuned)
    harness.assert_no_peeking(any_tuned)
    harness.assert_photograph_matters(any_tuned)
    harness.assert_state_table(any_tuned)


@pytest.mark.parametrize("name", ["tiny", "efficientnet_lite0"])
def test_the_two_parts_are_the_whole_encoder(name: str) -> None:
    trained = 2 if name == "tiny" else 5
    front = build_encoder(front_name(name, trained), None)
    whole, blocks = build_encoder(name, None), build_trained_blocks(name, None, trained)
    pixels = np.random.default_rng(2).uniform(0, 255, (2, *encoder_spec(name).image_size, 3)).astype(np.float32)
    found, expected = (keras.ops.convert_to_numpy(x) for x in (blocks(front(pixels)), whole(pixels)))
    np.testing.assert_array_equal(found, expected)
    assert tuple(front.output_shape[1:]) == encoder_spec(front_name(name, trained)).feature_shape
    kernels = {weight.name for weight in blocks.trainable_weights}
    assert kernels <= {"kernel", "bias"}, "normalisation stays as it was"
    assert len(blocks.trainable_weights) == (4 if name == "tiny" else 16)


@pytest.mark.parametrize(
    ("name", "trained", "message"),
    [
        ("efficientnet_lite0", 16, "found trained_blocks 16, expected at most 15"),
        ("efficientnet_lite0", -1, "found trained_blocks -1, expected at most 15"),
        ("mobilenet_v2", 1, "expected 0, because it cannot be cut into blocks"),
    ],
)
def test_blocks_that_are_not_there(name: str, trained: int, message: str) -> None:
    with pytest.raises(WeightsError, match=message):
        front_name(name, trained)


@pytest.mark.parametrize("name", ["efficientnet_lite0_0_blocks", "efficientnet_lite0_17_blocks", "tony_3_blocks"])
def test_cuts_that_are_not_there(name: str) -> None:
    with pytest.raises(WeightsError, match=r"blocks to be cut behind|not an encoder"):
        encoder_spec(name)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"jsonl:{write_drawings(tmp_path_factory.mktemp('drawings'))}"


def config(data: str, **changes: Any) -> RunConfig:
    tuning = {"blocks": 2, "epochs": 2, "optimizer": {"learning_rate": 0.003, "average": 0.5}}
    preset = {**TINY_PRESET, "epochs": 2, "patience": 9, "fine_tuning": tuning, **changes}
    made: RunConfig = from_json(RunConfig, {**preset, "data": [{"spec": parse_data(data).spec}]}, "test")
    return made


def kernels(run: Path) -> dict[str, np.ndarray]:
    blocks = load_run(run).model.blocks  # type: ignore[attr-defined]
    return {weight.path: np.asarray(keras.ops.convert_to_numpy(weight)) for weight in blocks.weights}


@pytest.fixture(scope="module")
def run(data: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tuned")
    train(config(data, monitor="loss"), folder / "run", folder / "cache")
    return folder / "run"


def test_the_plain_epochs_leave_the_blocks_and_fine_tuning_trains_them(data: str, run: Path, tmp_path: Path) -> None:
    stages = [record["stage"] for record in json.loads((run / HISTORY).read_text())]
    assert stages == ["cross_entropy"] * 2 + ["fine_tuning"] * 2
    drawn = build_trained_blocks("tiny", None, 2).get_weights()
    plain = tmp_path / "plain"
    train(config(data, fine_tuning={"blocks": 2, "epochs": 0}), plain, tmp_path / "cache")
    for kept, tuned_value, first in zip(kernels(plain).values(), kernels(run).values(), drawn, strict=True):
        np.testing.assert_array_equal(kept, first)
        assert not np.array_equal(tuned_value, first)


def test_a_run_with_a_frozen_encoder_can_be_gone_on_from(data: str, tmp_path: Path) -> None:
    frozen, later = tmp_path / "frozen", tmp_path / "later"
    train(config(data, fine_tuning=None), frozen, tmp_path / "cache")
    train(config(data, epochs=0, start=str(frozen)), later, tmp_path / "cache")
    assert load_run(later).model.count_params() > load_run(frozen).model.count_params()
    again = tmp_path / "again"  # and one with trained blocks, which begin as that run left them
    train(config(data, epochs=1, fine_tuning={"blocks": 2, "epochs": 0}, start=str(later)), again, tmp_path / "cache")
    for first, second in zip(kernels(later).values(), kernels(again).values(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    data: str, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from captionlite.training import stages

    steps, real = [], stages.FineTuning.run

    def stop_in_the_third(self: Any, batch: Any, number: int) -> Any:
        steps.append(number)
        if len(steps) == 3:
            import os
            import signal

            os.kill(os.getpid(), signal.SIGINT)
        return real(self, batch, number)

    monkeypatch.setattr(stages.FineTuning, "run", stop_in_the_third)
    with pytest.raises(Interrupted):
        train(config(data, monitor="loss"), tmp_path / "run", tmp_path / "cache")
    monkeypatch.undo()
    train(config(data, monitor="loss"), tmp_path / "run", tmp_path / "cache", resume=True)
    for first, second in zip(kernels(run).values(), kernels(tmp_path / "run").values(), strict=True):
        np.testing.assert_array_equal(first, second)


def test_the_bundle_captions_as_the_run_does(run: Path, data: str, tmp_path: Path) -> None:
    trained = load_run(run)
    made = export_run(trained, recipe("float32"), tmp_path / "bundle")
    captioner = Captioner(Bundle.open(made.bundle))
    manifest = captioner.bundle.manifest
    assert manifest.provenance["encoder"] == {"name": "tiny", "weights": None, "trained_blocks": 2}
    assert manifest.attention is not None
    assert manifest.attention.grid == (4, 4)
    folder = Path(data.removeprefix("jsonl:")).parent / "images"
    for picture in sorted(folder.glob("*-left.png")):
        assert captioner.caption(picture, DecodingOptions()).text == trained.caption(picture)


def test_a_preset_says_what_it_fine_tunes() -> None:
    fine = load_config("default", ('fine_tuning={"blocks": 5}',))
    assert fine.trained_blocks == 5
    assert fine.encoder_facts() == {"name": "efficientnet_lite0", "weights": "imagenet", "trained_blocks": 5}
    assert load_config("default", ("fine_tuning=null",)).encoder_facts() == {
        "name": "efficientnet_lite0",
        "weights": "imagenet",
    }
