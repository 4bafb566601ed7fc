"""Cameras and network streams through OpenCV, where it is installed: `pip install 'captionlite[camera]'`."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

from captionlite.runtime.camera.source import Frame, SourceError, Thin

TIMEOUT_MS = 5000
IN_A_ROW = 3
"""Reads that may fail one after another before the camera is taken for lost: a damaged frame is no unplugged cable."""


def import_opencv() -> Any:
    """The module cv2, quiet. Raises ImportError when it is not installed."""
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")  # what goes wrong is told by captionlite, once
    os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")
    import cv2

    return cv2


class OpenCvCamera:
    """A USB or V4L2 camera by number or device file, or an rtsp:// address; frames red-green-blue."""

    live = True

    def __init__(self, camera: int | str, size: tuple[int, int] | None, fps: float | None, cv2: Any) -> None:
        """`size` and `fps` are asked of a camera, which may choose others; a stream has its own."""
        self._where, self._size, self._fps, self._cv2 = camera, size, fps, cv2
        self._is_stream = isinstance(camera, str) and "://" in camera
        shown = _without_password(camera) if self._is_stream else camera
        self.description = f"{'stream' if self._is_stream else 'camera'} {shown} (OpenCV)"
        self._capture: Any = None

    def open(self) -> None:
        """Raises SourceError when there is no camera, or another program has it."""
        cv2 = self._cv2
        if self._is_stream:
            limits = [cv2.CAP_PROP_OPEN_TIMEOUT_MSEC, TIMEOUT_MS, cv2.CAP_PROP_READ_TIMEOUT_MSEC, TIMEOUT_MS]
            self._capture = cv2.VideoCapture(self._where, cv2.CAP_FFMPEG, limits)
        else:
            backend = cv2.CAP_V4L2 if sys.platform == "linux" else cv2.CAP_ANY
            self._capture = cv2.VideoCapture(self._where, backend)
            self._capture.set(cv2.CAP_PROP_BUFFERSIZE, 1)
            if self._size:
                self._capture.set(cv2.CAP_PROP_FRAME_WIDTH, self._size[0])
                self._capture.set(cv2.CAP_PROP_FRAME_HEIGHT, self._size[1])
            if self._fps:
                self._capture.set(cv2.CAP_PROP_FPS, self._fps)
        if not self._capture.isOpened():
            self.close()
            raise SourceError(f"{self.description}: cannot be opened. {self._advice()}")

    def frames(self, stopped: Event) -> Iterator[Frame]:
        """Frames as they come. Raises SourceError when reading fails several times in a row."""
        failed, thin = 0, Thin(self._fps)
        while not stopped.is_set():
            try:
                good, image = self._capture.read()
                now_s = monotonic()
                if good and not thin.leaves_out(now_s):
                    yield Frame(self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB), now_s)
            except self._cv2.error as error:
                raise SourceError(f"{self.description}: lost ({str(error).strip()[:200]}).") from None
            if good:
                failed = 0
                continue
            failed += 1
            if failed == IN_A_ROW:
                raise SourceError(f"{self.description}: lost, it gives no frame.")
            stopped.wait(0.05)

    def close(self) -> None:
        """Free the device."""
        capture, self._capture = self._capture, None
        if capture is not None:
            capture.release()

    def interrupt(self) -> None:
        """OpenCV cannot be interrupted from outside; a read ends by its own time limit."""

    def _advice(self) -> str:
        if self._is_stream:
            return "Check the address and that the camera is on."
        device = f"/dev/video{self._where}" if isinstance(self._where, int) else self._where
        if not os.path.exists(device):
            there = ", ".join(sorted(str(path) for path in Path("/dev").glob("video*"))) or "none"
            return f"There is no {device}; cameras found: {there}. Is it plugged in?"
        if not os.access(device, os.R_OK | os.W_OK):
            return f"{device} may not be read by this user: `sudo usermod -aG video $USER`, then log in again."
        return "It is no camera that captures, or another program uses it."


def _without_password(url: Any) -> str:
    scheme, _, rest = str(url).partition("://")
    host, slash, path = rest.partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path.partition('?')[0]}"
