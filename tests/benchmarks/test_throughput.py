"""The benchmarks of many photographs: what they count, that they compare, and that their gates close."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import toy_bundle
from click.testing import CliRunner
from PIL import Image

from captionlite.benchmarks import memory, throughput
from captionlite.benchmarks.memory import WARM_UP
from captionlite.benchmarks.throughput import measure
from captionlite.runtime import Captioner, DecodingOptions
from captionlite.runtime.errors import CaptionliteError


@pytest.fixture(scope="module")
def toy_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundles") / "toy"
    toy_bundle.write(directory)
    return directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(toy_bundle.photographs(7)):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def test_throughput(toy_directory: Path, folder: Path) -> None:
    arguments = [str(folder), "--bundle", str(toy_directory), "--count", "30", "--rounds", "3", "--threads", "2"]
    result = CliRunner().invoke(throughput.main, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["photographs"], report["unreadable"]) == (30, 0)
    assert len(report["rounds_ratios"]) == 3
    assert report["ratio"] == sorted(report["rounds_ratios"])[1]
    assert report["one_at_a_time"] > 0
    assert report["caption_many"] > 0
    sides = [line.split()[0] for line in result.stderr.splitlines()]
    assert sides == ["one_at_a_time", "caption_many"] * 3

    text = CliRunner().invoke(throughput.main, [*arguments, "--beams", "2", "--min-ratio", "1000"])
    assert text.exit_code == 3
    assert "30 photographs" in text.stdout
    assert "the same captions" in text.stdout


def test_unreadable_photographs_are_counted_once(toy_directory: Path, folder: Path, tmp_path: Path) -> None:
    captioner = Captioner.from_bundle(toy_directory, threads=2)
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"bad")
    images = [str(folder / "1.png"), str(bad), str(folder / "2.png")] * 5
    assert measure(captioner, images, DecodingOptions(), 2).unreadable == 5


def test_captions_that_differ_are_told(toy_directory: Path, folder: Path) -> None:
    captioner: Any = Captioner.from_bundle(toy_directory, threads=2)
    images = [str(path) for path in sorted(folder.iterdir())]

    def other_captions(images: list[str], options: DecodingOptions) -> Iterator[Any]:
        return (captioner.caption(image, DecodingOptions(max_length=2)) for image in images)

    captioner.caption_many = other_captions
    with pytest.raises(CaptionliteError, match=r"0\.png: caption_many says"):
        measure(captioner, images, DecodingOptions(), 1)


def test_a_folder_without_photographs_is_named(toy_directory: Path, tmp_path: Path) -> None:
    result = CliRunner().invoke(throughput.main, [str(tmp_path), "--bundle", str(toy_directory)])
    assert result.exit_code == 1
    assert "no image in this folder" in result.stderr


def test_memory(toy_directory: Path, folder: Path) -> None:
    photos = [str(path) for path in sorted(folder.iterdir())]
    arguments = [*photos, "--bundle", str(toy_directory), "--count", str(WARM_UP + 50), "--threads", "2"]
    result = CliRunner().invoke(memory.main, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    for way in ("caption", "caption_many"):
        assert report[way]["captions"] == WARM_UP + 50
        assert report[way]["warm_mb"] > 10
        assert report[way]["growth_mb"] == report[way]["last_mb"] - report[way]["warm_mb"]
    text = CliRunner().invoke(memory.main, [*arguments, "--max-growth-mb", "-1000"])
    assert text.exit_code == 3
    assert text.stdout.count(f"MB after {WARM_UP} captions") == 2


def test_what_leaks_is_seen() -> None:
    kept = []

    def leaking() -> Iterator[Any]:
        for _ in range(WARM_UP + 100):
            kept.append(b"x" * 1_000_000)
            yield None

    assert memory.measure(leaking()).growth_mb == pytest.approx(100, rel=0.2)


def test_memory_stops_at_a_photograph_that_cannot_be_read(toy_directory: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"bad")
    result = CliRunner().invoke(memory.main, [str(bad), "--bundle", str(toy_directory)])
    assert result.exit_code == 1
    assert "bad.png" in result.stderr
