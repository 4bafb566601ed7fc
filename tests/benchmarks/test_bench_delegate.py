"""`captionlite bench run --delegate`: the result says what the encoder went through, and nothing else is measured."""

import json
from collections.abc import Callable
from pathlib import Path

import native_delegate
import pytest
import toy_bundle
from click.testing import CliRunner, Result
from PIL import Image

from captionlite.benchmarks.compare_names import machine_name
from captionlite.benchmarks.results import read_result
from captionlite.runtime.cli import cli


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native_delegate.built(tmp_path_factory)


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Result]:
    folder = tmp_path_factory.mktemp("bench")
    toy_bundle.write(folder / "toy")
    (folder / "photos").mkdir()
    Image.fromarray(toy_bundle.photographs(1)[0]).save(folder / "photos" / "a.png")

    def invoke(*arguments: object) -> Result:
        always = ["bench", "run", "--bundle", folder / "toy", "--photos", folder / "photos"]
        few = ["--captions", "3", "--seconds", "0"]
        return CliRunner().invoke(cli, [str(argument) for argument in (*always, *few, *arguments)])

    return invoke


def test_the_result_says_what_the_encoder_went_through(
    bench: Callable[..., Result], library: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.json"
    done = bench("--delegate", f"{library}:compute=right", "--cold-starts", "1", "--out", out)
    assert done.exit_code == 0, done.output
    result = read_result(out)
    delegate = result.machine["delegate"]
    assert delegate["options"] == {"compute": "right"}
    assert (delegate["used"], delegate["ops"]["taken"]) == (True, {"TANH": 1})
    assert machine_name(result).endswith(", encoder on delegate.so")
    assert any("took 1 of 9 ops of the encoder" in note for note in result.notes)
    assert result.cold_start is not None


def test_without_one_nothing_is_said(bench: Callable[..., Result]) -> None:
    found = json.loads(bench("--cold-starts", "0", "--json").stdout)
    assert "delegate" not in found["machine"]


@pytest.mark.parametrize("options", ["fail=prepare", "take=none", "compute=wrong", "fail=later"])
def test_the_cpu_is_not_measured_under_its_name(bench: Callable[..., Result], library: Path, options: str) -> None:
    done = bench("--delegate", f"{library}:{options}", "--cold-starts", "0")
    assert (done.exit_code, done.stdout) == (1, "")
    assert f"--delegate {library}:{options}: " in done.stderr


def test_keras_has_no_delegate(library: Path) -> None:
    arguments = ["bench", "run", "--target", "keras", "--run", "x", "--photos", "y", "--delegate", str(library)]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 2
    assert "--delegate is for --target edge" in done.output
