"""Captions of what the camera sees now: takes the newest frame, captions it if the scene has changed, tells it on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from time import monotonic
from typing import Protocol

from captionlite.runtime.camera.capture import Capture
from captionlite.runtime.camera.source import Frame
from captionlite.runtime.camera.stats import Stats
from captionlite.runtime.decoding import Caption
from captionlite.runtime.errors import ImageError
from captionlite.runtime.frames import FrameCaptioner

LOOK_S = 0.2
"""How soon the end is noticed, and a signal."""
SILENT_S = 10.0


@dataclass(frozen=True)
class Told:
    """A new scene's caption. `changed`: it is not the words of the caption before; `age_ms`: since its frame."""

    frame: Frame
    caption: Caption
    age_ms: float
    changed: bool
    sure: bool


class Output(Protocol):
    """Somewhere that captions are told."""

    def tell(self, told: Told) -> None:
        """Tell it; takes no longer than writing a line."""


class Watcher:
    """The loop, in the caller's thread."""

    def __init__(
        self,
        capture: Capture,
        captioner: Callable[[], FrameCaptioner],
        outputs: Sequence[Output],
        tell: Callable[[str], None],
        *,
        interval_s: float = 0.0,
        min_confidence: float | None = None,
        report_s: float | None = None,
        silent_s: float = SILENT_S,
    ) -> None:
        """`captioner` makes a fresh one: after a reconnect the first frame is captioned whatever was seen before.

        From the frame of one caption to that of the next pass at least `interval_s`. `report_s`: every so often a line
        of statistics goes to `tell`. A source without a frame for `silent_s` and without an error is mentioned there.
        """
        self._capture, self._captioner, self._outputs, self._tell = capture, captioner, outputs, tell
        self._interval_s, self._min_confidence = interval_s, min_confidence
        self._report_s, self._silent_s = report_s, silent_s
        self.stats = Stats(monotonic())
        self.ended_s = self.stats.started_s

    def watch(self, stopped: Callable[[], bool], seconds: float | None = None) -> None:
        """Until the source ends, `stopped` says so, or the time is over. Raises SourceError, OptionsError."""
        self.stats.started_s = monotonic()
        try:
            self._watch(stopped, seconds)
        finally:
            self.ended_s = monotonic()

    def _watch(self, stopped: Callable[[], bool], seconds: float | None) -> None:
        started_s = self.stats.started_s
        report_s = started_s + self._report_s if self._report_s else None
        next_s = heard_s = started_s
        captioner, session, silent = self._captioner(), 0, False
        latest: str | None = None
        while not stopped():
            now_s = monotonic()
            if seconds is not None and now_s - started_s >= seconds:
                break
            if report_s is not None and now_s >= report_s:
                self._tell(self.report(now_s))
                report_s += self._report_s or 0.0
            if now_s < next_s:
                self._capture.newest.rest(min(next_s - now_s, LOOK_S))
                continue
            frame = self._capture.newest.take(LOOK_S)
            if frame is None:
                if self._capture.newest.ended:
                    break
                silent = self._mention_silence(silent, heard_s)
                continue
            heard_s, silent = monotonic(), False
            if frame.session != session:
                captioner, session = self._captioner(), frame.session
            try:
                caption, is_new = captioner.caption(frame.image)
            except ImageError as error:
                self._unreadable(error)
                continue
            if not is_new:
                self.stats.counts.unchanged += 1
                continue
            next_s = heard_s + self._interval_s
            sure = self._min_confidence is None or (caption.confidence or 0.0) >= self._min_confidence
            age_ms = (monotonic() - frame.captured_s) * 1e3
            told = Told(frame, caption, age_ms, sure and caption.text != latest, sure)
            for output in self._outputs:
                output.tell(told)
            self.stats.captioned((monotonic() - frame.captured_s) * 1e3)
            if sure:
                latest = caption.text

    def report(self, now_s: float) -> str:
        """The statistics since the latest report."""
        self._gather()
        return self.stats.report(now_s)

    def finish(self) -> Stats:
        """The statistics of all of it, the capture thread's included."""
        self._gather()
        return self.stats

    def _mention_silence(self, mentioned: bool, heard_s: float) -> bool:
        """Once: that nothing came since then. Returns whether it has been said."""
        if mentioned or self._capture.waiting or monotonic() - heard_s < self._silent_s:
            return mentioned
        self._tell(f"No frame for {self._silent_s:g} s; the source neither delivers nor fails.")
        return True

    def _unreadable(self, error: ImageError) -> None:
        counts = self.stats.counts
        counts.unreadable += 1
        if f"{counts.unreadable}".strip("0") == "1":  # the 1st, 10th, 100th ...
            self._tell(f"{error} ({counts.unreadable} frames so far could not be read.)")

    def _gather(self) -> None:
        counts, capture = self.stats.counts, self._capture
        counts.captured, counts.reconnects = capture.captured, capture.reconnects
        counts.dropped = capture.missed + capture.newest.dropped
        counts.rested = capture.newest.rested
