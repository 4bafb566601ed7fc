"""The picture of `captionlite bench scaling`: a panel a factor, with the lines fitted through what was measured."""

from __future__ import annotations

import io
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from captionlite.benchmarks.scaling import FACTORS


def told(a: float, b: float) -> str:
    """A line in words: "12 - 0.003 x"."""

    def number(value: float) -> str:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"

    return f"{number(a)} {'-' if b < 0 else '+'} {number(abs(b))} x"


def draw(factors: Mapping[str, Mapping[str, Any]], title: str) -> bytes:
    """A PNG with a picture a factor: points, fitted lines, and what the lines say."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = min(3, len(factors))
    rows = math.ceil(len(factors) / columns)
    figure = Figure(figsize=(4.6 * columns, 3.7 * rows + 0.4), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title.replace("$", r"\$"))
    grid = figure.subplots(rows, columns, squeeze=False).ravel()
    looks = {"float32": ("#0072B2", "o", "-"), "int8": ("#E69F00", "s", "--")}  # Okabe and Ito
    for axes, (name, found) in zip(grid, factors.items(), strict=False):
        x = FACTORS[name].x
        values = found["values"]
        fine = np.linspace(values[0], values[-1], 100)
        for recipe, series in found["series"].items():
            colour, marker, dash = looks[recipe]
            line = series["fit"]
            r2 = "" if line["r2"] is None else f", R² {line['r2']:.3f}"
            label = f"{recipe}: {told(line['a_us'], line['b_us'])}{r2}"
            axes.plot(values, series["us"], marker, color=colour, markersize=5)
            axes.plot(fine, [line["a_us"] + line["b_us"] * x(value) for value in fine], dash, color=colour, label=label)
        axes.set_xlabel(found["title"])
        axes.set_ylabel("us an encoder run" if found["measured_on"] == "encoder" else "us a step")
        axes.set_ylim(bottom=0)
        if name in ("layers", "beam", "threads"):
            axes.set_xticks(values)
        else:
            axes.locator_params("x", nbins=5)
        axes.set_xlim(left=0.8 if name == "threads" else 0)
        axes.set_title(f"{name} (x: {found['fitted_over']})", fontsize=10)
        axes.grid(color="#dddddd", linewidth=0.7)
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(fontsize=8, frameon=False)
    for axes in grid[len(factors) :]:
        axes.set_axis_off()
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
