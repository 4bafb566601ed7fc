"""Wall time and peak memory of a command, measured from outside.

Also a script: `python process.py COMMAND...` is the small process in between. Linux counts the peak of a process from
before its `exec`, when it still was a copy of its parent, so a child started from a large process (a test run with
TensorFlow in it, say) would seem at least that large. The process in between is about 10 MB.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter


@dataclass(frozen=True)
class Measurement:
    """One run of a command: its streams, its exit status, and what it took from start to end."""

    stdout: str
    stderr: str
    returncode: int  # negative: ended by that signal
    seconds: float
    peak_memory_bytes: int  # largest resident set of the process itself, its children not counted


def measure(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Measurement:
    """Run a command to its end and say what it took. Its exit status is in the result, not raised.

    Raises OSError when the command cannot be started at all.
    """
    # -S and -E keep the process in between bare: no site-packages, no settings of Python's from outside.
    between = [sys.executable, "-S", "-E", __file__, *command]
    done = subprocess.run(between, capture_output=True, text=True, check=False, env=environment)
    if done.returncode:
        raise OSError(f"cannot run {command[0]}: {done.stderr.strip().splitlines()[-1]}")
    return Measurement(**json.loads(done.stdout))


def _run(command: Sequence[str]) -> Measurement:
    import tempfile

    # Files, not pipes: a pipe that nobody reads until the end could block the command.
    with tempfile.TemporaryFile() as stdout, tempfile.TemporaryFile() as stderr:
        started = perf_counter()
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stdout, stderr=stderr)
        _, status, usage = os.wait4(process.pid, 0)
        seconds = perf_counter() - started
        process.returncode = os.waitstatus_to_exitcode(status)  # or Popen would wait for it once more
        texts = []
        for stream in (stdout, stderr):
            stream.seek(0)
            texts.append(stream.read().decode(errors="replace"))
    unit = 1 if sys.platform == "darwin" else 1024
    return Measurement(texts[0], texts[1], process.returncode, seconds, usage.ru_maxrss * unit)


if __name__ == "__main__":
    print(json.dumps(_run(sys.argv[1:]).__dict__))
