"""How long one caption after another takes, after the single-stream scenario of MLPerf Inference.

One query at a time, the next when the last is answered: some captions to warm up, then at least so many captions and at
least so many seconds, photographs in a fixed order round and round, from a file's bytes in memory to the text. Nothing
is tuned to the input, and nothing is left out: the summary is of every caption that was counted.

Reddi et al. 2020, "MLPerf Inference Benchmark": 1,024 queries and 60 seconds are its least for a single stream.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from captionlite.benchmarks.results import STAGES, Protocol, Samples, rounded, sampled_every, summarize

NAME = "single-stream"


@dataclass(frozen=True)
class Timed:
    """One caption: milliseconds of its stages, decoder steps taken, and the text. `post_ms` ends where it is told."""

    image_ms: float
    encode_ms: float
    decode_ms: float
    post_ms: float
    whole_ms: float
    tokens: int
    text: str

    @property
    def step_ms(self) -> float:
        return self.decode_ms / self.tokens


Subject = Callable[[bytes], Timed]
"""What is measured: from a photograph's bytes to its caption, timed by itself."""


@dataclass(frozen=True)
class Limits:
    """When to begin counting, and when it is enough: both counts must be reached."""

    warm_up: int
    min_captions: int
    min_seconds: float


FULL = Limits(warm_up=64, min_captions=1024, min_seconds=60.0)
QUICK = Limits(warm_up=16, min_captions=128, min_seconds=10.0)


@dataclass
class Recording:
    """What has been measured so far: whole captions only, so that it holds good whenever it is interrupted."""

    captions: list[Timed] = field(default_factory=list)
    seconds: float = 0.0  # from the first counted caption's beginning to the last one's end

    def samples(self, every: int) -> Samples:
        """Every so many captions' numbers, rounded."""
        kept = self.captions[::every]
        columns = {f"{stage}_ms": tuple(rounded(getattr(one, f"{stage}_ms")) for one in kept) for stage in STAGES}
        return Samples(**columns, tokens=tuple(one.tokens for one in kept))

    def summary(self) -> dict[str, dict[str, float]]:
        """p50, p90, p99 and mean of each stage, over all captions."""
        return {stage: summarize([getattr(one, f"{stage}_ms") for one in self.captions]) for stage in STAGES}

    @property
    def tokens_per_caption(self) -> float:
        return sum(one.tokens for one in self.captions) / len(self.captions)

    @property
    def captions_per_second(self) -> float:
        return 1000 * len(self.captions) / sum(one.whole_ms for one in self.captions)

    def fields(self, photographs: int, limits: Limits, protocol: dict[str, Any]) -> dict[str, Any]:
        """The fields of a `Result` that come of this; `protocol` has those of `Protocol` that are known elsewhere."""
        every = sampled_every(len(self.captions), photographs)
        return {
            "protocol": Protocol(
                name=NAME,
                warm_up=limits.warm_up,
                min_captions=limits.min_captions,
                min_seconds=limits.min_seconds,
                captions=len(self.captions),
                seconds=round(self.seconds, 3),
                sampled_every=every,
                **protocol,
            ),
            "samples": self.samples(every),
            "summary": self.summary(),
            "tokens_per_caption": rounded(self.tokens_per_caption),
            "captions_per_second": rounded(self.captions_per_second),
        }


def record(
    subject: Subject,
    photographs: Sequence[bytes],
    limits: Limits,
    recording: Recording,
    *,
    clock: Callable[[], float] = perf_counter,
    between: Callable[[Timed, float], None] = lambda timed, seconds: None,
    warmed_up: Callable[[], None] = lambda: None,
) -> None:
    """Warm up and caption until `limits` are reached; every counted caption goes into `recording` when it is there.

    `warmed_up` is called before the first counted caption, `between` after each with it and the seconds since then: its
    own time is part of no caption. Raises ImageError.
    """
    for number in range(limits.warm_up):
        subject(photographs[number % len(photographs)])
    warmed_up()
    started = clock()
    while len(recording.captions) < limits.min_captions or recording.seconds < limits.min_seconds:
        timed = subject(photographs[len(recording.captions) % len(photographs)])
        recording.captions.append(timed)
        recording.seconds = clock() - started
        between(timed, recording.seconds)
