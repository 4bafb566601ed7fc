"""Choosing among many ways to store a bundle: the greedy walk over costs and damage, the front, the choice."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

# How much bytes and time weigh in each of the walks; a little of both always, or ties would be broken blindly.
WALKS = ((0.9, 0.1), (0.5, 0.5), (0.1, 0.9))
STANDARD_ERRORS = 1.0


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a bundle may cost, and what its captions must be worth; None: whatever it is.

    ``megabytes`` (10^6 bytes) of all its graphs, ``milliseconds`` of a whole caption (`latency.Latency.whole_ms`) when
    nothing else runs on this machine, CIDEr of greedy captions on the dev photographs.
    """

    megabytes: float | None = None
    milliseconds: float | None = None
    min_cider: float | None = None

    def excess(self, point: Point) -> dict[str, float]:
        """By budget that the point misses, by what part of it."""
        found = {}
        if self.megabytes is not None and point.size_bytes > 1e6 * self.megabytes:
            found["--budget-mb"] = point.size_bytes / (1e6 * self.megabytes) - 1
        if self.milliseconds is not None and point.whole_ms > self.milliseconds:
            found["--budget-ms"] = point.whole_ms / self.milliseconds - 1
        if self.min_cider is not None and point.cider < self.min_cider:
            found["--min-cider"] = 1 - point.cider / self.min_cider
        return found

    def __str__(self) -> str:
        said = [
            f"at most {self.megabytes:g} MB" if self.megabytes is not None else "",
            f"at most {self.milliseconds:g} ms a caption" if self.milliseconds is not None else "",
            f"a CIDEr of at least {self.min_cider:g}" if self.min_cider is not None else "",
        ]
        return ", ".join(filter(None, said)) or "none"


@dataclasses.dataclass(frozen=True)
class Point:
    """A recipe that was measured. ``ciders``: CIDEr of each dev photograph's caption, in their order."""

    name: str
    key: str
    recipe: dict[str, Any]  # JSON
    size_bytes: int
    encoder_ms: float
    step_us: float
    whole_ms: float
    divergence: float
    ciders: tuple[float, ...]

    @property
    def cider(self) -> float:
        return float(np.mean(self.ciders))

    @property
    def product(self) -> float:
        """Bytes times milliseconds: what a point costs, in one figure that weighs both by their ratios."""
        return self.size_bytes * self.whole_ms

    def dominates(self, other: Point) -> bool:
        """As good in everything, and better in something."""
        mine = (self.size_bytes, self.whole_ms, -self.cider)
        theirs = (other.size_bytes, other.whole_ms, -other.cider)
        return all(a <= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs


@dataclasses.dataclass(frozen=True)
class Option:
    """One level of one group, against float32: bytes and milliseconds (of a caption) more, and the damage it does."""

    level: str
    size_bytes: float
    milliseconds: float
    divergence: float


@dataclasses.dataclass(frozen=True)
class State:
    """A level for every group, and what the sum of their options predicts: change against float32."""

    assignment: tuple[tuple[str, str], ...]
    size_bytes: float
    milliseconds: float
    divergence: float


def walk(
    options: Mapping[str, Sequence[Option]], weights: tuple[float, float], whole: tuple[float, float]
) -> list[State]:
    """From the cheapest level of every group, step by step the move that repairs most for what it costs.

    ``options`` by group; ``weights`` of bytes and milliseconds, ``whole``: those of the float32 bundle, which costs are
    counted in parts of. The last state has every group where it does least damage. This is the greedy solution of the
    multiple-choice knapsack (Sinha and Zoltners 1979): as good as the best one up to a single move.
    """

    def cost(option: Option) -> float:
        return weights[0] * option.size_bytes / whole[0] + weights[1] * option.milliseconds / whole[1]

    state = {
        group: min(found, key=lambda option: (cost(option), option.divergence)) for group, found in options.items()
    }
    states = [_state(state)]
    while True:
        moves = [
            (
                (state[group].divergence - option.divergence) / max(cost(option) - cost(state[group]), 1e-9),
                group,
                option,
            )
            for group, found in options.items()
            for option in found
            if option.divergence < state[group].divergence
        ]
        if not moves:
            return states
        _, group, option = max(moves, key=lambda move: (move[0], move[1], move[2].level))
        state[group] = option
        states.append(_state(state))


def _state(chosen: Mapping[str, Option]) -> State:
    return State(
        tuple((group, option.level) for group, option in chosen.items()),
        sum(option.size_bytes for option in chosen.values()),
        sum(option.milliseconds for option in chosen.values()),
        sum(option.divergence for option in chosen.values()),
    )


def promising(states: Iterable[State], whole: tuple[float, float], budget: Budget) -> list[State]:
    """States that no other one is predicted to beat and that may meet the budget, the least damaged first.

    Sizes add up nearly exactly; times do not, so a state may be predicted a tenth too slow.
    """
    distinct = {state.assignment: state for state in states}
    within = [
        state
        for state in distinct.values()
        if (budget.megabytes is None or whole[0] + state.size_bytes <= 1.005e6 * budget.megabytes)
        and (budget.milliseconds is None or whole[1] + state.milliseconds <= 1.1 * budget.milliseconds)
    ]

    def figures(state: State) -> tuple[float, float, float]:
        return state.size_bytes, state.milliseconds, state.divergence

    found = [
        state
        for state in within
        if not any(
            all(a <= b for a, b in zip(figures(other), figures(state), strict=True))
            and figures(other) != figures(state)
            for other in within
        )
    ]
    return sorted(found, key=lambda state: (state.divergence, state.size_bytes, state.assignment))


def spread(states: Sequence[State], count: int) -> list[State]:
    """So many of them, at even steps of the logarithm of the damage, from the least to the most."""
    if len(states) <= count:
        return list(states)
    marks = [math.log(max(state.divergence, 1e-9)) for state in states]
    found: list[int] = []
    for k in range(count):
        target = marks[0] + (marks[-1] - marks[0]) * k / max(count - 1, 1)
        left = [i for i in range(len(states)) if i not in found]
        found.append(min(left, key=lambda i: (abs(marks[i] - target), i)))
    return [states[i] for i in sorted(found)]


def cheaper(states: Sequence[State], whole: tuple[float, float], chosen: Point | None) -> State | None:
    """What to score next: of the states predicted to cost less than ``chosen`` the one that damages least.

    With nothing chosen yet, the cheapest. None when there is no such state.
    """

    def product(state: State) -> float:
        return (whole[0] + state.size_bytes) * (whole[1] + state.milliseconds)

    if chosen is None:
        return min(states, key=product, default=None)
    less = [state for state in states if product(state) < chosen.product]
    return min(less, key=lambda state: (state.divergence, product(state)), default=None)


def front(points: Sequence[Point]) -> list[Point]:
    """Those that no other one dominates, the smallest first."""
    found = [point for point in points if not any(other.dominates(point) for other in points)]
    return sorted(found, key=lambda point: (point.size_bytes, point.whole_ms, point.name))


def choose(points: Sequence[Point], budget: Budget, float32: Point) -> Point | None:
    """Of the points that meet the budget the best, or a cheaper one that is not measurably worse; None if none does.

    Not measurably worse: its captions' mean CIDEr is within one standard error of the paired differences (the
    one-standard-error rule of Breiman et al. 1984: the best of many noisy figures is in part luck). For the same reason
    nothing counts for more than ``float32``, of which all are roundings. Cheaper: least in bytes times milliseconds. So
    no point that meets the budget dominates the answer.
    """
    meeting = [point for point in points if not budget.excess(point)]
    if not meeting:
        return None
    best = min([max(meeting, key=lambda point: point.cider), float32], key=lambda point: point.cider)
    tied = [point for point in meeting if best.cider - point.cider <= STANDARD_ERRORS * paired_error(best, point)]
    return min(tied, key=lambda point: (point.product, -point.cider, point.name))


def paired_error(one: Point, other: Point) -> float:
    """The standard error of the mean difference of CIDEr on the same photographs."""
    differences = np.subtract(one.ciders, other.ciders)
    return float(differences.std(ddof=1) / math.sqrt(len(differences))) if len(differences) > 1 else 0.0


def nearest(points: Sequence[Point], budget: Budget) -> Point:
    """The point that misses the budgets by least, all parts that it misses together."""
    return min(points, key=lambda point: (sum(budget.excess(point).values()), -point.cider, point.name))
