"""Where a graph's time goes, op by op, and which ops the interpreter's delegate (XNNPACK) did not take.

The interpreter's Python API has no profiler, and LiteRT's in C cannot serve: it belongs to another runtime than bundles
run on, its events are a private structure of each version, and it counts in whole microseconds, cut off, while most ops
of a step take less than one. So an op's time is what it adds: the graph is cut into stretches of eight ops, of each
stretch the first op, the first two and so on become graphs of their own, and what each takes longer than the one before
is the time of its last op. Inputs are what the whole graph has there. Before each run, and after one that is not
counted, as many bytes as the whole graph touches are read, so that weights come from where they come from in the whole
graph, which has run through all its other ops in between.

What that means. The times of a stretch add up to what it takes, whatever the delegate fused or shared in it: what two
ops share (rounding the same input to integers) is the first one's, and an op that is fused into the one before costs
what it adds. Of repeated runs the lower quartile counts, because other work on the machine only ever adds. What it does
not mean: below the stated uncertainty a time, even a negative one, means nothing; the first op of a stretch finds its
activations further away than it would in the whole graph, and what is shared across stretches is done twice. How far
the sum of all ops is from the whole graph's time, measured in the same rounds, is told.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from captionlite.benchmarks.graph_costs import OpCost, read_costs
from captionlite.benchmarks.peaks import ROWS, Probe
from captionlite.benchmarks.probe_files import row_sums
from captionlite.benchmarks.results import rounded
from captionlite.benchmarks.tflite_model import load_model, segment
from captionlite.runtime.errors import InterpreterError
from captionlite.runtime.interpreter import find_backend

STRETCH = 8
ROUNDS = 60


@dataclass(frozen=True)
class OpTime:
    """Seconds that this op adds, and by how much they differ between even and odd rounds, halved."""

    op: OpCost
    delegated: bool
    seconds: float
    uncertainty_s: float


@dataclass(frozen=True)
class Profile:
    """Times of all ops of a graph on so many threads; `whole_s` is the whole graph's in the same rounds."""

    threads: int
    rounds: int
    partitions: int  # parts of the graph that the delegate took
    whole_s: float
    ops: tuple[OpTime, ...]

    def totals(self) -> dict[str, Any]:
        """What there is to say of the graph as a whole."""
        left = [one for one in self.ops if not one.delegated]
        return {
            "threads": self.threads,
            "rounds": self.rounds,
            "ops": len(self.ops),
            "whole_us": _us(self.whole_s),
            "sum_of_ops_us": _us(sum(one.seconds for one in self.ops)),
            "delegate": {
                "partitions": self.partitions,
                "ops": len(self.ops) - len(left),
                "not_taken": len(left),
                "not_taken_us": _us(sum(one.seconds for one in left)),
            },
        }

    def to_json(self) -> dict[str, Any]:
        """All of it, times in microseconds; types by time."""
        return {**self.totals(), "by_type": self.by_type(), "per_op": [self._op(one) for one in self.ops]}

    def by_type(self) -> list[dict[str, Any]]:
        """Types of ops, those that take most of the time first."""
        groups: dict[str, list[OpTime]] = {}
        for one in self.ops:
            groups.setdefault(one.op.label, []).append(one)
        whole = sum(one.seconds for one in self.ops)
        rows = []
        for label, members in groups.items():
            seconds = sum(one.seconds for one in members)
            rows.append(
                {
                    "type": label,
                    "ops": len(members),
                    "not_taken": sum(not one.delegated for one in members),
                    "us": _us(seconds),
                    "uncertainty_us": _us(sum(one.uncertainty_s**2 for one in members) ** 0.5),
                    "share": rounded(seconds / whole) if whole > 0 else None,
                    "multiply_adds": sum(one.op.multiply_adds for one in members),
                }
            )
        return sorted(rows, key=lambda row: -row["us"])

    @staticmethod
    def _op(one: OpTime) -> dict[str, Any]:
        return {
            "op": one.op.index,
            "type": one.op.label,
            "name": one.op.outputs[0] if one.op.outputs else "",
            "shape": list(one.op.shape),
            "delegated": one.delegated,
            "us": _us(one.seconds),
            "uncertainty_us": _us(one.uncertainty_s),
            "multiply_adds": one.op.multiply_adds,
            "bytes": one.op.weight_bytes + one.op.moved_bytes,
        }


def profile_graph(
    content: bytes,
    inputs: Mapping[str, npt.NDArray[Any]],
    *,
    threads: int,
    where: str,
    rounds: int = ROUNDS,
    clock: Callable[[], float] = perf_counter,
    between: Callable[[int, int], None] = lambda done, of: None,
) -> Profile:
    """Profile a TFLite file on these inputs by the names of its signature; see the module's text.

    `between(done, of)` is called after each stretch with the number of ops. Raises InterpreterError.
    """
    costs = read_costs(content, where)
    model = load_model(content, where)
    values = _Values(content, _by_index(model, inputs, where))
    delegated, partitions = what_delegate_took(content, threads, len(costs.ops))
    count = len(costs.ops)
    flush = Probe(row_sums(ROWS, max(1, costs.working_set_bytes // 4 // ROWS)), 1).run
    nothing = Probe(row_sums(1, 16), threads).run
    whole = _Cut(content, values, threads).run
    seconds: list[float] = []
    uncertain: list[float] = []
    of_whole: list[float] = []
    for first in range(0, count, STRETCH):
        last = min(first + STRETCH, count)
        cuts = [_Cut(segment(model, first, end), values, threads).run for end in range(first + 1, last + 1)]
        samples = np.empty((rounds + 1, len(cuts) + 1))
        for row in samples:
            for column, run in enumerate((nothing, *cuts)):
                run()  # other cuts have pushed its weights further out than the graph's own ops would
                flush()
                started = clock()
                run()
                row[column] = clock() - started
            whole()
            whole()
            started = clock()
            whole()
            of_whole.append(clock() - started)
        seconds += list(np.diff(_quartile(samples[1:])))
        halves = [np.diff(_quartile(half)) for half in (samples[1::2], samples[2::2])] if rounds > 1 else [0.0, 0.0]
        uncertain += list(np.abs(halves[0] - halves[1]) / 2 * np.ones(len(cuts)))
        between(last, count)
    rows = zip(costs.ops, delegated, map(float, seconds), map(float, uncertain), strict=True)
    taken = float(_quartile(np.array(of_whole)))
    return Profile(threads, rounds, partitions, taken, tuple(OpTime(*row) for row in rows))


def _quartile(samples: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    found: npt.NDArray[np.float64] = np.percentile(samples, 25, axis=0)
    return found


def what_delegate_took(content: bytes, threads: int, ops: int) -> tuple[list[bool], int]:
    """For each op whether the interpreter's own delegate computes it, and of how many parts of the graph it has charge.

    The delegate's nodes stand behind the file's ops. A tensor inside of its parts has no memory of its own, and those
    that it gives out are its nodes' outputs.
    """
    interpreter = find_backend().interpreter(model_content=content, num_threads=threads)
    interpreter.allocate_tensors()
    details = interpreter._get_ops_details()
    given_out = {int(i) for node in details[ops:] for i in node["outputs"]}

    def is_taken(outputs: Sequence[int]) -> bool:
        for index in outputs:
            if index in given_out:
                return True
            try:
                interpreter.tensor(index)()
            except ValueError:  # "Tensor data is null"
                return True
        return False

    return [is_taken([int(i) for i in node["outputs"]]) for node in details[:ops]], len(details) - ops


class _Values:
    """What every tensor of a graph holds when it has run on these inputs, by number of tensor."""

    def __init__(self, content: bytes, inputs: Mapping[int, npt.NDArray[Any]]) -> None:
        self._inputs = inputs
        backend = find_backend()
        resolvers = sys.modules[backend.interpreter.__module__].OpResolverType
        # Without the delegate, which gives no memory to the tensors inside of it, and without using memory again.
        self._interpreter = backend.interpreter(
            model_content=content,
            experimental_op_resolver_type=resolvers.BUILTIN_WITHOUT_DEFAULT_DELEGATES,
            experimental_preserve_all_tensors=True,
        )
        self._interpreter.allocate_tensors()
        for index, value in inputs.items():
            self._interpreter.set_tensor(index, value)
        self._interpreter.invoke()

    def __getitem__(self, index: int) -> npt.NDArray[Any]:
        value: npt.NDArray[Any] = self._inputs[index] if index in self._inputs else self._interpreter.get_tensor(index)
        return value


class _Cut:
    """Some ops of a graph, loaded, with what the whole graph has there in their inputs."""

    def __init__(self, content: bytes, values: _Values, threads: int) -> None:
        interpreter = find_backend().interpreter(model_content=content, num_threads=threads)
        interpreter.allocate_tensors()
        for detail in interpreter.get_input_details():
            interpreter.set_tensor(detail["index"], values[detail["index"]])
        self._interpreter = interpreter
        self.run: Callable[[], None] = interpreter.invoke


def _by_index(model: Any, inputs: Mapping[str, npt.NDArray[Any]], where: str) -> dict[int, npt.NDArray[Any]]:
    """The inputs by number of tensor, as the file's signature names them."""
    signature = (model.signatureDefs or [None])[0]
    numbers = {} if signature is None else {m.name.decode(): int(m.tensorIndex) for m in signature.inputs}
    if numbers.keys() != inputs.keys():
        raise InterpreterError(f"{where}: the graph's inputs are {sorted(numbers)}, expected {sorted(inputs)}.")
    return {numbers[name]: value for name, value in inputs.items()}


def _us(seconds: float) -> float:
    return rounded(1e6 * seconds)
