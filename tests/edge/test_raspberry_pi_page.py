"""docs/raspberry-pi.md: what it tells people to type exists, and works on an emulated Raspberry Pi.

Each block of shell commands has a line before it that says what a test does with it:

    <!-- run -->                   run on emulated 64-bit bookworm and trixie, all of them in turn, in one shell
    <!-- run slow -->              the same, for minutes: not in the test (see tests/edge/matrix.py, which runs it)
    <!-- run 32-bit [legacy] -->   run on emulated 32-bit bookworm; `legacy` needs CAPTIONLITE_EDGE_LEGACY=BUNDLE
    <!-- run computer -->          run on this machine, in a copy of the checkout
    <!-- apt [more] -->            Debian has the packages; without `more` the emulated Pi is made with them
    <!-- apt raspberrypi -->       Raspberry Pi's archive has the packages
    <!-- not run: REASON -->       read only

Reading the page takes no time and is always done. Running it takes minutes and a network:

    CAPTIONLITE_EDGE=FOLDER python -m pytest tests/edge          # FOLDER keeps the emulated systems for the next time
"""

from __future__ import annotations

import gzip
import lzma
import os
import re
import shlex
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import click
import pytest

from captionlite.runtime.cli import COMMANDS, LazyGroup, cli

EDGE = Path(__file__).resolve().parent
CHECKOUT = EDGE.parents[1]
PAGE = CHECKOUT / "docs" / "raspberry-pi.md"
KINDS = {"run", "run slow", "run 32-bit", "run 32-bit legacy", "run computer", "apt", "apt more", "apt raspberrypi"}
DEBIAN = os.environ.get("MIRROR", "http://deb.debian.org/debian")
RASPBERRY_PI = "http://archive.raspberrypi.com/debian"

_WORK = os.environ.get("CAPTIONLITE_EDGE")
emulated = pytest.mark.skipif(
    _WORK is None or shutil.which("mmdebstrap") is None,
    reason="takes minutes, mmdebstrap and a network: CAPTIONLITE_EDGE=FOLDER python -m pytest tests/edge",
)


@dataclass(frozen=True)
class Block:
    """Shell commands of the page, what its marker says, and the line where they begin."""

    kind: str
    commands: str
    line: int


def blocks(text: str) -> list[Block]:
    """The page's blocks of bash. Raises ValueError where one has no marker, or a marker no block."""
    found = []
    lines = text.splitlines()
    markers = {number for number, line in enumerate(lines) if re.fullmatch(r"<!-- .* -->", line)}
    for number, line in enumerate(lines):
        if line != "```bash":
            continue
        if number - 1 not in markers:
            raise ValueError(f"line {number + 1}: a block of commands without a marker before it")
        markers.remove(number - 1)
        end = lines.index("```", number)
        kind = lines[number - 1].removeprefix("<!-- ").removesuffix(" -->")
        if kind not in KINDS and not re.fullmatch(r"not run: \S.{7,}", kind):
            raise ValueError(f"line {number}: marker {kind!r}, expected one of {sorted(KINDS)} or 'not run: REASON'")
        found.append(Block(kind, "\n".join(lines[number + 1 : end]), number + 2))
    if markers:
        raise ValueError(f"line {min(markers) + 1}: a marker without a block of commands")
    return found


BLOCKS = blocks(PAGE.read_text(encoding="utf-8"))
LABELS = [f"line {block.line}" for block in BLOCKS]


def of_kind(*kinds: str) -> str:
    """A script of the blocks of these kinds, each told on stderr before it runs."""
    script = ["set -eo pipefail"]
    for block in BLOCKS:
        if block.kind in kinds:
            script += [f"echo '== line {block.line}' >&2", block.commands]
    return "\n".join(script) + "\n"


def apt_packages(*kinds: str) -> list[str]:
    """What the blocks of these kinds install."""
    found: list[str] = []
    for block in BLOCKS:
        if block.kind in kinds:
            for command in block.commands.splitlines():
                words = shlex.split(command, comments=True)
                if words[:3] == ["sudo", "apt", "install"]:
                    found += [word for word in words[3:] if not word.startswith("-")]
    return found


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        ("text\n```bash\nls\n```\n", "line 2: a block of commands without a marker"),
        ("<!-- run -->\ntext\n", "line 1: a marker without a block"),
        ("<!-- walk -->\n```bash\nls\n```\n", "line 1: marker 'walk'"),
        ("<!-- not run: -->\n```bash\nls\n```\n", "line 1: marker 'not run:'"),
    ],
)
def test_no_block_escapes(text: str, complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        blocks(text)


def test_most_of_the_page_is_run() -> None:
    kinds = [block.kind for block in BLOCKS]
    assert kinds.count("run") >= 8
    assert kinds.count("run 32-bit") >= 2
    assert {"run 32-bit legacy", "run computer", "apt", "apt raspberrypi"} <= set(kinds)


@pytest.mark.parametrize("block", BLOCKS, ids=LABELS)
def test_the_shell_understands_it(block: Block) -> None:
    bash = shutil.which("bash")
    if bash is None:
        pytest.skip("there is no bash")
    done = subprocess.run([bash, "-n"], input=block.commands, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def captionlite_calls(block: Block) -> list[list[str]]:
    """The words after each `captionlite` of the block, up to what ends a command."""
    calls = []
    for line in block.commands.splitlines():
        words = shlex.split(line, comments=True) if "<<" not in line else []
        words = line.removeprefix("ExecStart=").split() if line.startswith("ExecStart=") else words
        for number, word in enumerate(words):
            if word.rpartition("/")[2] == "captionlite" and (number == 0 or words[number - 1] not in ("venv", "-m")):
                rest = words[number + 1 :]
                ends = [place for place, one in enumerate(rest) if one in ("&", "&&", "|", ";", ">")]
                calls.append(rest[: ends[0]] if ends else rest)
    return calls


CALLS = [(label, call) for label, block in zip(LABELS, BLOCKS, strict=True) for call in captionlite_calls(block)]


def check_options(command: click.Command, words: list[str], context: click.Context) -> None:
    """Every option among the words is one of the command, or of serve after a `--`."""
    if isinstance(command, click.Group) and words:
        inner = command.get_command(context, words[0])
        assert inner is not None, words
        check_options(inner, words[1:], click.Context(inner, parent=context))
        return
    if "--" in words:
        place = words.index("--")
        serve = cli.get_command(context, "serve")
        assert serve is not None
        check_options(serve, words[place + 1 :], context)
        words = words[:place]
    known = {name for parameter in command.params for name in parameter.opts}
    unknown = [word for word in words if word.startswith("--") and word not in known]
    assert not unknown, f"captionlite {command.name} has no {unknown}"


@pytest.mark.parametrize(("label", "words"), CALLS, ids=[" ".join([label, *words[:2]]) for label, words in CALLS])
def test_the_command_has_those_options(label: str, words: list[str]) -> None:
    assert words, f"{label}: captionlite without a command"
    assert words[0] in COMMANDS, label
    try:
        check_options(cli, words, click.Context(cli))
    except click.ClickException as error:  # an extra that is not installed here
        pytest.skip(str(error))


def test_the_calls_are_found() -> None:
    assert {words[0] for _, words in CALLS} >= {"camera", "caption", "verify", "env", "serve", "service", "models"}
    assert isinstance(cli, LazyGroup)


def make_pi(suite: str, architecture: str) -> Path:
    """The Python of an emulated Pi with what the page asks apt for. Skips with the reason where that cannot be made."""
    assert _WORK is not None
    work = Path(_WORK).resolve() / "page"
    done = subprocess.run(
        [str(EDGE / "make_root.sh"), str(work), suite, architecture, *apt_packages("apt")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        pytest.skip(done.stderr.strip().splitlines()[-1])
    return Path(done.stdout.strip())


def run_page(python: Path, home: Path, script: str, wheel: Path) -> str:
    """What the script printed, in a fresh home, where `python3` and `espeak-ng` are the emulated ones."""
    for folder in (home, python.parents[2] / home.relative_to("/")):  # the other: see make_root.sh, 32-bit
        shutil.rmtree(folder, ignore_errors=True)
    programs = home.parent / f"bin-{home.name}"
    shutil.rmtree(programs, ignore_errors=True)
    programs.mkdir(parents=True)
    for name in ("python3", "espeak-ng"):
        (programs / name).symlink_to(python.parent / name)
    home.mkdir()
    shutil.copy(wheel, home)
    shutil.copy(CHECKOUT / "tests/photos/cat.jpg", home)
    if legacy := os.environ.get("CAPTIONLITE_EDGE_LEGACY"):
        shutil.copytree(legacy, home / "legacy")
    kept = {name: value for name, value in os.environ.items() if name in ("PIP_CERT", "PIP_INDEX_URL", "SSL_CERT_FILE")}
    kept |= {"PATH": f"{programs}:/usr/bin:/bin", "HOME": str(home), "USER": "pi", "LANG": "C.UTF-8"}
    done = subprocess.run(
        ["bash"], input=script, cwd=home, env={**kept, "QEMU_CPU": cpu_of(python)}, capture_output=True, text=True
    )
    assert done.returncode == 0, f"exit code {done.returncode}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def cpu_of(python: Path) -> str:
    return "cortex-a7" if "armhf" in str(python) else "cortex-a72"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page's own command builds in a copy of the checkout."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in ("pyproject.toml", "README.md", "LICENSE", "py.typed", "runtime", "training", "export", "benchmarks"):
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    script = of_kind("run computer")
    done = subprocess.run(["bash"], input=script, cwd=copy, env={**os.environ, "PATH": path}, text=True, check=False)
    assert done.returncode == 0
    (built,) = (copy / "dist").glob("*.whl")
    return built


@emulated
@pytest.mark.timeout(5400)
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
def test_the_page_on_an_emulated_pi(suite: str, wheel: Path) -> None:
    python = make_pi(suite, "arm64")
    home = python.parents[3] / f"home-{suite}"
    said = run_page(python, home, of_kind("run"), wheel)
    assert "\nverified\n" in said
    assert '"caption"' in said
    assert (home / "hello.wav").stat().st_size > 10_000
    assert (home / ".config/systemd/user/captionlite.service").exists()
    site = next((home / "captions/lib").glob("python3*/site-packages"))
    assert (site / "ai_edge_litert").is_dir()
    assert not (site / "numpy").exists(), "pip put a NumPy of its own before apt's, which picamera2 was built with"


@emulated
@pytest.mark.timeout(3600)
def test_the_page_on_an_emulated_32_bit_pi(wheel: Path) -> None:
    python = make_pi("bookworm", "armhf")
    legacy = ["run 32-bit legacy"] if "CAPTIONLITE_EDGE_LEGACY" in os.environ else []
    said = run_page(python, python.parents[3] / "home-32-bit", of_kind("run 32-bit", *legacy), wheel)
    assert "interpreter  tflite-runtime" in said
    assert not legacy or "\nverified\n" in said


@emulated
@pytest.mark.timeout(900)
@pytest.mark.parametrize("suite", ["bookworm", "trixie"])
@pytest.mark.parametrize(("archive", "kinds"), [(DEBIAN, ("apt", "apt more")), (RASPBERRY_PI, ("apt raspberrypi",))])
def test_the_archive_has_the_packages(suite: str, archive: str, kinds: tuple[str, ...]) -> None:
    for ending, unpack in (("xz", lzma.decompress), ("gz", gzip.decompress)):
        try:
            url = f"{archive}/dists/{suite}/main/binary-arm64/Packages.{ending}"
            with urllib.request.urlopen(url, timeout=60) as answer:
                index = unpack(answer.read()).decode()
            break
        except urllib.error.HTTPError:  # archives have one of the two, or both
            continue
        except OSError as error:
            pytest.skip(f"{archive} cannot be reached: {error}")
    else:
        pytest.fail(f"{archive} has no index of {suite}")
    there = set(re.findall(r"^Package: (\S+)$", index, re.MULTILINE))
    wanted = apt_packages(*kinds)
    assert wanted
    assert set(wanted) <= there
