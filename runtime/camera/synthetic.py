"""A camera that needs no camera: a drawn scene in which something moves, and another scene every few seconds.

Frame n is the same picture on every machine with the same Pillow and size.
"""

from collections.abc import Iterator
from threading import Event
from time import monotonic
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from captionlite.runtime.camera.source import Frame, Pace

DEFAULT_FPS = 15.0
SCENE_S = 3.0


class Synthetic:
    """Drawn frames (height, width, 3), `fps` a second, or as fast as they are fetched when not at real speed."""

    live = True

    def __init__(self, size: tuple[int, int], fps: float | None = None, *, real_speed: bool = True) -> None:
        """`size`: width and height in pixels."""
        self.description = "synthetic camera"
        self._size, self._fps, self._real_speed = size, fps or DEFAULT_FPS, real_speed

    def open(self) -> None:
        """Nothing to open."""

    def frames(self, stopped: Event) -> Iterator[Frame]:
        """Frames for ever; those that were due while nobody fetched them are left out."""
        pace = Pace(stopped)
        index = missed = 0
        while not stopped.is_set():
            if self._real_speed and pace.late(index / self._fps):
                missed += 1
            elif self._real_speed and not pace.wait(index / self._fps):
                return
            else:
                yield Frame(draw(index, self._fps, self._size), monotonic(), missed)
                missed = 0
            index += 1

    def close(self) -> None:
        """Nothing to close."""

    def interrupt(self) -> None:
        """`stopped` is enough."""


def draw(index: int, fps: float, size: tuple[int, int]) -> npt.NDArray[np.uint8]:
    """Frame number `index`, uint8 (height, width, 3): sky, ground, some boxes, and a ball that crosses the scene."""
    width, height = size
    scene, into_s = divmod(index / fps, SCENE_S)
    random = np.random.default_rng(int(scene))

    def colour() -> tuple[int, int, int]:
        red, green, blue = (int(value) for value in random.integers(30, 226, 3))
        return red, green, blue

    image = Image.new("RGB", size, colour())
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, height * float(random.uniform(0.5, 0.8)), width, height), fill=colour())
    for _ in range(5):
        x, y = float(random.uniform(0, 0.8)) * width, float(random.uniform(0.1, 0.7)) * height
        wide, high = float(random.uniform(0.05, 0.25)) * width, float(random.uniform(0.1, 0.3)) * height
        pen.rectangle((x, y, x + wide, y + high), fill=colour())
    radius = height / 10
    x, y = width * into_s / SCENE_S, height * 0.6
    pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=colour())
    pixels: npt.NDArray[Any] = np.asarray(image)
    return pixels
