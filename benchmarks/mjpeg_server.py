"""A network camera made of a few lines: JPEGs over and over as multipart/x-mixed-replace. It can vanish and return."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from time import monotonic
from typing import Any


class MjpegServer:
    """`start` listens, `stop` closes every connection as a camera does whose cable is pulled. Both may be repeated.

    `/` is the stream, `/snapshot` one picture.
    """

    def __init__(self, frames: Sequence[bytes], fps: float, *, content_length: bool = True) -> None:
        self._frames, self._fps, self._content_length = frames, fps, content_length
        self.port = 0  # the first start chooses it, every other uses it again
        self.silent = Event()  # when set, connections stay and nothing comes any more
        self._server: _Server | None = None

    @property
    def url(self) -> str:
        """Where the stream is."""
        return f"http://127.0.0.1:{self.port}/"

    def start(self) -> None:
        """Listen and serve."""
        self._server = _Server(self.port, self._frames, self._fps, self._content_length, self.silent)
        self.port = int(self._server.server_address[1])
        Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def stop(self) -> None:
        """Close the port and all connections."""
        server, self._server = self._server, None
        if server is not None:
            server.shutdown()
            server.server_close()
            server.drop()

    def __enter__(self) -> MjpegServer:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.stop()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self, port: int, frames: Sequence[bytes], fps: float, content_length: bool, silent: Event) -> None:
        self.frames, self.fps, self.content_length, self.silent = frames, fps, content_length, silent
        self.started_s = monotonic()
        self.gone = Event()
        self._clients: set[socket.socket] = set()
        self._lock = Lock()
        super().__init__(("127.0.0.1", port), _Handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._lock:
            self._clients.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._lock:
            self._clients.discard(request)
        super().shutdown_request(request)

    def drop(self) -> None:
        self.gone.set()
        with self._lock:
            for client in self._clients:
                with suppress(OSError):
                    client.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients come and go."""


class _Handler(BaseHTTPRequestHandler):
    server: _Server

    def do_GET(self) -> None:
        server = self.server
        index = int((monotonic() - server.started_s) * server.fps)
        if self.path == "/snapshot":
            jpeg = server.frames[index % len(server.frames)]
            self.send_response(200)
            self.send_header("Content-Type", "image/jpeg")
            self.send_header("Content-Length", str(len(jpeg)))
            self.end_headers()
            self.wfile.write(jpeg)
            return
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=frame")
        self.end_headers()
        while not server.gone.is_set():
            if not server.silent.is_set():
                jpeg = server.frames[index % len(server.frames)]
                length = f"Content-Length: {len(jpeg)}\r\n" if server.content_length else ""
                self.wfile.write(f"--frame\r\nContent-Type: image/jpeg\r\n{length}\r\n".encode() + jpeg + b"\r\n")
            index += 1
            server.gone.wait(max(0.0, server.started_s + index / server.fps - monotonic()))

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""
