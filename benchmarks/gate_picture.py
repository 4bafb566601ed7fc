"""gate.png: how near the numbers are, where captions part, and what that did to their score."""

from __future__ import annotations

import io
import textwrap
from typing import Any

import numpy as np

from captionlite.benchmarks.gate import Measured
from captionlite.benchmarks.gate_verdict import Bar, Verdict, percent

GREEN, RED, BLUE, GREY = "#2a7f3f", "#b3261e", "#1f5fa8", "#8a8a8a"
LEAST = 1e-9  # one less cosine, as drawn: below is rounding
MANY_LINES = 9


def picture(found: Measured | None, bar: Bar, verdict: Verdict, about: dict[str, str]) -> bytes:
    """A PNG of six panels; of one where nothing was measured."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 8.5 if found else 2.5), layout="constrained")
    canvas = FigureCanvasAgg(figure)
    colour = GREEN if verdict.passed else RED
    figure.suptitle("\n".join(textwrap.wrap(verdict.headline, 130)), color=colour, fontsize=13, fontweight="bold")
    if found is not None:
        panels = figure.subplots(2, 3).ravel()
        _cosines(panels[0], found, bar)
        _agreement(panels[1], found, bar)
        _errors(panels[2], found, bar)
        _divergence(panels[3], found)
        _difference(panels[4], found, bar)
        _words(panels[5], found, verdict, about)
    buffer = io.BytesIO()
    canvas.print_png(buffer)
    return buffer.getvalue()


def _cosines(axes: Any, found: Measured, bar: Bar) -> None:
    """Share of photographs that are at least so near: a curve further left is better."""
    share = np.arange(1, found.n + 1) / found.n
    for output in found.outputs:
        distance = np.sort(1 - output.cosines).clip(LEAST)
        axes.step(distance, share, where="post", linewidth=1.4, label=output.name)
    axes.axvline(1 - bar.floors.mean_cosine, color=RED, linestyle="--", linewidth=1, label="floor of the mean")
    axes.set_xscale("log")
    axes.set_ylim(0, 1.01)
    axes.set(xlabel="1 - cosine to the reference", ylabel="share of photographs", title="Encoder outputs")
    axes.legend(fontsize="small", ncols=1 + len(found.outputs) // MANY_LINES)
    axes.grid(alpha=0.3, which="major")


def _agreement(axes: Any, found: Measured, bar: Bar) -> None:
    places = range(len(found.steps))
    axes.plot(places, [step.top1 for step in found.steps], color=BLUE, marker="o", markersize=4)
    axes.axhline(found.logits.top1, color=GREY, linewidth=1, label=f"all steps: {percent(found.logits.top1)}")
    axes.axhline(bar.floors.top1, color=RED, linestyle="--", linewidth=1, label="floor over all steps")
    axes.set_ylim(min(bar.floors.top1, *(step.top1 for step in found.steps)) - 0.03, 1.01)
    axes.set(xlabel="position", ylabel="same likeliest token", title="Top-1 agreement along the reference's captions")
    _few_at(axes, found)


def _errors(axes: Any, found: Measured, bar: Bar) -> None:
    places = range(len(found.steps))
    axes.plot(places, [step.relative_rms for step in found.steps], color=BLUE, marker="o", markersize=4)
    mean = found.logits.relative_rms
    axes.axhline(mean, color=GREY, linewidth=1, label=f"all steps: {mean:.2e}")
    axes.axhline(10 ** (-bar.floors.snr_db / 20), color=RED, linestyle="--", linewidth=1, label="most over all steps")
    axes.set_ylim(bottom=0)
    axes.set(xlabel="position", ylabel="relative RMS error", title="Logits along the reference's captions")
    _few_at(axes, found)


def _few_at(axes: Any, found: Measured) -> None:
    """Grey ground where few captions are that long, so that nobody reads much into it."""
    few = [t for t, step in enumerate(found.steps) if step.n < found.n / 20]
    if few:
        axes.axvspan(few[0] - 0.5, len(found.steps) - 0.5, color=GREY, alpha=0.15, label="under 5 % of the captions")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")


def _divergence(axes: Any, found: Measured) -> None:
    counts = found.first_differences
    axes.bar(range(len(counts)), counts, color=BLUE)
    middle = found.median_first_difference
    if middle is not None:
        axes.axvline(middle, color=GREY, linestyle="--", label=f"median: step {middle:g}")
        axes.legend(fontsize="small")
    axes.yaxis.get_major_locator().set_params(integer=True)
    title = f"First step that differs; {found.equal_captions} of {found.n} captions are equal"
    axes.set(xlabel="step", ylabel="captions", title=title)
    axes.grid(alpha=0.3, axis="y")


def _difference(axes: Any, found: Measured, bar: Bar) -> None:
    pair = found.bootstrap.scores["cider"]
    counts, _, _ = axes.hist(found.bootstrap.cider_differences, bins=50, color=BLUE, alpha=0.55)
    axes.set_ylim(0, 1.35 * counts.max())  # room for the legend
    axes.axvspan(pair.difference.low, pair.difference.high, color=BLUE, alpha=0.12, label="95 % interval")
    axes.axvline(pair.difference.value, color=BLUE, linewidth=2, label=f"measured: {pair.difference.value:+.4f}")
    axes.axvline(0, color=GREY, linewidth=1)
    asked = (bar.min_cider_ratio - 1) * pair.reference
    axes.axvline(asked, color=RED, linestyle="--", label=f"asked for: {percent(bar.min_cider_ratio)}, {asked:+.4f}")
    axes.set(xlabel="CIDEr, bundle less reference", ylabel="resamples", title="CIDEr difference")
    axes.locator_params(axis="x", nbins=6)
    axes.legend(fontsize="small")


def _words(axes: Any, found: Measured, verdict: Verdict, about: dict[str, str]) -> None:
    axes.axis("off")
    scores = found.bootstrap.scores
    lines = [
        f"{about['bundle']} ({about['recipe']})",
        f"against {about['reference']} ({about['reference_kind']})",
        f"{about['data']} {about['split']}, {about['decoding']}",
        "",
        *(f"{name:8} {p.reference:.4f} {p.candidate:.4f} {p.difference.value:+.4f}" for name, p in scores.items()),
        "",
        *(f"! {line}" for line in (*verdict.problems, *verdict.warnings)),
    ]
    wrapped = [part for line in lines for part in (textwrap.wrap(line, 60) or [""])]
    axes.text(0, 1, "\n".join(wrapped[:30]), va="top", family="monospace", fontsize=9, transform=axes.transAxes)
