"""The pictures of a comparison: where the time goes, GPU against edge, quality against time, and how times are spread.

Colours are Okabe and Ito's, which people tell apart however they see colours; no picture tells by colour alone.
Okabe and Ito 2008, "Color Universal Design".
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from captionlite.benchmarks import compare_names as names
from captionlite.benchmarks.compare import TARGETS, Comparison, Entry
from captionlite.benchmarks.compare_names import clean, number

BLUE, ORANGE, GREEN, SKY, RED, PINK, YELLOW, BLACK = (
    "#0072B2", "#E69F00", "#009E73", "#56B4E9", "#D55E00", "#CC79A7", "#F0E442", "#000000",
)  # fmt: skip
STAGES = (  # they add up to a whole caption
    ("image", "photograph's bytes to pixels", SKY, ""),
    ("encode", "encoder", BLUE, ""),
    ("decode", "all decoder steps", ORANGE, "///"),
    ("post", "to text", BLACK, ""),
)
SERIES = (BLUE, ORANGE, GREEN, RED, PINK, SKY, BLACK)
MARKERS = "osD^vPX*"
DPI = 120
LEAST_BAR = 0.08  # of the picture's height from which it fits into an upright one
LEAST_TOLD = 8  # % of a caption from which a number fits into the bar
LEAST_CIDER = 0.06  # height of the picture; small differences should look small
MOST = 60  # results in a picture; more would be lines too thin to read
FAR_APART = 8.0  # times the least: then the axis is logarithmic
FAR_APART_BARS = 25.0  # bars lose by it: they do not begin at 0 then


@dataclass(frozen=True)
class Picture:
    """A PNG and what it shows, or why there is none."""

    file: str
    title: str
    alt: str
    png: bytes | None = None
    skipped: str = ""


def draw(comparison: Comparison) -> list[Picture]:
    """All of them; of very many results the first."""
    entries = comparison.entries[:MOST]
    return [_stages(entries), _gpu_edge(comparison, entries), _quality(comparison, entries), _distribution(entries)]


def label(text: str, longest: int = 44) -> str:
    """Text as matplotlib draws it: no formula, no character that its font lacks, not too long."""
    plain = text.encode("latin-1", "replace").decode("latin-1")
    return clean(plain, longest).replace("\\", "\\\\").replace("$", r"\$").lstrip("_") or "?"


def new_figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def to_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=DPI)
    return buffer.getvalue()


def tidy(axes: Any, grid: str = "both") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color="#dddddd", linewidth=0.7)
    axes.set_axisbelow(True)


def _ms(value: float) -> str:
    digits = 0 if value >= 100 else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"


@dataclass(frozen=True)
class Look:
    """How the results of one way are drawn in every picture."""

    colour: str
    hatch: str
    alpha: float
    dash: str
    fill: str


_RANKS = (("", 1.0, "-", "full"), ("///", 0.65, "--", "none"), ("xxx", 0.5, "-.", "left"), ("...", 0.4, ":", "top"))


class Ways:
    """What tells results of one family apart: target, recipe, threads, and the machine where a target has several.

    Target and recipe have a colour, threads and machines a hatching, a dash and a filling.
    """

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._machines: dict[str, set[str]] = {}
        for entry in entries:
            machines = self._machines.setdefault(names.target_name(entry.result), set())
            machines.add(names.machine_name(entry.result))
        ordered = sorted(entries, key=lambda entry: TARGETS.index(entry.result.target))
        self.all = list(dict.fromkeys(self.of(entry) for entry in ordered))

    def of(self, entry: Entry) -> tuple[str, ...]:
        result = entry.result
        target, machine = names.target_name(result), names.machine_name(result)
        is_told = len(self._machines[target]) > 1 or names.is_gpu(result)
        return target, clean(result.model.recipe), names.threads_label(result), machine if is_told else ""

    def name(self, way: tuple[str, ...]) -> str:
        return label(" ".join(filter(None, way)), 60)

    def look(self, way: tuple[str, ...]) -> Look:
        bases = list(dict.fromkeys(each[:2] for each in self.all))
        rank = [each for each in self.all if each[:2] == way[:2]].index(way)
        return Look(SERIES[bases.index(way[:2]) % len(SERIES)], *_RANKS[rank % len(_RANKS)])


def _stages(entries: Sequence[Entry]) -> Picture:
    """Bars of means, which add up to the whole; on the right the same in parts of it, where a short bar can be read."""
    breaks = np.array([0, *(a.result.model.family != b.result.model.family for a, b in pairwise(entries))])
    places = np.arange(len(entries)) + 0.6 * np.cumsum(breaks)
    figure = new_figure(11, 1.4 + 0.34 * (places[-1] + 1))
    left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
    means = np.array([[number(e.result.summary, stage, "mean") or 0.0 for stage, *_ in STAGES] for e in entries])
    sums = means.sum(axis=1)
    parts = 100 * means / np.where(sums > 0, sums, 1.0)[:, None]
    for axes, values in ((left, means), (right, parts)):
        begun = np.zeros(len(entries))
        for column, (_, name, colour, hatch) in enumerate(STAGES):
            look = {"color": colour, "hatch": hatch, "edgecolor": "white", "linewidth": 0.4}
            axes.barh(places, values[:, column], left=begun, label=name, **look)
            begun += values[:, column]
        tidy(axes, "x")
    for place, whole in zip(places, sums, strict=True):
        left.text(whole + 0.01 * sums.max(), place, _ms(whole), va="center", fontsize=9)
    for place, row in zip(places, parts, strict=True):
        ends = np.cumsum(row)
        for share, end, (_, _, colour, hatch) in zip(row, ends, STAGES, strict=True):
            if share >= LEAST_TOLD:
                box = {"facecolor": colour, "edgecolor": "none", "pad": 1.0} if hatch else None
                ink = "white" if colour in (BLUE, BLACK) else "black"
                look = {"ha": "center", "va": "center_baseline", "fontsize": 8, "color": ink, "bbox": box}
                right.text(end - share / 2, place, f"{share:.0f}", **look)
    left.set_yticks(places, [label(entry.label) for entry in entries])
    left.set_ylim(places[-1] + 0.6, -0.6)
    left.set_xlim(0, 1.12 * max(sums.max(), 1e-9))
    left.set_xlabel("mean time of a caption, ms")
    right.set_xlim(0, 100)
    right.set_xlabel("% of the caption")
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=len(STAGES), frameon=False)
    told = "; ".join(f"{entry.label}: {_ms(whole)} ms" for entry, whole in zip(entries, sums, strict=True))
    alt = f"Mean time of a caption by stage. {told}"
    return Picture("stages.png", "Where the time of a caption goes", alt, to_png(figure))


def _gpu_edge(comparison: Comparison, entries: Sequence[Entry]) -> Picture:
    """A group of bars for each family, one for each recipe, target and number of threads; a line up to p90."""
    title = "GPU against edge, by family and recipe" if comparison.gpus else "Edge, by family and recipe"
    ways = Ways(entries)
    highest = [max(entry.whole_ms, number(entry.result.summary, "whole", "p90") or 0.0) for entry in entries]
    least = min((entry.whole_ms for entry in entries if entry.whole_ms > 0), default=1.0)
    is_log = max(highest) > FAR_APART_BARS * least
    figure = new_figure(max(7.0, 1.5 + 0.48 * (len(entries) + len(comparison.families))), 4.4)
    axes = figure.subplots()
    at, ticks = 0.0, []
    notes: list[tuple[float, float, float]] = []
    for family in comparison.families:
        members = [entry for entry in entries if clean(entry.result.model.family) == family]
        members.sort(key=lambda entry: ways.all.index(ways.of(entry)))
        ticks.append(at + (len(members) - 1) / 2)
        for entry in members:
            look = ways.look(ways.of(entry))
            p90 = max(number(entry.result.summary, "whole", "p90") or 0.0, entry.whole_ms)
            axes.bar(at, entry.whole_ms, 0.86, color=look.colour, alpha=look.alpha, hatch=look.hatch, edgecolor="white")
            axes.plot([at, at], [entry.whole_ms, p90], color="#555555", linewidth=1)
            notes.append((at, entry.whole_ms, p90))
            at += 1
        at += 0.8
    axes.set_xticks(ticks, [label(family, 24) for family in comparison.families])
    axes.tick_params(axis="x", length=0)
    if is_log:
        axes.set_yscale("log")
        axes.set_ylim(least / 2, 1.6 * max(highest))
        _plain_numbers(axes.yaxis)
    else:
        axes.set_ylim(0, 1.1 * max(*highest, 1e-9))
    for place, median, p90 in notes:  # in the bar, so that nobody takes it for the line's; above where there is no room
        _, height = axes.transAxes.inverted().transform(axes.transData.transform((place, median)))
        above = height < LEAST_BAR
        axes.annotate(
            _ms(median), (place, p90 if above else median), (0, 3 if above else -5), textcoords="offset points",
            ha="center", va="bottom" if above else "top", fontsize=8,
            bbox={"boxstyle": "round,pad=0.15", "facecolor": "white", "edgecolor": "none", "alpha": 0.85},
        )  # fmt: skip
    axes.set_ylabel(f"a whole caption, ms{' (logarithmic)' if is_log else ''}")
    axes.set_title("bar and figure: median; line: up to the 90th percentile", fontsize=9, color="#444444", loc="left")
    tidy(axes, "y")
    _legend(figure, ways, "bar", entries)
    alt = "; ".join(f"{entry.label}: {_ms(entry.whole_ms)} ms" for entry in entries)
    return Picture("gpu-edge.png", title, f"Median time of a whole caption. {alt}", to_png(figure))


def _quality(comparison: Comparison, entries: Sequence[Entry]) -> Picture:
    """CIDEr over the median; up and to the left is better. A family's shape is told by its name beside the points."""
    title = "Quality against time"
    scored = [(entry, entry.cider) for entry in entries if entry.cider is not None]
    if not scored:
        reason = (
            "Not drawn: no result's bundle came with CIDEr of its recipe and decoding. `captionlite evaluate --json` "
            "measures it, `captionlite export --scores` puts it into a bundle."
        )
        return Picture("quality.png", title, "", skipped=reason)
    ways = Ways(entries)
    figure = new_figure(9, 5.0)
    axes = figure.subplots()
    families = list(dict.fromkeys(clean(entry.result.model.family) for entry, _ in scored))
    for entry, cider in scored:
        look = ways.look(ways.of(entry))
        marker = MARKERS[families.index(clean(entry.result.model.family)) % len(MARKERS)]
        style = {"color": look.colour, "fillstyle": look.fill, "markersize": 9, "markeredgewidth": 1.6}
        axes.plot(entry.whole_ms, cider, marker, label="_", **style)
    for family, marker in zip(families, MARKERS * len(families), strict=False):
        axes.plot([], [], marker, color="#666666", markersize=8, label=label(family))
    is_log = _is_far_apart([entry.whole_ms for entry, _ in scored])
    if is_log:
        axes.set_xscale("log")
        _plain_numbers(axes.xaxis)
    axes.margins(0.08, 0.12)
    low, high = axes.get_ylim()
    spare = max(0.0, LEAST_CIDER - (high - low)) / 2
    axes.set_ylim(max(0.0, low - spare), high + spare)
    missing = len(entries) - len(scored)
    told = f"; {missing} result{'s' if missing > 1 else ''} without a score left out" if missing else ""
    axes.set_xlabel(f"a whole caption, median, ms{' (logarithmic)' if is_log else ''}")
    axes.set_ylabel(label(f"CIDEr on {comparison.scored_on}", 60))
    axes.set_title(f"further up and to the left is better{told}", fontsize=9, color="#444444", loc="left")
    tidy(axes)
    if len(families) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside right upper", frameon=False, fontsize=9)
    _legend(figure, ways, "point", [entry for entry, _ in scored])
    alt = "; ".join(f"{entry.label}: {_ms(entry.whole_ms)} ms, {cider:.3f}" for entry, cider in scored)
    return Picture("quality.png", title, f"CIDEr over the median time of a caption. {alt}", to_png(figure))


def _distribution(entries: Sequence[Entry]) -> Picture:
    """The share of captions that were done after so many milliseconds; a panel a family."""
    ways = Ways(entries)
    families = list(dict.fromkeys(entry.result.model.family for entry in entries))
    columns = min(2, len(families))
    rows = math.ceil(len(families) / columns)
    figure = new_figure(5.4 * columns + (2.6 if columns == 1 else 0), 0.5 + 3.3 * rows)
    panels = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    begin = min(min(entry.result.samples.whole_ms) for entry in entries)
    end = max(float(np.percentile(entry.result.samples.whole_ms, 99.5)) for entry in entries)
    is_log = end > FAR_APART * begin > 0
    for axes, family in zip(panels, families, strict=False):
        for entry in (entry for entry in entries if entry.result.model.family == family):
            look = ways.look(ways.of(entry))
            times = np.sort(entry.result.samples.whole_ms)
            share = 100 * np.arange(1, len(times) + 1) / len(times)
            axes.step(times, share, where="post", color=look.colour, linestyle=look.dash, linewidth=1.8)
        axes.set_ylim(0, 101)
        axes.set_yticks([0, 25, 50, 75, 90, 100])
        if is_log:
            axes.set_xscale("log")
            _plain_numbers(axes.xaxis)
        axes.set_xlim(0.95 * begin if is_log else 0, max(1.02 * end, 1e-5))
        axes.xaxis.set_tick_params(labelbottom=True)
        if len(families) > 1:
            axes.set_title(label(family), fontsize=10)
        tidy(axes)
    for axes in panels[len(families) :]:
        axes.remove()
    figure.supxlabel(f"a whole caption, ms{' (logarithmic)' if is_log else ''}", fontsize=10)
    figure.supylabel("% of the captions done", fontsize=10)
    _legend(figure, ways, "line", entries)
    alt = f"Cumulative distribution of the times of {len(entries)} results; the axis ends at their 99.5th percentile."
    return Picture("distribution.png", "How the times of whole captions are spread", alt, to_png(figure))


def _legend(figure: Any, ways: Ways, kind: str, entries: Sequence[Entry]) -> None:
    """The ways of these results, above the picture."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: list[Any] = []
    drawn = {ways.of(entry) for entry in entries}
    for way in (each for each in ways.all if each in drawn):
        look, name = ways.look(way), ways.name(way)
        if kind == "bar":
            handles.append(
                Patch(facecolor=look.colour, alpha=look.alpha, hatch=look.hatch, edgecolor="white", label=name)
            )
        elif kind == "line":
            handles.append(Line2D([], [], color=look.colour, linestyle=look.dash, linewidth=2, label=name))
        else:
            style: dict[str, Any] = {"linestyle": "", "markeredgewidth": 1.6, "markersize": 9, "fillstyle": look.fill}
            handles.append(Line2D([], [], marker=MARKERS[0], color=look.colour, label=name, **style))
    width = max(len(handle.get_label()) for handle in handles) * 0.085 + 0.6  # inches, about
    columns = min(len(handles), max(1, int(figure.get_figwidth() / width)))
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(handles) / columns))
    figure.legend(handles=handles, loc="outside upper center", ncols=columns, frameon=False, fontsize=9)


def _is_far_apart(values: Sequence[float]) -> bool:
    return min(values) > 0 and max(values) > FAR_APART * min(values)


def _plain_numbers(axis: Any) -> None:
    """1, 2, 5, 10 instead of powers of ten."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())
