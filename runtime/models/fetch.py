"""Files from a web server: https alone, no more than was promised, gone on with after a break, right or not there.

Plain http is for this very machine (localhost), or where the caller allows it. Redirects stay within the same rule, and
never leave https. Nothing is believed of the server: sizes and checksums come from the index.
"""

import hashlib
import os
import ssl
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPException, HTTPMessage, HTTPResponse
from pathlib import Path
from typing import IO, Any
from urllib import error, request
from urllib.parse import quote, urljoin, urlsplit

from captionlite.runtime.errors import ModelError
from captionlite.runtime.files import fsync_directory
from captionlite.runtime.models.index import INDEX_FILE, MAX_INDEX_BYTES, Index, Remote, parse_index

TIMEOUT_S = 30.0
"""No answer for so long ends a connection."""
STALL_S, STALL_BYTES = 60.0, 10_000
"""So does less than that in that time: a server could send a byte now and then, for ever."""
ATTEMPTS = 4
"""So many connections in a row that bring nothing new, then it is given up."""
PAUSE_S = 0.5
MAX_REDIRECTS = 5
BLOCK_BYTES = 1 << 16

_LOCAL = ("localhost", "127.0.0.1", "::1")
_RESUMABLE = (OSError, HTTPException)  # a connection that broke; URLError and timeouts are OSErrors


@dataclass(frozen=True)
class Web:
    """How to fetch. `allow_http`: from other machines too, for networks that are one's own."""

    allow_http: bool = False
    timeout_s: float = TIMEOUT_S
    pause: Callable[[float], None] = time.sleep
    say: Callable[[str], None] = lambda line: None

    def check(self, url: str) -> None:
        """Raises ModelError for a URL that nothing is fetched from."""
        try:
            parts = urlsplit(url)
            _ = parts.port
        except ValueError as problem:
            raise ModelError(f"{_plain(url)}: no address ({problem}). Expected a URL like https://host/.") from None
        if parts.username is not None or parts.password is not None:
            raise ModelError(f"{parts.scheme}://...@{parts.hostname}: a URL with a password in it is not used.")
        if not parts.hostname or parts.scheme not in ("https", "http"):
            raise ModelError(f"{_plain(url)}: expected a URL that begins with https://.")
        if parts.scheme == "http" and not self.allow_http and parts.hostname not in _LOCAL:
            raise ModelError(
                f"{_plain(url)}: not https, so anybody on the way could read and change what comes. Use https, or "
                f"allow it with --allow-http on a network that is your own."
            )

    def index(self, url: str) -> Index:
        """The index at a URL (of the file, or of its folder with a slash at the end). Raises ModelError."""
        self.check(url)
        url = urljoin(url, INDEX_FILE) if url.endswith("/") else url
        for attempt in range(ATTEMPTS):
            try:
                with self._opened(url, {}) as response:
                    data = response.read(MAX_INDEX_BYTES + 1)
                    if response.length and len(data) <= MAX_INDEX_BYTES:  # bytes that were promised and did not come
                        raise ConnectionResetError("the connection ended early")
                break
            except _RESUMABLE as problem:
                if attempt == ATTEMPTS - 1:
                    raise _unreachable(url, problem) from None
                self.pause(PAUSE_S * 2**attempt)
        if len(data) > MAX_INDEX_BYTES:
            raise ModelError(f"{url}: larger than {MAX_INDEX_BYTES} bytes, expected an index of bundles.")
        return parse_index(data, url, urljoin(url, "."))

    def download(self, base: str, remote: Remote, partial: Path, advance: Callable[[int], None]) -> None:
        """Have `remote` whole and right at `partial`; what stands there already is gone on with, over several calls.

        `advance` is told how many bytes have come; a negative number where some have to come again. Raises ModelError:
        what came is kept unless it was wrong.
        """
        url = urljoin(base, quote(remote.path))
        self.check(url)
        fruitless = 0
        rejected = None  # the checksum of what was pieced together, and may be of two versions of the file
        resumed = partial.exists() and partial.stat().st_size > 0
        advance(min(_size(partial), remote.size_bytes))
        while True:
            before = _size(partial)
            try:
                resumed |= self._go_on(url, remote, partial, advance)
                found = file_sha256(partial)
                if found == remote.sha256:
                    _tag(partial).unlink(missing_ok=True)
                    return
                if rejected is not None or not resumed:
                    partial.unlink()
                    raise ModelError(
                        f"{url}: sha256 is {found}, expected {remote.sha256} as in the index. The file was damaged on "
                        f"the way, or is another one; it is not kept. Try again, or ask who publishes it."
                    )
                rejected, resumed = found, False
                self._restart(partial, advance)
            except _RESUMABLE as problem:
                fruitless = 0 if _size(partial) >= before + STALL_BYTES else fruitless + 1
                if fruitless >= ATTEMPTS:
                    raise _unreachable(url, problem, _size(partial)) from None
                self.say(f"{url}: {_reason(problem)}; trying again")
                self.pause(PAUSE_S * 2**fruitless)

    def _go_on(self, url: str, remote: Remote, partial: Path, advance: Callable[[int], None]) -> bool:
        """Fetch what is missing at the end of `partial`. True when something of before was kept."""
        have = _size(partial)
        if have > remote.size_bytes:
            self._restart(partial, advance, counted=remote.size_bytes)
            have = 0
        if have == remote.size_bytes:
            return True
        headers = {}
        if have:
            headers["Range"] = f"bytes={have}-"
            tag = _read_tag(partial)
            if tag is not None:
                headers["If-Range"] = tag
        try:
            with self._opened(url, headers) as response:
                kept = have > 0 and response.status == 206
                if have and not kept:  # the server knows no ranges, or has another version of the file now
                    self._restart(partial, advance)
                    have = 0
                self._check_answer(url, response, have, remote)
                _write_tag(partial, response.headers)
                self._read(url, response, partial, remote.size_bytes, advance)
                return kept
        except _NoSuchRangeError:
            self._restart(partial, advance)
            return self._go_on(url, remote, partial, advance)

    def _check_answer(self, url: str, response: HTTPResponse, have: int, remote: Remote) -> None:
        """Lies that can be seen before anything is read."""
        if response.headers.get("Content-Encoding", "identity") != "identity":
            raise ModelError(f"{url}: comes compressed, which was not asked for. Ask who publishes it.")
        if response.status == 206:
            expected = f"bytes {have}-{remote.size_bytes - 1}/{remote.size_bytes}"
            told = response.headers.get("Content-Range", "")
            if told != expected:
                raise ModelError(f"{url}: the server sends {told!r}, expected {expected!r}. Ask who publishes it.")
        elif response.status != 200:
            raise ModelError(f"{url}: the server answers {response.status}, expected 200.")
        length = response.headers.get("Content-Length")
        if length is not None and length != str(remote.size_bytes - have):
            raise ModelError(
                f"{url}: the server has {_plain(length)} bytes to send, expected {remote.size_bytes - have} by the "
                f"index. Ask who publishes it."
            )

    def _read(self, url: str, response: HTTPResponse, partial: Path, size: int, advance: Callable[[int], None]) -> None:
        with open(partial, "ab") as file:
            have = file.tell()
            window, gained = time.monotonic(), 0
            while block := response.read1(BLOCK_BYTES):
                if have + len(block) > size:
                    raise ModelError(f"{url}: more than the {size} bytes that the index tells. Ask who publishes it.")
                try:
                    file.write(block)
                    file.flush()
                except OSError as problem:  # a full disk is no broken connection
                    raise ModelError(
                        f"{partial}: cannot be written ({problem.strerror}). Make room, then go on."
                    ) from None
                have += len(block)
                gained += len(block)
                advance(len(block))
                now = time.monotonic()
                if now - window > STALL_S:
                    if gained < STALL_BYTES:
                        raise TimeoutError(f"only {gained} bytes in {STALL_S:.0f} s")
                    window, gained = now, 0
            os.fsync(file.fileno())
        if have < size:
            raise ConnectionResetError(f"the connection ended after {have} of {size} bytes")

    def _restart(self, partial: Path, advance: Callable[[int], None], counted: int | None = None) -> None:
        advance(-(_size(partial) if counted is None else counted))
        partial.write_bytes(b"")
        _tag(partial).unlink(missing_ok=True)

    @contextmanager
    def _opened(self, url: str, headers: dict[str, str]) -> Iterator[HTTPResponse]:
        """A response of 2xx. Of urllib everything that opens other than http(s) is left out."""
        opener = request.OpenerDirector()
        for handler in (
            request.ProxyHandler(),
            request.HTTPHandler(),
            request.HTTPSHandler(context=ssl.create_default_context()),
            request.HTTPDefaultErrorHandler(),
            request.HTTPErrorProcessor(),
            _Redirects(self),
        ):
            opener.add_handler(handler)
        asked = request.Request(url, headers={"User-Agent": "captionlite", "Accept-Encoding": "identity", **headers})
        try:
            response = opener.open(asked, timeout=self.timeout_s)
        except error.HTTPError as refused:
            refused.close()
            if refused.code >= 500 or refused.code == 429:  # the server's own trouble, which may pass
                raise ConnectionError(f"the server answers {_answer(refused)}") from None
            if refused.code == 416 and "Range" in headers:
                raise _NoSuchRangeError from None
            raise ModelError(f"{url}: the server answers {_answer(refused)}. Is the address right?") from None
        except ValueError as problem:  # an address that a redirect leads to
            raise ModelError(
                f"{url}: the server answers nonsense ({_reason(problem)}). Is the address right?"
            ) from None
        except error.URLError as problem:
            if isinstance(problem.reason, ssl.SSLCertVerificationError):
                raise ModelError(
                    f"{url}: the server's certificate is not trusted ({problem.reason.verify_message}). Is the clock "
                    f"of this machine right? A certificate authority of your own is named in SSL_CERT_FILE."
                ) from None
            raise
        if response is None:  # no handler felt responsible, which the checks of the URL rule out
            raise ModelError(f"{url}: cannot be fetched.")
        with response:
            yield response


class _NoSuchRangeError(Exception):
    """The file there does not have the range that was asked for."""


class _Redirects(request.HTTPRedirectHandler):
    """Redirects by the rule of `Web.check`, never from https to http, and not too many."""

    max_redirections = MAX_REDIRECTS

    def __init__(self, web: Web) -> None:
        self._web = web

    def redirect_request(
        self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage, newurl: str
    ) -> request.Request | None:
        target = urljoin(req.full_url, newurl)
        if urlsplit(req.full_url).scheme == "https" and urlsplit(target).scheme != "https":
            raise ModelError(
                f"{req.full_url}: redirects to {_plain(target)}, which is not https. Ask who publishes it."
            )
        self._web.check(target)
        return super().redirect_request(req, fp, code, msg, headers, target)

    def http_error_302(self, req: request.Request, fp: IO[bytes], code: int, msg: str, headers: HTTPMessage) -> Any:
        try:
            return super().http_error_302(req, fp, code, msg, headers)
        except BaseException:
            fp.close()  # the connection of an answer that leads nowhere
            raise

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def file_sha256(path: Path) -> str:
    """Checksum of a file, in hexadecimal. Raises OSError."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def put_in_place(partial: Path, target: Path) -> None:
    """Rename, so that it survives a power cut."""
    os.replace(partial, target)
    fsync_directory(target.parent)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _tag(partial: Path) -> Path:
    """Where the server's name for this version of the file is kept."""
    return partial.with_name(f"{partial.name}.tag")


def _read_tag(partial: Path) -> str | None:
    try:
        found = _tag(partial).read_text(encoding="ascii")
    except (OSError, ValueError):
        return None
    return found if found.isprintable() and 0 < len(found) <= 200 else None


def _write_tag(partial: Path, headers: Any) -> None:
    """The ETag if it is a strong one, else the date: what If-Range takes."""
    etag = headers.get("ETag")
    found = etag if etag and not etag.startswith("W/") else headers.get("Last-Modified")
    if found and found.isascii() and found.isprintable() and len(found) <= 200:
        _tag(partial).write_text(found, encoding="ascii")
    else:
        _tag(partial).unlink(missing_ok=True)


def _plain(text: str) -> str:
    """What a server said, for a terminal: nothing that moves the cursor, and not too much."""
    line = " ".join(text.split())[:200]
    return line if line.isprintable() else ascii(line)


def _answer(refused: error.HTTPError) -> str:
    return f"{refused.code} {_plain(str(refused.reason))}".rstrip()


def _reason(problem: Exception) -> str:
    return _plain(str(getattr(problem, "reason", None) or problem)) or type(problem).__name__


def _unreachable(url: str, problem: Exception, have: int = 0) -> ModelError:
    kept = f" The {have} bytes that came are kept: the same command goes on from there." if have else ""
    return ModelError(
        f"{url}: cannot be fetched ({_reason(problem)}). Is this machine online? --offline takes what was pulled "
        f"before.{kept}"
    )
