"""What one service may take: every bound in one place, and the memory that follows from them."""

from dataclasses import dataclass

from captionlite.runtime.errors import OptionsError
from captionlite.runtime.image import MAX_PIXELS
from captionlite.runtime.interpreter import core_count

MB = 10**6

ENVELOPE = 64 * 1024
"""Bytes that a multipart or JSON body may have beside the photograph itself."""

ONE_AT_A_TIME_PIXELS = 4_000_000
"""Photographs of more pixels are decoded by one worker at a time, so that memory is needed for one of them only."""

BYTES_PER_PIXEL = 25
"""What a photograph takes while it is decoded, at most: measured, JPEG 3 to 8, PNG 13 to 20, WebP and JPEG 2000 24."""

MAX_WORKERS = 64


@dataclass(frozen=True)
class Limits:
    """Bounds of a service; sizes in bytes and pixels, times in seconds. Raises OptionsError for what makes no sense.

    - `workers` captioners side by side, and up to `queue` requests that wait for one; more are answered 503.
    - `upload_bytes`: the photograph, as a file. `held_bytes`: all bodies together that are in memory at a time.
    - `pixels`: the photograph, decoded; at most what `load_image` takes.
    - `timeout_s`: from the whole body to the answer. `read_timeout_s`: for a request's header, and for its body.
    - `connections` at a time. `grace_s`: how long a stop waits for what is being worked on.
    """

    workers: int
    queue: int = 16
    upload_bytes: int = 10 * MB
    pixels: int = 25 * MB
    timeout_s: float = 30.0
    read_timeout_s: float = 20.0
    connections: int = 64
    grace_s: float = 20.0

    def __post_init__(self) -> None:
        self._check("workers", self.workers, 1, MAX_WORKERS)
        self._check("queue", self.queue, 0, 10_000)
        self._check("upload_bytes", self.upload_bytes, 1000, 1000 * MB)
        self._check("pixels", self.pixels, 1, MAX_PIXELS)
        self._check("timeout_s", self.timeout_s, 0.01, 3600)
        self._check("read_timeout_s", self.read_timeout_s, 0.01, 3600)
        self._check("connections", self.connections, 1, 100_000)
        self._check("grace_s", self.grace_s, 0, 3600)

    @property
    def body_bytes(self) -> int:
        """The longest body: base64 makes a photograph a third longer."""
        return self.upload_bytes * 4 // 3 + ENVELOPE

    @property
    def held_bytes(self) -> int:
        """Bodies in memory at a time: as much as the largest for every worker and two that wait, or many small ones."""
        return (self.workers + 2) * self.body_bytes

    @property
    def memory_bytes(self) -> int:
        """What the service should not exceed at its worst, generously: the unit's MemoryMax."""
        base, worker = 160 * MB, 50 * MB
        small = self.workers * min(self.pixels, ONE_AT_A_TIME_PIXELS) * BYTES_PER_PIXEL
        parsed = 2 * self.workers * self.body_bytes  # the text of a JSON body, and the photograph in it
        return base + self.workers * worker + self.held_bytes + parsed + small + self.pixels * BYTES_PER_PIXEL

    @staticmethod
    def _check(name: str, value: float, least: float, most: float) -> None:
        if not least <= value <= most:
            raise OptionsError(f"{name} is {value:g}, expected {least:g} to {most:g}.")


def default_workers() -> int:
    """A worker a core, up to four, each with one thread: photographs side by side do more than one on all cores.

    Python itself runs one thread at a time, so beyond a few workers only memory grows.
    """
    return min(core_count(), 4)
