"""Captions spoken by espeak-ng. The newest is spoken next; what nobody had time to say is forgotten."""

import shutil
import subprocess
from collections.abc import Callable
from threading import Condition, Thread
from time import monotonic

from captionlite.runtime.camera.source import SourceError
from captionlite.runtime.camera.watcher import LOOK_S, Told

PROGRAMS = ("espeak-ng", "espeak")
LONGEST_S = 30.0
"""A caption takes some seconds; a program that takes longer hangs, on a sound device perhaps."""


class Speaker:
    """A thread that speaks one caption at a time. A context manager, which cuts off what is being said at its end."""

    def __init__(self, tell: Callable[[str], None], voice: str | None = None) -> None:
        """`voice` as `espeak-ng --voices` lists them. Raises SourceError when no program is installed."""
        program = next((path for name in PROGRAMS if (path := shutil.which(name))), None)
        if program is None:
            raise SourceError("--speak needs espeak-ng, which is not on the PATH. Run: `sudo apt install espeak-ng`")
        # The text goes through stdin: no shell, and no text can be taken for an option.
        self._command = [program, *(["-v", voice] if voice else []), "--stdin"]
        self._tell = tell
        self._changed = Condition()
        self._next: str | None = None
        self._ended = False
        self._speaking: subprocess.Popen[bytes] | None = None
        self._thread = Thread(target=self._run, name="captionlite-speech", daemon=True)

    def __enter__(self) -> "Speaker":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._ended, self._next = True, None
            self._changed.notify_all()
            if self._speaking is not None:
                self._speaking.terminate()
        self._thread.join(LONGEST_S)

    def tell(self, told: Told) -> None:
        """Speak it when the caption before is finished, unless another comes until then."""
        if told.changed:
            with self._changed:
                self._next = told.caption.text
                self._changed.notify_all()

    def finish(self, stopped: Callable[[], bool]) -> None:
        """Wait until nothing is left to say, for a source that has ended, or until `stopped` says so."""
        give_up_s = monotonic() + LONGEST_S
        with self._changed:
            while not stopped() and monotonic() < give_up_s:
                if self._changed.wait_for(lambda: self._next is None and self._speaking is None, LOOK_S):
                    return

    def _run(self) -> None:
        failures = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._next is not None or self._ended)
                if self._ended:
                    return
                text, self._next = self._next or "", None
                try:
                    self._speaking = self._start()
                except OSError as error:
                    self._tell(f"{self._command[0]} cannot be started ({error.strerror}); nothing is spoken any more.")
                    return
                process = self._speaking
            problem = self._listen(process, text)
            with self._changed:
                self._speaking = None
                ended = self._ended
                self._changed.notify_all()
            if problem and not ended:
                failures += 1
                if failures == 1:
                    self._tell(f"{self._command[0]} did not speak ({problem}). Check the sound device and --voice.")

    def _start(self) -> subprocess.Popen[bytes]:
        # A session of its own, or Ctrl-C in the terminal would reach it before us.
        return subprocess.Popen(
            self._command,
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def _listen(self, process: subprocess.Popen[bytes], text: str) -> str:
        """Hand over the text and wait. Returns what went wrong, "" for nothing."""
        try:
            _, errors = process.communicate(text.encode(), timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
            return f"it took more than {LONGEST_S:g} s"
        last = "".join(errors.decode(errors="replace").strip().splitlines()[-1:])[:200]
        if process.returncode:
            return f"exit code {process.returncode}: {last}"
        return last if last.lower().startswith("error") else ""  # espeak-ng without a sound device exits with 0
