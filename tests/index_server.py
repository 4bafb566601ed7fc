"""A web server over a folder, in a thread: it knows ranges, and can be told to break off, to forget and to lie."""

import hashlib
import http.server
import shutil
import ssl
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from urllib.parse import unquote

import pytest


@dataclass
class Behaviour:
    """What the server does, for tests to change between requests; `asked` is what came: path and the Range header."""

    ranges: bool = True
    tags: bool = True  # ETag, and If-Range is respected
    break_after: list[int] = field(default_factory=list)  # the next bodies end after so many bytes, connection and all
    contents: dict[str, bytes] = field(default_factory=dict)  # by path, instead of the file
    headers: dict[str, str] = field(default_factory=dict)  # instead of what would be right
    redirects: dict[str, str] = field(default_factory=dict)  # by path
    statuses: list[int] = field(default_factory=list)  # the next answers are these errors
    raw: list[bytes] = field(default_factory=list)  # the next answers are these bytes
    chunked: bool = False  # no Content-Length
    held: threading.Event | None = None  # bodies wait for it after half of their bytes
    asked: list[tuple[str, str | None]] = field(default_factory=list)
    half_sent: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Served:
    """Where the folder is served, with a slash at the end, and the server's behaviour."""

    url: str
    behaviour: Behaviour


@cache
def certificate(folder: Path) -> tuple[Path, Path]:
    """A certificate of 127.0.0.1 and localhost, and its key, made by openssl; skips where there is none."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl to make a certificate with")
    key, cert = folder / "key.pem", folder / "cert.pem"
    names = "subjectAltName=DNS:localhost,IP:127.0.0.1"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    subject = ["-days", "2", "-subj", "/CN=localhost", "-addext", names]
    done = subprocess.run([*command, *subject, "-keyout", key, "-out", cert], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr
    return cert, key


@contextmanager
def serve(folder: Path, tls: tuple[Path, Path] | None = None) -> Iterator[Served]:
    """Serve a folder on a free port of 127.0.0.1, over https with a certificate and its key."""
    behaviour = Behaviour()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            path = unquote(self.path).lstrip("/")
            wanted = self.headers.get("Range")
            behaviour.asked.append((path, wanted))
            if behaviour.raw:
                self.wfile.write(behaviour.raw.pop(0))
                return
            if behaviour.statuses:
                self.send_error(behaviour.statuses.pop(0))
                return
            if path in behaviour.redirects:
                self.send_response(302)
                self.send_header("Location", behaviour.redirects[path])
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            try:
                data = behaviour.contents[path] if path in behaviour.contents else (folder / path).read_bytes()
            except OSError:
                self.send_error(404)
                return
            self._send(data, wanted)

        def _send(self, data: bytes, wanted: str | None) -> None:
            tag = f'"{hashlib.sha256(data).hexdigest()[:20]}"'
            start, status = 0, 200
            if wanted is not None and behaviour.ranges and self.headers.get("If-Range", tag) == tag:
                start, status = int(wanted.removeprefix("bytes=").removesuffix("-")), 206
                if start >= len(data):
                    self.send_error(416)
                    return
            headers = {"Content-Length": str(len(data) - start)}
            headers |= {"ETag": tag} if behaviour.tags else {}
            headers |= {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"} if status == 206 else {}
            if behaviour.chunked:
                del headers["Content-Length"]
            self.send_response(status)
            for name, value in (headers | behaviour.headers).items():
                self.send_header(name, value)
            self.end_headers()
            body = data[start:]
            if behaviour.held is not None:
                self.wfile.write(body[: len(body) // 2])
                self.wfile.flush()
                behaviour.half_sent.set()
                behaviour.held.wait(60)
                body = body[len(body) // 2 :]
            self.wfile.write(body[: behaviour.break_after.pop(0)] if behaviour.break_after else body)

        def log_message(self, *args: object) -> None:
            pass

    class Server(http.server.ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *args: object) -> None:
            pass  # a client that was killed, or that hung up on a liar

    server = Server(("127.0.0.1", 0), Handler)
    if tls is not None:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*tls)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        scheme = "http" if tls is None else "https"
        yield Served(f"{scheme}://127.0.0.1:{server.server_address[1]}/", behaviour)
    finally:
        if behaviour.held is not None:
            behaviour.held.set()
        server.shutdown()
        server.server_close()
        thread.join()
