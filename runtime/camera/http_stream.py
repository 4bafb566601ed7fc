"""A network camera by its address: an MJPEG stream, or a snapshot that is fetched again and again. Nothing but http.

No proxy is used and no redirect followed: the address, and the password that may stand in it, go to that camera only.
"""

import socket
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from threading import Event
from time import monotonic
from urllib.parse import unquote, urlsplit

from captionlite.runtime.camera.multipart import MAX_PART, READ, MultipartError, boundary_of, parts
from captionlite.runtime.camera.source import Frame, Pace, SourceError, Thin

CONNECT_TIMEOUT_S = 5.0
FRAME_TIMEOUT_S = 10.0
"""A frame that takes longer is none: the camera is taken for lost."""
DEFAULT_POLLS_PER_S = 1.0


class HttpStream:
    """JPEG frames as bytes; nothing is decoded that nobody looks at."""

    live = True

    def __init__(self, url: str, fps: float | None = None, *, frame_timeout_s: float = FRAME_TIMEOUT_S) -> None:
        """`fps`: of a stream at the most; how often a snapshot is fetched. Raises SourceError."""
        try:
            self._parts = urlsplit(url)
            self._port = self._parts.port
        except ValueError as error:
            raise SourceError(f"{_shown(url)!r}: no valid address ({error}).") from None
        if not self._parts.hostname or any(character <= " " for character in url):
            raise SourceError(f"{_shown(url)!r}: no valid address. Expected http://HOST[:PORT]/PATH, spaces as %20.")
        shown = self._parts.hostname if self._port is None else f"{self._parts.hostname}:{self._port}"
        self._url = f"{self._parts.scheme}://{shown}{self._parts.path}"  # without password and query, which may be one
        self.description = f"stream {self._url}"
        self._fps, self._timeout_s = fps, frame_timeout_s
        self._connection: HTTPConnection | None = None
        self._response: HTTPResponse | None = None
        self._socket: socket.socket | None = None
        self._deadline_s = 0.0

    def open(self) -> None:
        """Connect and ask. Raises SourceError when there is no stream and no image."""
        secure = self._parts.scheme == "https"
        host = self._parts.hostname or ""
        self._deadline_s = monotonic() + self._timeout_s
        try:
            kind = HTTPSConnection if secure else HTTPConnection
            self._connection = kind(host, self._port, timeout=CONNECT_TIMEOUT_S)
            self._connection.connect()
            self._socket = self._connection.sock
            self._socket.settimeout(self._timeout_s)
            path = (self._parts.path or "/") + (f"?{self._parts.query}" if self._parts.query else "")
            self._connection.request("GET", path, headers=self._headers())
            self._response = self._connection.getresponse()
        except (OSError, HTTPException, ValueError) as error:
            self.close()
            raise SourceError(f"{self.description}: no connection ({_reason(error)}).") from None
        status = self._response.status
        if status != 200:
            self.close()
            raise SourceError(f"{self.description}: answered {status} {_MEANING.get(status, '')}".rstrip() + ".")

    def frames(self, stopped: Event) -> Iterator[Frame]:
        """Frames as they come, or snapshots at the pace. Raises SourceError when the camera is lost."""
        assert self._response is not None
        kind = self._response.headers.get("Content-Type", "")
        try:
            if kind.lower().startswith("multipart/"):
                self._deadline_s = monotonic() + self._timeout_s
                thin = Thin(self._fps)
                for body in parts(self._receive, boundary_of(kind)):
                    if not thin.leaves_out(now_s := monotonic()):
                        yield Frame(body, now_s)
                    if stopped.is_set():
                        return
                    self._deadline_s = monotonic() + self._timeout_s
            elif kind.lower().startswith("image/"):
                yield from self._snapshots(stopped)
            else:
                raise SourceError(
                    f"{self.description}: is {kind[:100] or 'of no type'!r}, expected multipart/x-mixed-replace (a "
                    f"stream) or image/jpeg (a snapshot). Use the address of the picture, not of the page around it."
                )
        except (OSError, HTTPException, MultipartError, ValueError) as error:
            raise SourceError(f"{self.description}: lost ({_reason(error)}).") from None

    def _snapshots(self, stopped: Event) -> Iterator[Frame]:
        pace = Pace(stopped)
        fetched, fps = 0, self._fps or DEFAULT_POLLS_PER_S
        while True:
            body = bytearray()
            self._deadline_s = monotonic() + self._timeout_s
            while chunk := self._receive(READ):
                body += chunk
                if len(body) > MAX_PART:
                    raise SourceError(f"{self.description}: an image of more than {MAX_PART} bytes.")
            yield Frame(bytes(body), monotonic())
            self.close()
            fetched += 1
            while pace.late(fetched / fps):
                fetched += 1
            if not pace.wait(fetched / fps):
                return
            self.open()

    def _receive(self, count: int) -> bytes:
        """What has come, at most so many bytes, as long as the frame's time lasts."""
        left_s = self._deadline_s - monotonic()
        if left_s <= 0:
            raise TimeoutError(f"no whole frame within {self._timeout_s:g} s")
        if self._response is None or self._socket is None:
            raise OSError("closed")
        self._socket.settimeout(left_s)
        return self._response.read1(count)

    def _headers(self) -> dict[str, str]:
        headers = {"User-Agent": "captionlite", "Accept": "multipart/x-mixed-replace, image/*", "Connection": "close"}
        if self._parts.username is not None:
            secret = f"{unquote(self._parts.username)}:{unquote(self._parts.password or '')}"
            headers["Authorization"] = "Basic " + b64encode(secret.encode()).decode()
        return headers

    def close(self) -> None:
        """Close the connection."""
        response, connection = self._response, self._connection
        self._response = self._connection = self._socket = None
        if response is not None:
            response.close()
        if connection is not None:
            connection.close()

    def interrupt(self) -> None:
        """Whoever waits for bytes gets none any more."""
        if (waiting := self._socket) is not None:
            with suppress(OSError):  # closed already
                waiting.shutdown(socket.SHUT_RDWR)


_MEANING = {
    401: "(it wants a user and password, as in http://USER:PASSWORD@HOST/; only the Basic scheme is known here)",
    403: "(forbidden)",
    404: "(nothing at that path)",
    503: "(busy or starting)",
    **dict.fromkeys((301, 302, 303, 307, 308), "(it points elsewhere, which is not followed; give the final address)"),
}


def _shown(url: str) -> str:
    """An address without its password, however broken it is."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{rest.rpartition('@')[2].partition('?')[0]}"


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return str(error) or type(error).__name__
