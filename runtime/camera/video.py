"""A video file at its own speed, through OpenCV or, where that is missing, imageio-ffmpeg.

A recording plays as a camera would see it: a frame comes when it is due, and one that is long overdue is left out.
"""

import os
from collections.abc import Iterator
from threading import Event
from time import monotonic
from typing import Any, Protocol

import numpy.typing as npt

from captionlite.runtime.camera.source import Frame, Pace, SourceError, Thin, missing

GUESSED_FPS = 25.0


class Reader(Protocol):
    """One pass over a file."""

    fps: float

    def skip(self) -> bool:
        """Go to the next frame. False at the end."""

    def image(self) -> npt.NDArray[Any]:
        """The frame gone to, uint8 (height, width, 3), red-green-blue."""

    def close(self) -> None:
        """Close the file."""


class Video:
    """A file or, through imageio, a camera of ffmpeg's; `live` says which."""

    def __init__(
        self,
        path: str,
        library: "Library",
        fps: float | None = None,
        *,
        loop: bool = False,
        real_speed: bool = True,
        live: bool = False,
    ) -> None:
        """`fps`: so many frames a second at the most."""
        self.description = f"{'camera' if live else 'video'} {path} ({library.name})"
        self.live = live
        self._path, self._library, self._fps = path, library, fps
        self._loop, self._real_speed = loop, real_speed
        self._reader: Reader | None = None

    def open(self) -> None:
        """Raises SourceError for what is no video."""
        if not self.live and not os.path.isfile(self._path):
            raise SourceError(f"{self._path}: no such video.")
        self._reader = self._library.open(self._path)

    def frames(self, stopped: Event) -> Iterator[Frame]:
        """Frames when they are due, to the end or over and over. Raises SourceError for a video without a frame."""
        while not stopped.is_set():
            any_frame = False
            for frame in self._once(stopped):
                any_frame = True
                yield frame
            if stopped.is_set():
                return
            if not any_frame:
                raise SourceError(f"{self.description}: no frame in it could be read. Is the file whole?")
            if not self._loop or self.live:
                return
            self.close()
            self.open()

    def _once(self, stopped: Event) -> Iterator[Frame]:
        assert self._reader is not None
        pace, thin = Pace(stopped), Thin(self._fps)
        index = missed = 0
        while not stopped.is_set() and self._reader.skip():
            due_s = index / self._reader.fps
            index += 1
            if thin.leaves_out(due_s):
                continue
            if self._real_speed and not self.live:
                if index > 1 and pace.late(due_s):
                    missed += 1
                    continue
                image = self._reader.image()  # before waiting: decoding is not part of the frame's age
                if not pace.wait(due_s):
                    return
            else:
                image = self._reader.image()
            yield Frame(image, monotonic(), missed)
            missed = 0

    def close(self) -> None:
        """Close the file."""
        reader, self._reader = self._reader, None
        if reader is not None:
            reader.close()

    def interrupt(self) -> None:
        """`stopped` is enough."""


class Library(Protocol):
    """Something that reads videos."""

    name: str

    def open(self, path: str) -> Reader:
        """Raises SourceError."""


class OpenCv:
    """Videos through OpenCV's ffmpeg."""

    name = "OpenCV"

    def __init__(self, cv2: Any) -> None:
        self.cv2 = cv2

    def open(self, path: str) -> Reader:
        return _OpenCvReader(self.cv2, path)


class _OpenCvReader:
    def __init__(self, cv2: Any, path: str) -> None:
        self._cv2, self._path = cv2, path
        self._capture = cv2.VideoCapture(path)
        if not self._capture.isOpened():
            raise SourceError(f"{path}: OpenCV cannot read it. Expected a video file such as .mp4, .avi, .mkv.")
        fps = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = fps if 0 < fps <= 1000 else GUESSED_FPS

    def skip(self) -> bool:
        return bool(self._capture.grab())

    def image(self) -> npt.NDArray[Any]:
        good, image = self._capture.retrieve()
        if not good:
            raise SourceError(f"{self._path}: OpenCV found a frame that it cannot decode. Is the file whole?")
        rgb: npt.NDArray[Any] = self._cv2.cvtColor(image, self._cv2.COLOR_BGR2RGB)
        return rgb

    def close(self) -> None:
        self._capture.release()


class ImageIo:
    """Videos, and cameras named `<video0>`, through imageio-ffmpeg, an ffmpeg in a package of its own."""

    name = "imageio-ffmpeg"

    def __init__(self, imageio_ffmpeg: Any) -> None:
        self._ffmpeg = imageio_ffmpeg

    def open(self, path: str) -> Reader:
        return _ImageIoReader(self._ffmpeg, path)


class _ImageIoReader:
    def __init__(self, ffmpeg: Any, path: str) -> None:
        import numpy as np

        self._np = np
        device = path.startswith("/dev/")
        try:
            self._frames = ffmpeg.read_frames(path, input_params=["-f", "v4l2"] if device else None)
            meta = next(self._frames)
        except Exception as error:  # it raises OSError, RuntimeError, StopIteration and more, with ffmpeg's whole log
            reason = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            raise SourceError(f"{path}: imageio-ffmpeg cannot read it ({reason[0].strip()[:200]}).") from None
        self._size = meta["size"]
        self.fps = meta["fps"] if 0 < meta["fps"] <= 1000 else GUESSED_FPS
        self._bytes = b""

    def skip(self) -> bool:
        self._bytes = next(self._frames, b"")
        return bool(self._bytes)

    def image(self) -> npt.NDArray[Any]:
        width, height = self._size
        image: npt.NDArray[Any] = self._np.frombuffer(self._bytes, self._np.uint8).reshape(height, width, 3)
        return image

    def close(self) -> None:
        self._frames.close()


def find_library() -> Library:
    """OpenCV where it is installed, else imageio-ffmpeg. Raises SourceError with the `pip install` to run."""
    from captionlite.runtime.camera.opencv import import_opencv

    try:
        return OpenCv(import_opencv())
    except ImportError as no_opencv:
        try:
            import imageio_ffmpeg
        except ImportError:
            raise missing(
                f"USB cameras, video files and rtsp need OpenCV ({no_opencv})",
                "`pip install 'captionlite[camera]'`",
                "`sudo apt install python3-opencv` where the environment sees the system's packages",
                "`pip install imageio-ffmpeg` (no rtsp)",
            ) from None
        return ImageIo(imageio_ffmpeg)
