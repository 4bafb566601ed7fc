"""The table of recipes: each bundle with its own figures; nothing is made twice, nothing refused is hidden."""

import json
from pathlib import Path
from typing import Any

import keras
import pytest
from click.testing import CliRunner, Result
from drawings import write_drawings

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow converts; KERAS_BACKEND is another", allow_module_level=True)

from untrained import untrained

from captionlite.benchmarks import recipe_table
from captionlite.benchmarks.recipe_table import Row, markdown
from captionlite.export.errors import ExportError
from captionlite.export.exporter import export_run
from captionlite.export.recipes import recipe
from captionlite.runtime.bundle import Bundle


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawings(tmp_path_factory.mktemp("drawings"))


@pytest.fixture(scope="module")
def float32(drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundles")
    export_run(untrained("lstm", drawings, folder), recipe("float32"), folder / "float32", name="tiny")
    return folder / "float32"


def run(float32: Path, drawings: Path, work: Path, *more: str) -> Result:
    data = f"jsonl:{drawings}"
    arguments = [str(float32), "--calibrate", data, "--data", data, "--split", "dev", "--work", str(work)]
    return CliRunner().invoke(recipe_table.main, [*arguments, *more])


@pytest.fixture(autouse=True)
def little_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(recipe_table, "TIMED_PHOTOGRAPHS", 1)
    monkeypatch.setattr(recipe_table, "ROUNDS", 1)


def test_each_row_is_of_its_own_bundle(float32: Path, drawings: Path, tmp_path: Path) -> None:
    result = run(float32, drawings, tmp_path, "--recipe", "weight-only-int8", "--recipe", "int8", "--json")
    assert result.exit_code == 0, result.stderr
    rows: list[dict[str, Any]] = json.loads(result.stdout)
    assert [row["recipe"] for row in rows] == ["float32", "weight-only-int8", "int8"]
    first = rows[0]
    assert (first["agreement"], first["cider_ratio"]) == (1.0, 1.0)
    for row, path in zip(rows, (float32, tmp_path / "tiny/weight-only-int8", tmp_path / "tiny/int8"), strict=True):
        files = Bundle.open(path).manifest.files
        assert row["size_bytes"] == files["encoder.tflite"].size_bytes + files["decoder.tflite"].size_bytes
        assert row["encoder_ms"] > 0
        assert row["step_us"] > 0
        assert row["cider_ratio"] == pytest.approx(row["cider"] / max(first["cider"], 1e-9), abs=1e-3)
    captions = [json.loads((tmp_path / f"tiny/{name}.json").read_text())["captions"] for name in ("float32", "int8")]
    equal = sum(captions[1][key] == text for key, text in captions[0].items())
    assert rows[2]["agreement"] == round(equal / 6, 4)


def test_what_stands_there_is_kept_unless_it_is_of_something_else(
    float32: Path, drawings: Path, tmp_path: Path
) -> None:
    assert run(float32, drawings, tmp_path, "--recipe", "int8").exit_code == 0
    manifest, captions = tmp_path / "tiny/int8/manifest.json", tmp_path / "tiny/int8.json"
    before = manifest.stat().st_ino, captions.stat().st_ino
    assert run(float32, drawings, tmp_path, "--recipe", "int8").exit_code == 0
    assert (manifest.stat().st_ino, captions.stat().st_ino) == before
    captions.write_text("{")
    own = tmp_path / "int8.json"
    own.write_text(json.dumps({**recipe("int8").to_json(), "tolerance": 0.04}))
    assert run(float32, drawings, tmp_path, "--recipe", str(own)).exit_code == 0
    assert manifest.stat().st_ino != before[0]
    assert json.loads(captions.read_text())["cider"] >= 0


def test_a_recipe_that_is_refused_is_a_row_with_the_reason(
    float32: Path, drawings: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise ExportError("no kernel has that")

    monkeypatch.setattr(recipe_table, "quantize_bundle", refuse)
    result = run(float32, drawings, tmp_path, "--recipe", "int16x8")
    assert result.exit_code == 0, result.stderr
    assert "| `tiny` | int16x8 | refused: no kernel has that |" in result.stdout


def test_photographs_that_were_calibrated_on_are_not_scored(float32: Path, drawings: Path, tmp_path: Path) -> None:
    result = run(float32, drawings, tmp_path / "work", "--split", "train")
    assert result.exit_code == 2
    assert "18 photographs are both in --calibrate and in --data's train split" in result.stderr
    assert not (tmp_path / "work").exists()


def test_the_table() -> None:
    row = Row("default", "int8", 8_264_144, 1.7049, 61.6, 0.71, 0.48943, 0.9931)
    assert markdown([row]).splitlines()[2:] == [
        "| `default` | int8 | 8.26 MB | 1.70 ms | 62 µs | 71.0% | 0.4894 | 99.3% |"
    ]
