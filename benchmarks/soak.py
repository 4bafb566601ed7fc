"""Captioning for minutes: latency, heat, clock frequency and throttling, second by second, and a picture of them.

A Raspberry Pi without a fan captions as fast as ever for some minutes; then it is too hot and slows down.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from captionlite.benchmarks.devices import State, read_state
from captionlite.benchmarks.latency import Subject
from captionlite.benchmarks.results import rounded

EVERY_S = 1.0


class SoakLog:
    """A row every so many seconds: how many captions there were, how long they took, and the machine's state."""

    def __init__(self, every_s: float = EVERY_S, state: Callable[[], State] = read_state) -> None:
        self._every_s, self._state = every_s, state
        self._window: list[float] = []
        self._next_s = every_s
        self._rows: list[tuple[float, int, float, float, State]] = []

    def add(self, whole_ms: float, seconds: float) -> None:
        """One caption, so many seconds after the beginning. Captions longer than a row make rows of their own."""
        self._window.append(whole_ms)
        if seconds < self._next_s:
            return
        p50, p90 = np.percentile(self._window, (50, 90))
        self._rows.append((seconds, len(self._window), float(p50), float(p90), self._state()))
        self._window = []
        self._next_s = self._every_s * (math.floor(seconds / self._every_s) + 1)

    def to_json(self) -> dict[str, Any]:
        """Lists of one length; None where the machine does not tell."""
        states = [row[4] for row in self._rows]
        speeds = [state.frequency_mhz for state in states]
        return {
            "every_s": self._every_s,
            "seconds": [round(row[0], 2) for row in self._rows],
            "captions": [row[1] for row in self._rows],
            "p50_ms": [rounded(row[2]) for row in self._rows],
            "p90_ms": [rounded(row[3]) for row in self._rows],
            "temperature_c": [state.temperature_c for state in states],
            "frequency_mhz": [None if speed is None else rounded(speed) for speed in speeds],
            "throttled": [None if state.throttled is None else list(state.throttled) for state in states],
        }


def soak(
    subject: Subject,
    photographs: Sequence[bytes],
    seconds: float,
    log: SoakLog,
    *,
    clock: Callable[[], float] = perf_counter,
    between: Callable[[float], None] = lambda seconds: None,
) -> None:
    """Caption for so long. What the machine's state takes to read is part of no caption."""
    started = clock()
    for number in count():
        timed = subject(photographs[number % len(photographs)])
        now_s = clock() - started
        log.add(timed.whole_ms, now_s)
        between(now_s)
        if now_s >= seconds:
            return


def plot(soaked: dict[str, Any], title: str, path: Path) -> None:
    """Latency, temperature and frequency over minutes as a PNG; red marks where the machine said that it throttles."""
    import io

    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from captionlite.runtime.files import write_bytes_atomically

    minutes = [seconds / 60 for seconds in soaked["seconds"]]
    temperatures, frequencies = soaked["temperature_c"], soaked["frequency_mhz"]
    throttled = [minute for minute, flags in zip(minutes, soaked["throttled"], strict=True) if flags]
    figure = Figure(figsize=(9, 6.5), layout="constrained")
    FigureCanvasAgg(figure)
    latency, heat, speed = figure.subplots(3, 1, sharex=True, height_ratios=(2, 1, 1))
    figure.suptitle(title)
    latency.plot(minutes, soaked["p90_ms"], color="tab:orange", linewidth=1, label="p90")
    latency.plot(minutes, soaked["p50_ms"], color="tab:blue", linewidth=1.4, label="p50")
    latency.set_ylabel("whole caption, ms")
    latency.set_ylim(0, 1.2 * max(soaked["p90_ms"]))  # with room for the legend
    for axes, values, unit, colour in (
        (heat, temperatures, "temperature, °C", "tab:red"),
        (speed, frequencies, "clock, MHz", "tab:green"),
    ):
        axes.set_ylabel(unit)
        if any(value is not None for value in values):
            axes.plot(minutes, [math.nan if value is None else value for value in values], color=colour)
        else:
            axes.set_yticks([])
            axes.text(0.5, 0.5, "this machine does not tell", ha="center", va="center", transform=axes.transAxes)
    for axes in (latency, heat, speed):
        axes.grid(alpha=0.3)
        for minute in throttled:
            axes.axvline(minute, color="red", alpha=0.15, linewidth=1.5)
    if throttled:
        latency.plot([], [], color="red", alpha=0.4, linewidth=4, label="throttled")
    latency.legend(loc="upper left", ncols=3)
    speed.set_xlabel("minutes")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    write_bytes_atomically(path, buffer.getvalue())
