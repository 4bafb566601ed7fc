"""The parts of a `multipart/x-mixed-replace` answer, which is how network cameras send MJPEG: a JPEG a part.

Real cameras bend the format: boundaries with and without their two dashes, line ends of either kind, parts with and
without Content-Length. All of that is taken; what is longer than any camera would send is refused.
"""

from collections.abc import Callable, Iterator
from email.message import Message

MAX_LINE = 1024
MAX_LINES = 64
MAX_PART = 32 * 1024 * 1024
"""Bytes of one frame: a 100-megapixel JPEG has less."""
READ = 64 * 1024


class MultipartError(Exception):
    """What came is no multipart stream, or one with parts beyond the limits."""


class StreamEndedError(MultipartError):
    """The stream is over."""


def boundary_of(content_type: str) -> bytes:
    """The boundary in a Content-Type, without dashes in front. Raises MultipartError when it names none."""
    message = Message()
    message["Content-Type"] = content_type
    boundary = message.get_param("boundary")
    stripped = boundary.strip().lstrip("-") if isinstance(boundary, str) else ""
    if not stripped or len(stripped) > 200:
        raise MultipartError(f"Content-Type is {content_type[:200]!r}, expected one with boundary=...")
    return stripped.encode("latin-1", "replace")


def parts(receive: Callable[[int], bytes], boundary: bytes) -> Iterator[bytes]:
    """The body of each part. `receive(n)` gives up to n bytes as they come, b"" at the end, and keeps the time.

    Raises MultipartError.
    """
    stream = _Stream(receive)
    in_front = MAX_LINES  # lines before the first boundary
    while True:
        line = stream.line()
        if not _is_boundary(line, boundary):
            in_front -= 1
            if in_front < 0:
                raise MultipartError(f"no boundary {boundary[:50]!r} where a part should begin, found {line[:50]!r}")
            continue
        if line.rstrip().endswith(b"--") and line.strip().strip(b"-") == boundary.strip(b"-"):
            raise StreamEndedError("the other side ended the stream")
        length = _length(stream)
        yield stream.up_to(boundary) if length is None else stream.exactly(length)
        in_front = 2  # line ends


def _is_boundary(line: bytes, boundary: bytes) -> bool:
    return bool(line.strip()) and line.strip().strip(b"-") == boundary.strip(b"-")


def _length(stream: "_Stream") -> int | None:
    """Read a part's headers; its Content-Length, if it tells."""
    length = None
    for _ in range(MAX_LINES):
        line = stream.line().strip()
        if not line:
            if length is not None and length > MAX_PART:
                raise MultipartError(f"a part of {length} bytes, expected at most {MAX_PART}")
            return length
        name, _, value = line.partition(b":")
        if name.strip().lower() == b"content-length":
            if not value.strip().isdigit():
                raise MultipartError(f"Content-Length is {value[:50]!r}, expected a number")
            length = int(value.strip()[:20])
    raise MultipartError(f"a part with more than {MAX_LINES} header lines")


class _Stream:
    """Bytes as they come, with what was received and not yet used."""

    def __init__(self, receive: Callable[[int], bytes]) -> None:
        self._receive = receive
        self._buffer = bytearray()

    def _more(self) -> None:
        got = self._receive(READ)
        if not got:
            raise StreamEndedError("the other side closed the connection")
        self._buffer += got

    def _taken(self, count: int) -> bytes:
        taken = bytes(self._buffer[:count])
        del self._buffer[:count]
        return taken

    def line(self) -> bytes:
        searched = 0
        while (end := self._buffer.find(b"\n", searched)) < 0:
            if len(self._buffer) > MAX_LINE:
                break
            searched = len(self._buffer)
            self._more()
        if end < 0 or end > MAX_LINE:
            raise MultipartError(f"a header line of more than {MAX_LINE} bytes")
        return self._taken(end + 1)

    def exactly(self, count: int) -> bytes:
        while len(self._buffer) < count:
            self._more()
        return self._taken(count)

    def up_to(self, boundary: bytes) -> bytes:
        """The bytes before the next boundary line, for parts that do not tell their length."""
        mark = b"\n--" + boundary
        searched = 0
        while (end := self._buffer.find(mark, searched)) < 0:
            if len(self._buffer) > MAX_PART:
                raise MultipartError(f"a part of more than {MAX_PART} bytes without a boundary")
            searched = max(0, len(self._buffer) - len(mark))
            self._more()
        return self._taken(end + 1).removesuffix(b"\n").removesuffix(b"\r")
