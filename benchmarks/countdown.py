"""How far a measurement has come, on stderr: a line that redraws itself on a terminal, one every ten seconds elsewhere.

Only ever written between two captions. A bar with a thread of its own would run into what is measured.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from typing import TextIO

from captionlite.runtime.progress import duration

REDRAW_S, LINE_S = 0.5, 10.0


class Countdown:
    """`say` what begins; `tell` how far it is, as often as one likes; `done` before anything else is printed."""

    def __init__(self, stream: TextIO | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._clock = stream or sys.stderr, clock
        self._is_terminal = self._stream.isatty()
        self._next_s = clock() + (REDRAW_S if self._is_terminal else LINE_S)
        self._label = ""
        self._shown = False

    def say(self, label: str) -> None:
        """The next part of the measurement begins."""
        self.done()
        self._label = label
        self._stream.write(f"{label}\n")
        self._stream.flush()

    def tell(self, done: str, left_s: float) -> None:
        """As in "measuring: 512 captions, 12 s left"."""
        now_s = self._clock()
        if now_s < self._next_s:
            return
        self._next_s = now_s + (REDRAW_S if self._is_terminal else LINE_S)
        line = f"{self._label}: {done}, {duration(max(0.0, left_s))} left"
        self._stream.write(f"\r\x1b[K{line}" if self._is_terminal else f"{line}\n")
        self._stream.flush()
        self._shown = self._is_terminal

    def done(self) -> None:
        """Free the line."""
        if self._shown:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
            self._shown = False
