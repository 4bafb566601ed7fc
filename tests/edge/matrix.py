"""captionlite on emulated Raspberry Pi systems, installed as its user would: one command, one table.

    python tests/edge/matrix.py WORK [BUNDLE...] --legacy BUNDLE --photos FOLDER --out OUT.json

For Debian bookworm (Python 3.11) and trixie (3.13) on 64-bit ARM, and bookworm on 32-bit ARM: makes the system
(make_root.sh; minutes and 300 MB of WORK), a virtual environment in it, installs the wheel of this checkout there with
`pip install WHEEL`, run by the emulated Python, and has that installation verify every BUNDLE, caption FOLDER and run
`captionlite bench run --quick` as each CPU. Captions are compared with this machine's. BUNDLEs (default: "default", the
packaged one) run on the 64-bit systems, the `--legacy` one on the 32-bit system; without it that one is left out.

What is not as on a Pi:
- There is no kernel, no service manager and no device of the other machine; times say nothing about a Pi.
- PATH is empty during the install, so that pip cannot find this machine's compiler: on a fresh Pi there may be one.
- Debian, not Raspberry Pi OS, which is Debian with packages of its own and, for 32 bits, piwheels.org as a second index
  for pip. That one is not asked here: the 32-bit environment sees apt's NumPy and Pillow (`--system-site-packages`).
- Waiting threads are emulated too: on a busy machine put `taskset -c 0` before the command.
- pip keeps this machine's settings of how the network is reached (certificates, proxy, mirror), and no others.
- `bench run` needs the extra `bench`, which is installed after the runtime has been listed and weighed; on 32 bits
  PyPI has no wheels of some of it, and apt's psutil and rich are used. It measures 8 captions unless --bench quick.

Exit codes: 1 when a verify or an install fails, 2 wrong usage, 77 when a system could not be made here (it says why).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import click

from captionlite.benchmarks.elsewhere import measure
from captionlite.benchmarks.elsewhere_runs import HERE, Row, Runner
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.commands.photographs import expand
from captionlite.runtime.errors import CaptionliteError, ImageError

EDGE = Path(__file__).resolve().parent
CHECKOUT = EDGE.parents[1]
SOURCES = ("pyproject.toml", "README.md", "LICENSE", "py.typed", "runtime", "training", "export", "benchmarks")
NETWORK = ("PIP_CERT", "PIP_PROXY", "PIP_INDEX_URL", "PIP_CONFIG_FILE", "PIP_DEFAULT_TIMEOUT")
BENCH = ("--quick", "--captions", "8", "--seconds", "0", "--cold-starts", "1")
CANNOT_BE_MADE = 77  # as automake's tests say "skipped"


@dataclass(frozen=True)
class System:
    """A Debian suite for an architecture, the CPUs that it is run as, and what apt is asked for beside Python."""

    suite: str
    architecture: str
    cpus: tuple[str, ...]
    apt: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.suite}-{self.architecture}"

    @property
    def legacy(self) -> bool:
        """Whether its interpreter is tflite-runtime, and its NumPy apt's."""
        return self.architecture == "armhf"


SYSTEMS = (
    System("bookworm", "arm64", ("cortex-a72", "cortex-a76")),
    System("trixie", "arm64", ("cortex-a72", "cortex-a76")),
    System("bookworm", "armhf", ("cortex-a7",), ("python3-numpy", "python3-pil", "python3-psutil", "python3-rich")),
)


@dataclass(frozen=True)
class Package:
    """One installed package; `megabytes` (10^6 bytes) are of its files, None where it is apt's."""

    name: str
    version: str
    megabytes: float | None


@dataclass(frozen=True)
class Installed:
    """What `pip install WHEEL` made of a system. `megabytes` are of the whole environment, pip itself included."""

    system: System
    environment: Path
    packages: tuple[Package, ...]
    megabytes: float

    def command(self, cpu: str) -> tuple[str, ...]:
        """What starts its Python as that CPU, in a home of its own."""
        home = self.environment.parent / "home"
        words = (f"HOME={home}", f"XDG_CACHE_HOME={home / '.cache'}", f"QEMU_CPU={cpu}")
        return ("env", *words, str(self.environment / "bin/python"))


class CannotBeMadeError(Exception):
    """This machine has no emulator, no archive or no rights for it."""


class InstallError(Exception):
    """pip could not install the wheel there."""


def build_wheel(work: Path) -> Path:
    """The wheel of this checkout, built from a copy so that nothing is written beside the sources."""
    copy = work / "checkout"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir(parents=True)
    for name in SOURCES:
        source = CHECKOUT / name
        if source.is_dir():
            shutil.copytree(source, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, copy)
    folder = work / "wheel"
    shutil.rmtree(folder, ignore_errors=True)
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", str(folder), f"{copy}/"]
    done = subprocess.run(command, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise CaptionliteError("The wheel could not be built (see above).")
    (wheel,) = folder.glob("*.whl")
    return wheel


def install(work: Path, system: System, wheel: Path, *, lean: bool) -> Installed:
    """A fresh environment of the system with the wheel in it. Raises CannotBeMadeError and InstallError."""
    made = subprocess.run(
        [str(EDGE / "make_root.sh"), str(work), system.suite, system.architecture, *system.apt],
        capture_output=True,
        stdin=subprocess.DEVNULL,
        text=True,
        check=False,
    )
    click.echo(made.stderr.rstrip(), err=True)
    if made.returncode != 0:
        raise CannotBeMadeError(made.stderr.strip().rpartition("\n")[2])
    python = Path(made.stdout.strip())
    environment = work / f"pi-{system.name}"
    for folder in (environment, python.parents[2] / environment.relative_to("/")):  # the other: see make_root.sh, armhf
        shutil.rmtree(folder, ignore_errors=True)
    options = [*(["--system-site-packages"] if system.legacy else []), *(["--without-pip"] if lean else [])]
    pip = [str(environment / "bin/pip"), "install"]
    if lean:  # README's words
        pip = [str(python), "-m", "pip", "--python", str(environment / "bin/python"), "install", "--no-compile"]
    for command in ([str(python), "-m", "venv", *options, str(environment)], [*pip, str(wheel)]):
        _emulated(command, work)
    return Installed(system, environment, tuple(_packages(environment)), _megabytes(environment))


def bench(pi: Installed, cpu: str, bundle: str, photos: str, how: Sequence[str], timeout_s: float) -> str:
    """Runs `captionlite bench run` there: "ran", or why it did not."""
    words = ["bench", "run", *how, "--json", "--bundle", bundle, "--photos", photos]
    command = [*pi.command(cpu), "-m", "captionlite.runtime.cli", *words]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    except subprocess.TimeoutExpired:
        return f"no answer within {timeout_s:g} s"
    try:
        result = json.loads(done.stdout)
        return "ran" if result["complete"] and result["machine"]["interpreter"]["name"] else "not complete"
    except (ValueError, KeyError, TypeError):
        return (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]


def add_bench(pi: Installed, wheel: Path, work: Path) -> None:
    """The extra `bench`, where apt does not have it already."""
    if not pi.system.legacy:
        _emulated([str(pi.environment / "bin/pip"), "install", "--no-compile", f"{wheel}[bench]"], work)


def _emulated(command: list[str], work: Path) -> None:
    """Runs a command of the system with nothing else to be found, its output on stderr. Raises InstallError."""
    nothing = work / "nothing"
    nothing.mkdir(exist_ok=True)
    environment = {name: os.environ[name] for name in NETWORK if name in os.environ}
    environment |= {name: value for name, value in os.environ.items() if name.lower().endswith("_proxy")}
    environment |= {"PATH": str(nothing), "HOME": str(work / "home"), "LANG": "C.UTF-8"}
    environment |= {"PIP_DISABLE_PIP_VERSION_CHECK": "1", "PIP_PROGRESS_BAR": "off"}
    click.echo(f"$ {' '.join(command)}", err=True)
    done = subprocess.run(command, env=environment, stdin=subprocess.DEVNULL, stdout=sys.stderr, check=False)
    if done.returncode != 0:
        raise InstallError(f"`{' '.join(command)}` ended with exit code {done.returncode} (see above)")


def _packages(environment: Path) -> list[Package]:
    """What is installed, by name. Sizes are of what pip recorded; apt's packages count where pip left one to apt."""
    (site,) = environment.glob("lib/python3*/site-packages")
    found = {one.name.lower(): Package(one.name, one.version, _size(one)) for one in distributions(path=[str(site)])}
    configuration = (environment / "pyvenv.cfg").read_text()
    if "include-system-site-packages = true" in configuration:
        home = Path(next(line.partition("= ")[2] for line in configuration.splitlines() if line.startswith("home")))
        for one in distributions(path=[str(home.parent / "lib/python3/dist-packages")]):
            if one.name.lower() in ("numpy", "pillow"):
                found.setdefault(one.name.lower(), Package(one.name, one.version, None))
    return [found[name] for name in sorted(found)]


def _size(distribution: Any) -> float:
    paths = [Path(distribution.locate_file(file)) for file in distribution.files or ()]
    return sum(path.stat().st_size for path in paths if path.is_file()) / 1e6


def _megabytes(folder: Path) -> float:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file() and not path.is_symlink()) / 1e6


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown."""
    head = ("system", "Python", "CPU", "recipe", "interpreter", "NumPy", "verify", "worst error of tolerance")
    lines = [
        (
            row["system"],
            row["python"],
            row["cpu"],
            row["recipe"],
            row["interpreter"],
            row["numpy"],
            {True: "passed", False: "FAILED", None: "-"}[row["passed"]],
            "-" if row["error"] is None else f"{row['error']:.1e} of {row['tolerance']:g}",
            "-" if row["captions_equal"] is None else f"{row['captions_equal']} of {row['photographs']}",
            row["bench"],
            "; ".join(row["reasons"]),
        )
        for row in rows
    ]
    return _markdown((*head, "captions as on x86-64", "bench", "notes"), lines)


def package_table(pis: list[Installed]) -> str:
    """Every package of every system with its version and size, and what the environments weigh."""
    names = sorted({package.name.lower() for pi in pis for package in pi.packages})
    found = [{package.name.lower(): package for package in pi.packages} for pi in pis]

    def cell(package: Package | None) -> str:
        if package is None:
            return "-"
        size = "apt's" if package.megabytes is None else f"{package.megabytes:.1f} MB"
        return f"{package.version} ({size})"

    lines = [(name, *(cell(packages.get(name)) for packages in found)) for name in names]
    lines.append(("whole environment", *(f"{pi.megabytes:.0f} MB" for pi in pis)))
    return _markdown(("package", *(pi.system.name for pi in pis)), lines)


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    cells = [
        head,
        ["---"] * len(head),
        *([cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in rows),
    ]
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _record(pi: Installed, cpu: str, runner: Runner, row: Row, bundle: str, photographs: int) -> dict[str, Any]:
    """One line of the table, as JSON has it."""
    environment = runner.environment
    interpreter = environment.get("interpreter", {})
    return {
        "system": pi.system.name,
        "python": environment.get("python", "-"),
        "cpu": cpu,
        "bundle": bundle,
        "recipe": row.recipe,
        "interpreter": " ".join(str(interpreter[key]) for key in ("name", "version") if key in interpreter) or "-",
        "numpy": environment.get("numpy", "-"),
        "pillow": environment.get("pillow", "-"),
        "passed": row.passed,
        "error": None if row.error is None else min(row.error, sys.float_info.max),
        "tensor": row.tensor,
        "tolerance": Bundle.open(bundle).manifest.golden.tolerance,
        "captions_equal": row.captions_equal,
        "photographs": photographs,
        "captions": list(row.captions or ()),
        "bench": "-",
        "reasons": list(row.reasons),
    }


@click.command(help=(__doc__ or "").partition("\n")[0])
@click.argument("work", type=click.Path(file_okay=False, path_type=Path))
@click.argument("bundles", nargs=-1, metavar="[BUNDLE...]")
@click.option("--legacy", metavar="BUNDLE", help="For the 32-bit system.")
@click.option("--photos", type=click.Path(exists=True, file_okay=False), default=str(CHECKOUT / "tests/photos"))
@click.option("--system", "only", multiple=True, type=click.Choice([system.name for system in SYSTEMS]), help="Repeatable; default: all.")  # fmt: skip # noqa: E501
@click.option("--cpu", "only_cpus", multiple=True, metavar="NAME", help="Instead of the systems' own; repeatable.")
@click.option("--wheel", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Install this one instead of building it.")  # fmt: skip # noqa: E501
@click.option("--lean", is_flag=True, help="Install with README's words, without pip and compiled duplicates: in half the time. No bench.")  # fmt: skip # noqa: E501
@click.option("--bench", "how", type=click.Choice(["short", "quick", "none"]), default="short", show_default=True, help="short: 8 captions; quick: as `bench run --quick`, minutes each.")  # fmt: skip # noqa: E501
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), default=3600.0, show_default=True, help="Seconds for one bundle.")  # fmt: skip # noqa: E501
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The rows, packages and captions as JSON.")
def main(
    work: Path,
    bundles: tuple[str, ...],
    legacy: str | None,
    photos: str,
    only: tuple[str, ...],
    only_cpus: tuple[str, ...],
    wheel: Path | None,
    lean: bool,
    how: str,
    timeout_s: float,
    out: Path | None,
) -> None:
    work = work.resolve()
    pictures = [photo for photo in expand([str(Path(photos).resolve())]) if not isinstance(photo, ImageError)]
    rows: list[dict[str, Any]] = []
    pis: list[Installed] = []
    skipped: list[str] = []
    failed: list[str] = []
    try:
        work.mkdir(parents=True, exist_ok=True)
        wheel = wheel.resolve() if wheel else build_wheel(work)
        for system in SYSTEMS:
            if only and system.name not in only:
                continue
            if system.legacy and legacy is None:
                skipped.append(f"{system.name}: no bundle for it, name one with --legacy")
                continue
            wanted = [legacy] if system.legacy and legacy else list(bundles or ("default",))
            located = [str(Bundle.open(name).location) for name in wanted]
            try:
                pi = install(work, system, wheel, lean=lean)
                pis.append(pi)
                if how != "none" and not lean:
                    add_bench(pi, wheel, work)
            except CannotBeMadeError as error:
                skipped.append(f"{system.name}: {error}")
                continue
            except InstallError as error:
                failed.append(f"{system.name}: {error}")
                continue
            cpus = only_cpus or system.cpus
            commands = [(HERE, (sys.executable,)), *((cpu, pi.command(cpu)) for cpu in cpus)]
            report = measure(located, commands, pictures, None, timeout_s)
            runners = {runner.name: runner for runner in report.runners}
            paths = dict(zip(dict.fromkeys(row.bundle for row in report.rows), located, strict=True))
            for row in report.rows:
                if row.runner == HERE:
                    continue
                record = _record(pi, row.runner, runners[row.runner], row, paths[row.bundle], len(pictures))
                if how != "none" and not lean:
                    click.echo(f"bench of {row.bundle} under {row.runner}", err=True)
                    options = BENCH if how == "short" else BENCH[:1]
                    record["bench"] = bench(pi, row.runner, paths[row.bundle], photos, options, timeout_s)
                rows.append(record)
    except CaptionliteError as error:
        raise click.ClickException(str(error)) from error
    if rows:
        click.echo(table(rows))
    if pis:
        click.echo(f"\nInstalled by `pip install {wheel.name}`, sizes in 10^6 bytes:\n\n{package_table(pis)}")
    for line in (*(f"skipped: {reason}" for reason in skipped), *(f"FAILED: {reason}" for reason in failed)):
        click.echo(line)
    if out is not None:
        systems = [{"system": pi.system.name, "megabytes": pi.megabytes, "packages": [asdict(one) for one in pi.packages]} for pi in pis]  # fmt: skip # noqa: E501
        found = {"photographs": len(pictures), "rows": rows, "systems": systems, "skipped": skipped, "failed": failed}
        out.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if failed or any(row["passed"] is not True or row["captions_equal"] is None for row in rows):
        sys.exit(1)
    if skipped:
        sys.exit(CANNOT_BE_MADE)


if __name__ == "__main__":
    main()
