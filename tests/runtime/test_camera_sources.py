"""Frames from every kind of source that needs no hardware, each through the real thing: files, sockets, libraries."""

import io
import sys
from itertools import islice
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any

import numpy as np
import pytest
from PIL import Image

from captionlite.benchmarks.mjpeg_server import MjpegServer
from captionlite.runtime.camera.choose import KINDS, choose
from captionlite.runtime.camera.folder import Folder
from captionlite.runtime.camera.http_stream import HttpStream
from captionlite.runtime.camera.source import Frame, Source, SourceError, Thin
from captionlite.runtime.camera.synthetic import SCENE_S, Synthetic, draw
from captionlite.runtime.camera.video import ImageIo, Library, OpenCv, Video
from captionlite.runtime.frames import THRESHOLD, distance, signature
from captionlite.runtime.image import open_upright

SIZE = (96, 64)
FPS = 20.0


def all_frames(source: Source, most: int = 1000) -> list[Frame]:
    """The first frames, between `open` and `close`."""
    source.open()
    try:
        return list(islice(source.frames(Event()), most))
    finally:
        source.close()


def jpegs(count: int) -> list[bytes]:
    found = []
    for number in range(count):
        buffer = io.BytesIO()
        Image.new("RGB", SIZE, (40 * number, 255 - 40 * number, 128)).save(buffer, "JPEG")
        found.append(buffer.getvalue())
    return found


# --- the synthetic camera


def test_the_synthetic_camera_is_the_same_every_time_and_changes_its_scene() -> None:
    assert np.array_equal(draw(7, FPS, SIZE), draw(7, FPS, SIZE))
    scene = round(SCENE_S * FPS)
    assert not np.array_equal(draw(0, FPS, SIZE), draw(1, FPS, SIZE))  # the ball moves
    assert distance(signature(draw(scene - 1, FPS, SIZE)), signature(draw(scene, FPS, SIZE))) > THRESHOLD
    frames = all_frames(Synthetic(SIZE, 1000.0, real_speed=False), 3)
    assert [frame.image.shape for frame in frames if isinstance(frame.image, np.ndarray)] == [(64, 96, 3)] * 3
    assert [frame.missed for frame in frames] == [0, 0, 0]
    assert frames[0].captured_s <= frames[1].captured_s <= monotonic()


def test_frames_nobody_fetched_in_time_are_left_out_and_counted() -> None:
    frames = Synthetic(SIZE, 100.0).frames(Event())
    first = next(frames)
    Event().wait(0.4)
    second = next(frames)
    assert first.missed == 0
    assert second.missed >= 10
    assert np.array_equal(second.image, draw(second.missed + 1, 100.0, SIZE))  # the newest, not the next


def test_stopping_ends_a_wait() -> None:
    stopped = Event()
    frames = Synthetic(SIZE, 0.01).frames(stopped)
    next(frames)
    rest: list[Frame] = []
    waiting = Thread(target=lambda: rest.extend(frames))
    waiting.start()
    stopped.set()
    waiting.join(10)
    assert not waiting.is_alive()
    assert rest == []


def test_thinning_keeps_the_pace_in_spite_of_jitter() -> None:
    thin = Thin(10)
    kept = [at for at in range(0, 3000, 33) if not thin.leaves_out((at + (at % 5)) / 1000)]  # 30 a second, jittering
    assert len(kept) == pytest.approx(30, abs=2)
    assert not any(Thin(None).leaves_out(0.0) for _ in range(3))


# --- folders


def test_a_folder_by_name(tmp_path: Path) -> None:
    for name in ("b.jpg", "a.png", "notes.txt", "c.JPG"):
        (tmp_path / name).write_bytes(b"x")
    source = choose(str(tmp_path), every_frame=True)
    assert not source.live
    frames = all_frames(source)
    assert [frame.name for frame in frames] == ["a.png", "b.jpg", "c.JPG"]
    assert frames[0].image == str(tmp_path / "a.png")
    looped = all_frames(Folder(str(tmp_path), loop=True, real_speed=False), 7)
    assert [frame.name for frame in looped][3:] == ["a.png", "b.jpg", "c.JPG", "a.png"]


def test_a_folder_without_photographs(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no image in this folder"):
        all_frames(choose(str(tmp_path)))
    with pytest.raises(SourceError, match="cannot list"):
        all_frames(Folder(str(tmp_path / "gone")))


# --- videos

COLOURS = ((220, 30, 30), (30, 200, 60), (40, 70, 220), (240, 240, 240))


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A second of four colours, five frames each, written with the library that reads it."""
    cv2 = pytest.importorskip("cv2", reason="pip install 'captionlite[camera]'")
    path = tmp_path_factory.mktemp("video") / "colours.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), FPS, SIZE)
    for number in range(20):
        writer.write(np.full((SIZE[1], SIZE[0], 3), COLOURS[number // 5][::-1], np.uint8))
    writer.release()
    return path


# imageio-ffmpeg leaves its pipes to the garbage collector, which says so.
left_to_the_collector = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


@pytest.fixture(params=["cv2", pytest.param("imageio_ffmpeg", marks=left_to_the_collector)])
def library(request: pytest.FixtureRequest) -> Library:
    module: Any = pytest.importorskip(request.param, reason="pip install 'captionlite[test]'")
    return OpenCv(module) if request.param == "cv2" else ImageIo(module)


def test_a_video_frame_by_frame(video: Path, library: Library) -> None:
    frames = all_frames(Video(str(video), library, real_speed=False))
    assert len(frames) == 20
    for number, frame in enumerate(frames):
        assert isinstance(frame.image, np.ndarray)
        assert frame.image.shape == (SIZE[1], SIZE[0], 3)
        assert np.abs(frame.image.mean(axis=(0, 1)) - COLOURS[number // 5]).max() < 12  # red is red, not blue


def test_a_video_at_real_speed(video: Path, library: Library) -> None:
    before_s, index = monotonic(), -1
    for frame in all_frames(Video(str(video), library)):
        index += 1 + frame.missed
        assert frame.captured_s >= before_s + index / FPS  # none before it is due, however busy the machine is
    assert 0 <= index < 20


def test_a_video_over_and_over_and_thinned(video: Path, library: Library) -> None:
    assert len(all_frames(Video(str(video), library, real_speed=False, loop=True), 50)) == 50
    assert len(all_frames(Video(str(video), library, fps=FPS / 2, real_speed=False))) == 10


def test_what_is_no_video(tmp_path: Path, library: Library) -> None:
    path = tmp_path / "no.mp4"
    path.write_bytes(b"no video at all" * 100)
    with pytest.raises(SourceError, match=r"no\.mp4: .* cannot read it"):
        all_frames(Video(str(path), library))
    with pytest.raises(SourceError, match="no such video"):
        all_frames(Video(str(tmp_path / "gone.mp4"), library))


def test_opencv_is_asked_first_and_missing_libraries_are_named(video: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert choose(str(video)).description.endswith("(OpenCV)")
    monkeypatch.setitem(sys.modules, "cv2", None)
    pytest.importorskip("imageio_ffmpeg")
    assert choose(str(video)).description.endswith("(imageio-ffmpeg)")
    assert choose("0").description == "camera /dev/video0 (imageio-ffmpeg)"
    with pytest.raises(SourceError, match="rtsp needs OpenCV"):
        choose("rtsp://127.0.0.1/live")
    monkeypatch.setitem(sys.modules, "imageio_ffmpeg", None)
    for argument in (str(video), "0", "/dev/video3", "rtsp://127.0.0.1/live"):
        with pytest.raises(SourceError, match=r"pip install 'captionlite\[camera\]'.*python3-opencv.*imageio-ffmpeg"):
            choose(argument)


def test_a_camera_that_is_not_there() -> None:
    pytest.importorskip("cv2", reason="pip install 'captionlite[camera]'")
    with pytest.raises(SourceError, match=r"There is no /dev/video987; cameras found: "):
        all_frames(choose("987"))
    with pytest.raises(SourceError, match="cannot be opened"):
        all_frames(choose("rtsp://user:secret@127.0.0.1:9/live"))
    assert (
        choose("rtsp://user:secret@127.0.0.1:9/live?token=x").description == "stream rtsp://127.0.0.1:9/live (OpenCV)"
    )


# --- the Raspberry Pi's camera: no such hardware here, so a module of the same face

PICAMERA = """
import time
import numpy as np

log = []

class Request:
    def make_array(self, name):
        assert name == "main"
        return np.full((48, 64, 3), (200, 20, 10), np.uint8)
    def get_metadata(self):
        return {"SensorTimestamp": int((time.monotonic() - 0.02) * 1e9)}
    def release(self):
        log.append("release")

class Picamera2:
    def __init__(self, camera_num=0):
        if camera_num > 0:
            raise IndexError("list index out of range")
        self.left = 2
    def create_video_configuration(self, main, controls):
        log.append((main["size"], main["format"], controls))
        return {}
    def configure(self, configuration): pass
    def start(self): log.append("start")
    def capture_request(self, wait):
        self.left -= 1
        if self.left < 0:
            raise TimeoutError()
        return Request()
    def stop(self): log.append("stop")
    def close(self): log.append("close")
"""


def test_the_pi_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "picamera2.py").write_text(PICAMERA)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "picamera2", raising=False)
    source = choose("auto", size=(64, 48), fps=10)
    assert source.description == "Raspberry Pi camera 0 (picamera2)"
    source.open()
    frames = source.frames(Event())
    found = [next(frames), next(frames)]
    with pytest.raises(SourceError, match="no frame within"):
        next(frames)
    source.close()
    source.close()
    assert all(monotonic() - frame.captured_s >= 0.02 for frame in found)  # when the sensor took it, not we
    assert isinstance(found[0].image, np.ndarray)
    log = sys.modules["picamera2"].log
    assert log == [((64, 48), "BGR888", {"FrameRate": 10}), "start", "release", "release", "stop", "close"]
    with pytest.raises(SourceError, match=r"camera 1 .*cannot be started"):
        choose("picamera2:1").open()


def test_a_pi_camera_without_picamera2_or_with_the_wrong_numpy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", None)
    with pytest.raises(SourceError, match=r"apt install python3-picamera2.*system-site-packages"):
        choose("picamera2")
    monkeypatch.delitem(sys.modules, "picamera2")
    (tmp_path / "picamera2.py").write_text("raise ValueError('numpy.dtype size changed, may indicate ...')")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(SourceError, match=r"pip install 'numpy<2'"):
        choose("picamera2")


# --- network cameras


@pytest.mark.parametrize("content_length", [True, False])
def test_an_mjpeg_stream(content_length: bool) -> None:
    pictures = jpegs(4)
    with MjpegServer(pictures, 100.0, content_length=content_length) as server:
        frames = all_frames(choose(server.url), 12)
    at = pictures.index(bytes(frames[0].image))  # type: ignore[arg-type]
    assert [frame.image for frame in frames] == [pictures[(at + n) % 4] for n in range(12)]


def test_snapshots_are_fetched_again_and_again() -> None:
    pictures = jpegs(4)
    with MjpegServer(pictures, 50.0) as server:
        frames = all_frames(HttpStream(server.url + "snapshot", fps=100), 5)
    assert {bytes(frame.image) for frame in frames} <= set(pictures)  # type: ignore[arg-type]


def test_a_stream_that_falls_silent_or_closes_is_lost() -> None:
    with MjpegServer(jpegs(2), 100.0) as server:
        source = HttpStream(server.url, frame_timeout_s=0.5)
        source.open()
        frames = source.frames(Event())
        next(frames)
        server.silent.set()
        with pytest.raises(SourceError, match="lost"):
            for _ in frames:
                pass
        source.close()
        server.silent.clear()
        source.open()
        frames = source.frames(Event())
        next(frames)
        server.stop()
        with pytest.raises(SourceError, match="lost"):
            for _ in frames:
                pass
        source.close()
        with pytest.raises(SourceError, match="no connection"):
            source.open()


def test_another_thread_can_interrupt_a_stream() -> None:
    with MjpegServer(jpegs(2), 100.0) as server:
        source = HttpStream(server.url)
        source.open()
        frames = source.frames(Event())
        next(frames)
        server.silent.set()
        ended = Event()

        def read() -> None:
            with pytest.raises(SourceError):
                list(frames)
            ended.set()

        reader = Thread(target=read)
        reader.start()
        source.interrupt()
        assert ended.wait(5)
        reader.join()
        source.close()
        source.interrupt()  # nothing to interrupt


@pytest.mark.parametrize(
    ("argument", "expected"),
    [
        ("nothing.mp4", "no such file or folder"),
        ("ftp://host/file", "not known"),
        ("http://", "no valid address"),
        ("http://host:99999/", "no valid address"),
        ("http://ho st/", "no valid address"),
        ("picamera2:x", "no such file"),
    ],
)
def test_what_is_no_source(argument: str, expected: str) -> None:
    with pytest.raises(SourceError, match=expected):
        choose(argument)


def test_a_photograph_is_no_video(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"x")
    with pytest.raises(SourceError, match="captionlite caption"):
        choose(str(tmp_path / "a.jpg"))


def test_no_camera_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "picamera2", None)
    monkeypatch.setattr("captionlite.runtime.camera.choose.find_spec", lambda name: None)
    monkeypatch.setattr("captionlite.runtime.camera.choose.os.path.exists", lambda path: False)
    with pytest.raises(SourceError, match="No camera found") as caught:
        choose("auto")
    assert KINDS in str(caught.value)


def test_every_kind_is_in_the_help() -> None:
    from captionlite.runtime.commands.camera import command

    for line in KINDS.splitlines():
        assert " ".join(line.split()) in " ".join((command.help or "").split())


def test_frames_are_what_pillow_shows(video: Path) -> None:
    (frame, *_) = all_frames(choose(str(video), every_frame=True), 1)
    assert open_upright(frame.image, 96).size == SIZE
