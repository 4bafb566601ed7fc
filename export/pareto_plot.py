"""The picture of a search: what every recipe costs in bytes and in time, and what its captions are worth."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from captionlite.export.pareto import Budget, Point, front
from captionlite.runtime.files import write_bytes_atomically

# The recipes that people know by name are labelled, combinations are dots.
FOUND, BUILT_IN, FRONT, CHOSEN = "#9db4c8", "#1f4e79", "#c8553d", "#c8553d"


def draw(points: Sequence[Point], chosen: Point | None, budget: Budget, path: Path, named: Sequence[str] = ()) -> None:
    """Writes a PNG: CIDEr over megabytes and over milliseconds, the front of either, budgets, the chosen point.

    ``named``: points that are labelled; those without a blank in their name when not given.
    """
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot
    from matplotlib.ticker import ScalarFormatter

    named = named or [point.name for point in points if " " not in point.name]
    sides: tuple[tuple[str, Callable[[Point], float], float | None], ...] = (
        ("graphs, MB", lambda point: point.size_bytes / 1e6, budget.megabytes),
        ("a whole caption, ms", lambda point: point.whole_ms, budget.milliseconds),
    )
    figure, axes = pyplot.subplots(1, 2, figsize=(12, 5), sharey=True, layout="constrained")
    for axis, (label, cost, limit) in zip(axes, sides, strict=True):
        _side(axis, points, chosen, cost, named)
        if limit is not None:
            axis.axvline(limit, color="#888888", linestyle=":", linewidth=1.2, label="budget")
        if budget.min_cider is not None:
            axis.axhline(budget.min_cider, color="#888888", linestyle=":", linewidth=1.2)
        axis.set_xlabel(label)
        if label.endswith("MB"):  # float32 is far to the right of all that matters
            axis.set_xscale("log")
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.xaxis.set_minor_formatter(ScalarFormatter())
        axis.grid(color="#eeeeee")
        axis.set_axisbelow(True)
    axes[0].set_ylabel("CIDEr on the dev photographs")
    axes[0].legend(loc="lower right", fontsize=8)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=130)
    pyplot.close(figure)
    write_bytes_atomically(path, stream.getvalue())


def _side(
    axis: Any, points: Sequence[Point], chosen: Point | None, cost: Callable[[Point], float], named: Sequence[str]
) -> None:
    known = [point for point in points if point.name in named]
    others = [point for point in points if point.name not in named]
    axis.scatter([cost(p) for p in others], [p.cider for p in others], s=28, color=FOUND, label="combinations")
    axis.scatter([cost(p) for p in known], [p.cider for p in known], s=34, color=BUILT_IN, label="built-in recipes")
    edge = _edge(points, cost)
    axis.plot([cost(p) for p in edge], [p.cider for p in edge], color=FRONT, linewidth=1.2, label="front")
    low, high = axis.get_xlim()
    for place, point in enumerate(sorted(known, key=lambda p: (cost(p), p.cider))):
        right = cost(point) > low + 0.75 * (high - low)
        axis.annotate(
            point.name,
            (cost(point), point.cider),
            xytext=(-8 if right else 8, (-12, 7, -24)[place % 3]),
            textcoords="offset points",
            ha="right" if right else "left",
            fontsize=8,
            color=BUILT_IN,
        )
    if chosen is not None:
        axis.scatter(
            [cost(chosen)], [chosen.cider], s=150, facecolors="none", edgecolors=CHOSEN, linewidths=1.8, label="chosen"
        )


def _edge(points: Sequence[Point], cost: Callable[[Point], float]) -> list[Point]:
    """Of the front those that no point of this side's cost alone beats: the line that the eye follows."""
    found: list[Point] = []
    for point in sorted(front(points), key=lambda point: (cost(point), -point.cider)):
        if not found or point.cider > found[-1].cider:
            found.append(point)
    return found
