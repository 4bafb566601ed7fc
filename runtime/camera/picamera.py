"""The Raspberry Pi's camera through picamera2, which comes with Raspberry Pi OS (apt, not pip)."""

import logging
import os
from collections.abc import Iterator
from contextlib import suppress
from threading import Event
from time import monotonic
from typing import Any

from captionlite.runtime.camera.source import Frame, SourceError

FRAME_TIMEOUT_S = 5.0
HOW = (
    "Install it with `sudo apt install python3-picamera2`, and run captionlite in an environment that sees it: "
    "`python3 -m venv --system-site-packages ENV`."
)


class PiCamera:
    """Red-green-blue arrays of the main stream, exposed as the camera likes."""

    live = True

    def __init__(self, camera: int, size: tuple[int, int], fps: float | None = None) -> None:
        """`size`: width and height in pixels. Raises SourceError when picamera2 is not installed, or broken."""
        self.description = f"Raspberry Pi camera {camera} (picamera2)"
        self._number, self._size, self._fps = camera, size, fps
        self._camera: Any = None
        os.environ.setdefault("LIBCAMERA_LOG_LEVELS", "*:ERROR")  # its INFO lines would stand between the captions
        try:
            from picamera2 import Picamera2
        except ImportError as error:
            raise SourceError(f"The Raspberry Pi's camera needs picamera2 ({error}). {HOW}") from None
        except ValueError as error:  # "numpy.dtype size changed": its compiled parts are for the NumPy of the system
            raise SourceError(
                f"picamera2 does not load here ({error}). Raspberry Pi OS 12 (bookworm) built it for NumPy 1: run "
                f"`pip install 'numpy<2'` in this environment."
            ) from None
        logging.getLogger("picamera2").setLevel(logging.WARNING)
        self._open_camera = Picamera2

    def open(self) -> None:
        """Configure and start the camera. Raises SourceError when it is not there, or in use."""
        controls = {"FrameRate": self._fps} if self._fps else {}
        try:
            self._camera = self._open_camera(self._number)
            # libcamera names formats as words in memory, little-endian: BGR888 is red, green, blue byte by byte.
            main = {"size": self._size, "format": "BGR888"}
            self._camera.configure(self._camera.create_video_configuration(main=main, controls=controls))
            self._camera.start()
        except Exception as error:  # picamera2 raises IndexError, RuntimeError and libcamera's own
            raise SourceError(
                f"{self.description}: cannot be started ({error or type(error).__name__}). Is it connected, and does "
                f"`rpicam-hello --list-cameras` show it? No other program may use it."
            ) from None

    def frames(self, stopped: Event) -> Iterator[Frame]:
        """The latest frame each time. Raises SourceError when none comes."""
        while not stopped.is_set():
            try:
                request = self._camera.capture_request(wait=FRAME_TIMEOUT_S)
                try:
                    image, metadata = request.make_array("main"), request.get_metadata()
                finally:
                    request.release()
            except Exception as error:
                raise SourceError(
                    f"{self.description}: no frame within {FRAME_TIMEOUT_S:g} s ({error or type(error).__name__})."
                ) from None
            yield Frame(image, _captured_s(metadata))

    def close(self) -> None:
        """Stop the camera and free it for others."""
        camera, self._camera = self._camera, None
        if camera is not None:
            for end in (camera.stop, camera.close):
                with suppress(Exception):  # of a camera that was lost
                    end()

    def interrupt(self) -> None:
        """A frame comes, or the wait for it ends."""


def _captured_s(metadata: dict[str, Any]) -> float:
    """When the sensor took the frame, where it tells: nanoseconds of the clock that time.monotonic() reads."""
    now_s = monotonic()
    stamp_s = metadata.get("SensorTimestamp", 0) / 1e9
    return stamp_s if 0 <= now_s - stamp_s < FRAME_TIMEOUT_S else now_s
