"""The overlay as an MJPEG stream for browsers, VLC and other programs. For this machine alone unless told otherwise."""

import socket
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from select import select
from threading import BoundedSemaphore, Thread
from typing import Any
from urllib.parse import urlsplit

from captionlite.runtime.camera.address import is_loopback
from captionlite.runtime.camera.overlay import Overlay
from captionlite.runtime.camera.source import SourceError

MOST_CLIENTS = 8
"""Connections at one time; one more is turned away."""
CLIENT_TIMEOUT_S = 10.0
"""A client that sends nothing, or takes nothing, for so long is let go."""
PICTURE_TIMEOUT_S = 5.0
_BOUNDARY = "captionlite-frame"

_PAGE = b"""<!doctype html><html lang="en"><meta charset="utf-8"><title>captionlite</title>
<style>html,body{margin:0;height:100%;background:#111}img{width:100%;height:100%;object-fit:contain}</style>
<img src="stream" alt="the camera's picture with its caption"></html>
"""


class OverlayServer:
    """`/` a page, `/stream` the MJPEG stream, `/frame.jpg` one picture. A context manager."""

    def __init__(self, overlay: Overlay, host: str, port: int) -> None:
        """Listens from now on. Raises SourceError when it cannot."""
        try:
            self._server = _Server(overlay, host, port)
        except OSError as error:
            raise SourceError(
                f"--overlay: cannot listen on {host}:{port} ({error.strerror}). Choose another port."
            ) from None
        self.host, self.port = host, int(self._server.server_address[1])
        self._thread = Thread(target=self._server.serve_forever, args=(0.1,), name="captionlite-http", daemon=True)

    def __enter__(self) -> "OverlayServer":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    @property
    def url(self) -> str:
        """Where a browser finds it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"http://{host}:{self.port}/"


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = MOST_CLIENTS

    def __init__(self, overlay: Overlay, host: str, port: int) -> None:
        self.overlay = overlay
        self.local_only = is_loopback(host)
        self._places = BoundedSemaphore(MOST_CLIENTS)
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), _Handler)

    def server_bind(self) -> None:
        """As in the library, without its look-up of the host's name, which can take seconds."""
        socket.socket.setsockopt(self.socket, socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self.socket.bind(self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = str(self.server_address[0]), int(self.server_address[1])

    def process_request(self, request: Any, client_address: Any) -> None:
        """A thread for each client, as long as there are places."""
        if not self._places.acquire(blocking=False):
            try:
                request.settimeout(0.5)
                request.sendall(b"HTTP/1.0 503 Too many clients\r\nRetry-After: 10\r\nContent-Length: 0\r\n\r\n")
            except OSError:
                pass
            self.shutdown_request(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread could be started
            self._places.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Serve one client, then free its place."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._places.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that went away is no news."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    server_version = "captionlite"
    sys_version = ""
    timeout = CLIENT_TIMEOUT_S

    def do_GET(self) -> None:
        if self.server.local_only and not self._asks_for_this_machine():
            self.send_error(403, "Only for this machine")  # or a web page could read the camera by a name it owns
        elif self.path == "/":
            self._answer("text/html; charset=utf-8", _PAGE)
        elif self.path == "/frame.jpg":
            self._one()
        elif self.path == "/stream":
            self._stream()
        else:
            self.send_error(404, "Expected /, /stream or /frame.jpg")

    def _asks_for_this_machine(self) -> bool:
        try:
            host = urlsplit(f"//{self.headers.get('Host', 'localhost')}").hostname
        except ValueError:
            return False
        return is_loopback(host or "localhost")

    def _answer(self, kind: str, body: bytes) -> None:
        self.send_response(200)
        self._headers(kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _headers(self, kind: str) -> None:
        self.send_header("Content-Type", kind)
        self.send_header("Cache-Control", "no-store")
        self.send_header("X-Content-Type-Options", "nosniff")
        self.send_header("Cross-Origin-Resource-Policy", "same-origin")

    def _one(self) -> None:
        overlay = self.server.overlay
        overlay.look(1)
        try:
            found = overlay.next_picture(overlay.drawn, PICTURE_TIMEOUT_S)
        finally:
            overlay.look(-1)
        if found is None:
            self.send_error(503, "No frame from the camera")
        else:
            self._answer("image/jpeg", found[1])

    def _stream(self) -> None:
        overlay = self.server.overlay
        self.send_response(200)
        self._headers(f"multipart/x-mixed-replace; boundary={_BOUNDARY}")
        self.end_headers()
        overlay.look(1)
        try:
            number = overlay.drawn
            while not overlay.ended:
                found = overlay.next_picture(number, PICTURE_TIMEOUT_S)
                if found is None:  # the camera is away: the connection is kept, if the client still wants it
                    if self._left():
                        return
                    continue
                number, jpeg = found
                head = f"--{_BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(jpeg)}\r\n\r\n"
                self.wfile.write(head.encode() + jpeg + b"\r\n")
        except OSError:
            pass  # the client went away
        finally:
            overlay.look(-1)

    def _left(self) -> bool:
        readable, _, _ = select([self.connection], [], [], 0)
        return bool(readable) and not self.connection.recv(1, socket.MSG_PEEK)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: stderr is for what concerns the camera."""
