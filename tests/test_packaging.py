"""What `pip install captionlite` brings: the right requirements, every package, its data, and nothing else."""

import importlib.util
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from email.message import Message
from email.parser import Parser
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
PACKAGES = ("runtime", "training", "export", "benchmarks")
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))

RUNTIME_X86 = {"numpy", "pillow", "click", "ai-edge-litert"}
RUNTIME_ARMV7 = {"numpy", "pillow", "click", "tflite-runtime"}
EXTRAS = {"train", "export", "bench", "test", "all"}


def source_files() -> set[str]:
    """Every Python file of the four packages, as it should stand in the wheel."""
    return {
        f"captionlite/{path.relative_to(ROOT).as_posix()}"
        for package in PACKAGES
        for path in (ROOT / package).rglob("*.py")
    }


def setuptools_version() -> int:
    return int(version("setuptools").partition(".")[0]) if importlib.util.find_spec("setuptools") else 0


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    """The wheel, built from a copy of the sources so that nothing is written beside them."""
    if setuptools_version() < 77:
        pytest.skip(f"building needs setuptools 77, found {setuptools_version()}: pip install 'captionlite[test]'")
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    source.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE", "py.typed"):
        shutil.copy(ROOT / name, source)
    for package in PACKAGES:
        shutil.copytree(ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--no-index"]
    done = subprocess.run([*command, "--wheel-dir", str(folder), str(source)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (path,) = folder.glob("*.whl")
    return zipfile.ZipFile(path)


@pytest.fixture(scope="session")
def metadata(wheel: zipfile.ZipFile) -> Message:
    (name,) = (name for name in wheel.namelist() if name.endswith(".dist-info/METADATA"))
    return Parser().parsestr(wheel.read(name).decode())


def requirements_for(lines: list[str], environment: dict[str, str]) -> set[str]:
    parsed = [Requirement(line) for line in lines]
    return {r.name for r in parsed if r.marker is None or r.marker.evaluate({"extra": "", **environment})}


@pytest.mark.parametrize(
    ("machine", "expected"),
    [
        ("x86_64", RUNTIME_X86),
        ("aarch64", RUNTIME_X86),
        ("armv7l", RUNTIME_ARMV7),
        ("armv8l", RUNTIME_ARMV7),
        ("armv6l", RUNTIME_ARMV7),
    ],
)
def test_base_install_is_numpy_pillow_click_and_an_interpreter(machine: str, expected: set[str]) -> None:
    assert requirements_for(PROJECT["project"]["dependencies"], {"platform_machine": machine}) == expected


def test_tflite_runtime_comes_with_numpy_1() -> None:
    lines = [Requirement(line) for line in PROJECT["project"]["dependencies"]]
    (numpy,) = (
        r for r in lines if r.name == "numpy" and r.marker and r.marker.evaluate({"platform_machine": "armv7l"})
    )
    assert "2.0" not in numpy.specifier
    assert "1.26.4" in numpy.specifier
    assert "1.24.2" in numpy.specifier  # Debian bookworm's, on Raspberry Pi OS the only one without a compiler


def test_every_package_is_listed() -> None:
    found = {f"captionlite.{'.'.join(Path(name).parts[1:-1])}" for name in source_files()}
    assert set(PROJECT["tool"]["setuptools"]["packages"]) == found | {"captionlite"}


def test_every_package_folder_has_an_init() -> None:
    for package in PACKAGES:
        for folder in {path.parent for path in (ROOT / package).rglob("*.py")}:
            assert (folder / "__init__.py").is_file(), folder


def test_modules_named_in_the_command_table_exist() -> None:
    from captionlite.runtime.cli import COMMANDS

    extras = PROJECT["project"]["optional-dependencies"]
    for name, entry in COMMANDS.items():
        assert importlib.util.find_spec(entry.module), name
        assert entry.extra is None or entry.extra in extras, name


def test_wheel_holds_every_module_and_no_tests(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    assert {name for name in names if name.endswith(".py")} == source_files()
    assert not [name for name in names if "__pycache__" in name or name.startswith(("tests", "captionlite/tests"))]
    assert {name.partition("/")[0] for name in names} == {
        "captionlite",
        f"captionlite-{wheel_version(wheel)}.dist-info",
    }


def test_wheel_holds_data_files(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for folder in ("captionlite", *(f"captionlite/{package}" for package in PACKAGES)):
        assert f"{folder}/py.typed" in names
    assert not [name for name in names if name.count("/") == 1 and name.startswith("captionlite/")][1:]
    data = [*ROOT.glob("training/presets/*.json"), *ROOT.glob("runtime/bundles/default/*")]
    for path in data:
        assert f"captionlite/{path.relative_to(ROOT).as_posix()}" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_wheel_requires_what_the_project_file_says(metadata: Message) -> None:
    lines = metadata.get_all("Requires-Dist") or []
    assert requirements_for(lines, {"platform_machine": "x86_64"}) == RUNTIME_X86
    assert requirements_for(lines, {"platform_machine": "armv7l"}) == RUNTIME_ARMV7
    assert set(metadata.get_all("Provides-Extra") or []) >= EXTRAS
    assert set(metadata["Requires-Python"].split(",")) == set(PROJECT["project"]["requires-python"].split(","))


def test_wheel_installs_the_console_script(wheel: zipfile.ZipFile) -> None:
    (name,) = (name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert "captionlite = captionlite.runtime.cli:main" in wheel.read(name).decode()


def test_no_extra_brings_torch() -> None:
    extras: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
    for lines in extras.values():
        assert not {"torch", "torchvision", "tensorflow-cpu"} & {Requirement(line).name for line in lines}


def test_the_version_is_in_the_change_log() -> None:
    changes = ROOT / "CHANGES.md"
    if not changes.exists():
        pytest.skip("no CHANGES.md yet")
    found = re.search(r"^## (\S+)", changes.read_text(encoding="utf-8"), re.MULTILINE)
    assert found
    assert found[1].strip("[]") == PROJECT["project"]["version"]


def wheel_version(wheel: zipfile.ZipFile) -> str:
    return Path(str(wheel.filename)).name.split("-")[1]
