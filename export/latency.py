"""How long the graphs of several bundles take, side by side: small enough to be measured while a search goes on."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from time import perf_counter

import numpy as np

from captionlite.runtime.captioner import Captioner

ROUNDS = 8


@dataclasses.dataclass(frozen=True)
class Latency:
    """Medians: the encoder on one photograph, one step of the greedy loop, and a whole caption made of these two.

    ``whole_ms`` counts for every bundle as many steps as their captions have on average, all bundles together: one that
    says less would look faster otherwise. Reading and resizing the photograph is left out, which no recipe changes.
    """

    encoder_ms: float
    step_us: float
    whole_ms: float


def graph_latencies(
    captioners: Mapping[str, Captioner],
    photographs: Sequence[np.ndarray],
    rounds: int = ROUNDS,
    clock: Callable[[], float] = perf_counter,
) -> dict[str, Latency]:
    """Latencies by name, of captioners that take turns in this process.

    Protocol. ``photographs``, uint8 (H, W, 3) of the encoder's own size, are read before. On each of them, in each
    round, every captioner encodes it and then decodes it greedily, before the next photograph comes: whatever else the
    machine does meets all of them alike. Who begins moves on by one each time, so that nobody always runs behind the
    same neighbour's cold cache. The decoder is fed its own tokens and states, as in use; a step is a greedy caption's
    time by its tokens, with the loop around the graph. A first round warms up and is not counted. Threads are those
    that the captioners were made with: one for figures that another load disturbs least. Medians over rounds and
    photographs. Seconds come from ``clock``; captioners of one thread can be timed by `time.thread_time`, which stands
    still while other processes have the core.
    """
    names = list(captioners)
    encoder: dict[str, list[float]] = {name: [] for name in names}
    step: dict[str, list[float]] = {name: [] for name in names}
    tokens: dict[str, list[int]] = {name: [] for name in names}
    turn = 0
    for number in range(rounds + 1):
        for pixels in photographs:
            for place in range(len(names)):
                name = names[(turn + place) % len(names)]
                captioner = captioners[name]
                started = clock()
                encoded = captioner.encode_pixels(pixels)
                between = clock()
                said = len(captioner.decode(encoded).tokens)
                ended = clock()
                if number:
                    encoder[name].append(between - started)
                    step[name].append((ended - between) / said)
                    tokens[name].append(said)
            turn += 1
    steps = statistics.fmean(statistics.fmean(counts) for counts in tokens.values())
    found = {}
    for name in names:
        encoder_s, step_s = statistics.median(encoder[name]), statistics.median(step[name])
        found[name] = Latency(1e3 * encoder_s, 1e6 * step_s, 1e3 * (encoder_s + steps * step_s))
    return found
