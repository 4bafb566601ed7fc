"""The newest frame, the thread that keeps it, and the captions of it: nothing here depends on how fast anything is."""

from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event, Thread
from time import monotonic
from typing import Any

import numpy as np
import pytest
import toy_bundle
from PIL import Image

from captionlite.benchmarks.mjpeg_server import MjpegServer
from captionlite.runtime.camera import capture as capture_module
from captionlite.runtime.camera.capture import Capture
from captionlite.runtime.camera.choose import choose
from captionlite.runtime.camera.newest import NewestFrame
from captionlite.runtime.camera.outputs import record
from captionlite.runtime.camera.source import Frame, SourceError
from captionlite.runtime.camera.stats import Latencies, Stats
from captionlite.runtime.camera.watcher import Told, Watcher
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.frames import FrameCaptioner


class Collected:
    """An output that remembers, and can hold the watcher up."""

    def __init__(self, hold: Callable[[Told], None] = lambda told: None) -> None:
        self.told: list[Told] = []
        self._hold = hold

    def tell(self, told: Told) -> None:
        self.told.append(told)
        self._hold(told)

    @property
    def texts(self) -> list[str]:
        return [told.caption.text for told in self.told if told.changed]


class Scripted:
    """A source that does what a generator says; each opening runs the next one."""

    live = True
    description = "scripted camera"

    def __init__(self, *sessions: Callable[[Event], Iterator[Frame]], live: bool = True) -> None:
        self.live = live
        self.opened = self.closed = 0
        self._sessions = sessions

    def open(self) -> None:
        self.opened += 1
        if self.opened > len(self._sessions):
            raise SourceError("scripted camera: not there.")

    def frames(self, stopped: Event) -> Iterator[Frame]:
        yield from self._sessions[self.opened - 1](stopped)

    def close(self) -> None:
        self.closed += 1

    def interrupt(self) -> None:
        pass


def frame(image: Any = "", number: int = 0) -> Frame:
    return Frame(image, monotonic(), number=number)


@pytest.fixture(scope="module")
def captioner(toy_directory: Path) -> Captioner:
    return Captioner.from_bundle(toy_directory, threads=1)


def caption_of(image: Any) -> str:
    tokens = toy_bundle.decode(image).tokens
    return " ".join(toy_bundle.PIECES[token] for token in tokens if token != toy_bundle.END)


def until(true: Callable[[], bool]) -> None:
    """Wait for a condition of another thread."""
    give_up_s = monotonic() + 20
    while not true():
        assert monotonic() < give_up_s
        Event().wait(0.005)


# --- the newest frame


def test_the_newest_frame_wins_and_the_others_are_counted() -> None:
    newest = NewestFrame()
    for number in (1, 2, 3):
        newest.put(frame(number=number))
    taken = newest.take(0)
    assert taken is not None
    assert taken.number == 3
    assert newest.dropped == 2
    assert newest.take(0) is None
    assert not newest.ended
    newest.put(frame(number=4))
    newest.close()
    assert not newest.ended  # there is one more to take
    assert newest.take(0) is not None
    assert newest.ended


def test_an_error_comes_after_the_last_frame() -> None:
    newest = NewestFrame()
    newest.put(frame(number=1))
    newest.close(SourceError("gone"))
    assert newest.take(0) is not None
    with pytest.raises(SourceError, match="gone"):
        newest.take(0)


def test_a_recording_waits_for_its_place() -> None:
    newest = NewestFrame()
    assert newest.put_when_free(frame(number=1), 0)
    assert not newest.put_when_free(frame(number=2), 0)
    putting = Thread(target=lambda: newest.put_when_free(frame(number=2), 20))
    putting.start()
    assert newest.take(0).number == 1  # type: ignore[union-attr]
    putting.join(20)
    assert newest.take(20).number == 2  # type: ignore[union-attr]
    assert newest.dropped == 0


def test_a_slow_captioner_gets_what_the_camera_sees_now(captioner: Captioner) -> None:
    """Ten frames come while the first one's caption is told; the next captioned is the tenth."""
    images = [np.full((8, 12, 3), 25 * number, np.uint8) for number in range(11)]
    first_told, go_on, done = Event(), Event(), Event()

    def session(stopped: Event) -> Iterator[Frame]:
        yield frame(images[0])
        assert first_told.wait(20)
        for image in images[1:]:
            yield frame(image)
        go_on.set()
        done.wait(20)

    def hold(told: Told) -> None:
        if told.frame.number == 1:
            first_told.set()
            assert go_on.wait(20)
        else:
            done.set()

    output = Collected(hold)
    with Capture(Scripted(session, live=False), print) as capture:
        watcher = Watcher(capture, lambda: FrameCaptioner(captioner, 0.0), [output], print)
        watcher.watch(lambda: False)
    assert [told.frame.number for told in output.told] == [1, 11]
    assert np.array_equal(output.told[1].frame.image, images[10])
    counts = watcher.finish().counts
    assert (counts.captured, counts.dropped, counts.captions, counts.unchanged) == (11, 9, 2, 0)


def test_every_frame_of_a_recording(tmp_path: Path, captioner: Captioner) -> None:
    images = toy_bundle.photographs(12, seed=4)
    for number, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{number:02}.png")
    output = Collected()
    with Capture(choose(str(tmp_path), every_frame=True), print, every_frame=True) as capture:
        watcher = Watcher(capture, lambda: FrameCaptioner(captioner, 0.0), [output], print)
        watcher.watch(lambda: False)
    assert [told.caption.text for told in output.told] == [caption_of(image) for image in images]
    assert [told.frame.name for told in output.told] == [f"{number:02}.png" for number in range(12)]
    assert watcher.finish().counts.dropped == 0


# --- captions


def test_unchanged_scenes_are_skipped_and_equal_words_told_once(captioner: Captioner) -> None:
    one, other = toy_bundle.photographs(40, seed=5)[:2]
    assert caption_of(one) != caption_of(other)
    sequence = [one, one, one, other, one]

    def session(stopped: Event) -> Iterator[Frame]:
        yield from (frame(image) for image in sequence)

    output = Collected()
    with Capture(Scripted(session, live=False), print, every_frame=True) as capture:
        watcher = Watcher(capture, lambda: FrameCaptioner(captioner), [output], print)
        watcher.watch(lambda: False)
    assert output.texts == [caption_of(one), caption_of(other), caption_of(one)]
    assert watcher.finish().counts.unchanged == 2
    found = record(output.told[0])
    assert found["frame"] == 1
    assert found["age_ms"] >= found["timings_ms"]["encode"]
    assert found["time"].endswith("Z")


def test_what_cannot_be_read_is_told_of_now_and_then(captioner: Captioner) -> None:
    good = toy_bundle.photographs(1)[0]

    def session(stopped: Event) -> Iterator[Frame]:
        yield from (frame(b"no jpeg") for _ in range(25))
        yield frame(good)

    lines: list[str] = []
    output = Collected()
    with Capture(Scripted(session, live=False), lines.append, every_frame=True) as capture:
        watcher = Watcher(capture, lambda: FrameCaptioner(captioner), [output], lines.append)
        watcher.watch(lambda: False)
    assert output.texts == [caption_of(good)]
    assert watcher.finish().counts.unreadable == 25
    assert sum("could not be read" in line for line in lines) == 2  # the 1st and the 10th


def test_unsure_captions_are_not_told(captioner: Captioner) -> None:
    def session(stopped: Event) -> Iterator[Frame]:
        yield frame(toy_bundle.photographs(1)[0])

    output = Collected()
    with Capture(Scripted(session, live=False), print) as capture:
        watcher = Watcher(capture, lambda: FrameCaptioner(captioner), [output], print, min_confidence=0.5)
        watcher.watch(lambda: False)  # the toy is not calibrated: it is never sure
    assert [(told.sure, told.changed) for told in output.told] == [(False, False)]
    assert record(output.told[0])["sure"] is False


def test_the_interval_between_two_captions(captioner: Captioner) -> None:
    """With a long interval there is one caption, frames are counted as rested, and the end is not waited for."""
    images = toy_bundle.photographs(5, seed=6)
    told = Event()

    def session(stopped: Event) -> Iterator[Frame]:
        yield frame(images[0])
        assert told.wait(20)
        Event().wait(0.2)  # until the watcher rests
        yield from (frame(image) for image in images[1:])

    output = Collected(lambda _: told.set())
    stop = Event()

    def enough() -> bool:
        return stop.is_set() or capture.captured == 5

    with Capture(Scripted(session, live=False), print) as capture:
        watcher = Watcher(capture, lambda: FrameCaptioner(captioner), [output], print, interval_s=3600)
        watcher.watch(enough)
    counts = watcher.finish().counts
    assert len(output.told) == 1
    assert counts.rested + counts.dropped == 3  # of the four, one still waited


# --- lost and found


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(capture_module, "FIRST_RETRY_S", 0.01)
    monkeypatch.setattr(capture_module, "LONGEST_RETRY_S", 0.05)


@pytest.mark.usefixtures("hasty")
def test_a_lost_camera_is_waited_for_and_its_first_scene_captioned_again(captioner: Captioner) -> None:
    image = toy_bundle.photographs(1)[0]

    def lost(stopped: Event) -> Iterator[Frame]:
        yield frame(image)
        raise SourceError("scripted camera: unplugged.")

    def absent(stopped: Event) -> Iterator[Frame]:
        raise SourceError("scripted camera: not there.")
        yield

    def back(stopped: Event) -> Iterator[Frame]:
        yield frame(image)
        stopped.wait(20)

    lines: list[str] = []
    output = Collected()
    source = Scripted(lost, absent, absent, absent, back)
    with Capture(source, lines.append) as capture:
        watcher = Watcher(capture, lambda: FrameCaptioner(captioner), [output], lines.append)
        watcher.watch(lambda: len(output.told) == 2)
        assert capture.reconnects == 1
        assert not capture.waiting
    assert [told.frame.session for told in output.told] == [1, 2]
    assert [told.changed for told in output.told] == [True, False]  # the same words are not told twice
    assert source.opened == source.closed == 5
    assert any("unplugged" in line and "Waiting for it" in line for line in lines)
    assert any("there again after" in line for line in lines)


@pytest.mark.usefixtures("hasty")
def test_a_night_without_a_camera_is_a_few_lines(captioner: Captioner) -> None:
    def once(stopped: Event) -> Iterator[Frame]:
        yield frame(toy_bundle.photographs(1)[0])

    lines: list[str] = []
    source = Scripted(once)
    with Capture(source, lines.append) as capture:
        until(lambda: source.opened >= 20)
        assert capture.waiting
    assert "it ended" in lines[1]
    assert len(lines) <= 7


def test_a_camera_that_is_not_there_at_first_is_an_error_unless_waited_for() -> None:
    with Capture(Scripted(), print) as capture, pytest.raises(SourceError, match="not there"):
        capture.newest.take(20)
    lines: list[str] = []
    with Capture(Scripted(), lines.append, wait_for_it=True) as capture:
        until(lambda: bool(lines))
        assert not capture.newest.ended
    assert "next try in 0.5 s" in lines[0]


def test_a_broken_recording_is_not_waited_for() -> None:
    def broken(stopped: Event) -> Iterator[Frame]:
        yield frame()
        raise SourceError("file: damaged.")

    with Capture(Scripted(broken, live=False), print) as capture:
        until(lambda: capture.captured == 1)
        assert capture.newest.take(20) is not None
        with pytest.raises(SourceError, match="damaged"):
            capture.newest.take(20)


def test_a_mistake_in_a_source_ends_it_all() -> None:
    def mistaken(stopped: Event) -> Iterator[Frame]:
        yield frame()
        raise ZeroDivisionError

    with Capture(Scripted(mistaken), print) as capture:
        capture.newest.take(20)
        with pytest.raises(ZeroDivisionError):
            capture.newest.take(20)


@pytest.mark.usefixtures("hasty")
def test_a_network_camera_vanishes_and_returns(captioner: Captioner) -> None:
    """Real sockets: the server closes its port and every connection, and later listens again."""
    from io import BytesIO

    pictures = []
    for image in toy_bundle.photographs(6, seed=7):
        buffer = BytesIO()
        Image.fromarray(image).resize((48, 32), Image.Resampling.NEAREST).save(buffer, "JPEG", quality=95)
        pictures.append(buffer.getvalue())
    lines: list[str] = []
    output = Collected()
    server = MjpegServer(pictures, 50.0)
    server.start()
    steps: list[int] = []  # how many captions there were when the server went, and when it came back

    def play() -> bool:
        if not steps and len(output.told) >= 5:
            server.stop()
            steps.append(len(output.told))
        elif len(steps) == 1 and capture.waiting:
            steps.append(len(output.told))
            server.start()
        return len(steps) == 2 and len(output.told) >= steps[1] + 5

    try:
        with Capture(choose(server.url), lines.append) as capture:
            watcher = Watcher(capture, lambda: FrameCaptioner(captioner), [output], lines.append)
            watcher.watch(play)
    finally:
        server.stop()
    assert capture.reconnects == 1
    assert {told.frame.session for told in output.told} == {1, 2}
    assert any("lost" in line for line in lines)
    assert any("there again" in line for line in lines)


def test_silence_is_mentioned_once(captioner: Captioner) -> None:
    def silent(stopped: Event) -> Iterator[Frame]:
        yield frame(toy_bundle.photographs(1)[0])
        stopped.wait(20)

    lines: list[str] = []
    ticks: list[int] = []
    with Capture(Scripted(silent), lambda line: None) as capture:
        watcher = Watcher(capture, lambda: FrameCaptioner(captioner), [], lines.append, silent_s=0.0)
        watcher.watch(lambda: bool(ticks.append(1)) or len(ticks) > 5)
    assert len(lines) == 1
    assert "No frame for" in lines[0]


# --- statistics


def test_percentiles_need_no_memory_and_are_exact_to_a_percent() -> None:
    values = np.random.default_rng(1).gamma(2.0, 20.0, 20_000) + 1
    latencies = Latencies()
    assert latencies.percentile(50) is None
    for value in values:
        latencies.add(float(value))
    for percent in (10, 50, 90, 99):
        assert latencies.percentile(percent) == pytest.approx(np.percentile(values, percent), rel=0.015)
    assert latencies.greatest_ms == values.max()
    latencies.add(1e12)
    assert latencies.percentile(100) is not None
    latencies.clear()
    assert latencies.percentile(50) is None


def test_reports_are_of_the_time_since_the_latest() -> None:
    stats = Stats(100.0)
    stats.counts.captured = 300
    stats.captioned(5.0)
    assert stats.report(110.0).startswith("10.0 s: 30.0 frames/s, 0.10 captions/s, latency p50 5.0 ms p90 5.0 ms")
    stats.counts.captured += 100
    line = stats.report(120.0)
    assert line.startswith("10.0 s: 10.0 frames/s, 0.00 captions/s")
    assert "latency" not in line
    found = stats.to_json(120.0)
    assert (found["seconds"], found["fps"], found["captions"]) == (20.0, 20.0, 1)
    assert found["latency_ms"]["max"] == 5.0
    assert Stats(1.0).to_json(1.0)["latency_ms"] == {"p50": None, "p90": None, "p99": None, "max": 0.0}
