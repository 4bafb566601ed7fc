"""What machine this is, and how it is doing: everything that decides how long a caption takes here.

`runtime/environment.py` says what the interpreter runs on; this adds what changes: clock frequencies, heat, throttling,
load, and what a container leaves of the cores. All of it is read from /sys, /proc and a Raspberry Pi's vcgencmd, below
a root that tests replace. What cannot be read is None.
"""

from __future__ import annotations

import dataclasses
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from captionlite.runtime.environment import describe_environment

ROOT = Path("/")

# Thermal zones and hwmon chips that are the processor's own; elsewhere there are those of wireless and disks as well.
_CPU_ZONES = ("cpu-thermal", "cpu_thermal", "x86_pkg_temp", "soc_thermal", "soc-thermal", "cpu0-thermal")
_CPU_CHIPS = ("coretemp", "k10temp", "zenpower", "cpu_thermal")
_THROTTLED_BITS = {  # of `vcgencmd get_throttled`; the same 16 bits higher: has happened since the start
    0: "under-voltage",
    1: "frequency capped",
    2: "throttled",
    3: "soft temperature limit",
}
VCGENCMD_TIMEOUT_S = 5.0


@dataclasses.dataclass(frozen=True)
class State:
    """What changes while a machine works: degrees Celsius, MHz of each core, and what slows it down now."""

    temperature_c: float | None
    frequencies_mhz: tuple[float | None, ...]
    throttled: tuple[str, ...] | None  # None: this machine does not say

    @property
    def frequency_mhz(self) -> float | None:
        """The mean over the cores that tell theirs."""
        told = [mhz for mhz in self.frequencies_mhz if mhz is not None]
        return sum(told) / len(told) if told else None


def read_state(root: Path = ROOT) -> State:
    """How the machine is doing now; some tenths of a millisecond, or 10 ms with vcgencmd."""
    frequencies = tuple(_megahertz(core / "cpufreq" / "scaling_cur_freq") for core in _cores(root))
    flags = throttled_flags()
    now = None if flags is None else tuple(name for bit, name in _THROTTLED_BITS.items() if flags >> bit & 1)
    return State(cpu_temperature_c(root), frequencies, now)


def describe_machine(root: Path = ROOT) -> dict[str, Any]:
    """This machine as a JSON object, `load_average` of before only; `finish` adds what can be said afterwards."""
    state, flags = read_state(root), throttled_flags()
    cores = _cores(root)
    return {
        **describe_environment(),
        "kernel": platform.release() or None,
        "memory_total_bytes": _memory_total(root),
        "container": _container(root),
        "cpu_limit": cpu_limit(root),
        "governor": [read_text(core / "cpufreq" / "scaling_governor") for core in cores],
        "frequencies_mhz": [
            {
                "current": current,
                "min": _megahertz(core / "cpufreq" / "cpuinfo_min_freq"),
                "max": _megahertz(core / "cpufreq" / "cpuinfo_max_freq"),
            }
            for core, current in zip(cores, state.frequencies_mhz, strict=True)
        ],
        "temperature_c": state.temperature_c,
        "thermal_zones_c": _thermal_zones(root),
        "throttled": None if flags is None else {"flags": hex(flags), "now": list(state.throttled or ())},
        "load_average": {"before": load_average(root), "after": None},
    }


def finish(machine: dict[str, Any], root: Path = ROOT) -> dict[str, Any]:
    """The machine's description with load, temperature and throttling after the work."""
    flags = throttled_flags()
    return {
        **machine,
        "load_average": {**machine["load_average"], "after": load_average(root)},
        "temperature_after_c": cpu_temperature_c(root),
        "throttled_after": None if flags is None else hex(flags),
    }


def cpu_temperature_c(root: Path = ROOT) -> float | None:
    """The processor's temperature: its thermal zone, else its sensor chip, else vcgencmd, else the hottest zone."""
    zones = _thermal_zones(root)
    for name in _CPU_ZONES:
        if name in zones:
            return zones[name]
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        if read_text(chip / "name") in _CPU_CHIPS:
            found = read_int(chip / "temp1_input")
            if found is not None:
                return found / 1000
    told = re.search(r"temp=([\d.]+)", vcgencmd("measure_temp") or "")
    if told:
        return float(told[1])
    return max(zones.values(), default=None)


def throttled_flags() -> int | None:
    """A Raspberry Pi's flags of under-voltage and throttling, as `vcgencmd get_throttled` gives them."""
    told = re.search(r"throttled=(0x[0-9a-fA-F]+)", vcgencmd("get_throttled") or "")
    return int(told[1], 16) if told else None


def vcgencmd(*arguments: str) -> str | None:
    """What a Raspberry Pi's firmware answers; None where there is no vcgencmd or it fails."""
    program = shutil.which("vcgencmd")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, *arguments], capture_output=True, text=True, timeout=VCGENCMD_TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def load_average(root: Path = ROOT) -> list[float] | None:
    """Processes that wanted a core, means over 1, 5 and 15 minutes."""
    parts = (read_text(root / "proc/loadavg") or "").split()
    try:
        return [float(part) for part in parts[:3]] if len(parts) >= 3 else list(os.getloadavg())
    except (ValueError, OSError):
        return None


def cpu_limit(root: Path = ROOT) -> float | None:
    """Cores' worth of time that control groups leave this process, the least of its groups; None: no limit."""
    limits = []
    for line in (read_text(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, group = (*line.split(":", 2), "", "")[:3]
        if controllers == "":  # version 2
            base, read = root / "sys/fs/cgroup", _limit_v2
        elif "cpu" in controllers.split(","):
            base, read = root / "sys/fs/cgroup/cpu", _limit_v1
        else:
            continue
        steps = [part for part in group.split("/") if part not in ("", "..")]
        limits += [read(base.joinpath(*steps[:count])) for count in range(len(steps) + 1)]
    return min((limit for limit in limits if limit is not None), default=None)


def _limit_v2(group: Path) -> float | None:
    quota, _, period = (read_text(group / "cpu.max") or "").partition(" ")
    return int(quota) / int(period) if quota.isdigit() and period.isdigit() and int(period) else None


def _limit_v1(group: Path) -> float | None:
    quota, period = read_int(group / "cpu.cfs_quota_us"), read_int(group / "cpu.cfs_period_us")
    return quota / period if quota is not None and quota > 0 and period else None


def _container(root: Path) -> str | None:
    if (root / ".dockerenv").exists():
        return "docker"
    if (root / "run/.containerenv").exists():
        return "podman"
    groups = read_text(root / "proc/1/cgroup") or ""
    return next((name for name in ("docker", "kubepods", "lxc", "containerd") if name in groups), None)


def _cores(root: Path) -> list[Path]:
    found = [path for path in root.glob("sys/devices/system/cpu/cpu*") if path.name[3:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[3:]))


def _thermal_zones(root: Path) -> dict[str, float]:
    """Degrees by the zone's type; the hottest of several of one type."""
    zones: dict[str, float] = {}
    for zone in sorted(root.glob("sys/class/thermal/thermal_zone*")):
        found = read_int(zone / "temp")
        if found is not None:
            name = read_text(zone / "type") or zone.name
            zones[name] = max(found / 1000, zones.get(name, -273.15))
    return zones


def _memory_total(root: Path) -> int | None:
    told = re.search(r"^MemTotal:\s+(\d+) kB", read_text(root / "proc/meminfo") or "", re.MULTILINE)
    return int(told[1]) * 1024 if told else None


def _megahertz(path: Path) -> float | None:
    kilohertz = read_int(path)
    return None if kilohertz is None else kilohertz / 1000


def read_text(path: Path) -> str | None:
    """What stands in a small file of the kernel's, without the newline; None where it cannot be read or is empty."""
    try:
        return path.read_text(errors="replace").strip() or None
    except OSError:
        return None


def read_int(path: Path) -> int | None:
    """The integer in a small file of the kernel's."""
    try:
        return int(read_text(path) or "")
    except ValueError:
        return None
