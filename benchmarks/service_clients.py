"""Clients that keep a service busy, and what came of each of their requests."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from http.client import HTTPException
from threading import Lock, Thread
from time import perf_counter, sleep

from captionlite.benchmarks.service_process import Client
from captionlite.benchmarks.service_uploads import Upload


@dataclass
class Tally:
    """What came of requests, from all clients."""

    answers: Counter[str] = field(default_factory=Counter)  # "kind status"
    wrong: list[str] = field(default_factory=list)  # good ones with other tokens
    failed: list[str] = field(default_factory=list)  # good ones without a caption
    let_in: list[str] = field(default_factory=list)  # bad ones without a 4xx that says why
    lost: list[str] = field(default_factory=list)  # connections that broke
    lost_at: list[float] = field(default_factory=list)  # when these requests began
    good_ms: list[float] = field(default_factory=list)
    _lock: Lock = field(default_factory=Lock)

    def add(self, upload: Upload, status: int, body: bytes, seconds: float) -> None:
        with self._lock:
            self.answers[f"{upload.kind} {status}"] += 1
            what = f"{upload.name}: {status} {body[:200]!r}"
            if upload.tokens is None:
                if not (400 <= status < 500 and _says_why(body)):
                    self.let_in.append(what)
            elif status != 200:
                self.failed.append(what)
            elif tuple(json.loads(body)["tokens"]) != upload.tokens:
                self.wrong.append(what)
            else:
                self.good_ms.append(seconds * 1e3)

    def broke(self, upload: Upload, error: Exception, began: float) -> None:
        with self._lock:
            self.lost_at.append(began)
            self.answers[f"{upload.kind} broken"] += 1
            self.lost.append(f"{upload.name}: {type(error).__name__} {error}")


def _says_why(body: bytes) -> bool:
    try:
        error = json.loads(body)["error"]
        return bool(error["what"] and error["next"])
    except (ValueError, KeyError, TypeError):
        return False


def run_clients(
    port: int, count: int, choose: Callable[[random.Random], Upload], until: Callable[[], bool], tally: Tally
) -> None:
    """`count` clients, each sending what `choose` gives it one after another, for as long as not `until()`."""

    def work(seed: int) -> None:
        client, draw = Client(port), random.Random(seed)
        while not until():
            upload = choose(draw)
            started = perf_counter()
            try:
                status, body = client.send(upload)
            except ConnectionRefusedError:  # not taken, so not lost: it would be sent again
                sleep(0.02)
            except (OSError, HTTPException) as error:
                tally.broke(upload, error, started)
            else:
                tally.add(upload, status, body, perf_counter() - started)
        client.close()

    threads = [Thread(target=work, args=(seed,)) for seed in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def for_seconds(seconds: float) -> Callable[[], bool]:
    ends = perf_counter() + seconds
    return lambda: perf_counter() >= ends
