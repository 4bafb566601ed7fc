"""A folder of photographs as if a camera took them, in the order of their names."""

import os
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from time import monotonic

from captionlite.runtime.camera.source import Frame, Pace, SourceError

DEFAULT_FPS = 1.0


class Folder:
    """Photographs by name, `fps` a second, once or over and over. What cannot be read, the watcher reports."""

    live = False

    def __init__(self, path: str, fps: float | None = None, *, loop: bool = False, real_speed: bool = True) -> None:
        self.description = f"folder {path}"
        self._path, self._fps, self._loop, self._real_speed = path, fps or DEFAULT_FPS, loop, real_speed
        self._names: list[str] = []

    def open(self) -> None:
        """List the photographs. Raises SourceError when there is none."""
        from captionlite.runtime.commands.photographs import IMAGE_SUFFIXES

        try:
            found = os.listdir(self._path)
        except OSError as error:
            raise SourceError(f"{self._path}: cannot list this folder ({error.strerror}). Check the path.") from None
        self._names = sorted(name for name in found if Path(name).suffix.lower() in IMAGE_SUFFIXES)
        if not self._names:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            raise SourceError(f"{self._path}: no image in this folder. Expected files ending in one of {suffixes}.")

    def frames(self, stopped: Event) -> Iterator[Frame]:
        """The path of each photograph when its time has come."""
        pace = Pace(stopped)
        shown = 0
        while not stopped.is_set():
            for name in self._names:
                if self._real_speed and not pace.wait(shown / self._fps):
                    return
                shown += 1
                yield Frame(os.path.join(self._path, name), monotonic(), name=name)
                if stopped.is_set():
                    return
            if not self._loop:
                return

    def close(self) -> None:
        """Nothing is kept open."""

    def interrupt(self) -> None:
        """`stopped` is enough."""
