"""A service to talk to: the real command in a process of its own, or its parts in a thread with a worker that waits.

Both are uvicorn on a loopback socket. In the thread, what a worker does can be held up for as long as a test likes.
"""

import asyncio
import http.client
import json
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from threading import Event, Thread
from time import monotonic, sleep
from typing import Any

import toy_bundle
from PIL import Image

TIMEOUT_S = 60.0


@dataclass(frozen=True)
class Reply:
    """An answer: its JSON, or its text where it is none."""

    status: int
    headers: Mapping[str, str]
    body: Any

    @property
    def error(self) -> dict[str, Any]:
        """The error object; every field is there."""
        assert set(self.body) == {"error"}, self.body
        error: dict[str, Any] = self.body["error"]
        assert set(error) == {"status", "title", "what", "found", "expected", "next"}
        assert error["status"] == self.status
        assert error["what"]
        assert error["next"]
        return error


@dataclass
class Client:
    """Asks one service."""

    host: str
    port: int
    process: "subprocess.Popen[str] | None" = None
    pid: int = 0  # of the service itself
    end: Callable[[], None] = lambda: None  # of a service in a thread: as SIGTERM does

    def connect(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(self.host, self.port, timeout=TIMEOUT_S)

    def ask(
        self, method: str, path: str, body: Any = None, headers: Mapping[str, str] | None = None, **named: Any
    ) -> Reply:
        connection = self.connect()
        try:
            connection.request(method, path, body, dict(headers or {}), **named)
            return read_reply(connection.getresponse())
        finally:
            connection.close()

    def get(self, path: str, **headers: str) -> Reply:
        return self.ask("GET", path, headers=headers)

    def caption(self, image: bytes, query: str = "", kind: str = "image/png", **headers: str) -> Reply:
        return self.ask("POST", f"/v1/caption{query}", image, {"Content-Type": kind, **headers})

    def raw(self, data: bytes, *, end: bool = True) -> bytes:
        """Send bytes as they are, and read until the server closes."""
        with socket.create_connection((self.host, self.port), TIMEOUT_S) as connection:
            connection.sendall(data)
            if end:
                connection.shutdown(socket.SHUT_WR)
            received = b""
            while chunk := connection.recv(65536):
                received += chunk
            return received

    def metric(self, name: str) -> float:
        """The value of one row of /metrics."""
        for line in self.get("/metrics").body.splitlines():
            if line.startswith(f"{name} "):
                return float(line.rpartition(" ")[2])
        return 0.0

    def await_metric(self, name: str, value: float) -> None:
        until(lambda: self.metric(name) == value, f"{name} to be {value}")

    def stop(self) -> int:
        """SIGTERM; the exit code."""
        assert self.process is not None
        os.kill(self.pid, signal.SIGTERM)
        return self.process.wait(TIMEOUT_S)


def until(condition: Callable[[], bool], what: str) -> None:
    """Wait for a condition."""
    ends = monotonic() + TIMEOUT_S
    while not condition():
        assert monotonic() < ends, f"waited in vain for {what}"
        sleep(0.01)


def read_reply(response: http.client.HTTPResponse) -> Reply:
    data = response.read()
    kind = response.headers.get("content-type", "")
    body = json.loads(data) if kind.startswith("application/json") and data else data.decode()
    return Reply(response.status, {name.lower(): value for name, value in response.headers.items()}, body)


@contextmanager
def serve(
    bundle: Path, *options: str, environment: Mapping[str, str] | None = None, through: Sequence[str] = ()
) -> Iterator[Client]:
    """The real `captionlite serve` on a free port; `through` is a command that starts the rest of its line."""
    command = [*through, sys.executable, "-m", "captionlite.runtime.cli", "serve", "--port", "0", "--json"]
    process = subprocess.Popen(
        [*command, "--bundle", str(bundle), *options],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        line = process.stdout.readline()
        assert line, process.stderr.read()
        told = json.loads(line)
        found = re.fullmatch(r"http://\[?([^]]+)]?:(\d+)", told["url"])
        assert found
        yield Client(found[1], int(found[2]), process, told["pid"])
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        process.stderr.close()


class Gate:
    """A worker's handling that waits to be let through; without waiting once `open` is set."""

    def __init__(self) -> None:
        self.open = Event()

    def __call__(self, worker: object, question: Any) -> dict[str, Any]:
        assert self.open.wait(TIMEOUT_S)
        return {"caption": f"{len(question.body)} bytes", "tokens": [3], "logprob": 0.0, "timings_ms": {"total": 0.0}}


@contextmanager
def serve_here(
    handle: Callable[[Any, Any], dict[str, Any]], token: bytes | None = None, **limits: Any
) -> Iterator[Client]:
    """The service's own parts in a thread, with `handle` for what a worker does."""
    from captionlite.runtime.bundle import Bundle
    from captionlite.runtime.service.access import Access
    from captionlite.runtime.service.app import Pool, Service
    from captionlite.runtime.service.body import Held
    from captionlite.runtime.service.limits import Limits
    from captionlite.runtime.service.metrics import Metrics
    from captionlite.runtime.service.problems import RequestError
    from captionlite.runtime.service.server import listen, make_server

    bounds = Limits(**{"workers": 1, **limits})
    pool = Pool(lambda: object(), handle, bounds.workers, bounds.queue, RequestError)  # type: ignore[arg-type]
    held, metrics = Held(bounds.held_bytes), Metrics()
    metrics.connect(pool, held, Bundle.open(), bounds)
    pool.start()
    listener = listen("127.0.0.1", 0)
    port = listener.getsockname()[1]
    ready = Event()
    service = Service(pool, bounds, Access.of("127.0.0.1", token), metrics, held)
    server = make_server(service, ready.set)
    thread = Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()

    def end() -> None:
        server.should_exit = True

    client = Client("127.0.0.1", port, end=end)
    try:
        assert ready.wait(TIMEOUT_S)
        yield client
    finally:
        if isinstance(handle, Gate):
            handle.open.set()
        end()
        thread.join(TIMEOUT_S)
        assert pool.stop(TIMEOUT_S)


def png(seed: int = 3) -> bytes:
    """A photograph of the toy bundle's own size, as a file."""
    stream = BytesIO()
    Image.fromarray(toy_bundle.photographs(1, seed)[0]).save(stream, "PNG")
    return stream.getvalue()


def form(*parts: tuple[str, bytes, str | None], boundary: str = "b0undary") -> tuple[bytes, dict[str, str]]:
    """A multipart body and its headers; parts are (field, content, file name)."""
    lines = []
    for name, content, filename in parts:
        file = "" if filename is None else f'; filename="{filename}"'
        lines.append(f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"{file}\r\n\r\n'.encode())
        lines.append(content + b"\r\n")
    lines.append(f"--{boundary}--\r\n".encode())
    return b"".join(lines), {"Content-Type": f"multipart/form-data; boundary={boundary}"}
