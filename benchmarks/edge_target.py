"""The target `edge`: a bundle through captionlite's own runtime, as whoever installs it runs it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import cycle, islice
from time import perf_counter
from typing import Any

from captionlite.benchmarks.latency import Timed
from captionlite.benchmarks.results import rounded
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.decoding import Caption, Hypothesis
from captionlite.runtime.errors import ImageError


class WatchedCaptioner(Captioner):
    """A captioner that notes when the decoder has taken its last step: what follows is the stage "post"."""

    decoded_s = 0.0

    def _caption(self, hypotheses: Sequence[Hypothesis], started: float) -> Caption:
        self.decoded_s = perf_counter()
        return super()._caption(hypotheses, started)


def edge_subject(captioner: WatchedCaptioner) -> Callable[[bytes], Timed]:
    """`Captioner.caption`, timed from outside, its stages as it tells them itself; they add up to the whole."""

    def subject(photograph: bytes) -> Timed:
        started = perf_counter()
        caption = captioner.caption(photograph)
        ended = perf_counter()
        image, encode = caption.timings_ms["image"], caption.timings_ms["encode"]
        post, whole = 1e3 * (ended - captioner.decoded_s), 1e3 * (ended - started)
        return Timed(image, encode, whole - image - encode - post, post, whole, len(caption.tokens), caption.text)

    return subject


def time_batch(
    captioner: Captioner, photographs: Sequence[bytes], count: int, clock: Callable[[], float] = perf_counter
) -> dict[str, Any]:
    """Captions a second of `Captioner.caption_many` for `count` photographs, after as many as warm all threads up.

    Raises ImageError.
    """
    for _ in captioner.caption_many(islice(cycle(photographs), 4 * len(photographs) + 64)):
        pass
    started = clock()
    done = 0
    for result in captioner.caption_many(islice(cycle(photographs), count)):
        if isinstance(result, ImageError):
            raise result
        done += 1
    seconds = clock() - started
    return {
        "way": "caption_many",
        "captions": done,
        "seconds": round(seconds, 3),
        "captions_per_second": rounded(done / seconds),
    }
