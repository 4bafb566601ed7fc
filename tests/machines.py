"""Machines made of files: /sys and /proc as a laptop, a Raspberry Pi or a container has them, and a vcgencmd."""

from pathlib import Path

import pytest


def lay_out(root: Path, files: dict[str, str]) -> Path:
    """Write small files below a root, as the kernel ends them."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n")
    return root


def pretend_vcgencmd(folder: Path, monkeypatch: pytest.MonkeyPatch, answers: dict[str, str]) -> None:
    """A vcgencmd first on PATH that knows these; anything else it refuses, as the real one does."""
    folder.mkdir()
    cases = "\n".join(f"{name}) cat <<'END'\n{answer}\nEND\n;;" for name, answer in answers.items())
    program = folder / "vcgencmd"
    program.write_text(f'#!/bin/sh\ncase "$1" in\n{cases}\n*) echo "error=1"; exit 255;;\nesac\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")


CPUFREQ = "sys/devices/system/cpu/cpu{}/cpufreq/{}"
PI = {
    **{CPUFREQ.format(core, "scaling_governor"): "ondemand" for core in range(4)},
    **{CPUFREQ.format(core, "scaling_cur_freq"): str(1_500_000 + 100_000 * core) for core in range(4)},
    **{CPUFREQ.format(core, "cpuinfo_min_freq"): "600000" for core in range(4)},
    **{CPUFREQ.format(core, "cpuinfo_max_freq"): "1800000" for core in range(4)},
    "sys/devices/system/cpu/cpufreq/policy0/scaling_governor": "not a core",
    "sys/class/thermal/thermal_zone0/type": "gpu-thermal",
    "sys/class/thermal/thermal_zone0/temp": "61000",
    "sys/class/thermal/thermal_zone1/type": "cpu-thermal",
    "sys/class/thermal/thermal_zone1/temp": "48312",
    "proc/loadavg": "0.52 0.58 0.59 1/389 12345",
    "proc/meminfo": "MemTotal:        3884380 kB\nMemFree:          200000 kB",
}
PI_FIRMWARE = {"measure_temp": "temp=47.9'C", "get_throttled": "throttled=0x50004"}
PMIC = """   3V3_SYS_A current(1)=0.10000000A
   EXT5V_V volt(24)=5.10000000V
     VDD_CORE_A current(7)=2.00000000A
   3V3_SYS_V volt(9)=3.30000000V
     VDD_CORE_V volt(15)=0.80000000V"""
