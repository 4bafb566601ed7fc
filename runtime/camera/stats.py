"""What a camera's captions cost: frames and captions a second, and the time from a frame to its caption.

Memory is the same after a year as after a minute: latencies are counted in classes of 2 %.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

_LEAST_MS, _GROWTH, _CLASSES = 0.05, 1.02, 900  # up to 0.05 ms * 1.02 ** 900: 46 minutes


class Latencies:
    """Milliseconds, counted in classes of 2 %; percentiles are exact to 1 %."""

    def __init__(self) -> None:
        self._counts = np.zeros(_CLASSES, np.int64)
        self.greatest_ms = 0.0

    def add(self, milliseconds: float) -> None:
        """Count one."""
        number = math.log(max(milliseconds, _LEAST_MS) / _LEAST_MS) / math.log(_GROWTH)
        self._counts[min(int(number), _CLASSES - 1)] += 1
        self.greatest_ms = max(self.greatest_ms, milliseconds)

    def percentile(self, percent: float) -> float | None:
        """What so many percent did not exceed; None when nothing was counted."""
        total = int(self._counts.sum())
        if not total:
            return None
        number = int(np.searchsorted(np.cumsum(self._counts), max(total * percent / 100, 1)))
        return min(_LEAST_MS * float(_GROWTH ** (number + 0.5)), self.greatest_ms)

    def clear(self) -> None:
        """Forget all."""
        self._counts[:] = 0
        self.greatest_ms = 0.0


@dataclass
class Counts:
    """What happened since the beginning.

    `captured` frames came from the source. `rested` of them came while the interval between two captions lasted.
    `dropped` were replaced by a newer one before captioning came to them, or left out by a source that could not keep
    up with itself. The others were `unchanged`, `unreadable` or got one of the `captions`.
    """

    captured: int = 0
    rested: int = 0
    dropped: int = 0
    unchanged: int = 0
    unreadable: int = 0
    captions: int = 0
    reconnects: int = 0


@dataclass
class Stats:
    """Counts, and latencies as a whole and since the latest report."""

    started_s: float
    counts: Counts = field(default_factory=Counts)
    latencies: Latencies = field(default_factory=Latencies)
    _recent: Latencies = field(default_factory=Latencies)
    _before: Counts = field(default_factory=Counts)
    _before_s: float | None = None

    def captioned(self, latency_ms: float) -> None:
        """One caption came out, so long after its frame was taken."""
        self.counts.captions += 1
        self.latencies.add(latency_ms)
        self._recent.add(latency_ms)

    def report(self, now_s: float) -> str:
        """One line on what happened since the latest report."""
        begun_s = self.started_s if self._before_s is None else self._before_s
        since = Counts(**{name: value - getattr(self._before, name) for name, value in vars(self.counts).items()})
        line = _line(since, self._recent, now_s - begun_s)
        self._before, self._before_s = Counts(**vars(self.counts)), now_s
        self._recent.clear()
        return line

    def summary(self, now_s: float) -> str:
        """One line on all of it."""
        return f"{_line(self.counts, self.latencies, now_s - self.started_s)}, {self.counts.reconnects} reconnects"

    def to_json(self, now_s: float) -> dict[str, Any]:
        """All of it; rates per second, latencies from a frame taken to its caption told, None without captions."""
        seconds = now_s - self.started_s
        percentiles = {f"p{percent}": self.latencies.percentile(percent) for percent in (50, 90, 99)}
        latency = {name: None if value is None else round(value, 2) for name, value in percentiles.items()}
        return {
            "seconds": round(seconds, 3),
            "fps": round(self.counts.captured / seconds, 3) if seconds > 0 else 0.0,
            "captions_per_s": round(self.counts.captions / seconds, 3) if seconds > 0 else 0.0,
            **vars(self.counts),
            "latency_ms": {**latency, "max": round(self.latencies.greatest_ms, 2)},
        }


def _line(counts: Counts, latencies: Latencies, seconds: float) -> str:
    per_s = 1 / seconds if seconds > 0 else 0.0
    parts = [
        f"{seconds:.1f} s: {counts.captured * per_s:.1f} frames/s",
        f"{counts.captions * per_s:.2f} captions/s",
    ]
    if counts.captions:
        p50, p90 = latencies.percentile(50), latencies.percentile(90)
        parts.append(f"latency p50 {p50:.1f} ms p90 {p90:.1f} ms")
    parts += [f"{counts.unchanged} unchanged", f"{counts.dropped} dropped"]
    if counts.rested:
        parts.insert(-1, f"{counts.rested} in the interval")
    if counts.unreadable:
        parts.append(f"{counts.unreadable} unreadable")
    return ", ".join(parts)
