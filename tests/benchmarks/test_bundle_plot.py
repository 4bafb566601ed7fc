"""The picture of bundles side by side: which score, what is told where there is none, a real PNG."""

import json
from pathlib import Path
from typing import Any

import pytest
from bench_results import result, write
from click.testing import CliRunner
from PIL import Image

from captionlite.benchmarks.bundle_plot import Point, main, point
from captionlite.benchmarks.results import ResultError

BEAM_3 = "Flickr8k test, int8, beam 3"


def bench_run(path: Path, name: str, scores: dict[str, Any], **changes: Any) -> Path:
    document = json.loads(json.dumps(result("int8", name=name, **changes)))
    document["model"] |= {"scores": scores, "size_bytes": 8_381_785}
    return write(path, document)


def test_a_point_is_the_result_and_the_score_that_its_bundle_states(tmp_path: Path) -> None:
    path = bench_run(
        tmp_path / "a.json", "default", {BEAM_3: {"cider": 0.563}, "Flickr8k test, float32, beam 3": {"cider": 0.9}}
    )
    found = point(path, "Flickr8k test", "beam 3")
    assert found == Point("default", "int8", 8.381785, found.whole_ms, 0.563)
    assert found.whole_ms == json.loads(path.read_text())["summary"]["whole"]["p50"]


def test_a_bundle_without_that_score_is_told(tmp_path: Path) -> None:
    path = bench_run(tmp_path / "a.json", "default", {BEAM_3: {"cider": 0.563}})
    with pytest.raises(ResultError, match="states no CIDEr of 'Flickr8k test, int8, greedy'; it has 'Flickr8k test"):
        point(path, "Flickr8k test", "greedy")
    done = CliRunner().invoke(main, [str(path), "--data", "coco", "--out", str(tmp_path / "plot.png")])
    assert done.exit_code == 1
    assert "states no CIDEr of 'coco, int8, beam 3'" in done.output
    assert not (tmp_path / "plot.png").exists()


def test_every_bundle_is_a_line_and_the_picture_a_png(tmp_path: Path) -> None:
    paths = [
        bench_run(tmp_path / f"{name}.json", name, {BEAM_3: {"cider": cider}})
        for name, cider in (("tiny", 0.497), ("default", 0.563))
    ]
    done = CliRunner().invoke(main, [*map(str, paths), "--out", str(tmp_path / "plot.png")])
    assert done.exit_code == 0, done.output
    assert [line.split(":")[0] for line in done.output.splitlines()] == ["tiny int8", "default int8"]
    assert done.output.count("8.38 MB") == 2
    with Image.open(tmp_path / "plot.png") as picture:
        assert picture.format == "PNG"
        assert picture.width > picture.height > 300
