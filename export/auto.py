"""Searches for the recipe that fits a budget best: how `captionlite quantize --recipe auto` finds what it writes.

Every group of ops is tried in each of its ways (`sensitivity`), a greedy walk combines what damages least for what it
saves (`pareto`), and the promising combinations caption the dev photographs through the real interpreter, beside the
recipes made by hand, so that the answer is never worse than one of those. What was measured is kept in a table
(`search_table`); with the same table the same recipe is found.
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from time import perf_counter, thread_time
from typing import TypeAlias

import numpy as np

from captionlite.export import pareto
from captionlite.export.bundle_quantizer import require_float32
from captionlite.export.calibration import Photographs
from captionlite.export.dev_set import DevSet, require_disjoint
from captionlite.export.errors import ExportError
from captionlite.export.latency import ROUNDS, Latency, graph_latencies
from captionlite.export.op_groups import Group
from captionlite.export.pareto import Budget, Option, Point, State
from captionlite.export.pareto_plot import draw
from captionlite.export.recipes import Recipe, recipe
from captionlite.export.search_table import MARKDOWN, PLOT, RECIPE, Table, Trial
from captionlite.export.sensitivity import BASE, FLOAT32, Assignment, Damage, Reference, Workshop, levels, recipe_key
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.decoding import Caption
from captionlite.runtime.files import write_bytes_atomically
from captionlite.runtime.interpreter import without_chatter
from captionlite.training.progress import Progress, silent
from captionlite.training.scoring import score_hypotheses

AUTO = "auto"
BUILT_IN = ("float32", "float16", "int8", "full-int8", "weight-only-int8", "int4")
DAMAGE_PHOTOGRAPHS = 100
TIMED_PHOTOGRAPHS = 4
SPREAD_POINTS, CHEAPER_POINTS = (
    7,
    6,
)  # combinations that are scored: over the whole walk, then to beat the choice so far
POINT_WORK = 6  # of progress: a scored point takes about as long as so many trials
NOISE = 0.01  # of a caption's time: less than that is not told from nothing in a trial
# Integers that are made while captioning differ between CPUs with and without int8 dot products, as in `int8`.
INTEGER_TOLERANCE, FLOAT_TOLERANCE = 5e-2, 1e-3
PACKAGES = ("litert-quantizer", "ai-edge-litert", "captionlite")

Latencies: TypeAlias = Callable[[Mapping[str, Captioner], Sequence[np.ndarray], int], dict[str, Latency]]


def undisturbed(
    captioners: Mapping[str, Captioner], photographs: Sequence[np.ndarray], rounds: int
) -> dict[str, Latency]:
    """`graph_latencies` by the time of this thread: a search must not be led by what else the machine does."""
    return graph_latencies(captioners, photographs, rounds, thread_time)


class BudgetError(ExportError):
    """No recipe meets the budgets; the message names the one that comes nearest."""


@dataclasses.dataclass(frozen=True)
class Found:
    """What a search ends with: the recipe (written at ``path``), its point, and all points of the search."""

    recipe: Recipe
    path: Path
    point: Point
    points: tuple[Point, ...]
    front: tuple[Point, ...]
    minutes: float


def search(
    bundle: Bundle,
    calibration: Photographs,
    dev: DevSet,
    budget: Budget,
    folder: Path,
    *,
    seed: int = 0,
    latencies: Latencies = undisturbed,
    progress: Progress = silent,
    report: Callable[[str], None] = lambda line: None,
) -> Found:
    """The recipe for the float32 ``bundle`` that meets the budgets with the best CIDEr on ``dev``.

    ``calibration``: training photographs, none of which may be in ``dev``. In ``folder``: the table (a search that was
    stopped goes on from it), the same as Markdown, the plot, and the recipe as ``auto.json``, of which `captionlite
    quantize --recipe` makes the same bytes. ``seed`` is the one that photographs were drawn by, for the record.

    Raises BudgetError when no point meets the budgets, ExportError when the bundle is quantized already, when
    photographs are in both sets, or when ``folder`` holds another search.
    """
    started = perf_counter()
    require_float32(bundle)
    require_disjoint(calibration.photos, dev)
    table = Table(folder, _inputs(bundle, calibration, dev, seed))
    if table.trials or table.points:
        report(f"going on from {folder}: {len(table.trials)} trials and {len(table.points)} points are there")
    if dev.unreadable:
        report(f"{dev.name}: {dev.unreadable} photographs cannot be read and are left out")
    with tempfile.TemporaryDirectory(prefix="captionlite-search-") as scratch:
        workshop = Workshop(bundle, calibration.load(bundle.manifest.image), Path(scratch))
        searching = _Search(workshop, dev, table, latencies, report)
        with progress(searching.work(), "searching", searching.work_done()) as advance:
            points = searching.run(budget, advance)
    chosen = pareto.choose(points[1:], budget, points[0])  # float32 is what all are held against
    table.write_markdown(points, chosen, budget)
    draw(points, chosen, budget, folder / PLOT)
    report(f"{len(points)} points in {folder / MARKDOWN}, drawn in {folder / PLOT}")
    if chosen is None:
        raise BudgetError(_no_point(points, budget, dev))
    described = {**chosen.recipe, "description": _description(chosen, budget, dev, seed)}
    write_bytes_atomically(folder / RECIPE, (json.dumps(described, indent=1) + "\n").encode())
    minutes = (perf_counter() - started) / 60
    path = folder / RECIPE
    return Found(recipe(str(path)), path, chosen, tuple(points), tuple(pareto.front(points)), minutes)


class _Search:
    """One search under way: trials, then points."""

    def __init__(
        self, workshop: Workshop, dev: DevSet, table: Table, latencies: Latencies, report: Callable[[str], None]
    ) -> None:
        self._workshop, self._dev, self._table, self._latencies = workshop, dev, table, latencies
        self._report = report
        self._groups = {group.key: group for group in workshop.groups}
        self._sample = dev.photographs[:DAMAGE_PHOTOGRAPHS]
        self._advance: Callable[[int], None] = lambda count: None
        with without_chatter():
            self._float = Captioner(workshop.bundle, 1)  # one thread: what else runs here disturbs that least
        self._reference: Reference | None = None

    def work(self) -> int:
        """Units of progress, one a trial."""
        trials = sum(len(levels(group)) - 1 for group in self._groups.values())
        return trials + POINT_WORK * (len(BUILT_IN) + 1 + SPREAD_POINTS + CHEAPER_POINTS)

    def work_done(self) -> int:
        return min(self.work(), len(self._table.trials) + POINT_WORK * len(self._table.points))

    def run(self, budget: Budget, advance: Callable[[int], None]) -> list[Point]:
        """All points of this search, float32 and the other built-in ones first."""
        self._advance = advance
        points = [point for name in BUILT_IN if (point := self._built_in(name)) is not None]
        for group in self._groups.values():
            self._trials(group)
        options = self._options()
        base = self._combination(self._base())
        float32 = (float(points[0].size_bytes), points[0].whole_ms)
        states = [state for weights in pareto.WALKS for state in pareto.walk(options, weights, float32)]
        # Times were taken around the base; sums of them are true there, and not as far away as float32.
        around = sum(
            o.milliseconds for key, found in options.items() for o in found if self._base().get(key) == o.level
        )
        whole = (float32[0], base.whole_ms - around)
        states = pareto.promising(states, whole, budget)
        scored: dict[State, Point] = {}
        for state in pareto.spread(states, SPREAD_POINTS):
            scored[state] = self._combination(dict(state.assignment))
        for _ in range(CHEAPER_POINTS):
            chosen = pareto.choose([*points[1:], base, *scored.values()], budget, points[0])
            following = pareto.cheaper([state for state in states if state not in scored], whole, chosen)
            if following is None:
                break
            scored[following] = self._combination(dict(following.assignment))
        distinct = {point.key: point for point in [*points, base, *scored.values()]}
        distinct |= {point.key: point for point in points}  # a built-in one keeps its name
        self._report(f"{len(states)} combinations look promising, {len(scored)} of them were scored")
        return list(distinct.values())

    def _built_in(self, name: str) -> Point | None:
        try:
            return self._point(recipe(name), name)
        except ExportError as error:
            if name == FLOAT32:
                raise
            self._report(f"{name} is left out: {error}")
            return None

    def _combination(self, assignment: Assignment) -> Point:
        made = self._workshop.recipe(AUTO, "", assignment, _tolerance(assignment))
        return self._point(made, _short(assignment, self._groups))

    def _point(self, made: Recipe, name: str) -> Point:
        """The recipe's point, measured if it is not in the table."""
        key = recipe_key(made)
        if key in self._table.points:
            return dataclasses.replace(self._table.points[key], name=name)
        with without_chatter(), self._workshop.opened(made) as captioner:
            size = sum(map(len, self._workshop.graphs(made).values()))
            alone = captioner(1)
            found = self._timed({FLOAT32: self._float, name: alone} if name != FLOAT32 else {name: alone})
            first = self._table.facts.setdefault(FLOAT32, dataclasses.asdict(found[FLOAT32]))
            # Against float32 in the same minutes: what else the machine does then is in both.
            ratio = {field: getattr(found[name], field) / getattr(found[FLOAT32], field) for field in first}
            times = {field: value * ratio[field] for field, value in first.items()}
            damage = self._damage(alone, encoder_changed=True).divergence
            ciders = self._ciders(captioner(None))
        point = Point(name, key, made.to_json(), size, **times, divergence=damage, ciders=ciders)
        self._table.points[key] = point
        self._table.save()
        figures = f"{size / 1e6:.2f} MB, {point.whole_ms:.1f} ms a caption, CIDEr {point.cider:.4f}"
        self._report(f"{name}: {figures} on {self._dev.name}")
        self._advance(POINT_WORK)
        return point

    def _ciders(self, captioner: Captioner) -> tuple[float, ...]:
        texts = {}
        for number, caption in enumerate(captioner.caption_many(self._dev.photographs)):
            assert isinstance(caption, Caption)  # they are pixels already
            texts[str(number)] = [caption.text]
        references = {str(number): captions for number, captions in enumerate(self._dev.references)}
        return tuple(round(found[0], 6) for found in score_hypotheses(texts, references).values())

    def _damage(self, captioner: Captioner, *, encoder_changed: bool) -> Damage:
        if self._reference is None:
            self._reference = Reference(self._float, self._sample)
        return self._reference.damage(captioner, encoder_changed=encoder_changed)

    def _timed(self, captioners: Mapping[str, Captioner]) -> dict[str, Latency]:
        return self._latencies(captioners, self._dev.photographs[:TIMED_PHOTOGRAPHS], ROUNDS)

    def _base(self) -> dict[str, str]:
        """Every group at int8 where there is such a file, the joins float32: what times are measured in."""
        found = {}
        for group in self._groups.values():
            trial = self._table.trials.get(f"{group.key} {BASE}")
            if not group.joins and not (trial and trial.error):
                found[group.key] = BASE
        return found

    def _trials(self, group: Group) -> None:
        """The group's rows of the table, as far as they are missing."""
        missing = [
            level for level in levels(group) if level != FLOAT32 and f"{group.key} {level}" not in self._table.trials
        ]
        if not missing:
            return
        outside = self._made({key: level for key, level in self._base().items() if key != group.key})
        with without_chatter(), self._workshop.opened(outside, tried=False) as other:
            for level in missing:
                try:
                    row = self._tried(group, level, other(1))
                except ExportError as error:
                    row = Trial(group.key, level, error=str(error))
                self._table.trials[f"{group.key} {level}"] = row
                self._table.save()
                self._advance(1)

    def _tried(self, group: Group, level: str, outside: Captioner) -> Trial:
        """``outside``: the group float32, all others int8."""
        # Joins between float32 convolutions would only convert to and fro: they are tried among int8 ones.
        around = self._base() if group.joins else {}
        alone, before = self._made({**around, group.key: level}), self._made(around)
        after = self._workshop.graphs(alone)
        size = sum(map(len, after.values())) - sum(map(len, self._workshop.graphs(before, tried=False).values()))
        with self._workshop.opened(alone) as captioner:
            damage = self._damage(captioner(1), encoder_changed=group.graph == "encoder")
        if group.joins:
            less = self._damage(outside, encoder_changed=True)
            damage = dataclasses.replace(damage, divergence=max(damage.divergence - less.divergence, 0.0))
        inside = self._made({**self._base(), group.key: level})
        with self._workshop.opened(inside, tried=False) as captioner:
            times = self._timed({level: captioner(1), FLOAT32: outside})
        one, other = times[level], times[FLOAT32]
        change = one.encoder_ms - other.encoder_ms  # of the one graph that differs: the other would only add noise
        if group.graph == "decoder":
            change = one.whole_ms - other.whole_ms - change
        if abs(change) < NOISE * other.whole_ms:
            change = 0.0
        return Trial(group.key, level, size, damage.encoder_rms, damage.divergence, damage.top1_changed, change)

    def _made(self, assignment: Assignment) -> Recipe:
        return self._workshop.recipe("trial", "", assignment, INTEGER_TOLERANCE)

    def _options(self) -> dict[str, list[Option]]:
        found = {key: [Option(FLOAT32, 0.0, 0.0, 0.0)] for key in self._groups}
        for row in self._table.trials.values():
            if row.group in found and row.error is None:
                option = Option(row.level, float(row.size_bytes), row.milliseconds or 0.0, max(row.divergence, 0.0))
                found[row.group].append(option)
        return found


def _tolerance(assignment: Assignment) -> float:
    integers = {"int4", "int8", "static-int8"} & set(assignment.values())
    return INTEGER_TOLERANCE if integers else FLOAT_TOLERANCE


def _short(assignment: Assignment, groups: Mapping[str, Group]) -> str:
    """What a combination is called in tables: for each level, which groups have it, but for int8."""
    by_level: dict[str, list[str]] = {}
    for key, level in assignment.items():
        if level != BASE and not (groups[key].joins and level == FLOAT32):
            by_level.setdefault(level, []).append(key)
    said = []
    for level, keys in by_level.items():
        named = [key.replace("encoder/", "e:").replace("decoder/", "d:") for key in keys]
        said.append(
            f"{level} " + (" ".join(named) if len(named) <= 4 else f"{' '.join(named[:3])} and {len(named) - 3}")
        )
    return "int8 but " + "; ".join(said) if said else "int8 throughout"


def _inputs(bundle: Bundle, calibration: Photographs, dev: DevSet, seed: int) -> dict[str, object]:
    manifest = bundle.manifest
    return {
        "bundle": {name: manifest.files[spec.file].sha256 for name, spec in manifest.graphs.items()},
        "calibration": calibration.provenance()["sha256"],
        "dev": {"name": dev.name, "photographs": len(dev.photographs), "sha256": dev.sha256},
        "seed": seed,
        "tools": {package: version(package) for package in PACKAGES},
    }


def _description(chosen: Point, budget: Budget, dev: DevSet, seed: int) -> str:
    tools = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    return (
        f"Found by captionlite quantize --recipe auto, budgets: {budget}. {chosen.name}. CIDEr {chosen.cider:.4f} on "
        f"{len(dev.photographs)} photographs of {dev.name} (sha256 {dev.sha256}), seed {seed}, {tools}."
    )


def _no_point(points: Sequence[Point], budget: Budget, dev: DevSet) -> str:
    near = pareto.nearest(points, budget)
    missed = " and ".join(f"misses {option} by {100 * part:.1f} %" for option, part in budget.excess(near).items())
    smallest, fastest = min(p.size_bytes for p in points) / 1e6, min(p.whole_ms for p in points)
    return (
        f"none of {len(points)} recipes meets the budgets ({budget}). The nearest, {near.name}, has "
        f"{near.size_bytes / 1e6:.2f} MB, {near.whole_ms:.1f} ms a caption and a CIDEr of {near.cider:.4f} on "
        f"{dev.name}: it {missed}. Found at best, each alone: {smallest:.2f} MB, {fastest:.1f} ms, "
        f"CIDEr {max(p.cider for p in points):.4f}. Loosen a budget; what was measured is kept in the search folder"
    )
