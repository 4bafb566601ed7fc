"""The delegate of tests/native, a real shared library, built by this machine's C compiler."""

import shutil
import subprocess
from functools import cache
from pathlib import Path

import pytest

SOURCE = Path(__file__).parent / "native" / "delegate.c"


@cache
def _build(folder: Path) -> Path:
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        pytest.skip("no C compiler (cc, gcc, clang) to build a delegate with")
    library = folder / "delegate.so"
    command = [compiler, "-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-o", str(library), str(SOURCE)]
    done = subprocess.run([*command, "-lm"], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return library


def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The library, compiled once a process; skips where there is no compiler."""
    return _build(tmp_path_factory.getbasetemp())
