"""The matrix of emulated systems, with this very Python in their place: what it tells, and how it ends."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_bundle
from click.testing import CliRunner, Result
from edge import matrix
from PIL import Image


@pytest.fixture(scope="module")
def toy_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundles") / "toy"
    toy_bundle.write(directory)
    return directory


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number, image in enumerate(toy_bundle.photographs(2)):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every system is an environment of this Python, with one package and apt's NumPy."""

    def install(work: Path, system: matrix.System, wheel: Path, *, lean: bool) -> matrix.Installed:
        environment = work / system.name
        (environment / "bin").mkdir(parents=True)
        python = environment / "bin/python"
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
        packages = (matrix.Package("click", "8.1", 0.25), matrix.Package("numpy", "1.24.2", None))
        return matrix.Installed(system, environment, packages, 33.4)

    monkeypatch.setattr(matrix, "install", install)


def invoke(tmp_path: Path, *arguments: object) -> tuple[Result, dict[str, Any]]:
    wheel, out = tmp_path / "captionlite.whl", tmp_path / "out.json"
    wheel.touch()
    words = [str(tmp_path / "work"), *map(str, arguments), "--wheel", str(wheel), "--out", str(out)]
    result = CliRunner().invoke(matrix.main, words)
    return result, json.loads(out.read_text()) if out.exists() else {}


@pytest.mark.usefixtures("this_machine")
def test_every_system_is_a_row_and_a_column(toy_directory: Path, photos: Path, tmp_path: Path) -> None:
    arguments = [toy_directory, "--legacy", toy_directory, "--photos", photos, "--bench", "none"]
    result, found = invoke(tmp_path, *arguments, "--cpu", "cortex-a72")
    assert result.exit_code == 0, result.stderr
    assert [row["system"] for row in found["rows"]] == [system.name for system in matrix.SYSTEMS]
    assert all(row["passed"] and row["captions_equal"] == row["photographs"] == 2 for row in found["rows"])
    assert "| passed |" in result.stdout
    assert "| 2 of 2 |" in result.stdout
    assert "| click | 8.1 (0.2 MB) |" in result.stdout
    assert "| numpy | 1.24.2 (apt's) |" in result.stdout
    assert "| whole environment | 33 MB |" in result.stdout


@pytest.mark.usefixtures("this_machine")
def test_without_a_legacy_bundle_32_bit_is_skipped(toy_directory: Path, photos: Path, tmp_path: Path) -> None:
    result, found = invoke(tmp_path, toy_directory, "--photos", photos, "--system", "bookworm-armhf")
    assert result.exit_code == matrix.CANNOT_BE_MADE
    assert "skipped: bookworm-armhf: no bundle for it" in result.stdout
    assert found["rows"] == []


@pytest.mark.usefixtures("this_machine")
def test_wrong_numbers_fail(toy_directory: Path, photos: Path, tmp_path: Path) -> None:
    arrays: dict[str, Any] = toy_bundle.golden_arrays()
    wrong = toy_bundle.npz({**arrays, "logits": arrays["logits"] * np.float32(1.5)})
    toy_bundle.write(tmp_path / "wrong")
    toy_bundle.forge(tmp_path / "wrong", changed={"golden.npz": wrong})
    arguments = [tmp_path / "wrong", "--photos", photos, "--system", "trixie-arm64", "--cpu", "cortex-a72"]
    result, found = invoke(tmp_path, *arguments, "--bench", "none")
    assert result.exit_code == 1
    assert found["rows"][0]["passed"] is False
    assert "| FAILED |" in result.stdout


def test_a_machine_that_cannot_make_it_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = tmp_path / "programs"
    programs.mkdir()
    for name in ("sh", "dirname", "mkdir", "cat"):
        found = shutil.which(name)
        assert found is not None
        (programs / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(programs))
    result, _ = invoke(tmp_path, "--system", "bookworm-arm64")
    assert result.exit_code == matrix.CANNOT_BE_MADE
    assert "skipped: bookworm-arm64: make_root.sh: mmdebstrap is missing: apt-get install mmdebstrap" in result.stdout
