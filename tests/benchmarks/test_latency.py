"""The protocol's counts, orders and limits, with a clock that the tests turn; and the log of a soak."""

from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from captionlite.benchmarks.countdown import Countdown
from captionlite.benchmarks.devices import State
from captionlite.benchmarks.latency import FULL, QUICK, Limits, Recording, Timed, record
from captionlite.benchmarks.soak import SoakLog, plot, soak

PHOTOGRAPHS = (b"a", b"b", b"c")


class Subject:
    """Takes as long as it is told to, and remembers what it was given."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self.now_s, self.given, self._seconds = 0.0, [], seconds
        self.given: list[bytes]

    def __call__(self, photograph: bytes) -> Timed:
        took = self._seconds(len(self.given))
        self.given.append(photograph)
        self.now_s += took
        whole = 1000 * took
        return Timed(0.1 * whole, 0.3 * whole, 0.5 * whole, 0.1 * whole, whole, 5, "a dog")

    def clock(self) -> float:
        return self.now_s


def test_the_protocol_is_mlperfs_single_stream() -> None:
    assert (FULL.min_captions, FULL.min_seconds) == (1024, 60.0)
    assert (QUICK.min_captions, QUICK.min_seconds) == (128, 10.0)


def test_photographs_come_round_and_round_and_the_count_is_exact() -> None:
    subject, recording = Subject(lambda n: 0.01), Recording()
    began: list[int] = []
    limits = Limits(warm_up=4, min_captions=8, min_seconds=0.0)
    record(
        subject, PHOTOGRAPHS, limits, recording, clock=subject.clock, warmed_up=lambda: began.append(len(subject.given))
    )
    assert began == [4]
    assert subject.given[:4] == [b"a", b"b", b"c", b"a"]
    assert subject.given[4:] == [b"a", b"b", b"c"] * 2 + [b"a", b"b"]
    assert len(recording.captions) == 8
    assert recording.seconds == pytest.approx(0.08)


@pytest.mark.parametrize(("seconds_each", "captions"), [(0.1, 100), (1.0, 20), (0.5, 20), (20.0, 20)])
def test_both_limits_must_be_reached(seconds_each: float, captions: int) -> None:
    subject, recording = Subject(lambda n: seconds_each), Recording()
    record(subject, PHOTOGRAPHS, Limits(0, 20, 9.95), recording, clock=subject.clock)
    assert len(recording.captions) == captions


def test_what_happens_between_captions_is_in_none_of_them() -> None:
    subject, recording = Subject(lambda n: 0.01), Recording()

    def between(timed: Timed, seconds: float) -> None:
        subject.now_s += 1.0

    record(subject, PHOTOGRAPHS, Limits(0, 5, 0.0), recording, clock=subject.clock, between=between)
    assert recording.summary()["whole"] == {"p50": 10.0, "p90": 10.0, "p99": 10.0, "mean": 10.0}
    assert recording.captions_per_second == pytest.approx(100.0)
    assert recording.seconds == pytest.approx(4.05)


def test_an_interruption_leaves_whole_captions() -> None:
    def seconds(number: int) -> float:
        if number == 7:
            raise KeyboardInterrupt
        return 0.01

    subject, recording = Subject(seconds), Recording()
    with pytest.raises(KeyboardInterrupt):
        record(subject, PHOTOGRAPHS, Limits(3, 100, 100.0), recording, clock=subject.clock)
    assert len(recording.captions) == 4
    assert recording.seconds == pytest.approx(0.04)
    found = recording.samples(1)
    assert found.step_ms == (1.0,) * 4
    assert found.tokens == (5,) * 4


def states(*rows: State) -> Callable[[], State]:
    """One after another, then the last for ever."""
    left = list(rows)
    return lambda: left.pop(0) if len(left) > 1 else left[0]


COOL = State(50.0, (1800.0, 1600.0), ())
HOT = State(82.5, (1000.0, None), ("soft temperature limit",))
UNKNOWN = State(None, (None, None), None)


def test_a_soak_has_a_row_a_second() -> None:
    subject = Subject(lambda n: 0.125 if n < 16 else 0.25)  # it slows down after two seconds
    log = SoakLog(1.0, states(COOL, COOL, HOT))
    ticks: list[float] = []
    soak(subject, PHOTOGRAPHS, 4.0, log, clock=subject.clock, between=ticks.append)
    found = log.to_json()
    assert found["captions"] == [8, 8, 4, 4]
    assert found["seconds"] == [1.0, 2.0, 3.0, 4.0]
    assert found["p50_ms"] == [125.0, 125.0, 250.0, 250.0]
    assert found["temperature_c"] == [50.0, 50.0, 82.5, 82.5]
    assert found["frequency_mhz"] == [1700.0, 1700.0, 1000.0, 1000.0]
    assert found["throttled"] == [[], [], ["soft temperature limit"], ["soft temperature limit"]]
    assert len(ticks) == len(subject.given) == 24


def test_captions_longer_than_a_second_have_a_row_each() -> None:
    subject = Subject(lambda n: 2.5)
    log = SoakLog(1.0, states(UNKNOWN))
    soak(subject, PHOTOGRAPHS, 5.0, log, clock=subject.clock)
    found = log.to_json()
    assert (found["seconds"], found["captions"]) == ([2.5, 5.0], [1, 1])
    assert (found["temperature_c"], found["frequency_mhz"], found["throttled"]) == ([None] * 2,) * 3


@pytest.mark.parametrize("rows", [(COOL, HOT, HOT, COOL), (UNKNOWN,)])
def test_the_picture_of_a_soak_is_drawn_whatever_the_machine_tells(rows: tuple[State, ...], tmp_path: Path) -> None:
    log = SoakLog(1.0, states(*rows))
    for second in range(1, 40):
        log.add(20.0 + second % 7, float(second))
    plot(log.to_json(), "toy on a machine", tmp_path / "soak.png")
    with Image.open(tmp_path / "soak.png") as picture:
        picture.load()
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or []}
        reds = [colour for colour in colours if colour[0] - colour[1] > 20 and colour[1] == colour[2]]
        assert bool(reds) == (HOT in rows)  # the marks of throttling
        assert picture.width > 800


class Terminal:
    """A stream that says what it is and keeps what is written."""

    def __init__(self, is_terminal: bool) -> None:
        self.written, self._is_terminal = "", is_terminal

    def write(self, text: str) -> None:
        self.written += text

    def flush(self) -> None:
        pass

    def isatty(self) -> bool:
        return self._is_terminal


def test_the_countdown_is_a_line_on_terminals_and_lines_elsewhere() -> None:
    now = [0.0]
    line, lines = Terminal(True), Terminal(False)
    for stream in (line, lines):
        now[0] = 0.0
        countdown = Countdown(stream, lambda: now[0])  # type: ignore[arg-type]
        countdown.say("measuring")
        for number in range(1, 22):
            now[0] += 1.0
            countdown.tell(f"{number} captions", 21.0 - number)
        countdown.done()
    assert lines.written == "measuring\nmeasuring: 10 captions, 11 s left\nmeasuring: 20 captions, 1 s left\n"
    assert line.written.count("\r\x1b[Kmeasuring: ") == 21
    assert line.written.endswith("21 captions, 0 s left\r\x1b[K")
