"""Bounds of the service, with a worker that waits for as long as a test wants: queue, time, clients that leave."""

import socket
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
import serving
from serving import Gate, png, serve_here

from captionlite.runtime.errors import OptionsError
from captionlite.runtime.service.limits import Limits
from captionlite.runtime.service.problems import RequestError, bad_request


def request(size: int, sent: int = 0, host: str = "localhost") -> bytes:
    """The beginning of an upload: its header, and so many bytes of it."""
    head = f"POST /v1/caption HTTP/1.1\r\nHost: {host}\r\nContent-Type: image/png\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + bytes(sent)


def test_a_full_queue_is_told_when_to_come_again() -> None:
    gate = Gate()
    with serve_here(gate, workers=1, queue=2) as client, ThreadPoolExecutor(3) as threads:
        waiting = [threads.submit(client.caption, bytes(10 + i)) for i in range(3)]
        client.await_metric("captionlite_queue_depth", 2)
        assert client.metric("captionlite_workers_busy") == 1
        assert client.metric("captionlite_held_bytes") == 10 + 11 + 12
        refused = client.caption(bytes(1_000_000))
        assert refused.status == 503
        assert int(refused.headers["retry-after"]) >= 1
        assert "queue is full" in refused.error["what"]
        assert client.get("/healthz").status == 200  # busy is not ill
        gate.open.set()
        assert {future.result().status for future in waiting} == {200}
        assert client.caption(bytes(9)).body["caption"] == "9 bytes"
        assert client.metric("captionlite_held_bytes") == 0


def test_without_a_queue_a_free_worker_is_still_used() -> None:
    gate = Gate()
    with serve_here(gate, workers=2, queue=0) as client, ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(client.caption, bytes(10)) for _ in range(2)]
        client.await_metric("captionlite_workers_busy", 2)
        assert client.caption(bytes(10)).status == 503
        gate.open.set()
        assert {future.result().status for future in waiting} == {200}


class StuckAt:
    """Waits at bodies of one size until it is let go; answers others at once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.go = Event()

    def __call__(self, worker: object, question: Any) -> dict[str, Any]:
        if len(question.body) == self.size:
            assert self.go.wait(serving.TIMEOUT_S)
        return {"caption": "done", "tokens": [3], "logprob": 0.0, "timings_ms": {}}


def test_a_timeout_frees_the_place_of_what_is_stuck() -> None:
    stuck = StuckAt(77)
    try:
        with serve_here(stuck, workers=1, timeout_s=0.3) as client:
            late = client.caption(bytes(77))
            assert late.status == 504
            assert "0.3 s" in late.error["found"]
            # The only worker is still at it, and another has taken its place.
            assert client.metric("captionlite_workers_given_up") == 1
            assert client.caption(bytes(5)).status == 200
            assert client.get("/healthz").body["workers"] == 1
            stuck.go.set()
            client.await_metric("captionlite_workers_given_up", 0)
            assert client.caption(bytes(5)).status == 200
            assert client.metric("captionlite_workers_alive") == 1  # the first has ended
    finally:
        stuck.go.set()


def test_a_timeout_in_the_queue_takes_the_request_out() -> None:
    stuck = StuckAt(77)
    try:
        with serve_here(stuck, workers=1, timeout_s=0.3) as client, ThreadPoolExecutor(3) as threads:
            first = [threads.submit(client.caption, bytes(77)) for _ in range(3)]
            assert {future.result().status for future in first} == {504}
            assert client.metric("captionlite_queue_depth") == 0
            assert client.metric("captionlite_held_bytes") == 0
            stuck.go.set()
    finally:
        stuck.go.set()


def test_when_everything_is_stuck_health_says_so() -> None:
    stuck = StuckAt(77)
    try:
        with serve_here(stuck, workers=1, timeout_s=0.2) as client:
            assert client.caption(bytes(77)).status == 504
            assert client.caption(bytes(77)).status == 504  # its replacement, too; there is no third
            ill = client.get("/healthz")
            assert (ill.status, ill.body["status"]) == (503, "unavailable")
            stuck.go.set()
            serving.until(lambda: client.get("/healthz").status == 200, "health")
            assert client.caption(bytes(5)).status == 200
    finally:
        stuck.go.set()


def test_a_client_that_leaves_frees_its_place() -> None:
    gate = Gate()
    with serve_here(gate, workers=1, queue=5) as client:
        connections = []
        for _ in range(3):
            connections.append(socket.create_connection((client.host, client.port), 60))
            connections[-1].sendall(request(5, 5))
        client.await_metric("captionlite_queue_depth", 2)
        for connection in connections:
            connection.close()
        client.await_metric("captionlite_queue_depth", 0)
        client.await_metric("captionlite_requests_in_flight", 1)
        gone = 'captionlite_requests_total{path="/v1/caption",status="499"}'
        assert client.metric(gone) == 3
        gate.open.set()
        assert client.caption(bytes(4)).status == 200


def test_a_client_that_leaves_in_the_middle_of_its_body() -> None:
    with serve_here(Gate(), workers=1) as client:
        with socket.create_connection((client.host, client.port), 60) as connection:
            connection.sendall(request(1000, 10))
            client.await_metric("captionlite_held_bytes", 10)
        client.await_metric("captionlite_held_bytes", 0)


def test_a_slow_body_is_given_up() -> None:
    gate = Gate()
    gate.open.set()
    with serve_here(gate, read_timeout_s=0.3) as client:
        answer = client.raw(request(1000, 10), end=False)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"10 bytes after 0.3 s" in answer
        assert client.metric("captionlite_held_bytes") == 0


@pytest.mark.parametrize("sent", [b"", b"GET / HTT", b"POST /v1/caption HTTP/1.1\r\nHost: localhost\r\nX-A: b\r\n"])
def test_a_header_that_does_not_come_is_given_up(sent: bytes) -> None:
    with serve_here(Gate(), read_timeout_s=0.2) as client:
        answer = client.raw(sent, end=False)
        assert answer.startswith(b"HTTP/1.1 408")
        assert b"header did not come in time" in answer


def test_the_clock_for_a_second_header_runs_too() -> None:
    with (
        serve_here(Gate(), read_timeout_s=0.2) as client,
        socket.create_connection((client.host, client.port), 60) as connection,
        connection.makefile("rb") as answers,
    ):
        connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
        while answers.readline() != b"\r\n":
            pass
        assert b"ok" in answers.read(15)
        connection.sendall(b"GET /heal")
        assert b"HTTP/1.1 408" in answers.read()


def test_too_many_connections_are_told_so_and_many_more_are_closed() -> None:
    gate = Gate()
    gate.open.set()
    with serve_here(gate, connections=4) as client:
        idle = [socket.create_connection((client.host, client.port), 60) for _ in range(5)]
        refused = client.caption(png())
        assert refused.status == 503
        assert "connections" in refused.error["what"]
        idle += [socket.create_connection((client.host, client.port), 60) for _ in range(20)]
        assert any(connection.recv(1) == b"" for connection in idle[-1:])  # closed without an answer
        for connection in idle:
            connection.close()
        serving.until(lambda: client.caption(png()).status == 200, "connections to be free again")


def test_bodies_in_memory_are_bounded_all_together() -> None:
    gate = Gate()
    limits = Limits(workers=1, upload_bytes=1_000_000, queue=50)
    with serve_here(gate, upload_bytes=limits.upload_bytes, queue=50, workers=1) as client:
        with ThreadPoolExecutor(10) as threads:
            asked = [threads.submit(client.caption, bytes(1_000_000)) for _ in range(10)]
            refused = limits.held_bytes // 1_000_000
            serving.until(lambda: sum(future.done() for future in asked) == 10 - refused, "what is too much")
            statuses = [future.result().status for future in asked if future.done()]
            assert statuses == [503] * (10 - refused)
            assert client.metric("captionlite_held_bytes") == refused * 1_000_000
            gate.open.set()
        assert sum(future.result().status == 200 for future in asked) == refused


def test_the_end_waits_for_what_is_in_flight() -> None:
    gate = Gate()
    with serve_here(gate, workers=1) as client, ThreadPoolExecutor(2) as threads:
        waiting = [threads.submit(client.caption, bytes(10)) for _ in range(2)]
        client.await_metric("captionlite_queue_depth", 1)
        client.end()

        def closed() -> bool:
            try:
                socket.create_connection((client.host, client.port), 1).close()
            except OSError:
                return True
            return False

        serving.until(closed, "the port to close")
        assert not any(future.done() for future in waiting)
        gate.open.set()
        assert [future.result().status for future in waiting] == [200, 200]


def test_the_end_does_not_wait_for_ever() -> None:
    stuck = StuckAt(77)
    try:
        with serve_here(stuck, workers=1, grace_s=0.2) as client, ThreadPoolExecutor(1) as threads:
            waiting = threads.submit(client.caption, bytes(77))
            client.await_metric("captionlite_workers_busy", 1)
            client.end()
            reply = waiting.result(serving.TIMEOUT_S)
            assert reply.status == 503
            assert "about to stop" in reply.error["what"]
            stuck.go.set()
    finally:
        stuck.go.set()


def test_a_fault_is_a_500_that_tells_nothing_and_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    def faulty(worker: object, question: Any) -> dict[str, Any]:
        if question.body == b"expected":
            raise bad_request("No.")
        raise ZeroDivisionError("secret")

    with serve_here(faulty) as client:
        reply = client.caption(b"x")
        assert reply.status == 500
        assert "secret" not in str(reply.body)
        assert "log" in reply.error["next"]
        assert client.caption(b"expected").status == 400
        assert client.get("/healthz").status == 200
    assert "ZeroDivisionError: secret" in caplog.text
    assert caplog.text.count("Traceback") >= 1


def test_what_a_refused_request_held_is_let_go() -> None:
    import gc
    import weakref

    class Body(bytes):
        pass

    kept: list[weakref.ref[Exception]] = []

    def refuse(worker: object, question: Any) -> dict[str, Any]:
        try:
            raise ValueError("as Pillow does")
        except ValueError:
            error = RequestError(bad_request("No.").status, "No.", next_step="None.")
            kept.append(weakref.ref(error))
            raise error from None

    gc.disable()
    try:
        with serve_here(refuse) as client:
            assert client.caption(bytes(1000)).status == 400
            assert client.caption(bytes(1000)).status == 400
            serving.until(lambda: kept[0]() is None, "the first error to be forgotten")
    finally:
        gc.enable()


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"workers": 65}, {"queue": -1}, {"pixels": 10**9}, {"timeout_s": 0}, {"upload_bytes": 1}]
)
def test_bounds_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(OptionsError, match=f"{next(iter(wrong))} is"):
        Limits(**{"workers": 1, **wrong})


def test_memory_follows_from_the_bounds() -> None:
    small, large = Limits(workers=1, pixels=4_000_000, upload_bytes=1_000_000), Limits(workers=4)
    assert 10**8 < small.memory_bytes < large.memory_bytes < 2 * 10**9
