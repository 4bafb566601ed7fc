"""The encoder on a real external delegate: what it takes is told, and what goes wrong there ends on the CPU."""

import dataclasses
import json
import logging
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import native_delegate
import numpy as np
import pytest
import toy_bundle
from click.testing import CliRunner, Result
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from captionlite.runtime import Captioner, selfcheck
from captionlite.runtime import verify as verifying
from captionlite.runtime.cli import cli
from captionlite.runtime.delegates import DelegateSpec, Partition, describe_delegate, parse_delegate, partition_of
from captionlite.runtime.errors import DelegateError, InterpreterError, OptionsError
from captionlite.runtime.selfcheck import proven_here

PHOTOGRAPHS = toy_bundle.photographs(20)
TOKENS = [tuple(toy_bundle.decode(photograph).tokens) for photograph in PHOTOGRAPHS]
LEFT = ("CAST", "MUL", "SUB", "AVERAGE_POOL_2D", "RESHAPE", "MEAN", "FULLY_CONNECTED", "FULLY_CONNECTED")


@pytest.fixture(scope="session")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native_delegate.built(tmp_path_factory)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No pass is remembered from another test."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "captionlite" / "selfcheck"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """One entry for each time that tensors are compared: through what."""
    done: list[str] = []
    compare = verifying.compare_tensors

    def counted(captioner: Captioner, golden: verifying.Golden) -> tuple[verifying.TensorCheck, ...]:
        done.append("delegate" if captioner.delegation is not None and captioner.delegation.active else "cpu")
        return compare(captioner, golden)

    monkeypatch.setattr(verifying, "compare_tensors", counted)
    return done


def run(*args: object) -> Result:
    result = CliRunner().invoke(cli, [str(arg) for arg in args], prog_name="captionlite")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def captions_rightly(captioner: Captioner) -> bool:
    return [captioner.caption(photograph).tokens for photograph in PHOTOGRAPHS] == TOKENS


# --- what is written on the command line


@pytest.mark.parametrize(
    ("text", "library", "options"),
    [
        ("libedgetpu.so.1", "libedgetpu.so.1", ()),
        ("libedgetpu.so.1:device=usb:0", "libedgetpu.so.1", (("device", "usb:0"),)),
        ("/usr/lib/armnn.so:backends=CpuAcc,log=", "/usr/lib/armnn.so", (("backends", "CpuAcc"), ("log", ""))),
        (r"npu.so:backends=CpuAcc\,CpuRef,flags=a=b", "npu.so", (("backends", "CpuAcc,CpuRef"), ("flags", "a=b"))),
        (r"/opt/v\:2/a,b=c.so:k\=1=v\\", "/opt/v:2/a,b=c.so", (("k=1", "v\\"),)),
        (r"C\:\\npu.dll", r"C:\npu.dll", ()),
    ],
)  # fmt: skip
def test_the_grammar(text: str, library: str, options: tuple[tuple[str, str], ...]) -> None:
    spec = DelegateSpec(library, options)
    assert parse_delegate(text) == spec
    assert parse_delegate(str(spec)) == spec
    assert parse_delegate(text, required=True) == dataclasses.replace(spec, required=True)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "no library"),
        (":a=b", "no library"),
        ("x.so:", "the option '' is no KEY=VALUE"),
        ("x.so:a", "the option 'a' is no KEY=VALUE"),
        ("x.so:a=b,", "the option '' is no KEY=VALUE"),
        ("x.so:=b", "the option '=b' is no KEY=VALUE"),
        (r"x.so:a\=b", r"is no KEY=VALUE"),
        ("x.so:a=b,a=c", "the option 'a' stands there twice"),
        (r"C:\npu.dll", "a backslash before another character"),
        ("x.so\\", "a backslash before another character"),
    ],
)
def test_what_is_not_in_the_grammar(text: str, problem: str) -> None:
    with pytest.raises(OptionsError) as caught:
        parse_delegate(text)
    assert problem in str(caught.value)
    assert "Expected LIB[:KEY=VALUE[,KEY=VALUE...]]" in str(caught.value)
    result = run("caption", "x.jpg", "--delegate", text)
    assert result.exit_code == 2
    assert problem in result.stderr


WORDS = st.text(st.sampled_from("ab/.=,:\\ \n"), min_size=1, max_size=6)


@given(WORDS, st.dictionaries(WORDS, st.text(st.sampled_from("ab=,:\\"), max_size=5), max_size=3))
def test_every_spec_can_be_written(library: str, options: dict[str, str]) -> None:
    spec = DelegateSpec(library, tuple(options.items()))
    assert parse_delegate(str(spec)) == spec


def test_required_needs_a_delegate() -> None:
    for command in (["caption", "x.jpg"], ["verify"], ["env"]):
        result = run(*command, "--delegate-required")
        assert result.exit_code == 2
        assert "there is no --delegate to require" in result.stderr


# --- a delegate that works


def test_what_was_taken_and_what_was_not(toy_directory: Path, library: Path) -> None:
    captioner = Captioner.from_bundle(toy_directory, delegate=str(library))
    delegation = captioner.delegation
    assert delegation is not None
    assert delegation.active
    assert delegation.partition == Partition(("TANH",), LEFT, 1)
    assert str(delegation) == (
        f"delegate {library} took 1 of 9 ops of the encoder in 1 piece: TANH; on the CPU: CAST, MUL, SUB, "
        f"AVERAGE_POOL_2D, RESHAPE, MEAN, FULLY_CONNECTED x 2"
    )
    assert captions_rightly(captioner)
    assert delegation.active


def test_a_bundle_zip_and_many_photographs(toy_zip: Path, library: Path) -> None:
    captioner = Captioner.from_bundle(toy_zip, 2, delegate=DelegateSpec(str(library), (("compute", "right"),)))
    found = [caption.tokens for caption in captioner.caption_many(PHOTOGRAPHS) if not isinstance(caption, Exception)]
    assert found == TOKENS
    assert captioner._crew is None  # one accelerator, one encoder
    assert captioner.delegation is not None
    assert captioner.delegation.active


def test_without_a_delegate_there_is_none(toy_directory: Path) -> None:
    assert Captioner.from_bundle(toy_directory).delegation is None


def test_an_interpreter_that_does_not_list_its_nodes(
    toy_directory: Path, library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert partition_of(object()) is None
    monkeypatch.setattr("captionlite.runtime.delegates.partition_of", lambda interpreter: None)
    captioner = Captioner.from_bundle(toy_directory, delegate=str(library))
    assert str(captioner.delegation) == f"delegate {library} took unknown ops, because this interpreter does not say"
    assert captioner.delegation is not None
    assert captioner.delegation.to_json()["ops"] is None


class Nodes:
    """An interpreter whose nodes are these: name, inputs, outputs."""

    def __init__(self, *nodes: tuple[str, list[int], list[int]]) -> None:
        self.nodes = nodes

    def _get_ops_details(self) -> list[dict[str, Any]]:
        return [{"op_name": n, "inputs": np.array(i), "outputs": np.array(o)} for n, i, o in self.nodes]


def test_pieces_are_what_lies_between_their_inputs_and_outputs() -> None:
    #  0 -A-> 1 -B-> 2 -C-> 3 -D-> 4,  1 -E-> 5;  100 is a weight
    graph = [
        ("A", [0], [1]),
        ("B", [1, 100], [2]),
        ("C", [2, -1], [3]),
        ("D", [3, 5], [4]),
        ("E", [1], [5]),
    ]  # fmt: skip
    assert partition_of(Nodes(*graph)) == Partition((), ("A", "B", "C", "D", "E"), 0)
    one = partition_of(Nodes(*graph, ("DELEGATE", [1, 100], [3])))
    assert one == Partition(("B", "C"), ("A", "D", "E"), 1)
    two = partition_of(Nodes(*graph, ("DELEGATE", [0], [1]), ("TfLiteOther", [3, 1], [4])))
    assert two == Partition(("A", "D", "E"), ("B", "C"), 2)
    whole = partition_of(Nodes(*graph, ("DELEGATE", [0, 100], [4])))
    assert whole == Partition(("A", "B", "C", "D", "E"), (), 1)
    assert str(whole) == "5 of 5 ops of the encoder in 1 piece: A, B, C, D, E; on the CPU: nothing"


# --- one that does not


BROKEN = {
    "take=none": "takes none of the encoder's 9 ops (CAST, MUL, SUB, AVERAGE_POOL_2D, RESHAPE, MEAN, FULLY",
    "fail=create": "makes no delegate of these options (Failed to load delegate from",
    "fail=prepare": "refuses this graph (no memory for this graph on the accelerator",
    "fail=invoke": "failed (the accelerator was pulled out",
    "compute=wrong": "it computes wrong numbers: logits has a relative error of",
    "unheard=of": "an option that is not known",
}


@pytest.mark.parametrize("options", BROKEN)
def test_the_cpu_takes_over_and_the_reason_is_logged(
    toy_directory: Path, library: Path, options: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "captionlite.delegates"):
        captioner = Captioner.from_bundle(toy_directory, delegate=f"{library}:{options}")
    (record,) = caplog.records
    assert record.getMessage().startswith(f"--delegate {library}:{options} is not used, the encoder runs on the CPU: ")
    assert BROKEN[options] in record.getMessage()
    delegation = captioner.delegation
    assert delegation is not None
    assert not delegation.active
    assert delegation.fell_back is not None
    assert delegation.to_json()["used"] is False
    assert captions_rightly(captioner)


@pytest.mark.parametrize("options", BROKEN)
def test_where_it_is_required_that_is_an_error(toy_directory: Path, library: Path, options: str) -> None:
    spec = parse_delegate(f"{library}:{options}", required=True)
    with pytest.raises(DelegateError) as caught:
        Captioner.from_bundle(toy_directory, delegate=spec)
    assert str(caught.value).startswith(f"--delegate {library}:{options}: ")
    assert BROKEN[options] in str(caught.value)
    assert isinstance(caught.value, InterpreterError)


def test_one_that_fails_in_the_middle(toy_directory: Path, library: Path, caplog: pytest.LogCaptureFixture) -> None:
    captioner = Captioner.from_bundle(toy_directory, delegate=f"{library}:fail=later")  # the self-check is one of two
    assert captioner.delegation is not None
    assert captioner.caption(PHOTOGRAPHS[0]).tokens == TOKENS[0]
    assert captioner.delegation.active
    assert captions_rightly(captioner)  # the photograph that it fails at as well
    assert not captioner.delegation.active
    assert len(caplog.records) == 1
    required = parse_delegate(f"{library}:fail=later", required=True)
    captioner = Captioner.from_bundle(toy_directory, delegate=required)  # the pass is remembered
    captioner.encode(PHOTOGRAPHS[0])
    captioner.encode(PHOTOGRAPHS[0])
    with pytest.raises(DelegateError, match="the accelerator was pulled out"):
        captioner.encode(PHOTOGRAPHS[0])


def test_libraries_that_are_none(toy_directory: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.so").write_text("no library\n" * 100)
    for name, reason in {
        "/nowhere/lib.so": "No such file or directory",
        str(tmp_path / "text.so"): "invalid ELF header",
        "text.so": "A file in this folder is named with its folder: ./text.so.",
        "libm.so.6": "is no delegate: it has no function tflite_plugin_create_delegate and no",
    }.items():
        with pytest.raises(DelegateError) as caught:
            Captioner.from_bundle(toy_directory, delegate=DelegateSpec(name, required=True))
        assert reason in str(caught.value), name


# --- the self-check


def test_a_proven_interpreter_proves_no_delegate(
    toy_directory: Path, tmp_path: Path, library: Path, checks: list[str]
) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(toy_directory, copy)
    row = dict(vars(proven_here()[0]))
    toy_bundle.forge(copy, lambda manifest: manifest.update(proven=[row]))
    Captioner.from_bundle(copy)
    assert checks == []
    Captioner.from_bundle(copy, delegate=str(library))
    assert checks == ["delegate"]
    Captioner.from_bundle(copy, delegate=f"{library}:compute=wrong")  # one photograph, all, and the CPU is proven
    assert checks == ["delegate"] * 3
    Captioner.from_bundle(copy, delegate=f"{library}:compute=wrong", self_check=False)
    assert checks == ["delegate"] * 3


def test_a_pass_counts_for_this_library_and_these_options_alone(
    toy_directory: Path, tmp_path: Path, library: Path, checks: list[str], cache: Path
) -> None:
    own = tmp_path / "own.so"
    shutil.copy2(library, own)
    Captioner.from_bundle(toy_directory)  # on the CPU
    assert checks == ["cpu"]
    for _ in range(2):
        Captioner.from_bundle(toy_directory, delegate=str(own))
    assert checks == ["cpu", "delegate"]
    Captioner.from_bundle(toy_directory, delegate=f"{own}:compute=right")
    assert len(checks) == 3
    link = tmp_path / "link.so"
    link.symlink_to(own)
    Captioner.from_bundle(toy_directory, delegate=str(link))
    assert len(checks) == 3
    os.utime(own, ns=(1, 1))
    Captioner.from_bundle(toy_directory, delegate=str(own))
    assert len(checks) == 4
    assert len(list(cache.iterdir())) == 4


def test_a_library_that_nobody_can_find_is_checked_every_time(
    toy_directory: Path, library: Path, checks: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("captionlite.runtime.delegates._loaded_file", lambda name: None)
    for _ in range(2):
        Captioner.from_bundle(toy_directory, delegate=str(library))
    assert checks == ["delegate"] * 2


def test_a_library_by_its_name_is_found_where_the_loader_found_it(library: Path) -> None:
    code = f"""
from captionlite.runtime.delegates import LoadedDelegate, DelegateSpec
print(LoadedDelegate(DelegateSpec({library.name!r})).identity()["file"][0])
"""
    environment = {**os.environ, "LD_LIBRARY_PATH": str(library.parent)}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=environment)
    assert done.stdout.strip() == str(library.resolve()), done.stderr


def test_wrong_on_the_cpu_as_well(toy_directory: Path, tmp_path: Path, library: Path) -> None:
    copy = tmp_path / "copy"
    shutil.copytree(toy_directory, copy)
    arrays: dict[str, Any] = toy_bundle.golden_arrays()
    arrays["logits"] *= 1.1
    toy_bundle.forge(copy, changed={"golden.npz": toy_bundle.npz(arrays)})
    with pytest.raises(selfcheck.WrongNumbersError, match="computes wrong numbers"):
        Captioner.from_bundle(copy, delegate=str(library))


# --- the commands


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.fromarray(PHOTOGRAPHS[0]).save(path)
    return path


def in_a_process(*args: object) -> "subprocess.CompletedProcess[str]":
    """As a user sees it: in the tests' own process the log goes to pytest."""
    command = [sys.executable, "-m", "captionlite.runtime.cli", *map(str, args)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_caption_tells_on_stderr(toy_directory: Path, library: Path, photo: Path) -> None:
    plain = run("caption", photo, "--bundle", toy_directory)
    done = in_a_process("caption", photo, "--bundle", toy_directory, "--delegate", library)
    assert (done.returncode, done.stdout) == (0, plain.stdout)
    assert done.stderr.startswith(f"delegate {library} took 1 of 9 ops of the encoder in 1 piece: TANH; on the CPU: ")
    assert len(done.stderr.splitlines()) == 1
    wrong = f"{library}:compute=wrong"
    done = in_a_process("caption", photo, "--bundle", toy_directory, "--delegate", wrong)
    assert (done.returncode, done.stdout) == (0, plain.stdout)
    assert done.stderr.startswith(f"--delegate {wrong} is not used, the encoder runs on the CPU: it computes wrong")
    assert len(done.stderr.splitlines()) == 1
    result = run("caption", photo, "--bundle", toy_directory, "--delegate-required", "--delegate", wrong)
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith(f"Error: --delegate {wrong}: it computes wrong numbers")


def test_verify_goes_through_the_delegate_or_nowhere(toy_directory: Path, library: Path) -> None:
    result = run("verify", toy_directory, "--delegate", library, "--json")
    found = json.loads(result.stdout)
    assert (result.exit_code, found["passed"], found["delegate"]["used"]) == (0, True, True)
    assert found["delegate"]["ops"]["taken"] == {"TANH": 1}
    assert "took 1 of 9 ops" in result.stderr

    result = run("verify", toy_directory, "--delegate", f"{library}:compute=wrong")
    assert result.exit_code == 1
    verdicts = {line.partition(":")[0]: line.rpartition(", ")[2] for line in result.stdout.splitlines()[:3]}
    assert verdicts == {"encoder/projected": "ok", "encoder/hidden": "FAILED", "logits": "FAILED"}
    assert result.stdout.splitlines()[-1] == "FAILED: this delegate does not compute what the bundle promises."

    for options in ("take=none", "fail=create", "fail=prepare", "fail=invoke"):
        result = run("verify", toy_directory, "--delegate", f"{library}:{options}")
        assert (result.exit_code, result.stdout) == (1, ""), options
        assert BROKEN[options] in result.stderr

    assert run("verify", toy_directory, "--delegate", library, "--record").exit_code == 2


def test_env_says_whether_it_loads(library: Path) -> None:
    found = json.loads(run("env", "--delegate", f"{library}:compute=right", "--json").stdout)["delegate"]
    assert found == {
        "library": str(library),
        "options": {"compute": "right"},
        "loaded": True,
        "file": str(library.resolve()),
        "error": None,
    }
    assert run("env", "--delegate", library).stdout.splitlines()[-1] == f"delegate     loads ({library.resolve()})"
    result = run("env", "--delegate", "/nowhere/lib.so")
    assert result.exit_code == 0
    assert "delegate     the library /nowhere/lib.so cannot be loaded" in result.stdout
    assert run("env", "--delegate", "/nowhere/lib.so", "--delegate-required").exit_code == 1
    assert "delegate" not in json.loads(run("env", "--json").stdout)
    assert describe_delegate(DelegateSpec(str(library), (("fail", "create"),)))["loaded"] is False


def test_tflite_runtime_takes_the_same(toy_directory: Path, library: Path, tmp_path: Path) -> None:
    """In the Python that tests/runtime/test_selfcheck_tflite_runtime.py tells how to make."""
    python = os.environ.get("CAPTIONLITE_TFLITE_RUNTIME_PYTHON")
    if not python:
        pytest.skip("CAPTIONLITE_TFLITE_RUNTIME_PYTHON names no Python with tflite-runtime")
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "captionlite").symlink_to(Path(selfcheck.__file__).resolve().parents[1])
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "path"), "PYTHONDONTWRITEBYTECODE": "1"}
    code = """
import json, sys
from captionlite.runtime import Captioner
found = {}
for options in ("compute=right", "compute=wrong", "fail=prepare", "fail=invoke", "fail=create", "take=none"):
    delegation = Captioner.from_bundle(sys.argv[1], delegate=f"{sys.argv[2]}:{options}").delegation
    found[options] = [delegation.fell_back, delegation.to_json()["ops"]]
print(json.dumps(found))
"""
    done = subprocess.run(
        [python, "-c", code, str(toy_directory), str(library)], capture_output=True, text=True, timeout=60,
        env=environment, check=False, cwd="/",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    reason, ops = found.pop("compute=right")
    assert reason is None
    assert (ops["taken"], ops["pieces"], sum(ops["left"].values())) == ({"TANH": 1}, 1, 8)
    for options, (reason, ops) in found.items():
        assert BROKEN[options] in reason
        assert ops is None
