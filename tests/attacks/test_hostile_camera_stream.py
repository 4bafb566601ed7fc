"""A network camera that lies: endless headers, parts without end, drips, bombs. Each is refused within its limits."""

import io
import socket
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from threading import Event, Thread

import pytest
from PIL import Image

from captionlite.runtime.camera import http_stream, multipart
from captionlite.runtime.camera.http_stream import HttpStream
from captionlite.runtime.camera.multipart import MAX_LINE, MultipartError, boundary_of, parts
from captionlite.runtime.camera.source import SourceError

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace; boundary=b\r\n\r\n"


@contextmanager
def answering(serve: Callable[[socket.socket, Event], None]) -> Iterator[str]:
    """A server of one connection after another, each served by the function; yields its address."""
    over = Event()
    listening = socket.create_server(("127.0.0.1", 0))

    def run() -> None:
        with suppress(OSError):
            while True:
                client, _ = listening.accept()
                with client, suppress(OSError):
                    client.recv(65536)
                    serve(client, over)

    thread = Thread(target=run, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{listening.getsockname()[1]}/"
    finally:
        over.set()
        listening.shutdown(socket.SHUT_RDWR)
        listening.close()
        thread.join(20)


def saying(data: bytes) -> Callable[[socket.socket, Event], None]:
    return lambda client, over: client.sendall(data)


def read(url: str, timeout_s: float = 5.0) -> list[object]:
    source = HttpStream(url, frame_timeout_s=timeout_s)
    try:
        source.open()
        return [frame.image for frame in source.frames(Event())]
    finally:
        source.close()


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (b"HTTP/1.1 404 No\r\n\r\n", "answered 404"),
        (b"HTTP/1.1 401 No\r\n\r\n", "USER:PASSWORD"),
        (b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:22/\r\n\r\n", "not followed"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\n\r\n<html>", "'text/html', expected multipart"),
        (b"HTTP/1.1 200 OK\r\n\r\n", "'of no type'"),
        (b"HTTP/1.1 200 OK\r\nContent-Type: multipart/x-mixed-replace\r\n\r\n", "boundary="),
        (b"HTTP/1.1 200 OK\r\nContent-Type: multipart/mixed; boundary=--\r\n\r\n", "boundary="),
        (b"SSH-2.0-OpenSSH_9.2\r\n", "no connection"),
        (b"\x00" * 200_000, "no connection"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n", "no connection"),
        (b"", "no connection"),
        (HEAD + b"x" * 100_000, "header line"),
        (HEAD + b"--b\r\n" + b"Header: x\r\n" * 100, "header lines"),
        (HEAD + b"--b\r\nContent-Length: 99999999999\r\n\r\n", "expected at most"),
        (HEAD + b"--b\r\nContent-Length: -5\r\n\r\n", "expected a number"),
        (HEAD + b"--b\r\nContent-Length: " + b"9" * 900 + b"\r\n\r\n", "expected at most"),
        (HEAD + b"\r\n" * 1000, "no boundary"),
        (HEAD + b"--other\r\n\r\n" * 100, "no boundary"),
        (HEAD + b"--b--\r\n", "ended the stream"),
        (HEAD + b"--b\r\nContent-Length: 50\r\n\r\nshort", "closed the connection"),
    ],
)
def test_answers_that_are_no_stream(answer: bytes, expected: str) -> None:
    with answering(saying(answer)) as url, pytest.raises(SourceError, match=expected) as caught:
        read(url)
    assert len(str(caught.value)) < 600


def test_a_part_without_end_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(multipart, "MAX_PART", 200_000)
    sent = []

    def flood(client: socket.socket, over: Event) -> None:
        client.sendall(HEAD + b"--b\r\n\r\n")
        while not over.is_set():
            sent.append(client.send(b"\xff" * 50_000))

    with answering(flood) as url, pytest.raises(SourceError, match="without a boundary"):
        read(url)
    assert sum(sent) < 20_000_000  # what the sockets' buffers hold, and no more


def test_a_snapshot_without_end_stops_at_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_stream, "MAX_PART", 200_000)

    def flood(client: socket.socket, over: Event) -> None:
        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Type: image/jpeg\r\n\r\n")
        while not over.is_set():
            client.send(b"\xff" * 50_000)

    with answering(flood) as url, pytest.raises(SourceError, match="more than 200000 bytes"):
        read(url)


def test_a_drip_of_bytes_is_no_frame() -> None:
    """Each byte comes in time, the frame never does."""

    def drip(client: socket.socket, over: Event) -> None:
        client.sendall(HEAD + b"--b\r\nContent-Length: 1000\r\n\r\n")
        while not over.wait(0.02):
            client.sendall(b"x")

    with answering(drip) as url, pytest.raises(SourceError, match=r"no whole frame within 0\.3 s|timed out"):
        read(url, timeout_s=0.3)


def test_the_password_is_in_no_message() -> None:
    with answering(saying(b"HTTP/1.1 403 No\r\n\r\n")) as url:
        source = HttpStream(url.replace("http://", "http://admin:s3cret@") + "video?token=s3cret")
        with pytest.raises(SourceError, match="403") as caught:
            source.open()
    assert "s3cret" not in str(caught.value) + source.description
    with pytest.raises(SourceError) as refused:
        HttpStream("http://admin:s3cret@host:99999/")
    assert "s3cret" not in str(refused.value)


def test_a_bomb_for_a_frame_is_an_unreadable_frame() -> None:
    """What is no JPEG, or one too large, is the decoder's to refuse, frame by frame."""
    from captionlite.runtime.errors import ImageError
    from captionlite.runtime.frames import signature

    buffer = io.BytesIO()
    Image.new("L", (12_000, 12_000)).save(buffer, "JPEG")
    bomb = buffer.getvalue()
    with answering(saying(HEAD + b"--b\r\nContent-Length: %d\r\n\r\n%s\r\n--b--\r\n" % (len(bomb), bomb))) as url:
        source = HttpStream(url)
        source.open()
        frame = next(iter(source.frames(Event())))
        source.close()
    with pytest.raises(ImageError, match="pixels, expected at most"):
        signature(frame.image)


@pytest.mark.parametrize("boundary", ["b", '"b"', "--b", '"--b"'])
@pytest.mark.parametrize("line_end", [b"\r\n", b"\n"])
@pytest.mark.parametrize("dashes", [b"--", b"----"])
def test_streams_as_real_cameras_send_them(boundary: str, line_end: bytes, dashes: bytes) -> None:
    """With and without lengths and dashes, with either line end, cut at every place."""
    mark = dashes + b"b" + line_end
    stream = b"preamble" + line_end if dashes == b"--" else b""
    stream += (
        mark + b"Content-Type: image/jpeg" + line_end + b"content-length: 5" + line_end * 2 + b"one\r\n" + line_end
    )
    stream += mark + b"X-Time: 1" + line_end * 2 + b"two\n--x" + line_end if dashes == b"--" else b""
    stream += mark + b"Content-Length:3" + line_end * 2 + b"end"
    found = boundary_of(f"multipart/x-mixed-replace;boundary={boundary}")
    for step in (1, 7, 1000):
        cursor = iter([stream[at : at + step] for at in range(0, len(stream), step)])
        bodies: list[bytes] = []
        with pytest.raises(MultipartError, match="closed"):
            bodies.extend(parts(lambda count, cursor=cursor: next(cursor, b""), found))  # type: ignore[misc]
        assert bodies == ([b"one\r\n", b"two\n--x", b"end"] if dashes == b"--" else [b"one\r\n", b"end"])


def test_a_boundary_of_any_length_is_none() -> None:
    with pytest.raises(MultipartError):
        boundary_of(f"multipart/x-mixed-replace; boundary={'b' * MAX_LINE}")
