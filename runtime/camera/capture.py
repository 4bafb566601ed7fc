"""The thread that reads a source, opens it again when it was lost, and keeps the newest frame.

It reads as fast as the source delivers, whatever captioning takes: drivers queue frames, and one that is read late
shows the past.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from threading import Event, Thread
from time import monotonic

from captionlite.runtime.camera.newest import NewestFrame
from captionlite.runtime.camera.source import Frame, Source, SourceError

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 10.0
JOIN_S = 3.0
"""How long a thread that hangs in a driver is waited for at the end; the process does not depend on it."""


class Capture:
    """Start it with `with`; the frames come out of `newest`.

    Messages for people (lost, waiting, back) go to `tell`. `also` gets every frame too, for a picture that is live
    while captions are slow; it must return at once.
    """

    def __init__(
        self,
        source: Source,
        tell: Callable[[str], None],
        *,
        every_frame: bool = False,
        wait_for_it: bool = False,
        also: Sequence[Callable[[Frame], None]] = (),
    ) -> None:
        """With `every_frame` the source waits for whoever takes the frames, and nothing is dropped.

        A source that cannot be opened at first is an error, unless `wait_for_it`.
        """
        self.newest = NewestFrame()
        self.captured = 0  # frames that came from the source
        self.missed = 0  # frames that it left out
        self.reconnects = 0
        self.waiting = False  # for a source that is not there
        self._source, self._tell = source, tell
        self._every_frame, self._wait_for_it = every_frame, wait_for_it
        self._also = also
        self._stopped = Event()
        self._sessions = 0
        self._thread = Thread(target=self._run, name="captionlite-capture", daemon=True)

    def __enter__(self) -> "Capture":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stopped.set()
        self._source.interrupt()
        self._thread.join(JOIN_S)

    def _run(self) -> None:
        try:
            self._read_on_and_on()
        except BaseException as error:  # whatever it is, the watcher is to raise it
            self.newest.close(error)
        else:
            self.newest.close()

    def _read_on_and_on(self) -> None:
        lost_s, tries = 0.0, 0  # since when, and how often it was tried to open it
        while not self._stopped.is_set():
            first_s: float | None = None
            try:
                self._source.open()
                for frame in self._source.frames(self._stopped):
                    if first_s is None:
                        first_s = monotonic()
                        self._welcome(first_s - lost_s if tries else None)
                    self._hand_on(frame)
                if self._stopped.is_set() or not self._source.live:
                    return
                raise SourceError(f"{self._source.description}: it ended.")
            except SourceError as error:
                if self._stopped.is_set():
                    return
                if not self._source.live or not (self._sessions or self._wait_for_it):
                    raise
                self.waiting = True
                if first_s is not None or not tries:
                    lost_s = monotonic()
                if first_s is not None and lost_s - first_s > LONGEST_RETRY_S:  # or a loose contact would be tried
                    tries = 0  # twice a second for ever
                delay_s = min(FIRST_RETRY_S * 2 ** min(tries, 30), LONGEST_RETRY_S)
                tries += 1
                if first_s is not None or tries & (tries - 1) == 0:  # 1st, 2nd, 4th, 8th: a night is a few lines
                    self._tell(f"{error} Waiting for it: next try in {delay_s:g} s.")
            finally:
                self._source.close()
            self._stopped.wait(delay_s)

    def _welcome(self, away_s: float | None) -> None:
        """The first frame after opening the source, which was away for so long."""
        self._sessions += 1
        self.waiting = False
        self.reconnects = self._sessions - 1
        again = f"there again after {away_s:.1f} s" if away_s is not None else "watching; Ctrl-C ends it"
        self._tell(f"{self._source.description}: {again}.")

    def _hand_on(self, frame: Frame) -> None:
        self.captured += 1
        self.missed += frame.missed
        frame = replace(frame, number=self.captured + self.missed, session=self._sessions)
        for use in self._also:
            use(frame)
        if not self._every_frame:
            self.newest.put(frame)
            return
        while not self._stopped.is_set() and not self.newest.put_when_free(frame, 0.2):
            pass
