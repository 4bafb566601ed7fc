"""Measuring from outside: what a process took, and the comparison drawn from it."""

import json
import sys
from pathlib import Path
from time import perf_counter

import pytest
import toy_bundle as toy
from click.testing import CliRunner
from PIL import Image

from captionlite.benchmarks import cold_start
from captionlite.benchmarks.cold_start import CAPTIONLITE, KERAS, alternate, captionlite_command, compare
from captionlite.benchmarks.process import measure
from captionlite.runtime.errors import CaptionliteError


def python(code: str) -> list[str]:
    return [sys.executable, "-c", code]


def test_streams_and_exit_status_are_kept_apart() -> None:
    turn = measure(python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(5)"))
    assert (turn.stdout, turn.stderr, turn.returncode) == ("out\n", "err\n", 5)


def test_more_output_than_a_pipe_holds_does_not_block() -> None:
    assert len(measure(python("print('x' * 1_000_000)")).stdout) == 1_000_001


def test_time_is_that_of_the_command() -> None:
    started = perf_counter()
    turn = measure(python("import time; time.sleep(0.4)"))
    assert 0.4 <= turn.seconds <= perf_counter() - started


def test_memory_is_the_childs_own_peak_not_the_parents() -> None:
    ballast = b"x" * 300_000_000  # this process is now large, and the child must not seem so
    small = measure(python("pass"))
    large = measure(python("x = b'x' * 200_000_000; del x"))
    assert len(ballast) > 200_000_000
    assert small.peak_memory_bytes < 100_000_000
    assert large.peak_memory_bytes - small.peak_memory_bytes == pytest.approx(200_000_000, rel=0.1)


def test_a_command_that_does_not_exist_is_named() -> None:
    with pytest.raises(OSError, match="/no/such/program"):
        measure(["/no/such/program"])


def test_turns_alternate_and_the_first_is_not_counted() -> None:
    order: list[str] = []
    commands = {CAPTIONLITE: python("print('a dog')"), KERAS: python("import time; time.sleep(0.3); print('a dog')")}
    result = compare(alternate(commands, 2, lambda name, _: order.append(name)))
    assert order == [CAPTIONLITE, KERAS] * 3
    assert len(result[KERAS]["turns_seconds"]) == 2
    assert result["same_caption"]
    assert result[KERAS]["caption"] == "a dog"
    assert result["time_ratio"] == pytest.approx(result[CAPTIONLITE]["seconds"] / result[KERAS]["seconds"])
    assert result["time_ratio"] < 1


def test_different_captions_are_told() -> None:
    commands = {CAPTIONLITE: python("print('a dog')"), KERAS: python("print('a cat')")}
    assert not compare(alternate(commands, 1))["same_caption"]


def test_a_side_that_fails_stops_the_comparison() -> None:
    with pytest.raises(CaptionliteError, match=r"keras failed \(exit 1\).*no model here"):
        alternate({CAPTIONLITE: python("print('x')"), KERAS: python("raise SystemExit('no model here')")}, 1)


def test_a_side_that_changes_its_mind_stops_the_comparison() -> None:
    with pytest.raises(CaptionliteError, match="different captions"):
        alternate({CAPTIONLITE: python("print(id(object()), __import__('time').time_ns())")}, 1)


def test_command_line_against_the_real_captionlite(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle, photo = tmp_path / "toy", tmp_path / "photo.png"
    toy.write(bundle)
    pixels = toy.photographs(1)[0]
    Image.fromarray(pixels).save(photo)
    said = " ".join(toy.PIECES[token] for token in toy.decode(pixels).tokens if token != toy.END)
    # Keras is stood in for by a slow and large process, so that this test needs no trained run.
    stand_in = python(f"import time; x = b'x' * 400_000_000; time.sleep(1); print({said!r})")
    monkeypatch.setattr(cold_start, "keras_command", lambda run, image: stand_in)
    arguments = ["--bundle", str(bundle), "--run", str(tmp_path), "--image", str(photo), "--repeats", "1", "--json"]

    result = CliRunner().invoke(cold_start.main, arguments)
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["same_caption"]
    assert report[CAPTIONLITE]["caption"] == said
    assert 0 < report["memory_ratio"] < 1
    assert "captionlite " in result.stderr

    gated = CliRunner().invoke(cold_start.main, [*arguments, "--max-memory-ratio", "0.0001"])
    assert gated.exit_code == 3


def test_the_command_is_the_installed_one() -> None:
    command = captionlite_command("default", "x.jpg")
    assert command[-4:] == ["caption", "--bundle", "default", "x.jpg"]


def test_the_keras_side_captions_with_a_trained_run(monkeypatch: pytest.MonkeyPatch) -> None:
    from captionlite.benchmarks import keras_caption
    from captionlite.training import run

    class Trained:
        def caption(self, image: str) -> str:
            return f"a caption of {image}"

    asked: list[str] = []

    def load_run(directory: str) -> Trained:
        asked.append(directory)
        return Trained()

    monkeypatch.setattr(run, "load_run", load_run)
    assert keras_caption.caption("runs/default", "x.jpg") == "a caption of x.jpg"
    assert asked == ["runs/default"]
