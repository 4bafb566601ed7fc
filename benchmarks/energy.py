"""Joules a caption, from whatever this machine measures its own power with.

Meters, the first that answers: powercap (Intel's and AMD's RAPL: the processor packages, counted by the hardware),
an INA219 or its kin on the hwmon bus (whatever it was wired to), and the power management chip of a Raspberry Pi 5
(`vcgencmd pmic_read_adc`: the board's rails, without what hangs on USB). All are read between captions, never in one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from captionlite.benchmarks.devices import ROOT, read_int, read_text, vcgencmd
from captionlite.benchmarks.results import rounded

INA_CHIPS = ("ina219", "ina220", "ina226", "ina230", "ina231", "ina260", "ina237", "ina238", "ina2xx")
IDLE_POLL_S = 0.1


class Meter(Protocol):
    """A source of energy readings. `interval_s` is how often it is worth asking."""

    name: str
    interval_s: float

    def joules(self, now_s: float) -> float:
        """Joules since the first call. Raises OSError when it does not answer any more."""
        ...


class Rapl:
    """Energy counters of all processor packages: microjoules that start again from 0 at a limit of their own."""

    interval_s = 1.0  # they wrap after minutes at the earliest

    def __init__(self, zones: Sequence[Path]) -> None:
        self._zones = zones
        self._ranges = [read_int(zone / "max_energy_range_uj") or 0 for zone in zones]
        self._last: list[int] | None = None
        self._total_uj = 0
        names = ", ".join(read_text(zone / "name") or zone.name for zone in zones)
        self.name = f"powercap/RAPL ({names})"

    def joules(self, now_s: float) -> float:
        found = [int((zone / "energy_uj").read_text()) for zone in self._zones]
        for new, old, limit in zip(found, self._last or found, self._ranges, strict=True):
            self._total_uj += new - old if new >= old else new + limit - old
        self._last = found
        return self._total_uj / 1e6


class PowerMeter:
    """A meter that tells watts: energy is the area below its readings, straight lines between them."""

    def __init__(self, name: str, watts: Callable[[], float], interval_s: float) -> None:
        self.name, self.interval_s, self._watts = name, interval_s, watts
        self._last: tuple[float, float] | None = None
        self._joules = 0.0

    def joules(self, now_s: float) -> float:
        watts = self._watts()
        if self._last is not None:
            then_s, before = self._last
            self._joules += (now_s - then_s) * (watts + before) / 2
        self._last = now_s, watts
        return self._joules


def find_meter(root: Path = ROOT) -> tuple[Meter | None, str]:
    """The first meter that answers; without one, what was looked for and what came of it."""
    reasons = []
    zones = [zone for zone in sorted(root.glob("sys/class/powercap/*-rapl:*")) if zone.name.count(":") == 1]
    packages = [zone for zone in zones if (read_text(zone / "name") or "").startswith("package")]
    if not packages:
        reasons.append("powercap/RAPL (no package in /sys/class/powercap)")
    elif any(read_int(zone / "energy_uj") is None for zone in packages):
        reasons.append("powercap/RAPL (energy_uj is not readable; it is root's: `sudo chmod a+r` it, or run as root)")
    else:
        return Rapl(packages), ""
    for chip in sorted(root.glob("sys/class/hwmon/hwmon*")):
        name = read_text(chip / "name")
        if name in INA_CHIPS and read_int(chip / "power1_input") is not None:
            return PowerMeter(f"{name} ({chip.name})", partial(_watts, chip / "power1_input"), 0.05), ""
    reasons.append("INA219, INA226 and their kin (no such chip with power1_input in /sys/class/hwmon)")
    if pmic_watts() is not None:
        return PowerMeter("Raspberry Pi PMIC (vcgencmd pmic_read_adc)", _pmic, 0.25), ""
    reasons.append("Raspberry Pi 5 PMIC (vcgencmd pmic_read_adc gives nothing)")
    return None, f"no meter found; looked for {'; '.join(reasons)}. Measure at the plug, or attach an INA219."


def _watts(microwatts: Path) -> float:
    return int(microwatts.read_text()) / 1e6


def pmic_watts() -> float | None:
    """Sum over the rails of current times voltage, or None where the firmware tells none."""
    readings = re.findall(r"(\w+)_([AV]) (?:current|volt)\(\d+\)=([\d.]+)[AV]", vcgencmd("pmic_read_adc") or "")
    amperes = {rail: float(value) for rail, unit, value in readings if unit == "A"}
    volts = {rail: float(value) for rail, unit, value in readings if unit == "V"}
    rails = amperes.keys() & volts.keys()
    return sum(amperes[rail] * volts[rail] for rail in rails) if rails else None


def _pmic() -> float:
    watts = pmic_watts()
    if watts is None:
        raise OSError("vcgencmd pmic_read_adc does not answer any more")
    return watts


@dataclass(frozen=True)
class Reading:
    """Energy over a span of time."""

    joules: float
    seconds: float

    @property
    def watts(self) -> float:
        return self.joules / self.seconds if self.seconds else 0.0


class Energy:
    """A meter read along: `start`, then `sample` now and then (it skips what comes too soon), then `stop`."""

    def __init__(self, meter: Meter, clock: Callable[[], float] = time.perf_counter) -> None:
        self._meter, self._clock = meter, clock
        self._started_s = self._next_s = 0.0
        self._started_joules = 0.0

    def start(self) -> None:
        """Begin a span. Raises OSError when the meter does not answer."""
        self._started_s = self._clock()
        self._started_joules = self._meter.joules(self._started_s)
        self._next_s = self._started_s + self._meter.interval_s

    def sample(self) -> None:
        """Ask the meter, unless it was asked just now. Raises OSError."""
        now_s = self._clock()
        if now_s >= self._next_s:
            self._meter.joules(now_s)
            self._next_s = now_s + self._meter.interval_s

    def stop(self) -> Reading:
        """The energy since `start`. Raises OSError."""
        now_s = self._clock()
        return Reading(self._meter.joules(now_s) - self._started_joules, now_s - self._started_s)

    def idle(self, seconds: float, sleep: Callable[[float], None] = time.sleep) -> Reading:
        """A span in which this process does nothing. Raises OSError."""
        self.start()
        while self._clock() - self._started_s < seconds:
            sleep(IDLE_POLL_S)
            self.sample()
        return self.stop()


def describe(meter: str, idle: Reading, work: Reading, captions: int) -> dict[str, Any]:
    """Joules a caption: of the whole machine that the meter sees, and what idling as long would not have taken."""
    above = work.joules - idle.watts * work.seconds
    return {
        "meter": meter,
        "joules_per_caption": rounded(work.joules / captions),
        "includes_idle": True,
        "joules_per_caption_above_idle": rounded(above / captions),
        "watts": rounded(work.watts),
        "idle_watts": rounded(idle.watts),
        "idle_seconds": rounded(idle.seconds),
    }
