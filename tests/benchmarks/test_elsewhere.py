"""Bundles under other Pythons: runners that answer, that refuse, that crash, and the arithmetic of tolerances."""

import json
import math
import shlex
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_bundle
from click.testing import CliRunner, Result
from PIL import Image

from captionlite.benchmarks import elsewhere
from captionlite.benchmarks.elsewhere_report import Report, markdown
from captionlite.benchmarks.elsewhere_runs import Learned, Row, Runner, compare, learn, learned_tolerance

HERE_TOO = f"twin={shlex.quote(sys.executable)}"


@pytest.fixture(scope="module")
def toy_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundles") / "toy"
    toy_bundle.write(directory)
    return directory


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, image in enumerate(toy_bundle.photographs(4)):
        Image.fromarray(image).save(folder / f"{number}.png")
    (folder / "4.png").write_bytes(b"no image")
    return folder


def script(folder: Path, name: str, text: str) -> str:
    """A runner that does what the Python text says; `captionlite()` in it is the real command line."""
    path = folder / f"{name}.py"
    before = (
        "import os, subprocess, sys\n"
        "arguments = sys.argv[3:]\n"
        "assert sys.argv[1:3] == ['-m', 'captionlite.runtime.cli']\n"
        "def captionlite():\n"
        "    command = [sys.executable, '-m', 'captionlite.runtime.cli', *arguments]\n"
        "    done = subprocess.run(command, capture_output=True, text=True)\n"
        "    sys.stderr.write(done.stderr)\n"
        "    return done.stdout, done.returncode\n"
    )
    path.write_text(before + text)
    return f"{name}={shlex.join([sys.executable, str(path)])}"


def invoke(*arguments: object, out: Path | None = None) -> tuple[Result, dict[str, Any]]:
    words = [*map(str, arguments), *([] if out is None else ["--json", str(out)])]
    result = CliRunner().invoke(elsewhere.main, words)
    return result, {} if out is None or not out.exists() else json.loads(out.read_text())


def test_this_very_python_elsewhere(toy_directory: Path, folder: Path, tmp_path: Path) -> None:
    table = tmp_path / "table.md"
    out = tmp_path / "out.json"
    arguments = [toy_directory, "--python", HERE_TOO, "--photos", folder, "--limit", 5, "--markdown", table]
    result, found = invoke(*arguments, out=out)
    assert result.exit_code == 0, result.stderr
    here, twin = found["rows"]
    assert (here["runner"], twin["runner"]) == ("here", "twin")
    assert {**here, "runner": ""} == {**twin, "runner": ""}
    assert here["bundle"] == "toy"
    assert here["recipe"] == "float32"
    assert here["passed"] is True
    assert 0 <= here["error"] < 1e-5
    assert here["tensor"] in ("encoder/projected", "encoder/hidden", "logits")
    said = [toy_bundle.decode(image).tokens for image in toy_bundle.photographs(4)]
    words = [" ".join(toy_bundle.PIECES[token] for token in tokens if token != toy_bundle.END) for tokens in said]
    assert twin["captions"] == [*words, ""]  # the last one is no photograph, here as there
    assert twin["captions_equal"] == found["photographs"] == 5
    assert found["runners"][1]["environment"]["python"] == ".".join(map(str, sys.version_info[:3]))
    assert table.read_text() == result.stdout
    assert "| 5 of 5" in result.stdout


def test_golden_vectors_recorded_here(toy_directory: Path, folder: Path, tmp_path: Path) -> None:
    # The bundle's own are off by less than it allows and more than its recipe does now; those recorded here are right,
    # and the bundle stays as it is.
    arrays: dict[str, Any] = toy_bundle.golden_arrays()
    off = toy_bundle.npz({**arrays, "logits": arrays["logits"] * np.float32(1.0005)})
    own = tmp_path / "off"
    toy_bundle.write(own)
    toy_bundle.forge(own, changed={"golden.npz": off})
    result, found = invoke(own, "--python", HERE_TOO, out=tmp_path / "own.json")
    assert result.exit_code == 3
    assert found["rows"][0]["passed"] is True
    assert found["rows"][0]["tensor"] == "logits"
    assert found["rows"][0]["error"] == pytest.approx(0.0005, rel=1e-2)
    (learned,) = found["learned"]
    assert (learned["stated"], learned["exceeded"], learned["tolerance"]) == (1e-4, True, 0.001)
    assert "EXCEEDED" in result.stdout

    arguments = [own, "--python", HERE_TOO, "--photos", folder, "--limit", 4, "--golden", 3]
    result, found = invoke(*arguments, out=tmp_path / "recorded.json")
    assert result.exit_code == 0, result.stderr
    assert found["golden_photographs_recorded_here"] == 3
    assert found["rows"][0]["error"] == 0
    assert found["learned"][0]["tolerance"] == 1e-6
    assert "golden vectors of 3 photographs, recorded here" in result.stdout
    assert (own / "golden.npz").read_bytes() == off


def test_runners_that_do_not_answer_are_rows(toy_directory: Path, folder: Path, tmp_path: Path) -> None:
    """Each is a reason in the table; the runner that works is measured all the same."""
    refusing = (
        "out, code = captionlite()\n"
        "if arguments[0] == 'caption':\n"
        "    sys.exit('INFO: chatter\\nError: this bundle is not proven on this interpreter')\n"
        "print(out, end=''); sys.exit(code)\n"
    )
    scripts = {
        "fails": "print('Traceback', file=sys.stderr); sys.exit('no module named numpy')",
        "rubbish": "print('hello')",
        "silent": "pass",
        "crashes": "sys.stdout.flush(); os.kill(os.getpid(), 11)",
        "refuses": refusing,
        "no_report": 'print(\'{"interpreter": {"name": "x"}}\')',
        "slow": "import time; time.sleep(60)",
    }
    options = [
        word for name, text in scripts.items() if name != "slow" for word in ("--python", script(tmp_path, name, text))
    ]
    options += ["--python", "absent=/no/such/python -X"]
    arguments = [toy_directory, *options, "--photos", folder, "--limit", 2]
    result, found = invoke(*arguments, out=tmp_path / "out.json")
    assert result.exit_code == 1, result.stderr
    rows = {row["runner"]: row for row in found["rows"]}
    assert rows["fails"]["reasons"] == ["exit code 1: no module named numpy"]
    assert rows["rubbish"]["reasons"] == ["printed no JSON objects but 'hello\\n'"]
    assert rows["silent"]["reasons"] == ["printed no JSON objects but ''"]
    assert rows["crashes"]["reasons"] == ["ended by SIGSEGV"]
    assert rows["absent"]["reasons"][0].startswith("cannot be started: ")
    assert rows["refuses"]["reasons"] == ["caption: exit code 1: this bundle is not proven on this interpreter"]
    assert rows["refuses"]["passed"] is True
    assert rows["no_report"]["reasons"][0].startswith("verify: not a report of verify")
    assert rows["no_report"]["reasons"][1].startswith("caption: 1 captions, expected one for each of 2")
    assert rows["here"]["captions_equal"] == 2
    assert {row["error"] for name, row in rows.items() if name not in ("here", "refuses")} == {None}
    for row in rows.values():
        for reason in row["reasons"]:
            assert " ".join(reason.split()) in result.stdout

    slow = elsewhere.start("slow", shlex.split(script(tmp_path, "slow", scripts["slow"]).partition("=")[2]), 1)
    assert slow.reason == "no answer within 1 s"


def test_other_numbers_and_captions_are_told(toy_directory: Path, folder: Path, tmp_path: Path) -> None:
    other = (
        "import json\n"
        "out, code = captionlite()\n"
        "if arguments[0] == 'env':\n"
        "    print(json.dumps({**json.loads(out), 'interpreter': {'name': 'other', 'version': '1'}}))\n"
        "elif arguments[0] == 'verify':\n"
        "    report = json.loads(out)\n"
        "    report['passed'] = False\n"
        "    report['tensors']['encoder/hidden'] = {'error': float('nan'), 'passed': False}\n"
        "    print(json.dumps(report)); sys.exit(1)\n"
        "else:\n"
        "    records = [json.loads(line) for line in out.splitlines()]\n"
        "    records[1]['caption'] = 'a horse'\n"
        "    print('\\n'.join(map(json.dumps, records))); sys.exit(code)\n"
    )
    arguments = [toy_directory, "--python", script(tmp_path, "other", other), "--photos", folder]
    result, found = invoke(*arguments, out=tmp_path / "out.json")
    assert result.exit_code == 3, result.stderr
    row = found["rows"][1]
    assert (row["tensor"], row["error"], row["passed"]) == ("encoder/hidden", "inf", False)
    assert row["captions_equal"] == 4
    (learned,) = found["learned"]
    assert learned["worst"] == "inf"
    assert learned["exceeded"] is True
    assert learned["runner"] is learned["tolerance"] is None  # another interpreter teaches no tolerance


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (0.0, 1e-6),
        (4.9e-7, 1e-6),
        (5.1e-7, 2e-6),
        (0.0074846952407362725, 0.02),
        (0.0049, 0.01),  # 0.0098: up into the next decade
        (0.015, 0.03),  # 0.03 exactly: stays
        (0.0151, 0.04),
        (0.25, 0.5),
        (0.45, 0.9),
        (0.46, 1.0),
        (0.62, 2.0),
        (math.inf, math.inf),
    ],
)
def test_learned_tolerance_is_twice_the_error_rounded_up(error: float, expected: float) -> None:
    assert learned_tolerance(error) == expected


def test_a_tolerance_is_learned_from_the_worst_run_of_a_recipe() -> None:
    rows = [
        Row("here", "a", "int8", "logits", 0.0, True),
        Row("a72", "a", "int8", "logits", 0.011, True),
        Row("a76", "b", "int8", "encoder/h", 0.021, True),
        Row("old", "b", "int8", "encoder/h", 1.0, False),
        Row("a76", "c", "float32", reasons=("verify: exit code 1",)),
        Row("a72", "c", "float32", "logits", 2e-4, False),
    ]
    interpreters = {"here": "ai-edge-litert", "a72": "ai-edge-litert", "a76": "ai-edge-litert", "old": "tflite-runtime"}
    stated = {"int8": 0.05, "float32": 1e-4, "int4": 0.05}
    rows.append(Row("here", "d", "int4", "logits", 0.01, True))
    int8, float32, int4 = learn(rows, interpreters, stated)
    assert int8 == Learned("int8", 0.05, error=0.021, tolerance=0.05, runner="a76", worst=1.0)
    assert int8.exceeded
    assert float32 == Learned("float32", 1e-4, error=2e-4, tolerance=4e-4, runner="a72", worst=2e-4)
    assert float32.exceeded
    assert int4 == Learned("int4", 0.05, error=None, tolerance=None, runner=None, worst=0.01)
    assert not int4.exceeded


def test_captions_are_compared_bundle_by_bundle() -> None:
    rows = compare(
        [
            Row("here", "a", "int8", captions=("a dog", "a cat")),
            Row("pi", "a", "int8", captions=("a dog", "a horse")),
            Row("here", "b", "int8", reasons=("caption: exit code 1",)),
            Row("pi", "b", "int8", captions=("a dog", "a cat")),
        ]
    )
    assert [row.captions_equal for row in rows] == [2, 1, None, None]


def test_notes_stand_below_the_table_each_once() -> None:
    rows = (
        Row("a", "b", "int8", reasons=("x|y\nz", "other")),
        Row("a", "c|d", "int8", reasons=("x|y\nz",)),
    )
    lines = markdown(Report((Runner("a", ("x",), {}, "a|b"),), rows, (), 0, None)).splitlines()
    assert {"[1] x|y z", "[2] other"} <= set(lines)
    cells = [[cell.strip() for cell in line.split(" | ")] for line in lines if " int8 " in line]
    assert [row[-1] for row in cells] == ["[1] [2] |", "[1]     |"]
    assert cells[1][0] == "| c\\|d"


def test_the_tolerance_stated_is_the_recipes_own_now(toy_directory: Path, tmp_path: Path) -> None:
    from captionlite.export.recipes import recipe
    from captionlite.runtime.bundle import Bundle

    assert elsewhere.stated_tolerance(Bundle.open(toy_directory)) == recipe("float32").tolerance

    def own_recipe(manifest: dict[str, Any]) -> None:
        for graph in manifest["graphs"].values():
            graph["recipe"] = "my-own"

    toy_bundle.write(tmp_path / "own")
    own = Bundle.open(toy_bundle.forge(tmp_path / "own", own_recipe))
    assert elsewhere.stated_tolerance(own) == own.manifest.golden.tolerance == 0.001


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--python", "nothing"], "expected a name and a command line"),
        (["--python", "a='x"], "No closing quotation"),
        (["--python", "here=python3"], "a name of its own"),
        (["--python", "a=x", "--python", "a=y"], "a name of its own"),
        (["--golden", "2"], "--photos"),
    ],
)
def test_wrong_usage(toy_directory: Path, arguments: list[str], message: str) -> None:
    result, _ = invoke(toy_directory, *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())


def test_what_is_not_there_is_named(toy_directory: Path, tmp_path: Path) -> None:
    result, _ = invoke(tmp_path / "no-bundle")
    assert result.exit_code == 1
    assert "no-bundle" in result.stderr
    result, _ = invoke(toy_directory, "--photos", tmp_path)
    assert result.exit_code == 1
    assert "no image in this folder" in result.stderr
