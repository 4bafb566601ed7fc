"""The pipeline with plain functions, then `caption_many` on the toy bundle: order, bounds, errors, threads."""

import gc
import random
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_bundle
from PIL import Image

from captionlite.runtime import Captioner, DecodingOptions, pipeline
from captionlite.runtime.captioner import FEW
from captionlite.runtime.decoding import Caption
from captionlite.runtime.errors import ImageError, OptionsError
from captionlite.runtime.image import load_image
from captionlite.runtime.pipeline import look_ahead
from captionlite.runtime.together import GROUP, Together

PHOTOGRAPHS = toy_bundle.photographs(40, seed=8)


def pipeline_threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("captionlite")]


@pytest.fixture(autouse=True)
def no_thread_is_left() -> Iterator[None]:
    yield
    assert pipeline_threads() == []


def same(value: int) -> int:
    return value


def squares(values: list[int]) -> list[int]:
    return [value * value for value in values]


class Exclusive:
    """A function that notices when two threads call it at once."""

    def __init__(self, function: Callable[[Any], Any], delay: Callable[[], float] = lambda: 0.0) -> None:
        self._function, self._delay = function, delay
        self._inside = 0
        self.calls: list[Any] = []
        self.overlapped = False

    def __call__(self, value: Any) -> Any:
        self._inside += 1
        self.overlapped |= self._inside > 1
        time.sleep(self._delay())
        self.calls.append(value)
        self._inside -= 1
        return self._function(value)


@pytest.mark.parametrize(("workers", "decoders", "group"), [(1, 1, 1), (2, 1, 4), (3, 2, 3), (4, 4, 1)])
def test_order_is_kept_whatever_takes_how_long(workers: int, decoders: int, group: int) -> None:
    delays = random.Random(workers)
    encoders = [Exclusive(same, lambda: delays.random() * 0.004) for _ in range(workers)]
    squaring = [Exclusive(squares, lambda: delays.random() * 0.004) for _ in range(decoders)]
    assert list(pipeline.run(range(100), encoders, squaring, group)) == [value**2 for value in range(100)]
    assert not any(one.overlapped for one in [*encoders, *squaring])
    groups = [call for one in squaring for call in one.calls]
    assert sorted(value for call in groups for value in call) == list(range(100))
    assert max(len(call) for call in groups) == group


@pytest.mark.parametrize("count", range(10))
def test_every_number_of_items(count: int) -> None:
    assert list(pipeline.run(range(count), [same, same], [squares], 4)) == [value**2 for value in range(count)]


def test_the_work_of_several_threads_overlaps() -> None:
    # Each encoder waits for the other: one thread alone would wait for ever.
    meeting = threading.Barrier(2, timeout=30)

    def encode(value: int) -> int:
        meeting.wait()
        return value

    assert list(pipeline.run(range(10), [encode, encode], [squares], 1)) == squares(list(range(10)))


def test_encoding_goes_on_while_a_group_is_decoded() -> None:
    more = threading.Event()

    def encode(value: int) -> int:
        if value == 4:
            more.set()
        return value

    def decode(values: list[int]) -> list[int]:
        assert more.wait(30), "nobody encoded while the first group was being decoded"
        return squares(values)

    assert list(pipeline.run(range(8), [encode, encode], [decode], 4)) == squares(list(range(8)))


@pytest.mark.parametrize(("workers", "group"), [(1, 1), (2, 4), (3, 2)])
def test_look_ahead_is_bounded(workers: int, group: int) -> None:
    taken, yielded, furthest = 0, 0, 0

    def items() -> Iterator[int]:
        nonlocal taken, furthest
        for value in range(200):
            taken += 1
            furthest = max(furthest, taken - yielded)
            yield value

    for _ in pipeline.run(items(), [same] * workers, [squares], group):
        yielded += 1
        if yielded % 20 == 0:
            time.sleep(0.01)  # time enough for the threads to run away, if anything let them
    assert yielded == 200
    assert furthest <= look_ahead(workers, group)


def test_items_are_taken_in_the_callers_thread() -> None:
    def items() -> Iterator[int]:
        for value in range(20):
            assert threading.current_thread() is threading.main_thread()
            yield value

    assert len(list(pipeline.run(items(), [same, same], [squares], 4))) == 20


def test_bad_photographs_are_yielded_in_their_place() -> None:
    def encode(value: int) -> int:
        if value % 3 == 0:
            raise ImageError(f"{value}.jpg: the file is empty.")
        return value

    found = list(pipeline.run(range(50), [encode, encode], [squares], 4))
    for value, result in enumerate(found):
        if value % 3:
            assert result == value**2
        else:
            assert isinstance(result, ImageError)
            assert str(result).startswith(f"{value}.jpg")
            assert result.__traceback__ is None  # it would keep what the frames hold


def test_nothing_but_bad_photographs() -> None:
    def encode(value: int) -> int:
        raise ImageError("empty")

    assert all(isinstance(one, ImageError) for one in pipeline.run(range(100), [encode, encode], [squares], 4))


@pytest.mark.parametrize("stage", ["encode", "decode", "items"])
def test_other_exceptions_come_after_the_results_before_them(stage: str) -> None:
    def fail(where: str, value: int) -> int:
        if where == stage and value == 17:
            raise ZeroDivisionError("17")
        return value

    items = (fail("items", value) for value in range(100))
    run = pipeline.run(
        items,
        [lambda value: fail("encode", value)] * 2,
        [lambda values: squares([fail("decode", value) for value in values])],
        1,
    )
    found: list[int | ImageError] = []
    with pytest.raises(ZeroDivisionError, match="17"):
        found.extend(run)
    assert found == [value**2 for value in range(17)]
    assert pipeline_threads() == []
    assert next(run, "ended") == "ended"


@pytest.mark.parametrize("end", ["close", "delete", "throw"])
def test_an_iterator_that_is_left_leaves_no_threads(end: str) -> None:
    encoded = []

    def encode(value: int) -> int:
        encoded.append(value)
        return value

    run = pipeline.run(range(10_000), [encode, encode], [squares], 4)
    assert [next(run) for _ in range(5)] == squares(list(range(5)))
    assert len(pipeline_threads()) == 2
    if end == "close":
        run.close()  # type: ignore[attr-defined]
    elif end == "throw":
        with pytest.raises(KeyboardInterrupt):
            run.throw(KeyboardInterrupt)  # type: ignore[attr-defined]
    else:
        del run
        gc.collect()
    assert pipeline_threads() == []
    assert len(encoded) <= 5 + look_ahead(2, 4)


def test_ctrl_c_while_waiting_leaves_no_threads() -> None:
    code = """
import _thread, threading, time
from captionlite.runtime import pipeline
threading.Timer(0.3, _thread.interrupt_main).start()
try:
    for _ in pipeline.run(range(10**6), [lambda x: time.sleep(0.05)] * 2, [lambda xs: xs], 4):
        pass
except KeyboardInterrupt:
    print([thread.name for thread in threading.enumerate()])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("['MainThread']\n", "")


def test_a_process_ends_with_an_iterator_half_read() -> None:
    code = """
from captionlite.runtime import pipeline
run = pipeline.run(range(10**6), [lambda x: x] * 2, [lambda xs: xs], 4)
print(next(run))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert (done.stdout, done.stderr) == ("0\n", "")


# caption_many


@pytest.fixture(scope="module")
def captioner(toy_directory: Path) -> Captioner:
    return Captioner.from_bundle(toy_directory, threads=2)


def told(caption: Caption | ImageError) -> tuple[Any, ...]:
    """Everything in a caption but the times, to be compared to the last bit."""
    assert isinstance(caption, Caption)
    assert caption.attention is not None
    others = [(other.text, other.tokens, other.logprobs, other.score) for other in caption.alternatives]
    own = (caption.text, caption.tokens, caption.logprobs, caption.logprob, caption.score, caption.stop_reason)
    return (*own, others, caption.attention.shape, caption.attention.tobytes(), caption.confidence)


OPTIONS = {
    "greedy": DecodingOptions(),
    "short": DecodingOptions(max_length=3),
    "restricted": DecodingOptions(min_length=3, no_repeat_ngram=2, suppress=("grass",), prefix="the"),
    "beams": DecodingOptions(beams=3, n_best=2),
    "sampled": DecodingOptions(temperature=1.0, seed=5, best_of=2),
}


@pytest.mark.parametrize("name", OPTIONS)
def test_captions_are_those_of_one_at_a_time(captioner: Captioner, name: str) -> None:
    options = OPTIONS[name]
    found = [told(caption) for caption in captioner.caption_many(iter(PHOTOGRAPHS), options)]
    assert found == [told(captioner.caption(image, options)) for image in PHOTOGRAPHS]
    assert len({one[0] for one in found}) > 3


@pytest.mark.parametrize("count", [0, 1, FEW, FEW + 1, FEW + GROUP + 2])
def test_few_photographs(toy_directory: Path, count: int) -> None:
    fresh = Captioner.from_bundle(toy_directory, threads=3)
    found = [told(caption)[1] for caption in fresh.caption_many(PHOTOGRAPHS[:count])]
    assert found == [tuple(toy_bundle.decode(image).tokens) for image in PHOTOGRAPHS[:count]]


def test_one_thread_makes_no_others(toy_directory: Path) -> None:
    single = Captioner.from_bundle(toy_directory, threads=1)
    for caption in single.caption_many(PHOTOGRAPHS):
        assert isinstance(caption, Caption)
        assert pipeline_threads() == []


@pytest.mark.parametrize("threads", [1, 2])
def test_unreadable_photographs(toy_directory: Path, tmp_path: Path, threads: int) -> None:
    captioner = Captioner.from_bundle(toy_directory, threads=threads)
    images: list[Any] = list(PHOTOGRAPHS[:20])
    images[2] = tmp_path / "nowhere.jpg"
    images[15] = b"no image"
    found = list(captioner.caption_many(images))
    assert [place for place, one in enumerate(found) if isinstance(one, ImageError)] == [2, 15]
    assert "nowhere.jpg" in str(found[2])
    assert told(found[19]) == told(captioner.caption(images[19]))


def test_timings(captioner: Captioner) -> None:
    for caption in captioner.caption_many(PHOTOGRAPHS[:20]):
        assert isinstance(caption, Caption)
        timings = caption.timings_ms
        assert list(timings) == ["image", "encode", "decode", "step", "total"]
        assert min(timings.values()) > 0
        assert timings["total"] == pytest.approx(timings["image"] + timings["encode"] + timings["decode"])
        assert timings["step"] == pytest.approx(timings["decode"] / len(caption.tokens))


def test_other_calls_meanwhile(captioner: Captioner) -> None:
    # The captioner itself and a second iterator, while the first one's threads are at work.
    expected = [tuple(toy_bundle.decode(image).tokens) for image in PHOTOGRAPHS]
    first, second = captioner.caption_many(PHOTOGRAPHS), captioner.caption_many(PHOTOGRAPHS[::-1])
    for number, (one, other) in enumerate(zip(first, second, strict=True)):
        assert told(one)[1] == expected[number]
        assert told(other)[1] == expected[-1 - number]
        assert captioner.caption(PHOTOGRAPHS[number]).tokens == expected[number]


def test_graphs_are_kept_for_the_next_folder(captioner: Captioner) -> None:
    list(captioner.caption_many(PHOTOGRAPHS))
    crew = captioner._crew
    assert crew is not None
    iterator = captioner.caption_many(PHOTOGRAPHS)
    next(iterator)
    iterator.close()  # type: ignore[attr-defined]
    list(captioner.caption_many(PHOTOGRAPHS))
    assert captioner._crew is crew


def test_options_that_cannot_be_followed_are_refused_at_once(captioner: Captioner) -> None:
    with pytest.raises(OptionsError, match="at most"):
        captioner.caption_many(PHOTOGRAPHS, DecodingOptions(max_length=toy_bundle.LENGTH + 1))


def test_decode_many_takes_any_number(captioner: Captioner) -> None:
    encoded = [captioner.encode(image) for image in PHOTOGRAPHS[: 2 * GROUP + 1]]
    found = captioner.decode_many(encoded)
    assert [told(one) for one in found] == [told(captioner.decode(one)) for one in encoded]
    assert captioner.decode_many([]) == []


def test_kernels_that_compute_batches_otherwise_are_not_trusted(captioner: Captioner) -> None:
    together = Together(captioner.decoder)
    plan = captioner._plan(DecodingOptions())
    encoded = [captioner.encode(image) for image in PHOTOGRAPHS[:GROUP]]
    right = together._one_by_one(encoded, plan)
    as_batch = together._as_batch
    batches = []

    def slightly_off(rows: Any, plan: Any) -> Any:
        batches.append(len(rows))
        found = as_batch(rows, plan)
        found[-1].logprobs[-1] = float(np.nextafter(np.float32(found[-1].logprobs[-1]), np.float32(-1)))
        return found

    together._as_batch = slightly_off  # type: ignore[method-assign]
    for _ in range(3):
        found = together.decode(encoded, plan)
        assert [one.tokens for one in found] == [one.tokens for one in right]
        assert [one.logprobs for one in found] == [one.logprobs for one in right]
    assert batches == [GROUP]


# Loading on several threads at once


def test_warnings_of_others_survive_loading_on_several_threads(tmp_path: Path) -> None:
    # warnings.catch_warnings is the whole process's: two threads that take turns in it leave the wrong filters behind.
    path = tmp_path / "damaged.jpg"
    Image.new("RGB", (64, 64)).save(path, exif=b"Exif\0\0II*\0\x08\0\0\0\x09\0\x12\x01")  # nine entries, none there
    with pytest.warns(UserWarning, match="Corrupt EXIF"), Image.open(path) as image:
        image.getexif()
    spec = toy_bundle.manifest().image

    def load(path: Path) -> Any:
        return load_image(path, spec)

    before = list(warnings.filters)
    for _ in pipeline.run([path] * 200, [load] * 4, [list]):
        with pytest.raises(UserWarning, match="mine"):  # here warnings are errors: it must not be swallowed
            warnings.warn("mine", UserWarning, stacklevel=1)
    assert list(warnings.filters) == before
