"""The routes: a caption, whether the service is well, its figures, and the description of all that."""

import asyncio
from contextlib import suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from time import perf_counter
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from captionlite.runtime.captioner import Captioner
from captionlite.runtime.service.access import Access
from captionlite.runtime.service.answers import Question
from captionlite.runtime.service.body import ClientGoneError, Held, Receive, body_limit, check_length, read_body
from captionlite.runtime.service.guard import CLIENT_GONE, App, Guard, internal_error, problem_response, stopping
from captionlite.runtime.service.limits import Limits
from captionlite.runtime.service.metrics import CONTENT_TYPE, STAGES, Metrics
from captionlite.runtime.service.openapi import describe
from captionlite.runtime.service.pool import Job, QueueFullError, StoppedError, WorkerPool
from captionlite.runtime.service.problems import RequestError, overloaded
from captionlite.runtime.service.uploads import media_type, read_query

Pool = WorkerPool[Captioner, Question, dict[str, Any]]


@dataclass
class Service:
    """Everything that requests share."""

    pool: Pool
    limits: Limits
    access: Access
    metrics: Metrics
    held: Held
    connections: list[Any] = field(default_factory=list)

    def app(self) -> App:
        """The ASGI application."""
        routes = [
            Route("/v1/caption", self._caption, methods=["POST"]),
            Route("/healthz", self._health, methods=["GET"]),
            Route("/metrics", self._metrics, methods=["GET"]),
            Route("/openapi.json", self._openapi, methods=["GET"]),
        ]
        handlers: dict[Any, Any] = {
            HTTPException: _http_exception,
            RequestError: _request_error,
            ClientGoneError: _gone,
            Exception: _internal,
        }
        starlette = Starlette(routes=routes, exception_handlers=handlers)
        starlette.router.redirect_slashes = False
        paths = frozenset(route.path for route in routes)
        return Guard(starlette, self.access, self.metrics, self.limits, paths, self.connections)

    async def _caption(self, request: Request) -> Response:
        started = perf_counter()
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in request.scope["headers"]}
        content_type = headers.get("content-type", "")
        query = read_query(request.scope["query_string"])
        limit = body_limit(media_type(content_type), self.limits)
        check_length(headers, limit)
        if not self.pool.has_room():  # before a byte of the body is asked for
            raise overloaded("The queue is full.")
        with self.held.account() as more:
            body = await read_body(request.receive, limit, self.limits.read_timeout_s, more)
            read_s = perf_counter() - started
            try:
                job = self.pool.submit(Question(body, content_type, query))
            except QueueFullError:
                raise overloaded("The queue is full.") from None
            except StoppedError:
                raise stopping() from None
            del body
            answer = await self._answer(job, request.receive)
        timings = answer["timings_ms"]
        self.metrics.captioned(
            {
                **{stage: timings[stage] / 1e3 for stage in STAGES if stage in timings},
                "read": read_s,
                "wait": job.waited_s,
                "total": perf_counter() - started,
            }
        )
        return JSONResponse(answer)

    async def _answer(self, job: "Job[Question, dict[str, Any]]", receive: Receive) -> dict[str, Any]:
        """What the worker says, unless its time is over or the client has gone: either frees the place."""
        gone = asyncio.ensure_future(_until_gone(receive))
        try:
            await asyncio.wait((job.answer, gone), timeout=self.limits.timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if job.answer.done():
                return job.answer.result()
            if gone.done():
                raise ClientGoneError
            raise RequestError(
                HTTPStatus.GATEWAY_TIMEOUT,
                "There was no caption in time.",
                found=f"none after {self.limits.timeout_s:g} s",
                next_step="Send the request again, or a smaller photograph; --timeout of the service sets the time.",
            )
        finally:
            self.pool.give_up(job)
            job.answer.cancel()
            gone.cancel()
            with suppress(asyncio.CancelledError):
                await gone

    async def _health(self, request: Request) -> Response:
        healthy = self.pool.healthy
        state = {
            "status": "ok" if healthy else "unavailable",
            "workers": self.pool.alive,
            "busy": self.pool.busy,
            "waiting": self.pool.waiting,
        }
        return JSONResponse(state, 200 if healthy else 503)

    async def _metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), headers={"Content-Type": CONTENT_TYPE})

    async def _openapi(self, request: Request) -> Response:
        return JSONResponse(describe(self.limits, secured=self.access.token is not None))


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _request_error(request: Request, error: RequestError) -> Response:
    return problem_response(error)


async def _gone(request: Request, error: ClientGoneError) -> Response:
    return Response(status_code=CLIENT_GONE)  # which nobody will see but the counters


async def _internal(request: Request, error: Exception) -> Response:
    return problem_response(internal_error())


async def _http_exception(request: Request, error: HTTPException) -> Response:
    """What Starlette itself refuses: a path or a method that is not there."""
    status = HTTPStatus(error.status_code)
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        what, found, expected = "This path has no such method.", request.method[:20], allowed
    else:
        what, found, expected = "There is nothing at this path.", request.url.path[:80], "one of /openapi.json"
    return problem_response(
        RequestError(
            status,
            what,
            found=ascii(found),
            expected=expected,
            next_step="See /openapi.json.",
            headers=error.headers,
        )
    )
