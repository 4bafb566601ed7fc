"""Captions spoken by a program and drawn on a picture that an HTTP client fetches: real processes and sockets."""

import http.client
import io
import json
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from threading import Event
from time import monotonic

import numpy as np
import pytest
from PIL import Image, ImageGrab, features

from captionlite.runtime.camera import overlay_http, speech
from captionlite.runtime.camera.address import is_loopback, parse_address
from captionlite.runtime.camera.http_stream import HttpStream
from captionlite.runtime.camera.overlay import Overlay, draw
from captionlite.runtime.camera.overlay_http import MOST_CLIENTS, OverlayServer
from captionlite.runtime.camera.overlay_window import OverlayWindow
from captionlite.runtime.camera.source import Frame, SourceError
from captionlite.runtime.camera.speech import Speaker
from captionlite.runtime.camera.watcher import Told
from captionlite.runtime.decoding import Caption

GREY = np.full((120, 160, 3), 128, np.uint8)


def told(text: str, *, changed: bool = True, sure: bool = True) -> Told:
    caption = Caption(text, (), (), 0.0, {}, "end", None)
    return Told(Frame(GREY, monotonic()), caption, 1.0, changed, sure)


def until(true: Callable[[], bool]) -> None:
    give_up_s = monotonic() + 20
    while not true():
        assert monotonic() < give_up_s
        Event().wait(0.005)


# --- speech


@pytest.fixture
def espeak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name, first on the PATH: it notes its arguments and what it is to say.

    Said "wait", it goes on when there is a file named go, and notes when it was ended instead.
    """
    folder = tmp_path / "bin"
    folder.mkdir()
    program = folder / "espeak-ng"
    program.write_text(
        f"""#!{sys.executable}
import json, os, signal, sys, time
folder = os.path.dirname(os.path.abspath(__file__))
def note(what):
    with open(os.path.join(folder, "said"), "a") as file:
        file.write(json.dumps(what) + "\\n")
text = sys.stdin.read()
def ended(number, frame):
    note("ended")
    os._exit(1)
signal.signal(signal.SIGTERM, ended)
note([sys.argv[1:], text])
while text == "wait" and not os.path.exists(os.path.join(folder, "go")):
    time.sleep(0.01)
if text == "fail":
    sys.exit("no sound device")
if text == "mute":
    print("ALSA lib: cannot find card\\nerror: No such file or directory", file=sys.stderr)
"""
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return folder


def said(folder: Path) -> list[object]:
    path = folder / "said"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def test_captions_are_spoken_through_stdin(espeak: Path) -> None:
    nasty = "-w /tmp/x; $(reboot) `reboot` 'é"
    with Speaker(print, "en-gb") as speaker:
        speaker.tell(told("not said", changed=False))
        speaker.tell(told(nasty))
        until(lambda: len(said(espeak)) == 1)
        speaker.finish(lambda: False)
    assert said(espeak) == [[["-v", "en-gb", "--stdin"], nasty]]


def test_the_newest_caption_wins_and_there_is_no_backlog(espeak: Path) -> None:
    with Speaker(print) as speaker:
        speaker.tell(told("wait"))
        until(lambda: len(said(espeak)) == 1)
        for text in ("second", "third", "fourth"):
            speaker.tell(told(text))
        speaker.finish(lambda: True)  # stopped: not waited for
        (espeak / "go").touch()
        speaker.finish(lambda: False)
    assert [text for _, text in said(espeak)] == ["wait", "fourth"]  # type: ignore[misc]


def test_the_end_cuts_off_what_is_being_said(espeak: Path) -> None:
    lines: list[str] = []
    with Speaker(lines.append) as speaker:
        speaker.tell(told("wait"))
        until(lambda: len(said(espeak)) == 1)
        speaker.tell(told("never said"))
    assert said(espeak) == [[["--stdin"], "wait"], "ended"]
    assert lines == []


@pytest.mark.parametrize(
    ("text", "expected"), [("fail", "exit code 1: no sound device"), ("mute", "(error: No such file or directory)")]
)
def test_a_speaker_that_fails_is_mentioned_once_and_captions_go_on(espeak: Path, text: str, expected: str) -> None:
    lines: list[str] = []
    with Speaker(lines.append) as speaker:
        for number in range(3):
            speaker.tell(told(text))
            until(lambda n=number: len(said(espeak)) == n + 1)
            speaker.finish(lambda: False)
    assert len(lines) == 1
    assert expected in lines[0]


def test_a_speaker_that_hangs_is_ended(espeak: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "LONGEST_S", 0.3)
    lines: list[str] = []
    with Speaker(lines.append) as speaker:
        speaker.tell(told("wait"))
        until(lambda: bool(lines))
    assert "more than 0.3 s" in lines[0]


def test_no_espeak(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SourceError, match="sudo apt install espeak-ng"):
        Speaker(print)
    other = tmp_path / "espeak"
    other.write_text("#!/bin/sh\n")
    other.chmod(0o755)
    with Speaker(print):
        pass


# --- the picture


def test_the_caption_is_drawn_at_the_foot() -> None:
    plain, captioned = (np.asarray(Image.open(io.BytesIO(draw(GREY, text)))) for text in ("", "a dog runs"))
    assert plain.shape == GREY.shape
    assert np.abs(plain.astype(int) - 128).max() < 4
    changed = np.abs(captioned.astype(int) - plain).max(axis=(1, 2)) > 20
    assert not changed[:90].any()  # the picture itself is left alone
    assert changed[-5:].all()
    assert captioned.max() > 200  # white letters


def test_a_long_caption_is_wrapped_and_a_large_frame_shrunk() -> None:
    shown = Image.open(io.BytesIO(draw(np.zeros((1500, 2000, 3), np.uint8), "word " * 60)))
    assert shown.size == (960, 720)
    Image.open(io.BytesIO(draw(np.zeros((20, 16, 3), np.uint8), "incomprehensibilities of it"))).load()


@pytest.fixture
def served() -> Iterator[tuple[Overlay, OverlayServer]]:
    overlay = Overlay()
    with OverlayServer(overlay, "127.0.0.1", 0) as server, overlay:
        yield overlay, server


def get(server: OverlayServer, path: str, **headers: str) -> tuple[int, str, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    try:
        connection.request("GET", path, headers=headers)
        response = connection.getresponse()
        return response.status, response.headers.get("Content-Type", ""), response.read()
    finally:
        connection.close()


def test_a_browser_finds_a_page_and_a_picture(served: tuple[Overlay, OverlayServer]) -> None:
    overlay, server = served
    overlay.show(Frame(GREY, monotonic()))
    status, kind, page = get(server, "/")
    assert (status, kind) == (200, "text/html; charset=utf-8")
    assert b'<img src="stream"' in page
    status, kind, picture = get(server, "/frame.jpg")
    assert (status, kind) == (200, "image/jpeg")
    assert Image.open(io.BytesIO(picture)).size == (160, 120)
    assert get(server, "/../etc/passwd")[0] == 404
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request("POST", "/")
    assert connection.getresponse().status == 501
    connection.close()


def test_the_stream_is_one_that_the_camera_command_itself_reads(served: tuple[Overlay, OverlayServer]) -> None:
    overlay, server = served
    source = HttpStream(server.url + "stream")
    overlay.show(Frame(GREY, monotonic()))
    source.open()
    frames = source.frames(Event())
    first = next(frames)
    overlay.tell(told("a red dog runs"))  # drawn without another frame from the camera
    second = next(frames)
    pixels = [np.asarray(Image.open(io.BytesIO(bytes(one.image)))) for one in (first, second)]  # type: ignore[arg-type]
    assert pixels[0][-3:].min() > 100
    assert pixels[1][-3:].min() < 100
    overlay.tell(told("perhaps a dog", sure=False))
    assert np.asarray(Image.open(io.BytesIO(bytes(next(frames).image))))[-3:].min() > 100  # type: ignore[arg-type]
    source.close()


def test_nothing_is_drawn_that_nobody_looks_at(served: tuple[Overlay, OverlayServer]) -> None:
    overlay, server = served
    for _ in range(50):
        overlay.show(Frame(GREY, monotonic()))
    assert overlay.drawn == 0
    assert get(server, "/frame.jpg")[0] == 200
    assert overlay.drawn == 1


def test_a_frame_that_cannot_be_read_is_left_out(served: tuple[Overlay, OverlayServer]) -> None:
    overlay, server = served
    overlay.look(1)
    overlay.show(Frame(b"no jpeg", monotonic()))
    Event().wait(0.05)
    overlay.show(Frame(GREY, monotonic()))
    until(lambda: overlay.drawn == 1)
    assert get(server, "/frame.jpg")[0] == 200


def test_too_many_clients_are_turned_away_and_places_come_back(served: tuple[Overlay, OverlayServer]) -> None:
    overlay, server = served
    overlay.show(Frame(GREY, monotonic()))
    clients = [HttpStream(server.url + "stream") for _ in range(MOST_CLIENTS)]
    for client in clients:
        client.open()
        assert len(list(islice(client.frames(Event()), 1))) == 1
    with pytest.raises((OSError, http.client.HTTPException, AssertionError)):
        assert get(server, "/")[0] == 200
    for client in clients:
        client.close()

    def served_again() -> bool:
        overlay.show(Frame(GREY, monotonic()))
        with suppress(OSError, http.client.HTTPException):
            return get(server, "/")[0] == 200
        return False

    until(served_again)


def test_a_client_that_leaves_while_the_camera_is_away_frees_its_place(
    served: tuple[Overlay, OverlayServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overlay_http, "PICTURE_TIMEOUT_S", 0.05)
    overlay, server = served
    with socket.create_connection(("127.0.0.1", server.port)) as client:
        client.sendall(b"GET /stream HTTP/1.0\r\n\r\n")
        until(lambda: overlay._lookers == 1)
    until(lambda: overlay._lookers == 0)
    assert get(server, "/frame.jpg")[0] == 503  # there never was a frame


@pytest.mark.parametrize(("host", "status"), [("127.0.0.1:8080", 200), ("localhost", 200), ("[::1]", 200), ("", 200)])
def test_names_of_this_machine(served: tuple[Overlay, OverlayServer], host: str, status: int) -> None:
    assert get(served[1], "/", Host=host)[0] == status


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8080", "127.0.0.1.evil.example", "[", "10.0.0.1"])
def test_a_web_page_cannot_read_the_camera_by_a_name_of_its_own(
    served: tuple[Overlay, OverlayServer], host: str
) -> None:
    assert get(served[1], "/frame.jpg", Host=host)[0] == 403


def test_the_stream_ends_with_the_overlay(served: tuple[Overlay, OverlayServer]) -> None:
    overlay, server = served
    overlay.show(Frame(GREY, monotonic()))
    source = HttpStream(server.url + "stream")
    source.open()
    frames = source.frames(Event())
    next(frames)
    overlay.__exit__()
    with pytest.raises(SourceError, match="lost"):
        list(frames)
    source.close()


def test_a_port_that_is_taken(served: tuple[Overlay, OverlayServer]) -> None:
    with pytest.raises(SourceError, match=r"cannot listen on 127\.0\.0\.1:"):
        OverlayServer(Overlay(), "127.0.0.1", served[1].port)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("http://127.0.0.1:9000", ("127.0.0.1", 9000)),
        ("http://localhost/", ("localhost", 8080)),
        ("http://:9000", ("127.0.0.1", 9000)),
        ("http://[::1]:9000", ("::1", 9000)),
        ("http://0.0.0.0:80", ("0.0.0.0", 80)),
    ],
)
def test_where_to_listen(value: str, expected: tuple[str, int]) -> None:
    assert parse_address(value) == expected


@pytest.mark.parametrize(
    "value", ["window2", "https://127.0.0.1", "http://h:x", "http://h/path", "http://u@h:1", "", ":80"]
)
def test_where_not_to_listen(value: str) -> None:
    with pytest.raises(ValueError, match=r"http://HOST:PORT|[Pp]ort"):
        parse_address(value)


def test_loopback() -> None:
    assert all(map(is_loopback, ("localhost", "127.0.0.1", "127.9.9.9", "::1")))
    assert not any(map(is_loopback, ("0.0.0.0", "::", "192.168.1.2", "localhost.evil.example", "")))


def test_a_window_needs_a_screen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DISPLAY", raising=False)
    monkeypatch.delenv("WAYLAND_DISPLAY", raising=False)
    with pytest.raises(SourceError, match=r"--overlay window: .*--overlay http://127\.0\.0\.1:8080"):
        OverlayWindow(Overlay(), "test")


@pytest.fixture
def display(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A screen that nobody sees."""
    program = shutil.which("Xvfb")
    if program is None:
        pytest.skip("no Xvfb here: sudo apt install xvfb")
    pytest.importorskip("tkinter", reason="sudo apt install python3-tk")
    if not features.check("xcb"):
        pytest.skip("this Pillow cannot take pictures of a screen")
    reading, writing = os.pipe()
    command = [program, "-displayfd", str(writing), "-screen", "0", "320x240x24", "-nolisten", "tcp"]
    with subprocess.Popen(command, pass_fds=[writing], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
        os.close(writing)
        with open(reading) as pipe:
            number = pipe.readline().strip()
        try:
            monkeypatch.setenv("DISPLAY", f":{number}")
            yield f":{number}"
        finally:
            server.terminate()


def test_a_window_shows_the_picture_and_can_be_closed(display: str) -> None:
    overlay = Overlay()
    green = np.broadcast_to(np.array((20, 200, 40), np.uint8), (120, 160, 3)).copy()

    def is_green() -> bool:
        overlay.show(Frame(green, monotonic()))
        pixel = ImageGrab.grab(xdisplay=display).getpixel((80, 20))
        return bool(np.abs(np.subtract(pixel, (20, 200, 40))).max() < 10)

    with overlay, OverlayWindow(overlay, "test") as window:
        until(is_green)
        assert not window.closed
        window._process.terminate()  # as a window manager does whose user closes it
        until(lambda: window.closed)
    assert overlay._lookers == 0
