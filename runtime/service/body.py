"""Reading a request's body, bounded in bytes and in time, whatever its headers say."""

import asyncio
from collections.abc import Awaitable, Callable, Iterator, MutableMapping
from contextlib import contextmanager
from http import HTTPStatus
from typing import Any, TypeAlias

from captionlite.runtime.service.limits import ENVELOPE, Limits
from captionlite.runtime.service.problems import RequestError, overloaded
from captionlite.runtime.service.uploads import too_large

Receive: TypeAlias = Callable[[], Awaitable[MutableMapping[str, Any]]]


class ClientGoneError(Exception):
    """The client closed the connection; there is nobody to answer."""


class Held:
    """Counts the bytes of all bodies in memory, against one bound."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.bytes = 0

    @contextmanager
    def account(self) -> "Iterator[Callable[[int], None]]":
        """Gives a function that counts further bytes, and raises RequestError (503) when there are too many."""
        mine = 0

        def more(count: int) -> None:
            nonlocal mine
            if self.bytes + count > self._most:
                raise overloaded("The service holds as many uploads as it has memory for.")
            self.bytes += count
            mine += count

        try:
            yield more
        finally:
            self.bytes -= mine


def body_limit(kind: str, limits: Limits) -> int:
    """The longest body of a media type."""
    if kind == "application/json":
        return limits.body_bytes
    return limits.upload_bytes + (ENVELOPE if kind == "multipart/form-data" else 0)


def check_length(headers: dict[str, str], limit: int) -> None:
    """What can be said before the body is there. Raises RequestError: 411, 413, 415."""
    if headers.get("content-encoding", "identity").strip().lower() != "identity":
        raise RequestError(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            "Compressed bodies are not taken.",
            found=f"Content-Encoding {headers['content-encoding'][:40]!a}",
            expected="no Content-Encoding",
            next_step="Send the photograph's bytes as they are.",
        )
    length = headers.get("content-length")
    if length is None and "transfer-encoding" not in headers:
        raise RequestError(
            HTTPStatus.LENGTH_REQUIRED,
            "The request has no body.",
            found="neither Content-Length nor Transfer-Encoding",
            expected="the bytes of an image file",
            next_step="Send the photograph, e.g. with `curl -F image=@photo.jpg`.",
        )
    if length is not None and int(length) > limit:  # digits, or the HTTP parser would have refused it
        raise too_large(f"Content-Length {int(length):,}", limit)


async def read_body(receive: Receive, limit: int, timeout_s: float, more: Callable[[int], None]) -> bytes:
    """The whole body. Raises RequestError: 408, 413, 503; ClientGoneError."""
    body = bytearray()
    try:
        async with asyncio.timeout(timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGoneError
                chunk = message.get("body", b"")
                if len(body) + len(chunk) > limit:
                    raise too_large(f"more than {limit:,} bytes", limit)
                more(len(chunk))
                body += chunk
                if not message.get("more_body", False):
                    return bytes(body)
    except TimeoutError:
        raise RequestError(
            HTTPStatus.REQUEST_TIMEOUT,
            "The body did not come in time.",
            found=f"{len(body):,} bytes after {timeout_s:g} s",
            expected=f"the whole body within {timeout_s:g} s",
            next_step="Send it again, smaller if the connection is slow.",
            headers={"Connection": "close"},
        ) from None
