"""The comparison for people: a table for the terminal, and a Markdown page."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.table import Table

from captionlite.benchmarks.peers.comparison import Comparison, Entry
from captionlite.benchmarks.peers.table import OWN

_HEADS = ("us a token", "x same", "x quantized", "encoder ms", "captions equal")
_LEGEND = (
    "A token's time is all of decoding by the number of tokens, the encoder excluded; x: so many times captionlite's, "
    "on the same weights and on the quantized ones. Captions equal: to captionlite's on the same weights, all tokens;"
    " quantized captionlite, and peers that quantize by themselves, are counted against float32."
)


def table(comparison: Comparison, title: str) -> Table:
    """For the terminal."""
    found = Table("", "weights", *_HEADS, title=title, caption=_LEGEND, caption_justify="left")
    for column in found.columns:
        column.justify, column.no_wrap = ("left", True) if column in found.columns[:2] else ("right", False)
    for entry in comparison.entries:
        if entry.check is not None:
            found.add_row(entry.name, entry.weights, *_cells(comparison, entry))
    return found


def remarks(comparison: Comparison) -> list[str]:
    """What the table has no room for: who is missing and why, on what it was measured, what was chosen."""
    lines = []
    for entry in comparison.entries:
        label = f"{entry.name} ({entry.weights})"
        if entry.status in ("skipped", "failed", "wrong"):
            lines.append(f"{label} {entry.status}: {entry.reason}")
            continue
        if entry.turns and entry.turns[0].photographs < comparison.entries[0].turns[0].photographs:
            lines.append(f"{label}: timed on the first {entry.turns[0].photographs} photographs")
        taken = [f"{graph} {entry.facts.choices[graph]['taken']}" for graph in _graphs(entry)]
        if taken:
            threads = ", ".join(f"{graph} {count}" for graph, count in entry.facts.threads.items())
            lines.append(f"{label}: fastest were {'; '.join(taken)}; threads: {threads}")
        if entry.facts.note:
            lines.append(f"{label}: {entry.facts.note}")
    return lines


def markdown(comparison: Comparison, document: Mapping[str, Any]) -> str:
    """The page that --markdown writes."""
    model, machine, photographs = document["model"], document["machine"], document["photographs"]
    measured = (
        f"{machine['cpu'] or machine['machine']}, {machine['cores']} cores; {photographs['count']} photographs, "
        f"{document['protocol']['rounds']} rounds, medians; {document['created']}."
    )
    rows = [("peer", "weights", *_HEADS), ("---", "---", *["---:"] * len(_HEADS))]
    for entry in comparison.entries:
        if entry.check is not None:
            title = entry.title if entry.name == OWN else f"{entry.title} (`{entry.name}`)"
            rows.append((title, entry.weights, *_cells(comparison, entry)))
    versions = ", ".join(f"{name} {number or '-'}" for name, number in document["versions"].items())
    lines = [f"# {model['name']} ({model['family']}) against what people use instead", "", measured, ""]
    lines += [f"| {' | '.join(cells)} |" for cells in rows]
    lines += ["", _LEGEND, "", *(f"- {line}" for line in remarks(comparison)), "", f"Versions: {versions}.", ""]
    return "\n".join(lines)


def _cells(comparison: Comparison, entry: Entry) -> tuple[str, ...]:
    assert entry.check is not None
    captions = f"{entry.check.equal} of {entry.check.photographs}"
    if entry.check.near_ties:
        captions += f", {entry.check.near_ties} at ties"
    if not entry.turns:
        return "-", "-", "-", "-", captions
    ratios = comparison.ratios(entry)
    quantized = _number(ratios["quantized"]) if "quantized" in ratios else "-"
    return _number(entry.step_us), _number(ratios[entry.weights]), quantized, _number(entry.encode_ms), captions


def _graphs(entry: Entry) -> list[str]:
    return [graph for graph in ("encoder", "decoder") if graph in entry.facts.choices]


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}" if value >= 10 else f"{value:.2f}"
