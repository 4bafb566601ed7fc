"""What a page about a comparison says beside its tables, and the Markdown page compare.md."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from captionlite.benchmarks import compare_names as names
from captionlite.benchmarks.compare import Comparison, Other
from captionlite.benchmarks.compare_names import clean, number
from captionlite.benchmarks.compare_tables import (
    Cell,
    Column,
    Table,
    cost_table,
    figure,
    machine_table,
    stage_table,
    whole_table,
)
from captionlite.benchmarks.plots import Picture

TITLE = "What a caption costs"
WARNING = "Compared by force; these figures do not belong together"
GPU_HINT = "No result of a GPU. On a machine with one this makes it; docs/gpu.md says how where there is no network:"
_COMMON = {"schema", "kind", "target", "created", "command", "machine", "model", "models", "samples"}
_OTHER_ROWS, _OTHER_COLUMNS = 200, 16
_PEERS = {  # of the kind "peers": what each column shows
    "title": "peer",
    "weights": "weights",
    "status": "status",
    "summary.step_us": "a token, µs",
    "summary.step_over_captionlite.float32": "× captionlite float32",
    "summary.step_over_captionlite.quantized": "× captionlite quantized",
    "summary.encode_ms": "encoder, ms",
    "reason": "reason",
    "note": "note",
}
_COMMAND = 4000  # characters of one that are shown
_ESCAPED = {ord(c): f"\\{c}" for c in "\\`*_[]<>|&#~"}


def headline(comparison: Comparison) -> str:
    """The result in one sentence: edge and GPU if there are both, else the fastest and the slowest."""
    entries = sorted(comparison.entries, key=lambda entry: entry.whole_ms)
    fast, slow = entries[0], entries[-1]
    edge = next((entry for entry in entries if entry.result.target == "edge"), None)
    gpu = next((entry for entry in entries if names.is_gpu(entry.result)), None)
    if edge is not None and gpu is not None:
        return (
            f"Fastest on the edge is {edge.label}: {figure(edge.whole_ms).shown} ms a caption (median); on a GPU "
            f"{gpu.label}: {figure(gpu.whole_ms).shown} ms."
        )
    told = f"{fast.label}: {figure(fast.whole_ms).shown} ms a caption (median)"
    if len(entries) == 1:
        return f"{told}."
    more = f", {figure(slow.whole_ms / fast.whole_ms).shown} times as long" if fast.whole_ms else ""
    return f"Fastest is {told}; slowest {slow.label}, {figure(slow.whole_ms).shown} ms{more}."


def facts(comparison: Comparison) -> list[tuple[str, str]]:
    """Under which conditions all of this was measured, by heading. Of what differs by force, each is told."""
    photographs: dict[str, None] = {}
    models: dict[str, None] = {}
    protocols: dict[str, None] = {}
    for entry in comparison.entries:
        result = entry.result
        taken, model, protocol = result.photographs, result.model, result.protocol
        count = f"{taken.count} of {clean(taken.source, 200)}"
        photographs[f"{count}, sha256 {clean(taken.sha256)}"] = None
        models[f"{clean(model.name)} ({clean(model.family)}), id {clean(model.id)}"] = None
        protocols[
            f"{clean(protocol.name)}{', quick' if protocol.quick else ''}: one caption after another, from a "
            f"photograph's bytes in memory to the text; {protocol.warm_up} captions to warm up, then at least "
            f"{protocol.min_captions:,} and {protocol.min_seconds:g} s; {clean(protocol.decoding)} decoding, nothing "
            f"tuned to the input"
        ] = None
    return [
        *(("Protocol", told) for told in protocols),
        *(("Photographs", told) for told in photographs),
        *(("Model", told) for told in models),
        *(("Mind", told) for told in caveats(comparison)),
    ]


def caveats(comparison: Comparison) -> list[str]:
    """What to keep in mind, each once with the results that it is about."""
    found: dict[str, list[str]] = {}
    for entry in comparison.entries:
        for caveat, of_its_own in names.caveats(entry.result):
            found.setdefault(caveat, []).append(f"{entry.label} {of_its_own}".rstrip())
    return [f"{caveat}: {', '.join(labels)}" for caveat, labels in found.items()]


def commands(comparison: Comparison) -> list[tuple[str, str]]:
    """The file of each result and the command line that made it."""
    found = [(entry.path, entry.result.command) for entry in comparison.entries]
    found += [(other.path, other.document["command"]) for other in comparison.others]
    return [(path, clean(shlex.join(str(word) for word in command), _COMMAND)) for path, command in found]


def tables(comparison: Comparison, *, short: bool = False) -> list[Table]:
    """Those of captions one after another."""
    return [build(comparison, short=short) for build in (whole_table, stage_table, cost_table)]


def other_tables(other: Other) -> list[Table]:
    """Whatever another kind of result has as a list or an object of objects, and its plain values as a first table."""
    found: list[Table] = []
    plain: list[tuple[str, Any]] = []
    for name, value in other.document.items():
        if name in _COMMON:
            continue
        rows = _rows(value)
        if rows and name == "peers" == other.kind:
            rows = [{shown: row.get(key) for key, shown in _PEERS.items()} for row in rows]
        if rows:
            found.append(_of_rows(clean(name.replace("_", " ")), rows))
        elif isinstance(value, Mapping):
            plain += [(f"{name}.{key}", each) for key, each in _flat(value).items()]
        elif _is_plain(value):
            plain.append((name, value))
    if plain:
        named = [{"name": name, "value": value} for name, value in plain]
        found.insert(0, _of_rows("values", named))
    return found


def _rows(value: Any) -> list[dict[str, Any]]:
    if isinstance(value, Mapping) and value and all(isinstance(each, Mapping) for each in value.values()):
        return [{"": name, **_flat(each)} for name, each in value.items()]
    if isinstance(value, list) and value and all(isinstance(each, Mapping) for each in value):
        return [_flat(each) for each in value]
    return []


def _flat(value: Mapping[str, Any], deep: int = 2) -> dict[str, Any]:
    """Plain values, and those of objects inside as "outer.inner", three deep."""
    found: dict[str, Any] = {}
    for name, each in value.items():
        if _is_plain(each):
            found[name] = each
        elif isinstance(each, Mapping) and deep:
            found |= {f"{name}.{key}": inner for key, inner in _flat(each, deep - 1).items()}
    return found


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, (str, int, float, bool))


def _of_rows(title: str, rows: Sequence[Mapping[str, Any]]) -> Table:
    columns = list(dict.fromkeys(name for row in rows for name in row))[:_OTHER_COLUMNS]
    are_numbers = [all(number(row.get(name)) is not None or row.get(name) is None for row in rows) for name in columns]
    notes = [f"{len(rows) - _OTHER_ROWS} more rows are in the file."] if len(rows) > _OTHER_ROWS else []
    return Table(
        title,
        tuple(Column(clean(name), is_number) for name, is_number in zip(columns, are_numbers, strict=True)),
        tuple(tuple(_cell(row.get(name)) for name in columns) for row in rows[:_OTHER_ROWS]),
        tuple(notes),
    )


def _cell(value: Any) -> Cell:
    found = number(value)
    if found is not None:
        return Cell(f"{value:,}" if isinstance(value, int) else figure(found).shown, found)
    if value is None or value == "":
        return figure(None)
    return Cell(clean(str(value), 300))


def markdown(comparison: Comparison, pictures: Sequence[Picture], command: str) -> str:
    """The page; `pictures` lie beside it. `command` is the one that made it."""
    lines = [f"# {TITLE}", ""]
    if comparison.warnings:
        lines += [f"> **{WARNING}.**", ">", *(f"> - {_escaped(warning)}" for warning in comparison.warnings), ""]
    lines += [_escaped(headline(comparison)), ""]
    lines += [f"- {name}: {_escaped(told)}" for name, told in facts(comparison)] + [""]
    for table in tables(comparison):
        lines += _markdown_table(table)
    for missing in comparison.missing_gpu:
        lines += [f"{_escaped(missing.family)}: {GPU_HINT}", "", *_fenced([missing.command]), ""]
    for picture in pictures:
        lines += [f"## {picture.title}", ""]
        lines += [f"![{_escaped(picture.alt)}]({picture.file})" if picture.png else _escaped(picture.skipped), ""]
    for other in comparison.others:
        lines += [f"## {_escaped(other.kind)}: {_escaped(other.path)}", ""]
        for table in other_tables(other):
            lines += _markdown_table(table, level=3)
    lines += _markdown_table(machine_table(comparison))
    lines += ["## Made with", ""]
    for path, made_with in commands(comparison):
        lines += [f"{_escaped(path)}:", "", *_fenced([made_with]), ""]
    lines += ["This page:", "", *_fenced([command])]
    return "\n".join(lines) + "\n"


def _markdown_table(table: Table, level: int = 2) -> list[str]:
    header, numbers, rows = merged(table)
    return [
        f"{'#' * level} {_escaped(table.title)}",
        "",
        _row(header),
        _row(["---:" if is_number else "---" for is_number in numbers]),
        *map(_row, rows),
        "",
        *(f"- {_escaped(note)}" for note in table.notes),
        *([""] if table.notes else []),
    ]


def merged(table: Table, between: str = " / ") -> tuple[list[str], list[bool], list[list[str]]]:
    """Header, which columns are numbers, and rows; in a dense table with columns of one group in one cell."""
    places: dict[str, list[int]] = {}
    for place, column in enumerate(table.columns):
        key = column.group if table.is_dense and column.group else f"\0{place}"
        places.setdefault(key, []).append(place)
    header, numbers = [], []
    for members in places.values():
        inner, group = between.join(table.columns[place].name for place in members), table.columns[members[0]].group
        header.append(f"{group}{': ' if between.strip() else between}{inner}" if group else inner)
        numbers.append(table.columns[members[0]].is_number)
    rows = [[between.join(row[place].shown for place in members) for members in places.values()] for row in table.rows]
    return header, numbers, rows


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cell if set(cell) <= {"-", ":"} else _escaped(cell) for cell in cells) + " |"


def _escaped(told: str) -> str:
    return told.translate(_ESCAPED)


def _fenced(lines: Sequence[str]) -> list[str]:
    """A code block whose fence no line can close."""
    fence = "`" * max(3, *(line.count("`") + 1 for line in lines))
    return [f"{fence}bash", *lines, fence]
