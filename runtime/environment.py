"""What this machine is: all that matters for speed and for the numbers a graph gives. Linux tells most."""

import os
import platform
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from captionlite.runtime.errors import InterpreterError
from captionlite.runtime.interpreter import core_count, find_backend

# The CPU features that TensorFlow Lite's kernels choose by; the rest of the flags tells nothing here.
_X86_FEATURES = {"sse4_2", "avx", "avx2", "fma", "f16c", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8"}
_ARM_FEATURES = {"neon", "vfpv4", "asimd", "fphp", "asimdhp", "asimddp", "i8mm", "bf16", "sve", "sve2", "sme"}


def describe_environment() -> dict[str, Any]:
    """This machine as one JSON object; what cannot be found out is null."""
    try:
        backend = find_backend()
        interpreter: dict[str, Any] = {"name": backend.name, "version": backend.version}
    except InterpreterError as error:
        interpreter = {"name": None, "version": None, "error": str(error)}
    cpu = _cpu_info()
    return {
        "captionlite": _version("captionlite"),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "bits": 64 if sys.maxsize > 2**32 else 32,
        "device": _read("/proc/device-tree/model").rstrip("\0") or None,  # "Raspberry Pi 4 Model B Rev 1.4"
        "cpu": cpu.get("model name") or platform.processor() or None,
        "cpu_features": sorted(
            (_X86_FEATURES | _ARM_FEATURES) & set(cpu.get("flags", cpu.get("Features", "")).split())
        ),
        "cores": core_count(),
        "memory_available_bytes": _available_memory(),
        "interpreter": interpreter,
        "numpy": _version("numpy"),
        "pillow": _version("pillow"),
    }


def _cpu_info() -> dict[str, str]:
    """The fields of the first processor in /proc/cpuinfo."""
    first = _read("/proc/cpuinfo").partition("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {name.strip(): value.strip() for name, _, value in pairs}


def _available_memory() -> int | None:
    for line in _read("/proc/meminfo").splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _read(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except OSError:
        return ""


def _version(distribution: str) -> str | None:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return None
