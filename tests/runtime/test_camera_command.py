"""`captionlite camera` as a user starts it: what it prints where, how it ends, and what it says when it cannot."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_bundle
from click.testing import CliRunner, Result
from PIL import Image

from captionlite.benchmarks.mjpeg_server import MjpegServer
from captionlite.runtime.camera.http_stream import HttpStream
from captionlite.runtime.cli import cli

Run = Callable[..., Result]
IMAGES = toy_bundle.photographs(6, seed=4)


def caption_of(image: Any) -> str:
    tokens = toy_bundle.decode(image).tokens
    return " ".join(toy_bundle.PIECES[token] for token in tokens if token != toy_bundle.END)


CAPTIONS = [caption_of(image) for image in IMAGES]
CHANGES = [text for number, text in enumerate(CAPTIONS) if number == 0 or CAPTIONS[number - 1] != text]


@pytest.fixture
def run(toy_directory: Path) -> Run:
    def run_command(*args: object, bundle: Path = toy_directory) -> Result:
        arguments = ["camera", *map(str, args), "--bundle", str(bundle)]
        result = CliRunner().invoke(cli, arguments, prog_name="captionlite")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run_command


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(IMAGES):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def test_a_folder(run: Run, photos: Path) -> None:
    result = run(photos, "--every-frame", "--threshold", "0")
    assert (result.exit_code, result.stdout.splitlines()) == (0, CHANGES)
    lines = result.stderr.splitlines()
    assert lines[0] == f"folder {photos}: watching; Ctrl-C ends it."
    assert re.match(
        r"\d+\.\d s: .* frames/s, .* captions/s, latency p50 .* ms p90 .* ms, .* 0 dropped, 0 rec", lines[-1]
    )


def test_json(run: Run, photos: Path) -> None:
    result = run(photos, "--every-frame", "--threshold", "0", "--json")
    *records, last = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["caption"] for record in records] == CAPTIONS
    assert [record["image"] for record in records] == [f"{number}.png" for number in range(6)]
    assert [record["frame"] for record in records] == [1, 2, 3, 4, 5, 6]
    for record in records:
        assert set(record) == {"time", "frame", "caption", "changed", "logprob", "age_ms", "timings_ms", "image"}
        assert record["age_ms"] >= record["timings_ms"]["total"]
    stats = last["stats"]
    assert stats["source"] == f"folder {photos}"
    assert (stats["captured"], stats["captions"], stats["dropped"], stats["reconnects"]) == (6, 6, 0, 0)
    assert 0 < stats["latency_ms"]["p50"] <= stats["latency_ms"]["p90"] <= stats["latency_ms"]["max"]


def test_decoding_options_and_the_confidence(run: Run, photos: Path) -> None:
    assert len(run(photos, "--every-frame", "--max-length", "2").stdout.splitlines()[0].split()) <= 2
    result = run(photos, "--every-frame", "--min-confidence", "0.5")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "captionlite confidence" in result.stderr


def test_a_video(run: Run, tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2", reason="pip install 'captionlite[camera]'")
    path = tmp_path / "video.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 40.0, (96, 64))
    for image in IMAGES:
        for _ in range(4):
            writer.write(
                np.asarray(Image.fromarray(image).resize((96, 64), Image.Resampling.NEAREST))[:, :, ::-1].copy()
            )
    writer.release()
    result = run(path, "--every-frame", "--json")
    *records, last = [json.loads(line) for line in result.stdout.splitlines()]
    assert last["stats"]["captured"] == 24
    assert last["stats"]["captions"] == len(records)
    assert last["stats"]["captions"] + last["stats"]["unchanged"] == 24
    result = run(path, "--interval", "0", "--json", "--loop", "--seconds", "1.2")  # one pass takes 0.6 s
    stats = json.loads(result.stdout.splitlines()[-1])["stats"]
    assert result.exit_code == 0
    assert stats["captured"] + stats["dropped"] > 24
    assert stats["source"] == f"video {path} (OpenCV)"


def test_so_many_seconds_of_the_synthetic_camera(run: Run) -> None:
    result = run("synthetic", "--seconds", "0.6", "--stats", "0.2", "--size", "96x64", "--interval", "0")
    assert result.exit_code == 0
    assert result.stdout.splitlines()
    assert sum("frames/s" in line for line in result.stderr.splitlines()) >= 3


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["synthetic", "--size", "big"], "WIDTHxHEIGHT"),
        (["synthetic", "--size", "9x9"], "each from 16"),
        (["synthetic", "--overlay", "here"], "http://HOST:PORT"),
        (["synthetic", "--voice", "en"], "--speak"),
        (["synthetic", "--every-frame"], "folders and videos"),
        (["synthetic", "--fps", "0"], "--fps"),
        (["synthetic", "--beams", "3", "--temperature", "1"], "exclude each other"),
    ],
)
def test_wrong_usage(run: Run, arguments: list[str], expected: str) -> None:
    result = run(*arguments)
    assert (result.exit_code, result.stdout) == (2, "")
    assert expected in result.stderr


def test_what_is_not_there(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    result = run("nothing.mp4")
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("Error: nothing.mp4: no such file")
    result = run("http://127.0.0.1:9/")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "no connection" in result.stderr
    monkeypatch.setitem(sys.modules, "cv2", None)
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    result = run("0")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "pip install 'captionlite[camera]'" in result.stderr
    monkeypatch.setenv("PATH", str(tmp_path))
    result = run("synthetic", "--speak")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "apt install espeak-ng" in result.stderr


def start(*arguments: object, **options: Any) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "-m", "captionlite.runtime.cli", "camera", *map(str, arguments)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_and_sigterm_end_it_in_order(toy_directory: Path, tmp_path: Path, number: signal.Signals) -> None:
    """While the speaker speaks and a browser watches: all is let go, the statistics come, and the exit code is 0."""
    speaker = tmp_path / "espeak-ng"
    speaker.write_text(f"#!/bin/sh\necho $$ > {tmp_path}/pid\nexec sleep 600\n")
    speaker.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}"}
    arguments = ("synthetic", "--bundle", toy_directory, "--size", "96x64", "--json", "--speak")
    with start(*arguments, "--overlay", "http://127.0.0.1:0", env=environment) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert "caption" in json.loads(process.stdout.readline())
        url = re.search(r"http://\S+", process.stderr.readline())
        assert url
        viewer = HttpStream(url[0] + "stream")
        viewer.open()
        assert viewer._response is not None
        assert viewer._response.read1(10)
        while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text().strip():
            assert process.poll() is None
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=30)
        viewer.close()
    assert process.returncode == 0, stderr
    assert json.loads(stdout.splitlines()[-1])["stats"]["captions"] >= 1
    assert "Traceback" not in stderr
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


def test_ctrl_c_while_the_camera_is_away(toy_directory: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(IMAGES[0]).save(buffer, "JPEG")
    server = MjpegServer([buffer.getvalue()], 20.0)
    server.start()
    with start(server.url, "--bundle", toy_directory, "--stats", "3600") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline()
        server.stop()
        while "Waiting for it" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=30)
    assert process.returncode == 0
    assert "0 reconnects" in stderr
    assert "Traceback" not in stderr


def test_a_reader_that_leaves_ends_it(toy_directory: Path) -> None:
    with start("synthetic", "--bundle", toy_directory, "--size", "96x64", "--interval", "0", "--json") as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.readline()
        process.stdout.close()
        stderr = process.stderr.read()
        assert process.wait(30) == 1
    assert "Traceback" not in stderr
