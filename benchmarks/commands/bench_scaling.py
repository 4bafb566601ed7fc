"""`captionlite bench scaling`: time by vocabulary, layers, width, beam, caption length, image size and threads."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from captionlite.benchmarks import scaling, scaling_plot
from captionlite.benchmarks.commands.bench_profile import Left, check_folder, tell_load
from captionlite.benchmarks.countdown import Countdown
from captionlite.benchmarks.devices import describe_machine, finish
from captionlite.benchmarks.peaks import Probe
from captionlite.benchmarks.probe_files import small_ops
from captionlite.benchmarks.results import ResultError, header, write_document
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.files import write_bytes_atomically
from captionlite.runtime.interpreter import core_count, without_chatter

NEEDED = ("keras", "tensorflow", "litert_quantizer")


@click.command("scaling")
@click.option("--family", type=click.Choice(list(scaling.PRESETS)), default="transformer", show_default=True)
@click.option("--factor", "factors", type=click.Choice(list(scaling.FACTORS)), multiple=True, help="[default: all]")
@click.option("--values", help="Sizes to measure, as in 1,2,4; with one --factor.")
@click.option("--rounds", type=click.IntRange(min=1), help="Turns of each size.  [default: 60, quick 20]")
@click.option("--quick", is_flag=True, help="Fewer sizes and rounds.")
@click.option(
    "--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the result here, and a .png beside."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    family: str,
    factors: tuple[str, ...],
    values: str | None,
    rounds: int | None,
    quick: bool,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure what size costs: untrained models of a family, one factor varied, float32 and int8, with a fitted line.

    Building them takes a few minutes and what exports models: `pip install 'captionlite[bench,export]'`.
    """
    chosen = _chosen(family, factors, values)
    check_folder(out)
    os.environ["KERAS_BACKEND"] = "tensorflow"  # the converter's
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    _require_packages()
    machine = describe_machine()
    countdown = Countdown()
    found: dict[str, Any] = {}
    with without_chatter():
        Probe(small_ops(1), 1)  # the interpreter announces itself once
    builder = scaling.Builder(family)
    for name in chosen:
        sizes = _sizes(name, values, quick)
        if name == "threads" and not factors and len([v for v in sizes if v <= core_count()]) < 2:
            countdown.say("threads: left out, this machine has one core")
            continue
        countdown.say(f"{name}: building models")
        built = Left(countdown, "sizes")
        found[name] = scaling.measure_factor(
            builder,
            name,
            sizes,
            rounds=rounds or (scaling.QUICK_ROUNDS if quick else scaling.ROUNDS),
            built=built,
            between=_Measuring(countdown, name),
        )
        countdown.done()
    document = {
        **header("scaling", "edge", ("captionlite", *sys.argv[1:]), finish(machine)),
        "family": family,
        "base": {"vocabulary": builder.vocabulary, "image": builder.image, "decoder": builder.config},
        "factors": found,
    }
    if out is not None:
        write_document(out, document)
        _draw(document, out.with_suffix(".png"))
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False))
        return
    _print(document)
    tell_load(document["machine"])


class _Measuring:
    """Progress of the rounds; the first call says that building is over."""

    def __init__(self, countdown: Countdown, name: str) -> None:
        self._countdown, self._name = countdown, name
        self._left: Left | None = None

    def __call__(self, done: int, of: int) -> None:
        if self._left is None:
            self._countdown.say(f"{self._name}: measuring")
            self._left = Left(self._countdown, "rounds")
        self._left(done, of)


def _chosen(family: str, factors: tuple[str, ...], values: str | None) -> list[str]:
    there = [name for name, factor in scaling.FACTORS.items() if family in factor.families]
    missing = [name for name in factors if name not in there]
    if missing:
        raise click.UsageError(f"--factor {missing[0]}: the family {family} has none; it has {', '.join(there)}.")
    if values is not None and len(factors) != 1:
        raise click.UsageError("--values needs exactly one --factor that they are of.")
    return [name for name in there if name in factors or not factors]


def _sizes(name: str, values: str | None, quick: bool) -> tuple[int, ...]:
    factor = scaling.FACTORS[name]
    if values is None:
        return factor.quick if quick else factor.values
    try:
        sizes = tuple(int(value) for value in values.split(","))
    except ValueError as error:
        raise click.UsageError(f"--values {values}: expected whole numbers as in 1,2,4.") from error
    if min(sizes) < 1:
        raise click.UsageError(f"--values {values}: found {min(sizes)}, expected sizes from 1 on.")
    return sizes


def _require_packages() -> None:
    from importlib.util import find_spec

    missing = [name for name in NEEDED if find_spec(name) is None]
    if missing:
        raise CaptionliteError(
            f"`captionlite bench scaling` builds and exports models and needs the module {missing[0]!r}. Install it "
            f"with `pip install 'captionlite[bench,export]'`."
        )


def _draw(document: dict[str, Any], path: Path) -> None:
    machine = document["machine"]
    where = f"{machine['device'] or machine['cpu'] or machine['machine']}, {machine['cores']} cores"
    picture = scaling_plot.draw(document["factors"], f"{document['family']}: cost by size on {where}")
    try:
        write_bytes_atomically(path, picture)
    except OSError as error:
        raise ResultError(f"{path}: cannot be written ({error.strerror}). Choose another --out.") from error
    click.echo(f"{path}: the curves", err=True)


def _print(document: dict[str, Any]) -> None:
    console = Console()
    table = Table(title=f"{document['family']}: us by size, and the line through them")
    for column in ("factor", "recipe", "sizes", "us", "us = a + b x", "R²"):
        table.add_column(column)
    for name, found in document["factors"].items():
        for number, (recipe, series) in enumerate(found["series"].items()):
            line = series["fit"]
            table.add_row(
                f"{name}\n(x: {found['fitted_over']})" if number == 0 else "",
                recipe,
                " ".join(map(str, found["values"])) if number == 0 else "",
                " ".join(f"{value:.4g}" for value in series["us"]),
                scaling_plot.told(line["a_us"], line["b_us"]),
                "" if line["r2"] is None else f"{line['r2']:.3f}",
                end_section=number == len(found["series"]) - 1,
            )
    console.print(table)
