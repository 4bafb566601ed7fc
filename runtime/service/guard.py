"""Around the routes: who may ask, how many at a time, every error as JSON, and answers that reach a busy sender."""

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from typing import Any, TypeAlias

from starlette.responses import Response

from captionlite.runtime.service.access import Access
from captionlite.runtime.service.body import Receive
from captionlite.runtime.service.limits import Limits
from captionlite.runtime.service.metrics import Metrics
from captionlite.runtime.service.problems import RequestError, overloaded

Message: TypeAlias = MutableMapping[str, Any]
Scope: TypeAlias = MutableMapping[str, Any]
Send: TypeAlias = Callable[[Message], Awaitable[None]]
App: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]

LINGER_S = 5.0
"""So long the rest of a refused body is read and thrown away: who is still sending would not see the answer else."""

CLIENT_GONE = 499
"""For the counters: the client closed the connection before there was an answer (nginx's number)."""

log = logging.getLogger(__name__)


class Guard:
    """The ASGI application that uvicorn calls; `app` has the routes."""

    def __init__(
        self, app: App, access: Access, metrics: Metrics, limits: Limits, paths: frozenset[str], connections: list[Any]
    ) -> None:
        """`connections` has a function, once there is a server, that tells how many there are."""
        self._app = app
        self._access = access
        self._metrics = metrics
        self._limits = limits
        self._paths = paths
        self._connections = connections

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        exchange = _Exchange(scope, receive, send)
        self._metrics.arrived()
        try:
            try:
                if self._connections and self._connections[0]() > self._limits.connections:
                    raise overloaded("There are too many connections.")
                self._access.check(scope["path"], exchange.headers)
                await self._app(scope, exchange.receive, exchange.send)
            except RequestError as error:
                await problem_response(error)(scope, exchange.receive, exchange.send)
            except asyncio.CancelledError:  # the server has waited long enough for its end
                if exchange.status is not None:
                    raise
                if (task := asyncio.current_task()) is not None:
                    task.uncancel()
                await problem_response(stopping())(scope, exchange.receive, exchange.send)
            except Exception:
                log.exception("%s %s went wrong.", scope["method"], ascii(scope["path"]))
                if exchange.status is None:
                    await problem_response(internal_error())(scope, exchange.receive, exchange.send)
        finally:
            path = scope["path"] if scope["path"] in self._paths else "other"
            self._metrics.answered(path, exchange.status or CLIENT_GONE)


class _Exchange:
    """One request and its answer: keeps watch over whether the body was read to its end."""

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        self.status: int | None = None
        self._receive = receive
        self._send = send
        length = self.headers.get("content-length", "0")
        self._body_left = "transfer-encoding" in self.headers or length.strip("0") != ""

    async def receive(self) -> Message:
        message = await self._receive()
        self._body_left = message["type"] == "http.request" and message.get("more_body", False)
        return message

    async def send(self, message: Message) -> None:
        """What is sent before the whole body was read ends the connection, once the sender had a chance to read it."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = [*message.get("headers", ()), *_HEADERS]
            if self._body_left:
                message["headers"].append((b"connection", b"close"))
            await self._send(message)
        elif self._body_left and self.status not in _NO_LINGERING and not message.get("more_body", False):
            await self._send({**message, "more_body": True})
            await self._linger()
            await self._send({"type": "http.response.body", "body": b"", "more_body": False})
        else:
            await self._send(message)

    async def _linger(self) -> None:
        try:
            async with asyncio.timeout(LINGER_S):
                while self._body_left:
                    await self.receive()
        except TimeoutError:
            self._body_left = False


_NO_LINGERING = (408, 499)  # who was too slow already, or has gone
_HEADERS = ((b"x-content-type-options", b"nosniff"), (b"cache-control", b"no-store"))


def problem_response(error: RequestError) -> Response:
    """The error as an answer."""
    return Response(error.body(), int(error.status), error.headers, "application/json")


def stopping() -> RequestError:
    """503, for what came, or was not done, when the service was told to stop."""
    return overloaded("The service is about to stop.", retry_after_s=5)


def internal_error() -> RequestError:
    """500, which tells nobody what."""
    return RequestError(
        HTTPStatus.INTERNAL_SERVER_ERROR,
        "Something went wrong inside the service.",
        next_step="Its log says what; please report it.",
    )
