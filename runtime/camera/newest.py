"""The one frame that waits: the newest. A frame that nobody took before the next came is dropped and counted."""

from threading import Condition

from captionlite.runtime.camera.source import Frame


class NewestFrame:
    """A queue of one place between the capture thread (`put`, `close`) and the watcher (`take`)."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._frame: Frame | None = None
        self._closed = False
        self._error: BaseException | None = None
        self._resting = False
        self._dropped = self._rested = 0

    def put(self, frame: Frame) -> None:
        """Let this be the newest; one that still waits is dropped."""
        with self._changed:
            if self._frame is not None and self._resting:
                self._rested += 1
            elif self._frame is not None:
                self._dropped += 1
            self._frame = frame
            self._changed.notify_all()

    def put_when_free(self, frame: Frame, timeout_s: float) -> bool:
        """Put it as soon as the place is free. False when it was not within the time."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._frame is None, timeout_s):
                return False
            self._frame = frame
            self._changed.notify_all()
            return True

    def close(self, error: BaseException | None = None) -> None:
        """No more frames. An error is raised by `take` after the last of them."""
        with self._changed:
            self._closed, self._error = True, error
            self._changed.notify_all()

    def take(self, timeout_s: float) -> Frame | None:
        """The newest frame, waited for; None when there was none within the time. Raises what `close` was given."""
        with self._changed:
            self._changed.wait_for(lambda: self._frame is not None or self._closed, timeout_s)
            frame, self._frame = self._frame, None
            self._changed.notify_all()
            if frame is None and self._error is not None:
                raise self._error
            return frame

    def rest(self, timeout_s: float) -> None:
        """Wait for so long, or until `close`, and let frames come and go."""
        with self._changed:
            self._resting = True
            self._changed.wait_for(lambda: self._closed, timeout_s)
            self._resting = False

    @property
    def ended(self) -> bool:
        """Whether nothing waits and nothing will come."""
        with self._changed:
            return self._closed and self._frame is None

    @property
    def dropped(self) -> int:
        """How many frames were replaced before anybody took them, because captioning took so long."""
        with self._changed:
            return self._dropped

    @property
    def rested(self) -> int:
        """How many frames were replaced while nobody wanted any."""
        with self._changed:
            return self._rested
