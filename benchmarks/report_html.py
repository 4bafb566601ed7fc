"""The page report.html: a comparison with its pictures, in one file that needs nothing else.

Pictures are data inside the page. Its content security policy lets a browser fetch nothing and run one script only, the
one below by its hash, which sorts tables; without scripts the page is whole. Whatever comes from results is escaped.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from html import escape
from string import Template

from captionlite.benchmarks.compare import Comparison
from captionlite.benchmarks.compare_page import (
    GPU_HINT,
    TITLE,
    WARNING,
    commands,
    facts,
    headline,
    other_tables,
    tables,
)
from captionlite.benchmarks.compare_tables import Cell, Column, Table, machine_table
from captionlite.benchmarks.plots import Picture

_SCRIPT = """
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  for (const button of table.querySelectorAll("th button")) {
    button.addEventListener("click", () => {
      const place = Number(button.dataset.place), head = button.closest("th");
      const down = head.getAttribute("aria-sort") === "ascending";
      for (const other of table.querySelectorAll("th[aria-sort]")) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const key = row => row.cells[place].dataset.value;
      const words = row => row.cells[place].textContent;
      const compare = (a, b) => {
        const x = key(a), y = key(b);
        if (x !== undefined && y !== undefined) return (down ? -1 : 1) * (x - y);
        if (x !== undefined || y !== undefined) return x === undefined ? 1 : -1;
        return (down ? -1 : 1) * words(a).localeCompare(words(b), undefined, {numeric: true});
      };
      const rows = [...body.rows].sort(compare);
      for (const row of rows) row.classList.remove("section");
      body.append(...rows);
    });
  }
}
"""

_STYLE = """
:root { color-scheme: light dark; --paper: #fff; --ink: #1b1f24; --quiet: #59636e; --line: #d1d9e0; --band: #f3f5f7;
  --warn: #9a1c13; --warn-paper: #fdeceb; --link: #0b5cad; }
@media (prefers-color-scheme: dark) { :root { --paper: #15191e; --ink: #e6e9ec; --quiet: #9aa4af; --line: #3a424b;
  --band: #1f252c; --warn: #ff9c94; --warn-paper: #3a1a18; --link: #7ab8ff; } }
* { box-sizing: border-box; }
body { background: var(--paper); color: var(--ink); font: 15px/1.5 system-ui, sans-serif; margin: 0 auto;
  max-width: 84rem; overflow-wrap: anywhere; padding: 1.5rem 1.25rem 4rem; }
h1 { font-size: 1.6rem; line-height: 1.2; margin: 0 0 .4rem; }
h2 { border-top: 1px solid var(--line); font-size: 1.15rem; margin: 2.2rem 0 .7rem; padding-top: 1.1rem; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; }
.headline { font-size: 1.1rem; margin: 0 0 1rem; }
.warning { background: var(--warn-paper); border-left: 4px solid var(--warn); color: var(--warn); margin: 0 0 1.2rem;
  padding: .7rem 1rem; }
.warning p { font-weight: 600; margin: 0; } .warning ul { margin: .3rem 0 0; padding-left: 1.2rem; }
dl { display: grid; gap: .25rem 1rem; grid-template-columns: max-content 1fr; margin: 0; }
dt { color: var(--quiet); } dd { margin: 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: .86rem; font-variant-numeric: tabular-nums; overflow-wrap: normal;
  white-space: nowrap; }
th, td { padding: .3rem .45rem; text-align: left; vertical-align: top; }
td { max-width: 24rem; overflow-wrap: break-word; white-space: normal; }
td.short { white-space: nowrap; }
.n { text-align: right; white-space: nowrap; }
thead th { border-bottom: 1px solid var(--line); color: var(--quiet); font-weight: 600; vertical-align: bottom; }
thead th.group { border-bottom: 1px solid var(--line); text-align: center; }
.first { border-left: 1px solid var(--line); }
.last { border-right: 1px solid var(--line); }
tbody tr:nth-child(even) { background: var(--band); }
tbody tr.section td { border-top: 2px solid var(--quiet); }
th button { background: none; border: 0; color: inherit; cursor: pointer; font: inherit; padding: 0;
  text-align: inherit; }
th button:hover, th button:focus-visible { color: var(--link); text-decoration: underline; }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
.notes { color: var(--quiet); font-size: .85rem; margin: .5rem 0 0; padding-left: 1.1rem; }
figure { margin: 0; } figcaption { color: var(--quiet); font-size: .85rem; }
img { background: #fff; border-radius: .4rem; display: block; height: auto; max-width: min(100%, 68rem);
  padding: .4rem; }
pre { background: var(--band); border-radius: .4rem; font-size: .82rem; margin: .2rem 0 .9rem; padding: .6rem .8rem;
  white-space: pre-wrap; }
.file { color: var(--quiet); font-size: .85rem; margin: 0; }
@media (max-width: 40rem) { dl { grid-template-columns: 1fr; } dd { margin-bottom: .4rem; } }
@media print { body { max-width: none; } h2 { break-after: avoid; } figure, tr { break-inside: avoid; } }
"""

_PAGE = Template("""\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="$policy">
<title>$title</title>
<style>$style</style>
</head>
<body>
<header>
<h1>$title</h1>
$warning<p class="headline">$headline</p>
<dl>
$facts
</dl>
</header>
<main>
$sections
</main>
<script>$script</script>
</body>
</html>
""")


def report(comparison: Comparison, pictures: Sequence[Picture], command: str) -> str:
    """The page as HTML. `command` is the one that made it."""
    script_hash = base64.b64encode(hashlib.sha256(_SCRIPT.encode()).digest()).decode("ascii")
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'; "
        "base-uri 'none'; form-action 'none'"
    )
    whole, *rest = tables(comparison)
    sections = [*_table(whole), *_missing_gpu(comparison)]
    for picture in pictures:
        sections += _picture(picture)
    for table in rest:
        sections += _table(table)
    for other in comparison.others:
        sections.append(f"<h2>{escape(other.kind)}: {escape(other.path)}</h2>")
        for table in other_tables(other):
            sections += _table(table, heading="h3")
    sections += [*_table(machine_table(comparison)), "<h2>Made with</h2>"]
    for name, made_with in [*commands(comparison), ("this page", command)]:
        sections += [f'<p class="file">{escape(name)}</p>', f"<pre>{escape(made_with)}</pre>"]
    return _PAGE.substitute(
        policy=escape(policy),
        title=escape(TITLE),
        style=_STYLE,
        warning=_warning(comparison.warnings),
        headline=escape(headline(comparison)),
        facts="\n".join(f"<dt>{escape(name)}</dt><dd>{escape(told)}</dd>" for name, told in facts(comparison)),
        sections="\n".join(sections),
        script=_SCRIPT,
    )


def _warning(warnings: Sequence[str]) -> str:
    if not warnings:
        return ""
    items = "".join(f"<li>{escape(warning)}</li>" for warning in warnings)
    return f'<div class="warning" role="alert"><p>{escape(WARNING)}.</p><ul>{items}</ul></div>\n'


def _missing_gpu(comparison: Comparison) -> Iterator[str]:
    for missing in comparison.missing_gpu:
        yield f'<p class="file">{escape(missing.family)}: {escape(GPU_HINT)}</p>'
        yield f"<pre>{escape(missing.command)}</pre>"


def _picture(picture: Picture) -> Iterator[str]:
    yield f"<h2>{escape(picture.title)}</h2>"
    if picture.png is None:
        yield f"<p>{escape(picture.skipped)}</p>"
        return
    data = base64.b64encode(picture.png).decode("ascii")
    yield f'<figure><img src="data:image/png;base64,{data}" alt="{escape(picture.alt)}"></figure>'


def _table(table: Table, heading: str = "h2") -> Iterator[str]:
    yield f"<{heading}>{escape(table.title)}</{heading}>"
    yield '<div class="wide"><table>'
    yield "<thead>"
    yield from _header(table.columns)
    yield "</thead>"
    yield "<tbody>"
    for place, row in enumerate(table.rows):
        section = ' class="section"' if place in table.sections else ""
        cells = "".join(_cell(cell, table.columns, column) for column, cell in enumerate(row))
        yield f"<tr{section}>{cells}</tr>"
    yield "</tbody></table></div>"
    if table.notes:
        yield f'<ul class="notes">{"".join(f"<li>{escape(note)}</li>" for note in table.notes)}</ul>'


def _header(columns: Sequence[Column]) -> Iterator[str]:
    """One row, or two where columns stand in groups; a column without a group reaches over both."""
    has_groups = any(column.group for column in columns)
    above, below = [], []
    for place, column in enumerate(columns):
        css = _css(columns, place)
        span = ' rowspan="2"' if has_groups and not column.group else ""
        button = f'<button type="button" data-place="{place}">{escape(column.name)}</button>'
        cell = f'<th scope="col"{span}{css}>{button}</th>'
        if not column.group:
            above.append(cell)
            continue
        below.append(cell)
        if place == 0 or columns[place - 1].group != column.group:
            width = sum(each.group == column.group for each in columns)
            above.append(f'<th scope="colgroup" colspan="{width}" class="group first last">{escape(column.group)}</th>')
    yield f"<tr>{''.join(above)}</tr>"
    if below:
        yield f"<tr>{''.join(below)}</tr>"


def _css(columns: Sequence[Column], place: int, *more: str) -> str:
    group = columns[place].group
    classes = ["n"] if columns[place].is_number else []
    if group and (place == 0 or columns[place - 1].group != group):
        classes.append("first")
    if group and (place + 1 == len(columns) or columns[place + 1].group != group):
        classes.append("last")
    classes += more
    return f' class="{" ".join(classes)}"' if classes else ""


def _cell(cell: Cell, columns: Sequence[Column], place: int) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value!r}"'
    more = ["short"] if not columns[place].is_number and len(cell.shown) <= 32 else []
    return f"<td{_css(columns, place, *more)}{value}>{escape(cell.shown)}</td>"
