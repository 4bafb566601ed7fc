"""Uvicorn, with what it lacks: a time limit for headers, a hard bound on connections, JSON for what is no HTTP."""

import asyncio
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from http import HTTPStatus
from math import ceil
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.service.app import Service
from captionlite.runtime.service.guard import LINGER_S
from captionlite.runtime.service.limits import Limits
from captionlite.runtime.service.notify import notify, watchdog_s
from captionlite.runtime.service.problems import RequestError, bad_request

MAX_HEADER_BYTES = 32 * 1024
KEEP_ALIVE_S = 5
HARD = 2
"""Beyond `Limits.connections` there are answers that say so; beyond this times that, connections are just closed."""


def listen(host: str, port: int) -> socket.socket:
    """A listening socket; port 0 takes a free one. Raises CaptionliteError that says why not."""
    try:
        (family, kind, protocol, _, address), *_ = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listener = socket.socket(family, kind, protocol)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            listener.bind(address)
            listener.listen(128)
        except BaseException:
            listener.close()
            raise
    except OSError as error:
        raise CaptionliteError(
            f"--host {host} --port {port}: cannot listen there ({error.strerror or error}). Choose another --port, or "
            f"stop what uses it (`ss -ltnp`)."
        ) from None
    return listener


def url_of(listener: socket.socket) -> str:
    """Where a client finds it."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class Protocol(H11Protocol):
    """HTTP/1.1 of one connection."""

    limits: Limits

    def __init__(self, *args: Any, **named: Any) -> None:
        super().__init__(*args, **named)
        self._deadline: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)  # type: ignore[arg-type]  # as uvicorn itself narrows it
        if len(self.connections) > HARD * self.limits.connections + 8:
            self.transport.abort()
            return
        self._await_header()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        with suppress(h11.LocalProtocolError):  # an answer to nonsense, while another answer is under way
            super().data_received(data)
            if self.cycle is not None and not self.cycle.response_complete:
                self._header_is_there()
            elif not self.transport.is_closing():
                self._await_header()
            return
        self.transport.abort()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        if self.cycle is not None and not self.cycle.response_complete:  # a pipelined request that has begun
            self._header_is_there()

    def connection_lost(self, exc: Exception | None) -> None:
        self._header_is_there()
        super().connection_lost(exc)

    def send_400_response(self, msg: str) -> None:
        self._refuse(
            bad_request(
                "This is no HTTP request that can be understood.",
                expected=f"HTTP/1.1, with a header of at most {MAX_HEADER_BYTES:,} bytes",
                next_step="Use an HTTP client such as curl.",
            )
        )

    def _await_header(self) -> None:
        """The clock for one header runs from its first chance on; more bytes do not wind it up again."""
        if self._deadline is None:
            self._deadline = self.loop.call_later(self.limits.read_timeout_s, self._header_is_late)

    def _header_is_there(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _header_is_late(self) -> None:
        self._deadline = None
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            return
        self._refuse(
            RequestError(
                HTTPStatus.REQUEST_TIMEOUT,
                "The request's header did not come in time.",
                expected=f"the whole header within {self.limits.read_timeout_s:g} s",
                next_step="Send the request again, on a new connection.",
            )
        )

    def _refuse(self, error: RequestError) -> None:
        """Answer without a request to answer, and close."""
        body = error.body()
        headers = [
            (b"content-type", b"application/json"),
            (b"content-length", str(len(body)).encode()),
            (b"connection", b"close"),
        ]
        with suppress(h11.LocalProtocolError):  # too late for an answer
            answer = h11.Response(status_code=int(error.status), headers=headers, reason=error.status.phrase.encode())
            for event in (answer, h11.Data(data=body), h11.EndOfMessage()):
                self.transport.write(self.conn.send(event) or b"")
        # Not closed at once: the kernel answers what is still coming to a closed socket with a reset, and who is
        # sending then never sees the answer.
        self._refused = True
        if self.transport.can_write_eof():
            self.transport.write_eof()
        self.transport.resume_reading()
        self.loop.call_later(LINGER_S, self.transport.close)


class Server(uvicorn.Server):
    """Uvicorn's server: tells when it is ready, and ends with exit code 0 when it is asked to end."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service = service
        self._ready = ready
        self._tasks: list[asyncio.Task[None]] = []

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._service.connections.append(lambda: len(self.server_state.connections))
        if (interval := watchdog_s()) is not None:
            self._tasks.append(asyncio.create_task(self._feed_watchdog(interval / 3)))
        notify("READY=1")
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        notify("STOPPING=1")
        await super().shutdown(sockets)
        for task in self._tasks:
            task.cancel()

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Uvicorn raises the signal once more at the end, to die of it; here a stop that went well is a success."""
        if threading.current_thread() is not threading.main_thread():  # where no signal can be caught
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def _feed_watchdog(self, every_s: float) -> None:
        while True:
            if self._service.pool.healthy:
                notify("WATCHDOG=1")
            await asyncio.sleep(every_s)


def make_server(service: Service, ready: Callable[[], None]) -> Server:
    """A server for this service; `ready` is called once it answers."""
    limits = service.limits
    logging.getLogger("python_multipart").setLevel(logging.ERROR)  # it warns of what the answer says anyway
    config = uvicorn.Config(
        service.app(),
        http=type("LimitedProtocol", (Protocol,), {"limits": limits}),
        loop="asyncio",
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="error",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        timeout_keep_alive=KEEP_ALIVE_S,
        timeout_graceful_shutdown=ceil(limits.grace_s),
        h11_max_incomplete_event_size=MAX_HEADER_BYTES,
    )
    return Server(config, service, ready)


def run(service: Service, listener: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGINT; what is in flight then has `grace_s` to finish."""
    make_server(service, ready).run(sockets=[listener])
    if not service.pool.stop(within_s=1.0):
        # A thread inside a decoder would be torn down with the interpreter under it, which can crash.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)
