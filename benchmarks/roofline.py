"""How fast a graph could be on this machine at the most, and how far it is from that.

The floor of an op is the longer of two times: its multiply-adds at the rate of the best kernel for its types, and its
bytes at this machine's read bandwidth. Weights come from the cache level (or the memory) that everything the graph
touches in a run fits into; activations from the level that those of the one op fit into, because the op before has just
written them. Writing counts like reading. The floor of a graph is the sum over its ops, which follow one another; the
cruder floor sums up both times over the graph first and takes the longer then, as if kernels of all ops could overlap.

What the floor leaves out, and the gap therefore holds: that small products and depthwise convolutions reach less than
the rate of a large product, additions and activation functions that are no products, the cost of going from op to op,
and the interpreter around the graph. Williams, Waterman, Patterson 2009, "Roofline".
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from captionlite.benchmarks.graph_costs import GraphCost, OpCost
from captionlite.benchmarks.op_profile import Profile
from captionlite.benchmarks.peaks import Peaks
from captionlite.benchmarks.probe_files import Kind
from captionlite.benchmarks.results import rounded
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.interpreter import Graph
from captionlite.runtime.verify import read_golden

WARM_UP_ROUNDS = 3


@dataclass(frozen=True)
class OpFloor:
    """Seconds that an op takes at least: for its multiply-adds, for its bytes."""

    op: OpCost
    compute_s: float
    memory_s: float

    @property
    def seconds(self) -> float:
        return max(self.compute_s, self.memory_s)


@dataclass(frozen=True)
class Floor:
    """The floor of a graph, op by op; `totals_s` is the cruder one, and never the higher."""

    ops: tuple[OpFloor, ...]

    @property
    def seconds(self) -> float:
        return sum(op.seconds for op in self.ops)

    @property
    def totals_s(self) -> float:
        return max(sum(op.compute_s for op in self.ops), sum(op.memory_s for op in self.ops))


@dataclass(frozen=True)
class Invocations:
    """Seconds of a graph's bare `invoke()`, in the order they came."""

    seconds: tuple[float, ...]

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def fastest_s(self) -> float:
        return min(self.seconds)


def floor(cost: GraphCost, peaks: Peaks) -> Floor:
    """The floor of a graph on a machine; see the module's text."""
    far = peaks.bandwidth.at(cost.working_set_bytes)
    found = []
    for op in cost.ops:
        compute = 0.0 if op.kind is None else op.multiply_adds / peaks.rates[op.kind]
        memory = op.weight_bytes / far + op.moved_bytes / peaks.bandwidth.at(op.moved_bytes)
        found.append(OpFloor(op, compute, memory))
    return Floor(tuple(found))


@dataclass(frozen=True)
class Feed:
    """A loaded graph with a photograph or a token in its inputs, and the same inputs by name for its like."""

    graph: Graph
    content: bytes
    inputs: Mapping[str, npt.NDArray[Any]]
    threads: int
    where: str


def feeds(captioner: Captioner, encoder_threads: int) -> dict[str, Feed]:
    """The bundle's encoder on its first golden photograph, and the decoder at the first step of its caption."""
    bundle = captioner.bundle
    pixels = read_golden(bundle).images[0]
    encoded = captioner.encode_pixels(pixels)
    captioner.decoder.begin(encoded)
    captioner.decoder.step(bundle.manifest.decoding.start_id, 0)
    decoder = captioner.decoder.graph
    given = {
        "encoder": ({"image": pixels[None]}, captioner._encoder, encoder_threads),
        "decoder": ({name: np.array(view()) for name, view in decoder.inputs.items()}, decoder, 1),
    }
    found = {}
    for name, (inputs, graph, threads) in given.items():
        file = bundle.manifest.graphs[name].file
        found[name] = Feed(graph, bundle.read(file), inputs, threads, f"{bundle.location}/{file}")
    return found


def time_graphs(
    graphs: Mapping[str, Feed],
    bursts: Mapping[str, int],
    rounds: int,
    clock: Callable[[], float] = perf_counter,
    between: Callable[[int], None] = lambda done: None,
) -> dict[str, Invocations]:
    """Time each graph's bare `invoke()`: in each round so many times in a row, after one that is not counted.

    The graphs take turns, as they do for one photograph after another. `between(done)` is called after each round.
    """
    samples: dict[str, list[float]] = {name: [] for name in graphs}
    invokes = {name: feed.graph._interpreter.invoke for name, feed in graphs.items()}
    for number in range(WARM_UP_ROUNDS + rounds):
        for name, invoke in invokes.items():
            invoke()
            for _ in range(bursts[name]):
                started = clock()
                invoke()
                ended = clock()
                if number >= WARM_UP_ROUNDS:
                    samples[name].append(ended - started)
        between(number + 1)
    return {name: Invocations(tuple(found)) for name, found in samples.items()}


def describe(
    feed: Feed,
    cost: GraphCost,
    peaks: Peaks,
    timed: Invocations,
    profile: Profile | None,
    matrix_vector: Mapping[Kind, Mapping[str, float]],
) -> dict[str, Any]:
    """One graph's part of the result, times in microseconds."""
    lowest = floor(cost, peaks)
    gap = timed.median_s / lowest.seconds
    return {
        "threads": feed.threads,
        "cost": cost.to_json(),
        "derivation": {
            "weights_read_from_gigabytes_per_second": rounded(peaks.bandwidth.at(cost.working_set_bytes) / 1e9),
            "compute_us": _us(sum(op.compute_s for op in lowest.ops)),
            "memory_us": _us(sum(op.memory_s for op in lowest.ops)),
            "bound_by_bytes_us": _us(sum(op.seconds for op in lowest.ops if op.memory_s > op.compute_s)),
            "bound_by_products_us": _us(sum(op.seconds for op in lowest.ops if op.memory_s <= op.compute_s)),
        },
        "floor_us": _us(lowest.seconds),
        "floor_of_totals_us": _us(lowest.totals_s),
        "going_from_op_to_op_us": _us(peaks.invoke_s + peaks.small_op_s * len(cost.ops)),
        "measured_us": {"median": _us(timed.median_s), "fastest": _us(timed.fastest_s), "runs": len(timed.seconds)},
        "measured_over_floor": rounded(gap),
        "fastest_over_floor": rounded(timed.fastest_s / lowest.seconds),
        "matrix_vector": dict(matrix_vector),
        "by_type": by_type(lowest, profile),
        "profile": None if profile is None else profile.totals(),
        "ops": [_op(op, profile) for op in lowest.ops],
    }


def by_type(lowest: Floor, profile: Profile | None) -> list[dict[str, Any]]:
    """Floor and measured time by type of op, those that lose most first: what the gap is made of."""
    groups: dict[str, list[OpFloor]] = {}
    for one in lowest.ops:
        groups.setdefault(one.op.label, []).append(one)
    rows = []
    for label, members in groups.items():
        least = sum(one.seconds for one in members)
        row: dict[str, Any] = {
            "type": label,
            "ops": len(members),
            "multiply_adds": sum(one.op.multiply_adds for one in members),
            "bytes": sum(one.op.weight_bytes + one.op.moved_bytes for one in members),
            "floor_us": _us(least),
        }
        if profile is not None:
            taken = sum(profile.ops[one.op.index].seconds for one in members)
            row |= {"measured_us": _us(taken), "lost_us": _us(taken - least)}
        rows.append(row)
    return sorted(rows, key=lambda row: -row.get("lost_us", row["floor_us"]))


def _op(one: OpFloor, profile: Profile | None) -> dict[str, Any]:
    op = one.op
    told = {
        "op": op.index,
        "type": op.label,
        "shape": list(op.shape),
        "multiply_adds": op.multiply_adds,
        "weight_bytes": op.weight_bytes,
        "activation_bytes": op.moved_bytes,
        "floor_us": _us(one.seconds),
        "bound": "bytes" if one.memory_s > one.compute_s else "products",
    }
    return told if profile is None else {**told, "measured_us": _us(profile.ops[op.index].seconds)}


def _us(seconds: float) -> float:
    return rounded(1e6 * seconds)
