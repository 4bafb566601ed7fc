"""How far many photographs have come, with the time left: one line on stderr that redraws itself, on terminals only."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

QUIET_S = 1.0
"""Nothing is shown before: what is done sooner needs no progress."""
REDRAW_S = 0.1
_ERASE = "\r\x1b[K"


class ProgressLine:
    """Call `advance` for everything done, and `hide` before anything else is printed. A context manager, to end it."""

    def __init__(
        self,
        total: int,
        stream: TextIO | None = None,
        clock: Callable[[], float] = time.monotonic,
        tell: "Callable[[int, int, float], str] | None" = None,
    ) -> None:
        """`total`: how many there are. Silent for a single one, and where `stream` (stderr) is no terminal.

        `tell(done, total, seconds)` makes the line; `describe` when it is not given.
        """
        self._total, self._clock, self._tell = total, clock, tell or describe
        self._stream = stream or sys.stderr
        self._active = total > 1 and self._stream is not None and self._stream.isatty()
        self._started_s = clock()
        self._next_s = self._started_s + QUIET_S
        self._done = 0
        self._shown = False
        self._hidden = False

    def __enter__(self) -> "ProgressLine":
        return self

    def __exit__(self, *error: object) -> None:
        self.hide()

    def advance(self, count: int = 1) -> None:
        """One more is done, or so many; less than none where something has to be done again."""
        self._done += count
        now_s = self._clock()
        if not self._active or (now_s < self._next_s and not self._hidden):
            return
        self._next_s = now_s + REDRAW_S
        self._shown, self._hidden = True, False
        self._stream.write(_ERASE + self._tell(self._done, self._total, now_s - self._started_s))
        self._stream.flush()

    def hide(self) -> None:
        """Free the line for other output; the next `advance` shows it again."""
        if self._shown:
            self._stream.write(_ERASE)
            self._stream.flush()
            self._shown, self._hidden = False, True


def describe(done: int, total: int, seconds: float) -> str:
    """As in "312/1000, 31 %, 402 a second, 2 s left"."""
    rate = done / seconds if seconds > 0 else 0.0
    left = f", {duration((total - done) / rate)} left" if rate else ""
    return f"{done}/{total}, {100 * done // max(total, 1)} %, {rate:.3g} a second{left}"


def describe_bytes(done: int, total: int, seconds: float) -> str:
    """As in "3.1 of 8.4 MB, 37 %, 1.2 MB a second, 4 s left"."""
    rate = done / seconds if seconds > 0 else 0.0
    left = f", {duration((total - done) / rate)} left" if rate else ""
    return (
        f"{done / 1e6:.1f} of {total / 1e6:.1f} MB, {100 * done // max(total, 1)} %, {rate / 1e6:.3g} MB a second{left}"
    )


def duration(seconds: float) -> str:
    """As in "2 h 5 min", "3 min 20 s", "12 s"."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
