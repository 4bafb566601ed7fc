"""What every source of frames is, whether a camera, a file or an address."""

from collections.abc import Iterator
from dataclasses import dataclass
from threading import Event
from time import monotonic
from typing import Any, Protocol, TypeAlias

import numpy.typing as npt

from captionlite.runtime.errors import CaptionliteError

FrameImage: TypeAlias = "str | bytes | npt.NDArray[Any]"
"""Path or bytes of an image file, or uint8 (height, width, 3), red-green-blue: what `load_image` takes."""


class SourceError(CaptionliteError):
    """A source of frames that is not there, that refuses, or that was lost on the way."""


@dataclass(frozen=True)
class Frame:
    """A frame as its source hands it over; `number` and `session` are the capture thread's.

    `captured_s` is time.monotonic() when it was taken, `missed` how many the source left out just before it because
    nobody was there to fetch them. `number` counts from 1, those left out included; `session` counts how often the
    source was opened.
    """

    image: FrameImage
    captured_s: float
    missed: int = 0
    name: str = ""
    number: int = 0
    session: int = 0


class Source(Protocol):
    """Frames, one after another. All but `interrupt` is called by one thread, the capture thread."""

    description: str
    """What it is in a few words, such as "USB camera 0 (OpenCV)"."""
    live: bool
    """Whether its end is a loss: a camera never ends, a file or folder does."""

    def open(self) -> None:
        """Raises SourceError. May be called again after `close`."""

    def frames(self, stopped: Event) -> Iterator[Frame]:
        """Frames until the end or until `stopped`. Raises SourceError when the source is lost."""

    def close(self) -> None:
        """Let go of the device, file or connection; does nothing when it is not open."""

    def interrupt(self) -> None:
        """From another thread: have `frames` return soon, if it may be waiting for long."""


class Pace:
    """When the frames of a recording are due: they come as they would from a camera."""

    LATE_S = 0.1

    def __init__(self, stopped: Event) -> None:
        self._stopped = stopped
        self._started_s = monotonic()

    def late(self, due_s: float) -> bool:
        """Whether a frame that was due so many seconds after the beginning is better left out."""
        return monotonic() - self._started_s > due_s + self.LATE_S

    def wait(self, due_s: float) -> bool:
        """Wait until then. False when stopped meanwhile."""
        return not self._stopped.wait(max(0.0, self._started_s + due_s - monotonic()))


class Thin:
    """Leaves frames out where a source delivers more than `fps` a second; nothing is left out when that is None."""

    def __init__(self, fps: float | None) -> None:
        self._gap_s = 1 / fps if fps else 0.0
        self._due_s: float | None = None

    def leaves_out(self, at_s: float) -> bool:
        """Whether to leave out the frame of this moment; by the same clock each time."""
        if self._due_s is None:
            self._due_s = at_s
        if at_s < self._due_s - self._gap_s / 10:  # what only jitters is in time
            return True
        self._due_s = max(self._due_s, at_s - self._gap_s) + self._gap_s
        return False


def missing(what: str, *ways: str) -> SourceError:
    """What to raise when a library that a source needs is not installed."""
    return SourceError(f"{what}. Install one: {'; or '.join(ways)}." if len(ways) > 1 else f"{what}. Run: {ways[0]}")
