"""The tables of a comparison, as data.

The terminal, the Markdown page and the HTML page show the same cells; what differs is how many columns they bear.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from captionlite.benchmarks import compare_names as names
from captionlite.benchmarks.compare import Comparison, Entry
from captionlite.benchmarks.compare_names import clean, number, text
from captionlite.benchmarks.results import STAGES

STAGE_NAMES = {
    "image": "photo",
    "encode": "encoder",
    "step": "a step",
    "decode": "all steps",
    "post": "to text",
    "whole": "whole",
}
PERCENTILES = ("p50", "p90", "p99")
NOTHING = "–"
_PACKAGES = ("captionlite", "python", "numpy", "pillow")


@dataclass(frozen=True)
class Cell:
    """What is shown, and the number to sort by where it is one."""

    shown: str
    value: float | None = None


@dataclass(frozen=True)
class Column:
    """`group` stands above columns that belong together."""

    name: str
    is_number: bool = True
    group: str = ""


@dataclass(frozen=True)
class Table:
    """Rows of as many cells as there are columns.

    `sections`: numbers of the rows before which a new family begins. `is_dense`: where there is no room for groups of
    columns, a group's figures share a cell.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    notes: tuple[str, ...] = ()
    sections: frozenset[int] = field(default_factory=frozenset)
    is_dense: bool = False


def figure(value: float | None) -> Cell:
    """Three digits where there is something to tell with them."""
    if value is None:
        return Cell(NOTHING)
    size = abs(value)
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 1 else 3 if size >= 0.1 or not size else 4
    return Cell(f"{value:,.{digits}f}", value)


def _fixed(value: float | None, digits: int) -> Cell:
    return Cell(NOTHING) if value is None else Cell(f"{value:.{digits}f}", value)


def _words(shown: str) -> Cell:
    return Cell(shown or NOTHING)


_Getter = Callable[[Entry], Cell]

IDENTITY: dict[str, _Getter] = {
    "family": lambda entry: _words(clean(entry.result.model.family)),
    "recipe": lambda entry: _words(clean(entry.result.model.recipe)),
    "target": lambda entry: _words(names.target_name(entry.result)),
    "threads": lambda entry: Cell(
        names.threads_name(entry.result) or NOTHING, number(entry.result.protocol.encoder_threads)
    ),
    "machine": lambda entry: _words(names.machine_name(entry.result)),
}


def identity(comparison: Comparison, *, short: bool) -> dict[str, _Getter]:
    """Columns that say which result a row is: all of them, or those that tell two apart (at least the recipe)."""
    if not short:
        return IDENTITY
    entries = comparison.entries
    kept = {
        name: get
        for name, get in IDENTITY.items()
        if name == "recipe" or len({get(entry).shown for entry in entries}) > 1
    }
    if "target" in kept and "machine" in kept:  # a machine that the target tells already
        pairs = {(names.target_name(e.result), names.machine_name(e.result)) for e in entries}
        if len(pairs) == len({target for target, _ in pairs}):
            del kept["machine"]
    if len({tuple(get(entry).shown for get in kept.values()) for entry in entries}) < len(entries):
        kept["result"] = lambda entry: Cell(entry.label)
    return kept


def whole_table(comparison: Comparison, *, short: bool = False) -> Table:
    """A whole caption: percentiles, ratio, rates, and what a GPU takes for it."""
    columns: dict[Column, _Getter] = {
        Column(name, name == "threads"): get for name, get in identity(comparison, short=short).items()
    }
    for name in ("p50",) if short else PERCENTILES:  # the table of stages has all of them
        columns[Column(name, group="whole, ms")] = _summary("whole", name)
    columns[Column("ratio")] = lambda entry: figure(entry.ratio)
    columns[Column("captions a second")] = lambda entry: figure(number(entry.result.captions_per_second))
    columns[Column("in batches")] = lambda entry: figure(number(entry.result.batch, "captions_per_second"))
    notes = [f"ratio: p50 to that of the first row{' of the family' if comparison.is_survey else ''}."]
    for gpu in comparison.gpus:
        group = "GPU" if short and len(comparison.gpus) == 1 else gpu
        columns[Column("p50, ms", group=group)] = _on_gpu(comparison, gpu, lambda entry, there: there.whole_ms)
        columns[Column("× faster", group=group)] = _on_gpu(
            comparison, gpu, lambda entry, there: entry.whole_ms / there.whole_ms if there.whole_ms else None
        )
    if comparison.gpus:
        told = ", ".join(comparison.gpus)
        notes.append(f"GPU: {told}; the same trained model in Keras, float32, one photograph at a time.")
    elif comparison.is_survey:
        columns[Column("GPU, ms")] = lambda entry: Cell("see below")
    return _table("Whole caption", comparison, columns, notes)


def stage_table(comparison: Comparison, *, short: bool = False) -> Table:
    """Each stage's percentiles."""
    columns: dict[Column, _Getter] = {
        Column(name, name == "threads"): get for name, get in identity(comparison, short=short).items()
    }
    for stage in STAGES:
        for name in PERCENTILES:
            columns[Column(name, group=STAGE_NAMES[stage])] = _summary(stage, name)
    table = _table("Stages, ms", comparison, columns, ("A step is the mean over one caption's steps.",))
    return replace(table, is_dense=True)


def cost_table(comparison: Comparison, *, short: bool = False) -> Table:
    """What a result takes, and what its captions are worth."""
    columns: dict[Column, _Getter] = {
        Column(name, name == "threads"): get for name, get in identity(comparison, short=short).items()
    }
    columns |= {
        Column("size, MB"): lambda entry: _millions(entry.result.model.size_bytes, 1),
        Column("tokens"): lambda entry: figure(number(entry.result.tokens_per_caption)),
        Column("cold start, s"): lambda entry: figure(number(entry.result.cold_start, "seconds")),
        Column("peak, MB"): lambda entry: _millions(entry.result.peak_memory_bytes, 0),
        Column("joules"): lambda entry: figure(number(entry.result.energy, "joules_per_caption")),
        Column("CIDEr"): lambda entry: _fixed(entry.cider, 3),
    }
    notes = [
        "size: of the bundle; of Keras its variables. tokens, joules: a caption's.",
        "cold start, peak memory: a fresh process's that captions one photograph; on a GPU the GPU's memory.",
    ]
    if comparison.scored_on is None:
        notes.append("CIDEr: no result's bundle came with scores; `captionlite export --scores` puts them in.")
    else:
        decoding = clean(comparison.entries[0].result.protocol.decoding)
        notes.append(f"CIDEr: on {comparison.scored_on}, {decoding}; of Keras and GPU the float32 bundle's.")
    energies = [entry.result.energy for entry in comparison.entries]
    reasons = {text(energy, "unavailable", longest=400) for energy in energies}
    if len(reasons) == 1 and "" not in reasons:
        notes.append(f"joules: {reasons.pop()}")
    return _table("What it takes", comparison, columns, notes)


def _summary(stage: str, name: str) -> _Getter:
    return lambda entry: figure(number(entry.result.summary, stage, name))


def _count(value: int) -> Cell:
    return Cell(f"{value:,}", number(value))


def _millions(value: int | None, digits: int) -> Cell:
    found = number(value)
    return _fixed(None if found is None else found / 1e6, digits)


def _on_gpu(comparison: Comparison, gpu: str, read: Callable[[Entry, Entry], float | None]) -> _Getter:
    def cell(entry: Entry) -> Cell:
        there = comparison.on_gpu(entry, gpu)
        return figure(None if there is None else read(entry, there))

    return cell


def _table(title: str, comparison: Comparison, columns: Mapping[Column, _Getter], notes: Sequence[str]) -> Table:
    entries = comparison.entries
    breaks = {
        place
        for place in range(1, len(entries))
        if comparison.is_survey and entries[place].result.model.family != entries[place - 1].result.model.family
    }
    rows = tuple(tuple(get(entry) for get in columns.values()) for entry in entries)
    return Table(title, tuple(columns), rows, tuple(notes), frozenset(breaks))


def machine_table(comparison: Comparison) -> Table:
    """Where each result was measured, with which versions, and how that machine was doing."""
    columns: dict[Column, _Getter] = {
        Column("result", False): lambda entry: Cell(entry.label),
        Column("machine", False): lambda entry: _words(names.machine_name(entry.result)),
        Column("measured", False): lambda entry: _words(clean(entry.result.created)),
        Column("captions"): lambda entry: _count(entry.result.protocol.captions),
        Column("load", False): lambda entry: _words(_before_after(entry, "load_average")),
        Column("°C", False): lambda entry: _words(_temperatures(entry)),
        Column("clock", False): lambda entry: _words(_clock(entry)),
        Column("CPU features", False): lambda entry: _words(_features(entry)),
        Column("platform", False): lambda entry: _words(text(entry.result.machine, "platform")),
        Column("versions", False): lambda entry: _words(_versions(entry)),
    }
    notes = ["load: average over a minute, °C: of the processor; before → after."]
    return _table("Machines and versions", comparison, columns, notes)


def _before_after(entry: Entry, name: str) -> str:
    loads = entry.result.machine.get(name)
    if not isinstance(loads, Mapping):
        return ""
    values = [loads.get(when) for when in ("before", "after")]
    return _span([number(value[0]) if isinstance(value, list) and value else None for value in values], "{:.1f}")


def _temperatures(entry: Entry) -> str:
    machine = entry.result.machine
    return _span([number(machine, name) for name in ("temperature_c", "temperature_after_c")], "{:.0f}")


def _span(pair: Sequence[float | None], form: str) -> str:
    if all(value is None for value in pair):
        return ""
    return " → ".join("?" if value is None else form.format(value) for value in pair)


def _clock(entry: Entry) -> str:
    """Governor and highest frequency, where the machine tells."""
    governors, frequencies = (entry.result.machine.get(name) for name in ("governor", "frequencies_mhz"))
    told = sorted({clean(g) for g in governors if isinstance(g, str)}) if isinstance(governors, list) else []
    found = [number(each, "max") for each in frequencies] if isinstance(frequencies, list) else []
    most = max((mhz for mhz in found if mhz is not None), default=None)
    return ", ".join([*told, *([] if most is None else [f"{most:.0f} MHz"])])


def _features(entry: Entry) -> str:
    features = entry.result.machine.get("cpu_features")
    return clean(" ".join(str(f) for f in features), 200) if isinstance(features, list) else ""


def _versions(entry: Entry) -> str:
    machine = entry.result.machine
    found = [f"{name} {text(machine, name)}" for name in _PACKAGES if text(machine, name)]
    interpreter, accelerator = machine.get("interpreter"), machine.get("accelerator")
    if text(accelerator, "backend"):  # Keras computed, not the interpreter
        found += [
            f"{text(accelerator, 'backend')} {text(accelerator, 'version')}",
            f"keras {text(accelerator, 'keras')}",
        ]
    elif text(interpreter, "name"):
        found.append(f"{text(interpreter, 'name')} {text(interpreter, 'version')}")
    return ", ".join(found)
