"""Graphs that are cut, bent or something else altogether, with right checksums: refused, and never a crash."""

import random
import subprocess
import sys
from pathlib import Path

import pytest
import toy_bundle

from captionlite.runtime import Bundle
from captionlite.runtime.errors import BundleError

# A damaged graph reaches native code, so each runs in a process of its own: a crash there would be a failure here.
LOAD = """
import sys
import numpy as np
from captionlite.runtime import Captioner, CaptionliteError
for path in sys.argv[1:]:
    try:
        Captioner.from_bundle(path).caption(np.zeros((8, 12, 3), np.uint8))
        print("loaded")
    except CaptionliteError as error:
        print("refused", str(error).replace(chr(10), " "))
"""


def load_all(paths: list[Path]) -> list[str]:
    command = [sys.executable, "-c", LOAD, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, f"the process died: {done.returncode}\n{done.stderr[-2000:]}"
    return done.stdout.splitlines()


def forged(bundle: Path, count: int) -> list[Path]:
    directories = [bundle.parent / f"forged-{i}" for i in range(count)]
    for directory in directories:
        toy_bundle.write(directory)
    return directories


@pytest.mark.parametrize("name", ["encoder.tflite", "decoder.tflite"])
def test_cut_anywhere(bundle: Path, name: str) -> None:
    data = toy_bundle.files()[name]
    directories = forged(bundle, 12)
    for i, directory in enumerate(directories):
        toy_bundle.forge(directory, changed={name: data[: len(data) * i // 12]})
    found = load_all(directories)
    assert len(found) == 12
    assert all(line.startswith("refused") and name in line for line in found)


def test_bytes_changed_anywhere(bundle: Path) -> None:
    # Some changes only touch a weight and load; what counts is that none ends the process.
    chance = random.Random(4)
    directories = forged(bundle, 30)
    for directory in directories:
        name = chance.choice(["encoder.tflite", "decoder.tflite"])
        data = bytearray(toy_bundle.files()[name])
        for _ in range(6):
            data[chance.randrange(8, len(data))] = chance.randrange(256)
        toy_bundle.forge(directory, changed={name: bytes(data)})
    assert len(load_all(directories)) == 30


@pytest.mark.parametrize("data", [b"", b"TFL3", b"\0\0\0\0TFL2", b"\xff\xff\xff\xffTFL3", b"PK\x03\x04", b"<html>"])
def test_something_else_never_reaches_the_interpreter(bundle: Path, data: bytes) -> None:
    toy_bundle.forge(bundle, changed={"decoder.tflite": data})
    with pytest.raises(BundleError, match=r"decoder\.tflite: not a TensorFlow Lite file"):
        Bundle.open(bundle)
