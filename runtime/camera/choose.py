"""What the SOURCE argument means."""

import os
from importlib.util import find_spec
from pathlib import Path

from captionlite.runtime.camera.source import Source, SourceError

DEFAULT_SIZE = (640, 480)

KINDS = """\
auto                  the Raspberry Pi's camera where picamera2 is installed, else /dev/video0
picamera2[:N]         the Raspberry Pi's camera (apt install python3-picamera2)
0, 1, /dev/video0     a USB or V4L2 camera (pip install 'captionlite[camera]')
http://HOST/PATH      an MJPEG stream, or a snapshot fetched again and again; https too
rtsp://HOST/PATH      a network camera (pip install 'captionlite[camera]')
FILE.mp4              a video, at its own speed (pip install 'captionlite[camera]')
FOLDER                its photographs by name
synthetic             drawn scenes, to try without a camera"""


def choose(
    argument: str,
    *,
    size: tuple[int, int] | None = None,
    fps: float | None = None,
    loop: bool = False,
    every_frame: bool = False,
) -> Source:
    """The source that an argument names; see KINDS. Nothing is opened yet.

    `size` is asked of cameras; `fps` is so many frames a second at the most, and the pace of folders, snapshots and the
    synthetic camera. `loop` and `every_frame` are for recordings.
    Raises SourceError for what means nothing, and for a library that is not installed.
    """
    size = size or DEFAULT_SIZE
    real_speed = not every_frame
    if argument == "auto":
        argument = _found_camera()
    if argument == "synthetic":
        from captionlite.runtime.camera.synthetic import Synthetic

        return Synthetic(size, fps, real_speed=real_speed)
    name, _, number = argument.partition(":")
    if name == "picamera2" and (number.isdecimal() or not number):
        from captionlite.runtime.camera.picamera import PiCamera

        return PiCamera(int(number or 0), size, fps)
    if "://" in argument:
        return _stream(argument, fps)
    if argument.isdecimal() or argument.startswith("/dev/"):
        return _device(int(argument) if argument.isdecimal() else argument, size, fps)
    if os.path.isdir(argument):
        from captionlite.runtime.camera.folder import Folder

        return Folder(argument, fps, loop=loop, real_speed=real_speed)
    if os.path.isfile(argument):
        return _video(argument, fps, loop=loop, real_speed=real_speed)
    raise SourceError(f"{argument}: no such file or folder, and no other source. A source is one of:\n{KINDS}")


def _found_camera() -> str:
    if find_spec("picamera2"):
        return "picamera2"
    if os.path.exists("/dev/video0"):
        return "/dev/video0"
    raise SourceError(
        "No camera found: picamera2 is not installed here (`sudo apt install python3-picamera2`) and there is no "
        f"/dev/video0. Name a source:\n{KINDS}"
    )


def _stream(url: str, fps: float | None) -> Source:
    scheme = url.partition("://")[0].lower()
    if scheme in ("http", "https"):
        from captionlite.runtime.camera.http_stream import HttpStream

        return HttpStream(url, fps)
    if scheme in ("rtsp", "rtsps"):
        from captionlite.runtime.camera.opencv import OpenCvCamera
        from captionlite.runtime.camera.video import OpenCv, find_library

        library = find_library()
        if isinstance(library, OpenCv):
            return OpenCvCamera(url, None, fps, library.cv2)
        raise SourceError("rtsp needs OpenCV, not imageio-ffmpeg. Run: `pip install 'captionlite[camera]'`")
    raise SourceError(f"{scheme}://: this kind of address is not known. A source is one of:\n{KINDS}")


def _device(camera: int | str, size: tuple[int, int], fps: float | None) -> Source:
    from captionlite.runtime.camera.opencv import OpenCvCamera
    from captionlite.runtime.camera.video import OpenCv, Video, find_library

    library = find_library()
    if isinstance(library, OpenCv):
        return OpenCvCamera(camera, size, fps, library.cv2)
    return Video(f"/dev/video{camera}" if isinstance(camera, int) else camera, library, fps, live=True)


def _video(path: str, fps: float | None, *, loop: bool, real_speed: bool) -> Source:
    from captionlite.runtime.camera.video import Video, find_library
    from captionlite.runtime.commands.photographs import IMAGE_SUFFIXES

    if Path(path).suffix.lower() in IMAGE_SUFFIXES - {".gif"}:
        raise SourceError(f"{path}: a photograph, not a video. Use `captionlite caption`, or name its folder.")
    return Video(path, find_library(), fps, loop=loop, real_speed=real_speed)
