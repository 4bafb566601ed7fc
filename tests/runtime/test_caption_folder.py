"""`captionlite caption` for more photographs than a few: order, bad ones among them, progress on a terminal, Ctrl-C."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import toy_bundle
from click.testing import CliRunner
from PIL import Image

from captionlite.runtime.cli import cli

BAD = (3, 17)
COUNT = 30
MAIN = "from captionlite.runtime.cli import main; main()"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty photographs, of which two are cut off."""
    folder = tmp_path_factory.mktemp("many")
    for number, image in enumerate(toy_bundle.photographs(COUNT, seed=8)):
        path = folder / f"{number:02}.png"
        Image.fromarray(image).save(path)
        if number in BAD:
            path.write_bytes(path.read_bytes()[:70])
    return folder


def captions(folder: Path) -> dict[str, str]:
    """What the folder's readable photographs are to be called, by path."""
    expected = {}
    for number in sorted(set(range(COUNT)) - set(BAD)):
        path = folder / f"{number:02}.png"
        with Image.open(path) as image:
            tokens = toy_bundle.decode(np.asarray(image)).tokens
        expected[str(path)] = " ".join(toy_bundle.PIECES[token] for token in tokens if token != toy_bundle.END)
    return expected


def test_order_and_bad_photographs(folder: Path, toy_directory: Path, tmp_path: Path) -> None:
    arguments = ["caption", "--bundle", str(toy_directory), "--threads", "3", str(tmp_path), str(folder), str(tmp_path)]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 1
    assert result.stdout.splitlines() == [f"{path}: {text}" for path, text in captions(folder).items()]
    named = [line.partition(": ")[2].partition(": ")[0] for line in result.stderr.splitlines()]
    assert named == [str(tmp_path), *(str(folder / f"{number:02}.png") for number in BAD), str(tmp_path)]

    result = CliRunner().invoke(cli, [*arguments, "--json"])
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(record["image"]).name for record in records] == [f"{number:02}.png" for number in range(COUNT)]
    assert [place for place, record in enumerate(records) if "error" in record] == list(BAD)
    assert {record["image"]: record["caption"] for record in records if "caption" in record} == captions(folder)
    assert [line.count("no image in this folder") for line in result.stderr.splitlines()] == [1, 1]


def test_stdin_among_files(folder: Path, toy_directory: Path) -> None:
    names = [str(folder / f"{number:02}.png") for number in range(4, 16)]
    data = Path(names[5]).read_bytes()
    arguments = ["caption", "--bundle", str(toy_directory), "--threads", "2", *names[:5], "-", *names[6:]]
    result = CliRunner().invoke(cli, arguments, input=data)
    expected = captions(folder)
    assert [line.partition(": ")[2] for line in result.stdout.splitlines()] == [expected[name] for name in names]


@pytest.mark.skipif(not hasattr(os, "openpty"), reason="no terminals to imitate on this system")
@pytest.mark.parametrize("same_terminal", [False, True])
def test_progress_on_a_terminal(folder: Path, toy_directory: Path, tmp_path: Path, same_terminal: bool) -> None:
    # Nothing is shown in the first second, so that second is taken away.
    code = f"import captionlite.runtime.progress as p; p.QUIET_S = p.REDRAW_S = 0.0; {MAIN}"
    command = [sys.executable, "-c", code, "caption", str(folder), "--bundle", str(toy_directory)]
    ours, theirs = os.openpty()
    out = tmp_path / "out.txt"
    shown = b""
    with (
        out.open("w") as file,
        subprocess.Popen(command, stdout=theirs if same_terminal else file, stderr=theirs) as process,
    ):
        os.close(theirs)
        try:
            while data := os.read(ours, 65536):
                shown += data
        except OSError:  # how a terminal's end reads on Linux
            pass
    os.close(ours)
    assert process.returncode == 1
    lines = [line.rpartition("\r\x1b[K")[2] for line in shown.decode().replace("\r\n", "\n").split("\n")]
    assert lines[-1] == ""  # the progress line is gone
    written = lines[:-1] if same_terminal else out.read_text().splitlines()
    told = [line for line in written if not line.startswith("Error: ")]
    assert told == [f"{path}: {text}" for path, text in captions(folder).items()]
    assert sum(line.startswith("Error: ") for line in lines) == len(BAD)
    assert f"{COUNT}/{COUNT}, 100 %" in shown.decode()
    assert "a second" in shown.decode()


def test_ctrl_c(folder: Path, toy_directory: Path) -> None:
    arguments = f"['caption', '--bundle', {str(toy_directory)!r}, *[{str(folder / '00.png')!r}] * 100_000]"
    start = f"import sys; sys.argv[1:] = {arguments}; {MAIN}"  # too long for a real command line
    command = [sys.executable, "-c", start]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for _ in range(50):
            assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        started = time.monotonic()
        _, stderr = process.communicate(timeout=60)
        assert time.monotonic() - started < 30  # 100,000 photographs would have taken longer
    assert process.returncode == 1
    assert stderr.strip().endswith("Aborted!")
    assert "Traceback" not in stderr
