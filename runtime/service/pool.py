"""Workers behind a bounded queue. One that does not come back in time is given up, and another takes its place.

A thread cannot be stopped from outside. So when a request's time is over while a worker is at it, the worker goes on
alone, its result is dropped, and a new worker with a captioner of its own is started at once: the place is free again.
At most as many are given up at a time as there are places; with more than that something is wrong that no further
thread mends, and `healthy` says so.
"""

import asyncio
import logging
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from threading import Condition, Thread, current_thread
from time import monotonic, perf_counter
from typing import Generic, TypeVar

Worker = TypeVar("Worker")
Question = TypeVar("Question")
Answer = TypeVar("Answer")

log = logging.getLogger(__name__)


class QueueFullError(Exception):
    """As many wait already as may."""


class StoppedError(Exception):
    """No new work is taken."""


class Job(Generic[Question, Answer]):
    """A question on its way; `answer` is set in the event loop that handed it in."""

    def __init__(self, question: Question) -> None:
        self.question: Question | None = question
        self.answer: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self.waited_s = 0.0
        self.given_up = False
        self.running = False
        self._handed_in = perf_counter()

    def begin(self) -> Question:
        """Called by the worker that takes it. The question is not kept, for it is large."""
        assert self.question is not None
        self.waited_s = perf_counter() - self._handed_in
        question, self.question = self.question, None
        return question

    def finish(self, answer: Answer | None, error: BaseException | None) -> None:
        """From any thread."""

        def tell() -> None:
            if self.answer.done():
                return
            if error is not None:
                self.answer.set_exception(error)
            else:
                self.answer.set_result(answer)  # type: ignore[arg-type]  # there is one, because there is no error

        with suppress(RuntimeError):  # the loop is closed: nobody asks any more
            self.answer.get_loop().call_soon_threadsafe(tell)


class WorkerPool(Generic[Worker, Question, Answer]):
    """`size` threads that call `handle(worker, question)`, each with a worker that `make` made."""

    def __init__(
        self,
        make: Callable[[], Worker],
        handle: Callable[[Worker, Question], Answer],
        size: int,
        queue: int,
        expected: type[Exception],
    ) -> None:
        """`expected` is what `handle` raises on purpose; anything else is logged with its traceback."""
        self._make = make
        self._expected = expected
        self._handle = handle
        self._size = size
        self._queue = queue
        self._changed = Condition()
        self._waiting: deque[Job[Question, Answer]] = deque()
        self._threads: set[Thread] = set()
        self._busy = 0
        self._given_up = 0
        self._stopping = False

    def start(self) -> None:
        """Make all workers, here and now, so that what cannot be made is known before the first request."""
        for worker in [self._make() for _ in range(self._size)]:
            self._start_thread(worker)

    def submit(self, question: Question) -> Job[Question, Answer]:
        """Hand in a question, in the event loop. Raises QueueFullError, StoppedError."""
        job: Job[Question, Answer] = Job(question)
        with self._changed:
            if self._stopping:
                raise StoppedError
            if not self._room():
                raise QueueFullError
            self._waiting.append(job)
            self._changed.notify()
        return job

    def has_room(self) -> bool:
        """Whether a question handed in now would be taken."""
        with self._changed:
            return self._room() and not self._stopping

    def give_up(self, job: Job[Question, Answer]) -> None:
        """Nobody waits for this job any more: its place becomes free now."""
        with self._changed:
            if job in self._waiting:
                self._waiting.remove(job)
                return
            if job.given_up or not job.running or job.answer.done():
                return
            job.given_up = True
            self._given_up += 1
            replace = self._given_up <= self._size and not self._stopping
            if replace:
                self._start_thread(None)

    @property
    def waiting(self) -> int:
        """Questions in the queue."""
        return len(self._waiting)

    @property
    def busy(self) -> int:
        """Workers at work, those that were given up not counted."""
        return self._busy - self._given_up

    @property
    def alive(self) -> int:
        """Workers that are there, those that were given up not counted."""
        with self._changed:
            return sum(thread.is_alive() for thread in self._threads) - self._given_up

    @property
    def given_up(self) -> int:
        """Workers that are still at something nobody waits for."""
        return self._given_up

    @property
    def healthy(self) -> bool:
        """Whether there is a worker to hope for."""
        return not self._stopping and self.alive > 0

    def stop(self, within_s: float) -> bool:
        """Take nothing more, finish what is being worked on. False when a thread is still there after `within_s`."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
            threads = list(self._threads)
        ends = monotonic() + within_s
        for thread in threads:
            thread.join(max(ends - monotonic(), 0))
        return not any(thread.is_alive() for thread in threads)

    def _room(self) -> bool:
        free = len(self._threads) - self._busy
        return len(self._waiting) < self._queue + max(free, 0)

    def _start_thread(self, worker: Worker | None) -> None:
        # Daemons: a picture that takes for ever must not keep the process from ending.
        thread = Thread(target=self._work, args=(worker,), name="captionlite-worker", daemon=True)
        with self._changed:
            self._threads.add(thread)
        thread.start()

    def _work(self, worker: Worker | None) -> None:
        try:
            made = self._make() if worker is None else worker
            while (job := self._next()) is not None:
                self._do(made, job)
                if self._surplus(job):
                    return
                del job  # or the answer would be kept while waiting for the next question
        except Exception:
            log.exception("A worker ended.")
        finally:
            with self._changed:
                self._threads.discard(current_thread())

    def _next(self) -> Job[Question, Answer] | None:
        with self._changed:
            while not self._waiting:
                if self._stopping:
                    return None
                self._changed.wait()
            self._busy += 1
            job = self._waiting.popleft()
            job.running = True
            return job

    def _do(self, worker: Worker, job: Job[Question, Answer]) -> None:
        try:
            job.finish(self._handle(worker, job.begin()), None)
        except self._expected as error:
            # Without its frames and those of what it came from: they hold the photograph.
            error.__traceback__ = error.__context__ = None
            job.finish(None, error)
        except Exception as error:
            log.exception("A question went wrong.")
            job.finish(None, error.with_traceback(None))

    def _surplus(self, job: Job[Question, Answer]) -> bool:
        """After a job: whether this thread has been replaced meanwhile and has to end."""
        with self._changed:
            self._busy -= 1
            job.running = False
            if not job.given_up:
                return False
            self._given_up -= 1
            return len(self._threads) - self._given_up > self._size
