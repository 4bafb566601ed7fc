"""The command line as a user meets it: what is printed where, and which exit code comes of it."""

import json
import os
import shutil
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

from captionlite.runtime.captioner import Captioner
from captionlite.runtime.cli import COMMANDS, LazyCommand, cli
from captionlite.runtime.decoding import Alternative, Caption, DecodingOptions

Run = Callable[..., Result]


@pytest.fixture
def run() -> Run:
    """Run a command in this process; anything but an orderly exit raises."""

    def run_command(*args: object, **options: Any) -> Result:
        result = CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="captionlite", **options)
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return run_command


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with three photographs in three formats, named so that directory order is not name order."""
    folder = tmp_path_factory.mktemp("photos")
    for name, image in zip(("c.png", "a.PNG", "b.bmp"), toy_bundle.photographs(3, seed=8), strict=True):
        Image.fromarray(image).save(folder / name)
    (folder / "notes.txt").write_text("no photograph")
    return folder


def caption_of(path: Path) -> str:
    with Image.open(path) as image:
        tokens = toy_bundle.decode(np.asarray(image.convert("RGB"))).tokens
    return " ".join(toy_bundle.PIECES[token] for token in tokens if token != toy_bundle.END)


def test_one_photograph_prints_the_bare_caption(run: Run, toy_directory: Path, photos: Path) -> None:
    result = run("caption", photos / "c.png", "--bundle", toy_directory)
    assert (result.exit_code, result.stdout, result.stderr) == (0, caption_of(photos / "c.png") + "\n", "")


def test_a_folder_is_sorted_by_name_and_only_its_images_are_taken(run: Run, toy_zip: Path, photos: Path) -> None:
    result = run("caption", photos, "--bundle", toy_zip)
    expected = [f"{photos / name}: {caption_of(photos / name)}" for name in ("a.PNG", "b.bmp", "c.png")]
    assert result.stdout.splitlines() == expected
    assert result.exit_code == 0


def test_json_prints_one_object_a_line_in_the_order_given(run: Run, toy_directory: Path, photos: Path) -> None:
    result = run("caption", photos / "c.png", photos, "--json", "--bundle", toy_directory)
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(record["image"]).name for record in records] == ["c.png", "a.PNG", "b.bmp", "c.png"]
    for record in records:
        assert list(record) == ["image", "caption", "tokens", "logprob", "timings_ms"]
        assert record["caption"] == caption_of(Path(record["image"]))
        assert record["logprob"] < 0
        assert set(record["timings_ms"]) == {"image", "encode", "decode", "step", "total"}
    assert records[0]["tokens"] == records[3]["tokens"]


def test_a_photograph_on_stdin(run: Run, toy_directory: Path, photos: Path) -> None:
    data = (photos / "b.bmp").read_bytes()
    result = run("caption", "-", "--bundle", toy_directory, input=data)
    assert (result.exit_code, result.stdout) == (0, caption_of(photos / "b.bmp") + "\n")
    record = json.loads(run("caption", "-", "--json", "--bundle", toy_directory, input=data).stdout)
    assert record["image"] == "-"


def test_bad_files_are_named_and_the_rest_go_on(run: Run, toy_directory: Path, photos: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes((photos / "c.png").read_bytes()[:60])
    empty = tmp_path / "empty"
    empty.mkdir()
    inputs = [broken, photos / "b.bmp", tmp_path / "nowhere.png", empty, photos / "c.png"]
    result = run("caption", *inputs, "--bundle", toy_directory)
    assert result.exit_code == 1
    assert [line.partition(": ")[0] for line in result.stdout.splitlines()] == [str(inputs[1]), str(inputs[4])]
    for line, bad in zip(result.stderr.splitlines(), (broken, inputs[2], empty), strict=True):
        assert line.startswith(f"Error: {bad}: ")

    result = run("caption", *inputs[:3], "--json", "--bundle", toy_directory)
    assert result.exit_code == 1
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [set(record) & {"caption", "error"} for record in records] == [{"error"}, {"caption"}, {"error"}]
    assert str(broken) in records[0]["error"]


def test_a_bad_bundle_is_one_line_and_exit_code_1(run: Run, tmp_path: Path, photos: Path) -> None:
    for command in (["caption", photos], ["inspect"], ["verify"]):
        options = ["--bundle", tmp_path / "no"] if command[0] == "caption" else [tmp_path / "no"]
        result = run(*command, *options)
        assert result.exit_code == 1
        assert result.stderr.startswith("Error: ")
        assert "no such bundle" in result.stderr
        assert result.stderr.count("\n") == 1
        assert result.stdout == ""


def test_a_traceback_only_when_asked_for(run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from captionlite.runtime.errors import BundleError

    monkeypatch.setenv("CAPTIONLITE_TRACEBACK", "1")
    with pytest.raises(BundleError):
        run("inspect", tmp_path / "no")


@pytest.mark.parametrize(
    "args", [["caption"], ["caption", "x.jpg", "--threads", "0"], ["caption", "x.jpg", "--no-such"], ["no-such"]]
)
def test_wrong_usage_is_exit_code_2(run: Run, args: list[str]) -> None:
    assert run(*args).exit_code == 2


def test_inspect(run: Run, toy_directory: Path, toy_zip: Path) -> None:
    text = run("inspect", toy_directory).stdout
    for expected in ("toy", "float32", "history: appended along axis 2", "12 words", "cider"):
        assert expected in text
    found = json.loads(run("inspect", toy_zip, "--json").stdout)
    assert found["bundle"] == str(toy_zip)
    assert found["manifest"] == json.loads((toy_directory / "manifest.json").read_text())
    assert found["size_bytes"] == sum(len(data) for data in toy_bundle.files().values())


def test_verify(run: Run, toy_directory: Path, tmp_path: Path) -> None:
    result = run("verify", toy_directory)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "verified")
    found = json.loads(run("verify", toy_directory, "--json").stdout)
    assert found["passed"] is True

    wrong = tmp_path / "wrong"
    shutil.copytree(toy_directory, wrong)
    arrays = toy_bundle.golden_arrays()
    arrays["logits"] = arrays["logits"] * 2  # type: ignore[operator]
    toy_bundle.forge(wrong, changed={"golden.npz": toy_bundle.npz(arrays)})
    result = run("verify", wrong)
    assert result.exit_code == 1
    assert "logits: relative error 5.00e-01" in result.stdout
    result = run("verify", wrong, "--json")
    assert (result.exit_code, json.loads(result.stdout)["passed"]) == (1, False)


def test_env(run: Run) -> None:
    found = json.loads(run("env", "--json").stdout)
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert found["interpreter"]["name"] == "ai-edge-litert"
    assert found["cores"] >= 1
    assert found["memory_available_bytes"] > 1e6
    text = run("env").stdout
    for name in ("numpy", "pillow", "interpreter", "cores", found["numpy"]):
        assert name in text


def test_env_without_an_interpreter_still_helps(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from captionlite.runtime import environment
    from captionlite.runtime.errors import InterpreterError

    def none_here() -> None:
        raise InterpreterError("No TensorFlow Lite interpreter here")

    monkeypatch.setattr(environment, "find_backend", none_here)
    assert "No TensorFlow Lite interpreter here" in run("env").stdout
    assert json.loads(run("env", "--json").stdout)["interpreter"]["name"] is None


def test_a_missing_extra_is_named(run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "needy_at_import.py").write_text("import no_such_library.part\n")
    (tmp_path / "needy_at_run.py").write_text(
        "import click\n@click.command()\ndef command():\n    import no_such_library\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    for module in ("needy_at_import", "needy_at_run"):
        monkeypatch.setitem(COMMANDS, "needy", LazyCommand(module, "Needs much.", "bench"))
        result = run("needy")
        assert result.exit_code == 1
        assert "'no_such_library'" in result.stderr
        assert "pip install 'captionlite[bench]'" in result.stderr


def test_our_own_import_errors_are_not_blamed_on_the_user(
    run: Run, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "broken_command.py").write_text("from captionlite.runtime.errors import NoSuchError\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(COMMANDS, "broken", LazyCommand("broken_command", "Is broken.", "bench"))
    with pytest.raises(ImportError, match="NoSuchError"):
        run("broken")


def test_help_lists_every_command(run: Run) -> None:
    text = run("--help").stdout
    for name, entry in COMMANDS.items():
        assert name in text
        assert entry.help in text


def test_the_installed_command_in_its_own_process(toy_directory: Path, photos: Path) -> None:
    # The interpreter's chatter goes to file descriptor 2, which only a process of its own shows.
    code = "from captionlite.runtime.cli import main; main()"
    command = [sys.executable, "-c", code, "caption", str(photos / "c.png"), "--bundle", str(toy_directory)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == caption_of(photos / "c.png") + "\n"


@pytest.fixture(scope="module")
def sure_toy(toy_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy with a confidence by which it is sure of some of the photographs only."""
    directory = tmp_path_factory.mktemp("sure") / "toy"
    shutil.copytree(toy_directory, directory)
    confidence = {"slope": 2.0, "intercept": 1.0, "event": "it fits", "fitted_on": "drawings"}
    return toy_bundle.forge(directory, lambda manifest: manifest["decoding"].update(confidence=confidence))


def hypotheses_of(path: Path, bundle: Path, options: DecodingOptions) -> list[Caption | Alternative]:
    caption = Captioner.from_bundle(bundle).caption(path, options)
    return [caption, *caption.alternatives]


def test_not_sure_says_what_it_might_be(run: Run, sure_toy: Path, photos: Path) -> None:
    photo = photos / "c.png"
    greedy = Captioner.from_bundle(sure_toy).caption(photo)
    assert greedy.confidence is not None
    below, above = str(greedy.confidence - 0.001), str(greedy.confidence + 0.001)
    result = run("caption", photo, "--bundle", sure_toy, "--min-confidence", below)
    assert (result.exit_code, result.stdout) == (0, caption_of(photo) + "\n")
    result = run("caption", photo, "--bundle", sure_toy, "--min-confidence", above)
    beams = hypotheses_of(photo, sure_toy, DecodingOptions(beams=3, n_best=3))
    assert len(beams) == 3
    assert result.exit_code == 0
    assert result.stdout.splitlines() == ["not sure", *(f"    {h.logprob:.3f}  {h.text}" for h in beams)]

    records = [
        json.loads(run("caption", photo, "--json", "--bundle", sure_toy, "--min-confidence", least).stdout)
        for least in (below, above)
    ]
    assert records[0]["confidence"] == pytest.approx(greedy.confidence, abs=1e-4)
    assert {"sure", "alternatives"} & set(records[0]) == set()
    assert (records[1]["sure"], records[1]["caption"]) == (False, greedy.text)
    assert [other["caption"] for other in records[1]["alternatives"]] == [
        h.text for h in beams if h.tokens != greedy.tokens
    ]


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        (["--beams", "2"], DecodingOptions(beams=2, n_best=2)),
        (["--beams", "4", "--n-best", "2"], DecodingOptions(beams=4, n_best=4)),
        (["--max-length", "4"], DecodingOptions(beams=3, n_best=3, max_length=4)),
        (["--temperature", "2", "--seed", "5"], DecodingOptions(temperature=2.0, seed=5, best_of=3, n_best=3)),
    ],
)
def test_what_it_might_be_follows_the_options(
    run: Run, sure_toy: Path, photos: Path, arguments: list[str], options: DecodingOptions
) -> None:
    found = hypotheses_of(photos / "c.png", sure_toy, options)
    lines = list(dict.fromkeys(f"    {h.logprob:.3f}  {h.text}" for h in found))
    result = run("caption", photos / "c.png", "--bundle", sure_toy, "--min-confidence", "1", *arguments)
    assert result.stdout.splitlines() == ["not sure", *lines]
    assert len(lines) > 1


def test_not_sure_of_bytes_and_among_others(run: Run, sure_toy: Path, photos: Path) -> None:
    data = (photos / "b.bmp").read_bytes()
    result = run("caption", "-", "--bundle", sure_toy, "--min-confidence", "1", input=data)
    assert result.stdout.splitlines()[0] == "not sure"
    assert len(result.stdout.splitlines()) == 4
    names = ("a.PNG", "b.bmp", "c.png")
    captioner = Captioner.from_bundle(sure_toy)
    confidences = sorted(captioner.caption(photos / name).confidence or 0.0 for name in names)
    lines = run("caption", photos, "--bundle", sure_toy, "--min-confidence", confidences[1]).stdout.splitlines()
    assert [line.endswith(": not sure") for line in lines if not line.startswith(" ")].count(True) == 1
    assert len(lines) == 6


def test_a_confidence_beyond_all_measure_is_0(run: Run, sure_toy: Path, photos: Path, tmp_path: Path) -> None:
    steep = tmp_path / "steep"
    shutil.copytree(sure_toy, steep)
    toy_bundle.forge(steep, lambda manifest: manifest["decoding"]["confidence"].update(slope=1e6, intercept=-1e6))
    result = run("caption", photos / "c.png", "--json", "--bundle", steep, "--min-confidence", "0.5")
    assert (json.loads(result.stdout)["confidence"], json.loads(result.stdout)["sure"]) == (0.0, False)


def test_min_confidence_needs_a_calibrated_bundle(run: Run, toy_directory: Path, photos: Path) -> None:
    result = run("caption", photos / "c.png", "--bundle", toy_directory, "--min-confidence", "0.5")
    assert (result.exit_code, result.stdout) == (1, "")
    assert "captionlite confidence" in result.stderr


def test_the_default_bundle_is_calibrated() -> None:
    captioner = Captioner.from_bundle("default")
    manifest = captioner.bundle.manifest
    assert manifest.decoding.confidence is not None
    assert manifest.decoding.confidence.slope > 0
    measured = manifest.provenance["confidence"]
    assert measured["brier"] < measured["brier_base_rate"]
    photos = sorted((Path(__file__).parents[1] / "photos").glob("*.jpg"))
    found = [captioner.caption(photo) for photo in photos]
    by_logprob = sorted(found, key=lambda caption: caption.logprob)
    confidences = [caption.confidence or 0.0 for caption in by_logprob]
    assert confidences == sorted(confidences)
    assert 0 < confidences[0] < confidences[-1] < 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="file names are Unicode on this system")
def test_a_file_name_that_is_no_unicode(toy_directory: Path, photos: Path, tmp_path: Path) -> None:
    odd = os.fsencode(tmp_path) + b"/caf\xe9.png"
    try:
        with open(odd, "wb") as file:
            file.write((photos / "c.png").read_bytes())
    except OSError:
        pytest.skip("this file system takes Unicode names only")
    code = "from captionlite.runtime.cli import main; main()"
    for options in ([], ["--json"]):
        command = [sys.executable, "-c", code, "caption", odd, str(photos / "b.bmp"), "--bundle", str(toy_directory)]
        done = subprocess.run([*command, *options], capture_output=True, timeout=60, check=False)
        assert (done.returncode, done.stderr) == (0, b"")
    first = json.loads(done.stdout.splitlines()[0])
    assert os.fsencode(first["image"]) == odd
