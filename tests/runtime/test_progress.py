"""The progress line: silent where it should be, honest where it speaks, gone when it has ended."""

import io
from collections.abc import Callable

import pytest

from captionlite.runtime.progress import ProgressLine, describe, describe_bytes, duration


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True

    def screen(self) -> str:
        """What the last line shows once the terminal has done as it was told."""
        return self.getvalue().rpartition("\r\x1b[K")[2]


@pytest.fixture
def clock() -> Callable[[], float]:
    """A clock that goes on by a quarter of a second whenever it is looked at."""
    now = -0.25

    def look() -> float:
        nonlocal now
        now += 0.25
        return now

    return look


def test_time_left_comes_from_the_rate_so_far(clock: Callable[[], float]) -> None:
    terminal = Terminal()
    with ProgressLine(40, terminal, clock) as progress:
        for _ in range(3):
            progress.advance()
        assert terminal.getvalue() == ""  # all within the first second
        progress.advance()
        assert terminal.screen() == "4/40, 10 %, 4 a second, 9 s left"
        for _ in range(16):
            progress.advance()
        assert terminal.screen() == "20/40, 50 %, 4 a second, 5 s left"
    assert terminal.screen() == ""


def test_hiding_frees_the_line_until_the_next_is_done(clock: Callable[[], float]) -> None:
    terminal = Terminal()
    progress = ProgressLine(40, terminal, clock)
    for _ in range(8):
        progress.advance()
    assert terminal.screen().startswith("8/40")
    progress.hide()
    assert terminal.screen() == ""
    length = len(terminal.getvalue())
    progress.hide()
    assert len(terminal.getvalue()) == length
    progress.advance()
    assert terminal.screen().startswith("9/40")


def test_redraws_are_rare_unless_the_line_was_hidden() -> None:
    terminal, now = Terminal(), 0.0
    progress = ProgressLine(10_000, terminal, lambda: now)
    for _ in range(2000):
        now += 0.001
        progress.advance()
    assert 5 <= terminal.getvalue().count("\r") <= 12  # within the second second, about every 0.1 s
    progress.hide()
    progress.advance()
    assert terminal.screen().startswith("2001/10000")


def test_silent_in_files_and_for_one_photograph(clock: Callable[[], float]) -> None:
    file, terminal = io.StringIO(), Terminal()
    for progress in (ProgressLine(100, file, clock), ProgressLine(1, terminal, clock)):
        for _ in range(50):
            progress.advance()
            progress.hide()
    assert file.getvalue() == terminal.getvalue() == ""


def test_descriptions() -> None:
    assert describe(0, 10, 1.0) == "0/10, 0 %, 0 a second"
    assert describe(312, 1000, 0.776) == "312/1000, 31 %, 402 a second, 2 s left"
    assert [duration(s) for s in (0.4, 59.6, 200, 7500)] == ["0 s", "1 min 0 s", "3 min 20 s", "2 h 5 min"]


def test_bytes_and_what_has_to_come_again(clock: Callable[[], float]) -> None:
    terminal = Terminal()
    with ProgressLine(8_000_000, terminal, clock, tell=describe_bytes) as progress:
        for _ in range(4):
            progress.advance(1_000_000)
        assert terminal.screen() == "4.0 of 8.0 MB, 50 %, 4 MB a second, 1 s left"
        progress.advance(-3_000_000)
        assert terminal.screen() == "1.0 of 8.0 MB, 12 %, 0.8 MB a second, 9 s left"
