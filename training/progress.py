"""Progress on stderr with the time left: a bar on a terminal, a line every ten seconds elsewhere."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol

LINE_INTERVAL_S = 10.0


class Progress(Protocol):
    """`with progress(total, label) as advance: advance(n)`; `done` is how much of `total` an earlier run did."""

    def __call__(self, total: int, label: str, done: int = 0) -> AbstractContextManager[Callable[[int], None]]: ...


@contextmanager
def progress(total: int, label: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """The `Progress` that people see."""
    if sys.stderr.isatty():
        with _bar(total, label, done) as advance:
            yield advance
    else:
        yield _Lines(total, label, done)


@contextmanager
def silent(total: int, label: str, done: int = 0) -> Iterator[Callable[[int], None]]:
    """The `Progress` that says nothing."""
    yield lambda count: None


@contextmanager
def _bar(total: int, label: str, done: int) -> Iterator[Callable[[int], None]]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as RichProgress

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    with RichProgress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(label, total=total, completed=done, rate="")

        def advance(count: int) -> None:
            speed = bar.tasks[0].speed
            bar.update(task, advance=count, rate=f"{speed:.0f}/s" if speed else "")

        yield advance


class _Lines:
    """Prints "label: 1200/8000, 15 %, 158/s, 43 s left" now and then. The rate is that of this run alone."""

    def __init__(self, total: int, label: str, done: int) -> None:
        self._total, self._label, self._done = total, label, done
        self._start_s = self._last_line_s = time.monotonic()
        self._this_run = 0

    def __call__(self, count: int) -> None:
        self._done += count
        self._this_run += count
        now_s = time.monotonic()
        if now_s - self._last_line_s < LINE_INTERVAL_S:
            return
        self._last_line_s = now_s
        rate = self._this_run / (now_s - self._start_s)
        left_s = (self._total - self._done) / rate if rate else 0.0
        print(
            f"{self._label}: {self._done}/{self._total}, {100 * self._done // max(self._total, 1)} %, {rate:.4g}/s, "
            f"{_duration(left_s)} left",
            file=sys.stderr,
            flush=True,
        )


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {rest} s" if minutes else f"{rest} s"
