"""Scaling: the fitted line, and two tiny models of a factor from Keras to a picture. No times are asserted."""

import json
import warnings
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from captionlite.benchmarks import scaling, scaling_plot
from captionlite.benchmarks.commands import bench_scaling
from captionlite.runtime.errors import CaptionliteError

TINY = {"units": 16, "heads": 2, "key_dim": 8, "feed_forward": 16, "max_length": 6, "layers": 1}


def test_a_straight_line_is_found_exactly() -> None:
    found = scaling.fit([1, 2, 4, 8], [5 + 3 * x for x in (1, 2, 4, 8)])
    assert (found.a, found.b, found.r2) == pytest.approx((5.0, 3.0, 1.0))


def test_what_a_line_does_not_explain_is_told() -> None:
    found = scaling.fit([0, 1, 2], [0.0, 2.0, 1.0])  # mean 1, slope 1/2: left over 1/4 + 1 + 1/4 of 2
    assert (found.a, found.b, found.r2) == pytest.approx((0.5, 0.5, 0.25))
    assert scaling.fit([1, 2], [4.0, 9.0]).r2 is None
    assert scaling.fit([1, 2, 3], [4.0, 4.0, 4.0]) == scaling.Fit(4.0, 0.0, None)
    with pytest.raises(ValueError, match="two"):
        scaling.fit([3, 3], [1.0, 2.0])


def test_a_line_is_told_in_words() -> None:
    assert scaling_plot.told(12.0, -0.0034) == "12 - 0.0034 x"
    assert scaling_plot.told(9792.0, 1866.0) == "9,792 + 1,866 x"


def test_lines_are_laid_over_what_grows() -> None:
    assert scaling.FACTORS["width"].x(4) == 16
    assert scaling.FACTORS["image"].x(10) == 100
    assert scaling.FACTORS["threads"].x(4) == 0.25


def test_a_width_takes_all_widths_along() -> None:
    config = {"name": "transformer", "layers": 2, "units": 256, "heads": 8, "key_dim": 32, "feed_forward": 512}
    changed = scaling.resized(config, "width", 128)
    assert changed == {**config, "units": 128, "key_dim": 16, "feed_forward": 256}
    assert scaling.resized(config, "layers", 5) == {**config, "layers": 5}
    assert scaling.resized(config, "length", 9) == {**config, "max_length": 9}
    assert scaling.resized(config, "vocabulary", 9) == config


def tiny() -> scaling.Builder:
    from drawings import ENCODERS

    def encoder(side: int) -> Any:
        return ENCODERS["tiny" if side == 32 else "wide"]

    return scaling.Builder("transformer", changes=TINY, vocabulary=30, encoder=encoder, image=32)


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's own deprecations
        yield


@pytest.mark.parametrize(("name", "values"), [("vocabulary", (20, 40)), ("beam", (1, 3))])
def test_two_sizes_are_measured(name: str, values: tuple[int, int]) -> None:
    found = scaling.measure_factor(tiny(), name, values, rounds=2)
    assert found["values"] == list(values)
    assert found["series"].keys() == {"float32", "int8"}
    for series in found["series"].values():
        assert len(series["us"]) == len(series["file_bytes"]) == 2
        assert min(series["us"]) > 0
        assert series["fit"]["r2"] is None
    float32, int8 = (found["series"][recipe]["file_bytes"] for recipe in ("float32", "int8"))
    if name == "vocabulary":
        assert float32[1] > float32[0]
        assert int8[0] != float32[0]
    else:
        assert float32[0] == float32[1]  # one model, another batch


def test_the_encoder_is_measured_on_pictures_of_other_sizes() -> None:
    found = scaling.measure_factor(tiny(), "image", (32, 48), rounds=1)
    assert found["measured_on"] == "encoder"
    assert found["series"]["int8"]["file_bytes"][0] > 0


def test_one_size_is_no_line() -> None:
    with pytest.raises(CaptionliteError, match="at least two"):
        scaling.measure_factor(tiny(), "layers", (1, 1), rounds=1)


def test_the_command_writes_a_result_and_a_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    builder = tiny()
    monkeypatch.setattr(scaling, "Builder", lambda family: builder)
    monkeypatch.setenv("KERAS_BACKEND", "tensorflow")
    out = tmp_path / "scaling.json"
    arguments = ["--factor", "layers", "--values", "1,2", "--rounds", "1", "--out", str(out), "--json"]
    result = CliRunner().invoke(bench_scaling.command, arguments)
    assert result.exit_code == 0, result.output
    document = json.loads(out.read_text())
    assert document == json.loads(result.stdout)
    assert (document["kind"], document["family"]) == ("scaling", "transformer")
    assert document["factors"]["layers"]["values"] == [1, 2]
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--family", "lstm", "--factor", "layers"], "has none"),
        (["--values", "1,2"], "exactly one --factor"),
        (["--factor", "beam", "--values", "1,b"], "whole numbers"),
        (["--factor", "beam", "--values", "0,1"], "from 1 on"),
    ],
)
def test_wrong_usage_is_refused(arguments: list[str], said: str) -> None:
    result = CliRunner().invoke(bench_scaling.command, arguments)
    assert result.exit_code == 2
    assert said in result.stderr
