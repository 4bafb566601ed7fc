"""A bundle is trusted where it was proven, checked once elsewhere, and refused where its numbers come out wrong."""

import dataclasses
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_bundle
from click.testing import CliRunner, Result
from PIL import Image

from captionlite.runtime import Bundle, Captioner, remembered, selfcheck
from captionlite.runtime import verify as verifying
from captionlite.runtime.bundle import pack_bundle
from captionlite.runtime.cli import cli
from captionlite.runtime.errors import BundleError, InterpreterError, WrongNumbersError
from captionlite.runtime.interpreter import UNKNOWN_VERSION, Backend, find_backend
from captionlite.runtime.manifest import FORMAT, ProvenSpec
from captionlite.runtime.selfcheck import proven_here, record_proof
from captionlite.runtime.verify import verify

HERE = proven_here()[0]
PHOTOGRAPH = toy_bundle.photographs(1)[0]
TOKENS = tuple(toy_bundle.decode(PHOTOGRAPH).tokens)


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache of the test's own: where the passes are to stand, a folder that is not there yet."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "captionlite" / "selfcheck"


@pytest.fixture
def copy(toy_directory: Path, tmp_path: Path, cache: Path) -> Path:
    directory = tmp_path / "copy"
    shutil.copytree(toy_directory, directory)
    return directory


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that tensors are compared: how many photographs."""
    done: list[int] = []
    compare = verifying.compare_tensors

    def counted(captioner: Captioner, golden: verifying.Golden) -> tuple[verifying.TensorCheck, ...]:
        done.append(len(golden.images))
        return compare(captioner, golden)

    monkeypatch.setattr(verifying, "compare_tensors", counted)
    return done


@pytest.fixture
def golden_reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that golden.npz is read from a bundle (its checksum does not count)."""
    reads: list[str] = []
    read = Bundle.read

    def counted(self: Bundle, name: str) -> bytes:
        if name == self.manifest.golden.file:
            reads.append(name)
        return read(self, name)

    monkeypatch.setattr(Bundle, "read", counted)
    return reads


def captions(path: Path) -> bool:
    """Opens the bundle and captions with it, rightly."""
    return Captioner.from_bundle(path).caption(PHOTOGRAPH).tokens == TOKENS


def alter(directory: Path, factor: float = 1.02) -> Path:
    """A decoder with one table of weights scaled, and checksums that fit: what an interpreter's mistake looks like."""
    table = toy_bundle.WEIGHTS["embedding"].tobytes()
    data = (directory / "decoder.tflite").read_bytes()
    assert data.count(table) == 1
    scaled = (toy_bundle.WEIGHTS["embedding"] * np.float32(factor)).tobytes()
    return toy_bundle.forge(directory, changed={"decoder.tflite": data.replace(table, scaled)})


def proven(directory: Path, *rows: ProvenSpec) -> Path:
    return toy_bundle.forge(directory, lambda manifest: manifest.update(proven=[dict(vars(row)) for row in rows]))


def run(*args: object) -> Result:
    result = CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="captionlite")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


# --- where the check runs and where it does not


def test_where_it_is_proven_nothing_is_read_and_nothing_is_left(
    copy: Path, cache: Path, checks: list[int], golden_reads: list[str]
) -> None:
    proven(copy, ProvenSpec("other", "1", "abacus"), HERE)
    assert captions(copy)
    assert (checks, golden_reads, cache.parent.parent.exists()) == ([], [], False)


@pytest.mark.parametrize("field", ["interpreter", "version", "machine"])
def test_proven_on_something_near_is_not_proven_here(copy: Path, checks: list[int], field: str) -> None:
    proven(copy, dataclasses.replace(HERE, **{field: getattr(HERE, field) + "0"}))
    assert captions(copy)
    assert checks == [1]


def test_elsewhere_one_photograph_is_computed_once(
    copy: Path, cache: Path, checks: list[int], golden_reads: list[str]
) -> None:
    for _ in range(3):
        assert captions(copy)
    assert (checks, golden_reads) == ([1], ["golden.npz"])
    assert len(list(cache.iterdir())) == 1
    if os.name == "posix":
        assert cache.stat().st_mode & 0o777 == 0o700


def test_a_zip_and_a_copy_are_the_same_bundle(copy: Path, tmp_path: Path, checks: list[int]) -> None:
    pack_bundle(copy, tmp_path / "copy.zip")
    shutil.copytree(copy, tmp_path / "elsewhere")
    for path in (copy, tmp_path / "copy.zip", tmp_path / "elsewhere"):
        assert captions(path)
    assert checks == [1]


def test_without_self_check_and_without_from_bundle_nothing_is_checked(copy: Path, checks: list[int]) -> None:
    alter(copy)
    Captioner.from_bundle(copy, self_check=False)
    Captioner(Bundle.open(copy))
    assert checks == []


def _other_vocabulary(directory: Path) -> None:
    pieces = [*toy_bundle.PIECES[:-1], "slowly"]
    data = json.dumps({"kind": "words", "pieces": pieces, "join": " "}).encode()
    toy_bundle.forge(directory, changed={"vocabulary.json": data})


def _swap_inputs(directory: Path) -> None:
    toy_bundle.forge(directory, lambda manifest: manifest["decoding"].update(pad_id=1, unknown_id=0))


OTHER: dict[str, Callable[[Path, pytest.MonkeyPatch], object]] = {
    "tolerance": lambda path, patch: toy_bundle.forge(path, lambda found: found["golden"].update(tolerance=0.002)),
    "a file": lambda path, patch: _other_vocabulary(path),
    "decoding": lambda path, patch: _swap_inputs(path),
    "version": lambda path, patch: patch.setattr(
        selfcheck, "_here", lambda: dataclasses.replace(HERE, version=HERE.version + "0")
    ),
    "machine": lambda path, patch: patch.setattr(selfcheck, "_machine", lambda: "abacus"),
    "processor": lambda path, patch: patch.setattr(selfcheck, "_cpu", lambda: "model name: Abacus 2"),
    "captionlite": lambda path, patch: patch.setattr(selfcheck, "_COMPUTING", ("loop.py",)),
}


@pytest.mark.parametrize("what", OTHER)
def test_a_pass_counts_for_nothing_else(
    copy: Path, cache: Path, checks: list[int], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    assert captions(copy)
    OTHER[what](copy, monkeypatch)
    assert captions(copy)
    assert checks == [1, 1]
    assert len(list(cache.iterdir())) == 2


def test_what_numbers_do_not_depend_on_needs_no_other_check(copy: Path, checks: list[int]) -> None:
    assert captions(copy)
    edits = {"name": "another", "scores": {"cider": 0.4}, "provenance": {}, "proven": []}
    toy_bundle.forge(copy, lambda manifest: manifest.update(edits))
    assert captions(copy)
    assert checks == [1]


def test_the_modules_that_a_key_is_made_of_are_there(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = Bundle.open(copy).manifest
    key = selfcheck._key(manifest, HERE)
    assert key is not None
    assert len(key) == 64
    assert selfcheck._key(manifest, HERE) == key
    monkeypatch.setattr(selfcheck, "_COMPUTING", ("no_such_module.py",))
    assert selfcheck._key(manifest, HERE) is None


def test_without_a_key_every_opening_checks(
    copy: Path, cache: Path, checks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(selfcheck, "_COMPUTING", ("no_such_module.py",))
    assert captions(copy)
    assert captions(copy)
    assert (checks, cache.exists()) == ([1, 1], False)


def test_an_interpreter_that_does_not_say_its_version_is_checked_every_time(
    copy: Path, cache: Path, checks: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    unknown = Backend("no-such-distribution", find_backend().interpreter)
    assert unknown.version == UNKNOWN_VERSION
    monkeypatch.setattr(selfcheck, "find_backend", lambda: unknown)
    proven(copy, ProvenSpec("no-such-distribution", UNKNOWN_VERSION, HERE.machine))
    assert captions(copy)
    assert captions(copy)
    assert (checks, cache.exists(), proven_here()) == ([1, 1], False, ())
    with pytest.raises(BundleError, match="does not say its version"):
        record_proof(Bundle.open(copy))


def test_the_default_bundle_is_proven() -> None:
    manifest = Bundle.open("default").manifest
    assert "ai-edge-litert" in {row.interpreter for row in manifest.proven}


# --- wrong numbers


def test_wrong_numbers_are_refused_with_all_that_helps(copy: Path, cache: Path, checks: list[int]) -> None:
    alter(copy)
    proven(copy, ProvenSpec("tflite-runtime", "2.14.0", "armv7l"))
    for _ in range(2):  # a failure is not remembered
        with pytest.raises(WrongNumbersError) as caught:
            Captioner.from_bundle(copy)
    assert checks == [1, 4, 1, 4]
    assert not cache.exists()
    message = str(caught.value)
    logits = next(check for check in verify(Bundle.open(copy)).tensors if check.name == "logits")
    for expected in (
        f"{copy}: {HERE.interpreter} {HERE.version} on {HERE.machine} loads this bundle and computes wrong numbers",
        f"logits has a relative error of {logits.error:.2e}",
        "tolerance 1.00e-03",
        "proven on tflite-runtime 2.14.0 on armv7l",
        f"captionlite verify {copy}",
        "Export the bundle again",
    ):
        assert expected in message
    assert isinstance(caught.value, InterpreterError)


def test_the_worst_tensor_is_named_and_one_that_is_no_number_is_worst(copy: Path) -> None:
    arrays: dict[str, Any] = toy_bundle.golden_arrays()
    arrays["encoder/projected"] *= 1.5
    arrays["logits"] *= 1.1
    toy_bundle.forge(copy, changed={"golden.npz": toy_bundle.npz(arrays)})
    with pytest.raises(WrongNumbersError, match=r"encoder/projected has a relative error of 3\.33e-01"):
        Captioner.from_bundle(copy)
    arrays["logits"][0, 0, 5] = np.nan
    toy_bundle.forge(copy, changed={"golden.npz": toy_bundle.npz(arrays)})
    with pytest.raises(WrongNumbersError, match="logits has a relative error of nan"):
        Captioner.from_bundle(copy)


def test_weights_that_are_no_numbers(copy: Path) -> None:
    alter(copy, float("nan"))
    with pytest.raises(WrongNumbersError, match="logits has a relative error of nan"):
        Captioner.from_bundle(copy)
    report = verify(Bundle.open(copy))  # which tells the details, and does not stop at the first caption
    assert [check.name for check in report.tensors if not check.passed] == ["logits"]
    assert len(report.token_problems) == report.photographs


def test_on_tflite_runtime_the_next_step_is_the_recipe_legacy(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alter(copy)
    legacy = Backend("tflite-runtime", find_backend().interpreter)
    monkeypatch.setattr(selfcheck, "find_backend", lambda: legacy)
    with pytest.raises(WrongNumbersError, match=r"tflite-runtime .* on .*`captionlite export RUN --recipe legacy`"):
        Captioner.from_bundle(copy)


def test_what_verify_passes_is_not_refused(copy: Path, checks: list[int]) -> None:
    arrays: dict[str, Any] = toy_bundle.golden_arrays()
    arrays["logits"][0] *= 1.02
    tolerance = 0.015  # between the error of the first photograph and that of all together
    toy_bundle.forge(
        copy, lambda found: found["golden"].update(tolerance=tolerance), {"golden.npz": toy_bundle.npz(arrays)}
    )
    assert captions(copy)
    assert checks == [1, 4]
    assert verify(Bundle.open(copy)).passed


def test_golden_vectors_that_do_not_fit_are_no_proof(copy: Path) -> None:
    toy_bundle.forge(copy, changed={"golden.npz": b""})
    with pytest.raises(BundleError, match=r"golden\.npz: not readable"):
        Captioner.from_bundle(copy)
    Captioner.from_bundle(proven(copy, HERE))  # nobody asks for them here; `verify` does


def test_the_command_line_refuses_and_verify_tells(copy: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(PHOTOGRAPH).save(photo)
    alter(copy)
    for command in (["caption", photo], ["score", photo, "a dog"]):
        result = run(*command, "--bundle", copy)
        assert (result.exit_code, result.stdout) == (1, "")
        assert result.stderr.startswith(f"Error: {copy}: ")
        assert "computes wrong numbers" in result.stderr
    result = run("verify", copy, "--record")
    assert result.exit_code == 1
    assert "logits: relative error" in result.stdout
    assert result.stdout.splitlines()[-2] == "nothing is recorded"
    assert json.loads(run("verify", copy, "--record", "--json").stdout)["recorded"] is False
    assert Bundle.open(copy).manifest.proven == ()


# --- recording a proof


def test_record_adds_this_interpreter_once(copy: Path, checks: list[int], golden_reads: list[str]) -> None:
    before = json.loads((copy / "manifest.json").read_text())
    result = run("verify", copy, "--record")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-2:] == [f"recorded as proven on {HERE}", "verified"]
    text = (copy / "manifest.json").read_text()
    after = json.loads(text)
    assert after == {**before, "proven": [dict(vars(HERE))]}
    assert list(after) == list(Bundle.open(copy).manifest.to_json())
    assert {path.name for path in copy.iterdir()} == {"manifest.json", *after["files"]}

    result = run("verify", copy, "--record")
    assert (result.exit_code, result.stdout.splitlines()[-2]) == (0, "proven here already")
    assert json.loads(run("verify", copy, "--record", "--json").stdout)["recorded"] is False
    assert "recorded" not in json.loads(run("verify", copy, "--json").stdout)
    assert (copy / "manifest.json").read_text() == text
    checks.clear()
    golden_reads.clear()
    assert captions(copy)
    assert (checks, golden_reads) == ([], [])
    assert f"proven on   {HERE}" in run("inspect", copy).stdout


def test_record_keeps_the_rows_and_what_a_newer_format_has(copy: Path) -> None:
    other = ProvenSpec("tflite-runtime", "2.14.0", "armv7l")
    proven(copy, other)
    newer = [FORMAT[0], FORMAT[1] + 1]
    toy_bundle.forge(copy, lambda manifest: manifest.update(format=newer, mood="calm"))
    assert record_proof(Bundle.open(copy)) is True
    found = json.loads((copy / "manifest.json").read_text())
    assert (found["format"], found["mood"]) == (newer, "calm")
    assert Bundle.open(copy).manifest.proven == (other, HERE)


def test_record_makes_an_older_format_one_that_has_proven(copy: Path) -> None:
    toy_bundle.forge(copy, lambda manifest: manifest.update(format=[1, 2]))
    assert record_proof(Bundle.open(copy)) is True
    manifest = Bundle.open(copy).manifest
    assert (manifest.format, manifest.proven) == (selfcheck.FORMAT_WITH_PROVEN, (HERE,))


def test_record_refuses_a_zip_before_any_work(copy: Path, tmp_path: Path, checks: list[int]) -> None:
    pack_bundle(copy, tmp_path / "copy.zip")
    result = run("verify", tmp_path / "copy.zip", "--record")
    assert (result.exit_code, result.stdout, checks) == (1, "", [])
    assert "recorded in a bundle directory. Unpack it" in result.stderr
    assert run("verify", tmp_path / "copy.zip").exit_code == 0


def test_record_refuses_a_manifest_that_changed_meanwhile(copy: Path) -> None:
    bundle = Bundle.open(copy)
    toy_bundle.forge(copy, lambda manifest: manifest["golden"].update(tolerance=0.5))
    with pytest.raises(BundleError, match="changed while the bundle was verified"):
        record_proof(bundle)


def test_record_refuses_when_there_is_no_room(copy: Path) -> None:
    proven(copy, *(ProvenSpec("other", str(number), "abacus") for number in range(64)))
    with pytest.raises(BundleError, match="proven has 64 rows"):
        record_proof(Bundle.open(copy))


def test_record_names_a_folder_that_cannot_be_written(copy: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(selfcheck, "write_bytes_atomically", refuse)
    with pytest.raises(BundleError, match=r"manifest\.json: cannot be written \(Read-only file system\)"):
        record_proof(Bundle.open(copy))
    assert remembered.cache_directory() is not None
