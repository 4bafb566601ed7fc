"""`captionlite bench compare`: results of `captionlite bench run` in one table, and as a page with pictures."""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from captionlite.benchmarks.compare import Comparison, ComparisonError, read_comparison
from captionlite.benchmarks.compare_names import clean
from captionlite.benchmarks.compare_page import GPU_HINT, WARNING, caveats, headline, markdown, merged, tables
from captionlite.benchmarks.compare_tables import Table
from captionlite.runtime.files import write_bytes_atomically

if TYPE_CHECKING:
    from collections.abc import Mapping

MANY_COLUMNS = 9  # from which the room between them is needed on a terminal
LONGEST_COMMAND = 4000  # characters of it that are shown
MARKDOWN_FILE, HTML_FILE = "compare.md", "report.html"


@click.command("compare")
@click.argument(
    "paths", metavar="RESULT.json|FOLDER...", nargs=-1, required=True, type=click.Path(exists=True, path_type=Path)
)
@click.option(
    "--out",
    "folder",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="FOLDER",
    help=f"Write {MARKDOWN_FILE}, {HTML_FILE} and the pictures into this folder.",
)
@click.option("--force", is_flag=True, help="Compare what should not be compared; the report says so at its top.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(paths: tuple[Path, ...], folder: Path | None, force: bool, as_json: bool) -> None:
    """Set results side by side: times by stage, GPU against edge, quality against time.

    Results must be of the same photographs, the same trained model (its float, quantized and GPU versions count as one)
    and the same protocol. Of a FOLDER every .json is taken, and there may be several families in it, each with one
    trained model; they are then told apart in the tables, each with its GPU's column.
    """
    if folder is not None:
        _check_writable(folder)
    comparison = read_comparison(paths, force=force)
    written = [] if folder is None else _write(comparison, folder)
    if as_json:
        told = {**comparison.to_json(), "written": [str(path) for path in written]}
        click.echo(json.dumps(told, ensure_ascii=False, allow_nan=False))
    else:
        _print(comparison)
    for path in written:
        click.echo(f"wrote {path}", err=True)


def _check_writable(folder: Path) -> None:
    """Before the pictures are drawn, which takes seconds."""
    parent = folder.absolute().parent
    if not parent.is_dir():
        raise ComparisonError(f"{folder}: there is no folder {parent} to make it in. Create it first.")
    if not os.access(folder if folder.exists() else parent, os.W_OK):
        raise ComparisonError(f"{folder}: not writable. Check the permissions, or name another folder.")


def _write(comparison: Comparison, folder: Path) -> list[Path]:
    """Pictures first, then the pages that show them; a picture that is not drawn this time is removed."""
    from captionlite.benchmarks.plots import draw
    from captionlite.benchmarks.report_html import report

    click.echo("drawing", err=True)
    pictures = draw(comparison)
    made_with = clean(shlex.join(("captionlite", *sys.argv[1:])), LONGEST_COMMAND)
    files: Mapping[str, bytes | None] = {
        **{picture.file: picture.png for picture in pictures},
        MARKDOWN_FILE: markdown(comparison, pictures, made_with).encode(),
        HTML_FILE: report(comparison, pictures, made_with).encode(),
    }
    try:
        folder.mkdir(exist_ok=True)
        for name, content in files.items():
            if content is None:
                (folder / name).unlink(missing_ok=True)
            else:
                write_bytes_atomically(folder / name, content)
    except OSError as error:
        raise ComparisonError(f"{folder}: cannot be written ({error.strerror}). Choose another --out.") from error
    return [folder / name for name, content in files.items() if content is not None]


def _print(comparison: Comparison) -> None:
    """On the terminal: the columns that tell results apart, percentiles below each other."""
    console = Console()

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    if comparison.warnings:
        say(f"{WARNING}:")
        for warning in comparison.warnings:
            say(f"- {warning}")
    say(headline(comparison))
    for table in tables(comparison, short=True):
        console.print(fitting(console, table))
        for note in table.notes:
            say(note)
    for caveat in caveats(comparison):
        say(f"Mind: {caveat}")
    for missing in comparison.missing_gpu:
        say(f"{missing.family}: {GPU_HINT}")
        say(f"  {missing.command}")
    for other in comparison.others:
        say(f"{other.path}: kind {other.kind}; --out shows it")


def fitting(console: Console, table: Table) -> RichTable:
    """With whole words as far as the terminal is wide enough: first the headings of figures give way, then names.

    The widths are worked out here: rich, when it makes columns narrower, may cut off the last one.
    """
    header, numbers, rows = merged(table, between="\n")
    padding = 1 if len(header) < MANY_COLUMNS else 0
    room = console.width - (1 + 2 * padding) * len(header) - 1
    cells = [[line for row in rows for line in row[place].splitlines()] for place in range(len(header))]
    widest = [max(map(len, [*name.splitlines(), *column])) for name, column in zip(header, cells, strict=True)]
    by_words = [max(map(len, [*name.split(), *column])) for name, column in zip(header, cells, strict=True)]
    by_cells = [max(map(len, column)) if is_n else w for column, is_n, w in zip(cells, numbers, by_words, strict=True)]
    widths = next((list(least) for least in (by_words, by_cells) if sum(least) <= room), None)
    while widths is not None and sum(widths) < min(room, sum(widest)):
        narrow = [place for place, width in enumerate(widths) if width < widest[place]]
        for place in narrow[: room - sum(widths)]:
            widths[place] += 1
    shown = RichTable(title=Text(table.title), box=SIMPLE_HEAD, padding=(0, padding), pad_edge=False)
    for place, (name, is_number) in enumerate(zip(header, numbers, strict=True)):
        width = None if widths is None else widths[place]
        shown.add_column(Text(name), justify="right" if is_number else "left", overflow="fold", width=width)
    for place, row in enumerate(rows, 1):
        shown.add_row(*(Text(cell) for cell in row), end_section=place in table.sections)
    return shown
