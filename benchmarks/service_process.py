"""The service's process in a load test: started as systemd starts it, and restarted by the rules of its own unit."""

from __future__ import annotations

import http.client
import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Thread
from time import perf_counter

import psutil

from captionlite.benchmarks.service_uploads import Upload
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.service.limits import Limits
from captionlite.runtime.service.unit import Unit

HOST = "127.0.0.1"
START_S = 120.0
CLEAN_SIGNALS = {signal.SIGHUP, signal.SIGINT, signal.SIGTERM, signal.SIGPIPE}  # systemd.service(5), Restart=


def free_port() -> int:
    """A port that nobody uses just now."""
    with socket.socket() as probe:
        probe.bind((HOST, 0))
        return int(probe.getsockname()[1])


def start(port: int, options: Sequence[str]) -> subprocess.Popen[str]:
    """`captionlite serve` in a process of its own, not ready yet."""
    script = Path(sys.executable).with_name("captionlite")
    program = [str(script)] if script.exists() else [sys.executable, "-m", "captionlite.runtime.cli"]
    command = [*program, "serve", "--port", str(port), "--json", *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)


def await_ready(process: subprocess.Popen[str]) -> None:
    """Until it says that it is. Raises CaptionliteError when it ends instead."""
    assert process.stdout is not None
    if not process.stdout.readline():
        raise CaptionliteError(f"`captionlite serve` ended with exit code {process.wait()} before it was ready.")


def stop(process: subprocess.Popen[str]) -> int:
    """SIGTERM, and its exit code."""
    process.terminate()
    code = process.wait(60)
    assert process.stdout is not None
    process.stdout.close()
    return code


def resident_mb(process: subprocess.Popen[str]) -> float:
    """Resident memory in MB (10**6 bytes)."""
    return float(psutil.Process(process.pid).memory_info().rss / 1e6)


class Client:
    """One connection, opened again when the service has closed it."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._connection = self._new()

    def _new(self) -> http.client.HTTPConnection:
        return http.client.HTTPConnection(HOST, self._port, timeout=60)

    def send(self, upload: Upload) -> tuple[int, bytes]:
        """Status and body of the answer. Raises OSError, http.client.HTTPException."""
        try:
            return self._send(upload)
        except BaseException:  # nothing is sent twice: what broke is counted
            self.close()
            raise

    def _send(self, upload: Upload) -> tuple[int, bytes]:
        connection = self._connection
        connection.putrequest("POST", f"/v1/caption{upload.query}", skip_host="Host" in upload.headers)
        for name, value in upload.headers.items():
            connection.putheader(name, value)
        connection.putheader("Content-Length", str(len(upload.body) if upload.declared is None else upload.declared))
        connection.endheaders(upload.body or None)
        answer = connection.getresponse()
        body = answer.read()
        if answer.will_close:
            self.close()
        return answer.status, body

    def close(self) -> None:
        self._connection.close()
        self._connection = self._new()


@dataclass(frozen=True)
class Rules:
    """What a unit says of restarts."""

    restart: str
    restart_s: float

    @classmethod
    def of_unit(cls) -> Rules:
        """Those that `captionlite service install` writes."""
        text = Unit(["captionlite", "serve"], Limits(workers=1), local=True, port=8080, needed=[]).text()
        found = dict(re.findall(r"^(Restart|RestartSec)=(\S+)$", text, re.MULTILINE))
        return cls(found["Restart"], float(found["RestartSec"]))

    def again(self, code: int) -> bool:
        """Whether systemd starts a service again that ended so; Popen's exit code: negative is a signal."""
        clean = code == 0 or (code < 0 and -code in CLEAN_SIGNALS)
        return self.restart == "always" or (self.restart == "on-failure" and not clean)


class Supervisor:
    """Keeps one service running as systemd would, by the unit's rules."""

    def __init__(self, port: int, options: Sequence[str]) -> None:
        self.rules = Rules.of_unit()
        self.restarts = 0
        self.gone_at = 0.0  # by perf_counter, when the latest process had ended
        self._port, self._options = port, options
        self.process = start(port, options)
        await_ready(self.process)
        self._ended = Event()
        self._thread = Thread(target=self._watch, daemon=True)
        self._thread.start()

    def _watch(self) -> None:
        while True:
            code = self.process.wait()
            self.gone_at = perf_counter()
            if not self.rules.again(code) or self._ended.wait(self.rules.restart_s):
                return
            assert self.process.stdout is not None
            self.process.stdout.close()
            self.process = start(self._port, self._options)
            self.restarts += 1
            await_ready(self.process)

    def kill(self) -> None:
        """kill -9."""
        self.process.kill()

    def stop(self) -> int:
        """SIGTERM, after which there is no restart; the exit code."""
        code = stop(self.process)
        self._thread.join(self.rules.restart_s + 5)
        self._ended.set()
        if self._thread.is_alive():
            raise CaptionliteError("The service was started again after a clean stop.")
        return code


def first_caption_s(port: int, options: Sequence[str], upload: Upload) -> tuple[float, subprocess.Popen[str]]:
    """Seconds from starting the process to the first caption through it, and the process."""
    started = perf_counter()
    process = start(port, options)
    await_ready(process)
    client = Client(port)
    status, body = client.send(upload)
    seconds = perf_counter() - started
    client.close()
    if status != 200 or tuple(json.loads(body)["tokens"]) != upload.tokens:
        raise CaptionliteError(f"The first answer was {status}: {body[:300]!r}")
    return seconds, process
