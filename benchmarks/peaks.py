"""What this machine can do at the most, measured with the very interpreter that runs a bundle's graphs.

Multiply-adds a second are those of one large product, by type, the best of several shapes: what the best kernel
reaches. Bytes a second are those of a sum over float32 rows, which reads everything once and writes next to nothing, by
the size of what it reads: so the caches show. Of repeated runs the fastest counts, because a bound that another program
slowed down is none. From every time that of the same file with next to nothing to do is taken off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any

import numpy as np

from captionlite.benchmarks.probe_files import KINDS, Kind, fully_connected, pointwise, row_sums, small_ops
from captionlite.benchmarks.results import rounded
from captionlite.runtime.interpreter import find_backend

# (rows, depth, units) of FULLY_CONNECTED, (side, depth, units) of CONV_2D: large, and within a cache of 1 MB.
FULLY_CONNECTED = ((256, 512, 512), (128, 512, 512), (512, 1024, 256))
POINTWISE = ((14, 480, 480), (28, 256, 256))
KILOBYTES = (32, 64, 128, 256, 512, 1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
ROWS = 64  # of what is summed up: enough to share among threads
SMALL_OPS = 64
ROUNDS, SECONDS = 4, 0.04  # of each probe, all of them taking turns


@dataclass(frozen=True)
class Bandwidth:
    """Bytes a second by size of what is read, sizes ascending."""

    sizes: tuple[int, ...]
    bytes_per_second: tuple[float, ...]

    def at(self, size_bytes: int) -> float:
        """The most that was reached with so many bytes or more: what is smaller is nearer, never further away.

        Between two sizes it is the larger one's; beyond the largest, the largest's.
        """
        reached = [speed for size, speed in zip(self.sizes, self.bytes_per_second, strict=True) if size >= size_bytes]
        return max(reached, default=self.bytes_per_second[-1])


@dataclass(frozen=True)
class Peaks:
    """Rates in multiply-adds a second by kind; `small_op_s`: an op with next to nothing to do, inside a graph."""

    threads: int
    rates: Mapping[Kind, float]
    bandwidth: Bandwidth
    invoke_s: float  # a graph of one op with next to nothing to do
    small_op_s: float

    def to_json(self) -> dict[str, Any]:
        return {
            "threads": self.threads,
            "giga_multiply_adds_per_second": {kind: rounded(rate / 1e9) for kind, rate in self.rates.items()},
            "read_gigabytes_per_second": {
                str(size): rounded(speed / 1e9)
                for size, speed in zip(self.bandwidth.sizes, self.bandwidth.bytes_per_second, strict=True)
            },
            "invoke_us": rounded(1e6 * self.invoke_s),
            "small_op_us": rounded(1e6 * self.small_op_s),
        }


class Probe:
    """A file of one input, ready to be run again and again."""

    def __init__(self, content: bytes, threads: int) -> None:
        self._interpreter = find_backend().interpreter(model_content=content, num_threads=threads)
        self._interpreter.allocate_tensors()
        detail = self._interpreter.get_input_details()[0]
        random = np.random.default_rng(1)
        values = random.normal(size=detail["shape"]) * (20 if detail["dtype"] is np.int8 else 1)
        self._interpreter.set_tensor(detail["index"], values.astype(detail["dtype"]))
        self.run: Callable[[], None] = self._interpreter.invoke

    def fastest(self, seconds: float, clock: Callable[[], float] = perf_counter) -> float:
        """Seconds of the fastest run within that time."""
        self.run()
        fastest, ends = float("inf"), clock() + seconds
        while True:
            started = clock()
            self.run()
            ended = clock()
            fastest = min(fastest, ended - started)
            if ended >= ends:
                return fastest


def measure_peaks(
    threads: int,
    *,
    kilobytes: Sequence[int] = KILOBYTES,
    rounds: int = ROUNDS,
    seconds: float = SECONDS,
    between: Callable[[int, int], None] = lambda done, of: None,
) -> Peaks:
    """Measure this machine on so many threads; some 10 s. `between(done, of)` is called after each probe."""
    sizes = [1024 * size for size in kilobytes]
    files: dict[tuple[Any, ...], Callable[[], bytes]] = {
        ("nothing",): partial(row_sums, 1, 16),
        ("ops", 1): partial(small_ops, 1),
        ("ops", SMALL_OPS): partial(small_ops, SMALL_OPS),
    }
    work: dict[tuple[Any, ...], int] = {}
    for kind in KINDS:
        for shape in FULLY_CONNECTED:
            files["dense", kind, shape] = partial(fully_connected, kind, *shape)
            work["dense", kind, shape] = shape[0] * shape[1] * shape[2]
        for shape in POINTWISE:
            files["conv", kind, shape] = partial(pointwise, kind, *shape)
            work["conv", kind, shape] = shape[0] * shape[0] * shape[1] * shape[2]
    for size in sizes:
        files["read", size] = partial(row_sums, ROWS, size // 4 // ROWS)
    fastest = dict.fromkeys(files, float("inf"))
    done = 0
    for _ in range(rounds):  # loaded anew each time: some addresses are unlucky, and memory is not kept
        for name, made in files.items():
            fastest[name] = min(fastest[name], Probe(made(), threads).fastest(seconds))
            done += 1
            between(done, rounds * len(files))
    nothing = fastest["nothing",]

    def speed(name: tuple[Any, ...], amount: int) -> float:
        return amount / max(fastest[name] - nothing, 0.1 * fastest[name])

    return Peaks(
        threads,
        {kind: max(speed(name, amount) for name, amount in work.items() if name[1] == kind) for kind in KINDS},
        Bandwidth(tuple(sizes), tuple(speed(("read", size), size) for size in sizes)),
        nothing,
        max(0.0, (fastest["ops", SMALL_OPS] - fastest["ops", 1]) / (SMALL_OPS - 1)),
    )


def matrix_vector(
    weight_bytes: int, threads: int, *, rounds: int = ROUNDS, seconds: float = SECONDS
) -> dict[Kind, dict[str, float]]:
    """What a product of one row with about so many bytes of weights reaches: the rates of a step's large products.

    By kind: bytes of weights, multiply-adds a second, bytes of weights a second; the interpreter's own time included.
    """
    found: dict[Kind, dict[str, float]] = {}
    for kind in KINDS:
        wide = 4 if kind == "float32" else 1
        depth = 256 if weight_bytes < 1 << 21 else 1024
        units = max(8, round(weight_bytes / wide / depth))
        content = fully_connected(kind, 1, depth, units)
        fastest = min(Probe(content, threads).fastest(seconds) for _ in range(rounds))
        count = depth * units
        found[kind] = {
            "weight_bytes": float(count * wide),
            "multiply_adds_per_second": rounded(count / fastest),
            "bytes_per_second": rounded(count * wide / fastest),
        }
    return found
