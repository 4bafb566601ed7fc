"""`captionlite bench profile`: where a graph's time goes, op by op, and what the interpreter's delegate left."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from captionlite.benchmarks.countdown import Countdown
from captionlite.benchmarks.devices import describe_machine, finish
from captionlite.benchmarks.model_identity import describe_bundle
from captionlite.benchmarks.op_profile import ROUNDS, Profile, profile_graph
from captionlite.benchmarks.results import header, write_document
from captionlite.benchmarks.roofline import Feed, feeds
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.interpreter import core_count, without_chatter

QUICK_ROUNDS = 15


@click.command("profile")
@click.argument("bundle", default="default")
@click.option("--graph", "graphs", type=click.Choice(["encoder", "decoder"]), multiple=True, help="[default: both]")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the encoder; a step has one.  [default: all]")
@click.option("--rounds", type=click.IntRange(min=2), help=f"Runs of each stretch.  [default: {ROUNDS}, quick 15]")
@click.option("--quick", is_flag=True, help="Fewer rounds.")
@click.option("--top", type=click.IntRange(min=0), default=12, show_default=True, help="So many single ops are shown.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the result here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle: str,
    graphs: tuple[str, ...],
    threads: int | None,
    rounds: int | None,
    quick: bool,
    top: int,
    out: Path | None,
    as_json: bool,
) -> None:
    """Time a bundle's encoder and one step of its decoder by type of op and op by op.

    BUNDLE is a directory, a zip or a name [default: default]. An op's time is what it adds to the ops before it, in
    stretches of eight, measured with the delegate on; see captionlite.benchmarks.op_profile for what that means.
    """
    check_folder(out)
    machine = describe_machine()
    threads = threads or core_count()
    countdown = Countdown()
    found = {}
    with without_chatter():
        captioner = Captioner.from_bundle(bundle, threads)
        given = feeds(captioner, threads)
    for name, feed in given.items():
        if not graphs or name in graphs:
            found[name] = profiled(name, feed, rounds or (QUICK_ROUNDS if quick else ROUNDS), countdown)
    document = {
        **header("profile", "edge", ("captionlite", *sys.argv[1:]), finish(machine)),
        "model": asdict(describe_bundle(captioner.bundle)),
        "graphs": {name: profile.to_json() for name, profile in found.items()},
    }
    if out is not None:
        write_document(out, document)
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False))
        return
    for name, profile in found.items():
        show(name, profile, top)
    tell_load(document["machine"])


def check_folder(out: Path | None) -> None:
    """Before minutes of measuring: is there a folder to write into?"""
    if out is not None and not out.absolute().parent.is_dir():
        raise CaptionliteError(f"{out}: there is no folder {out.absolute().parent} to write into. Create it first.")


def profiled(name: str, feed: Feed, rounds: int, countdown: Countdown) -> Profile:
    """One graph's profile, with progress."""
    countdown.say(f"profiling the {name}")
    tell = Left(countdown, "ops")
    try:
        return profile_graph(
            feed.content, feed.inputs, threads=feed.threads, where=feed.where, rounds=rounds, between=tell
        )
    finally:
        countdown.done()


class Left:
    """Called with how much is done of how much: says how long the rest will take."""

    def __init__(self, countdown: Countdown, what: str) -> None:
        from time import monotonic

        self._countdown, self._what, self._clock, self._began = countdown, what, monotonic, monotonic()

    def __call__(self, done: int, of: int) -> None:
        passed = self._clock() - self._began
        self._countdown.tell(f"{done} of {of} {self._what}", passed * (of - done) / max(done, 1))


def show(name: str, profile: Profile, top: int) -> None:
    """Tables of types and of the slowest ops."""
    totals = profile.totals()
    delegate = totals["delegate"]
    table = Table(title=f"{name}, {profile.threads} thread{'s' if profile.threads > 1 else ''}")
    for column in ("type", "ops", "us", "±", "%"):
        table.add_column(column, justify="left" if column == "type" else "right")
    for row in profile.by_type():
        share = "" if row["share"] is None else f"{100 * row['share']:.1f}"
        table.add_row(row["type"], str(row["ops"]), f"{row['us']:.1f}", f"{row['uncertainty_us']:.1f}", share)
    console = Console()
    console.print(table)
    slow = sorted(profile.ops, key=lambda one: -one.seconds)[:top]
    if slow:
        table = Table()
        for column in ("op", "type", "shape", "us", "±"):
            table.add_column(column, justify="left" if column in ("type", "shape") else "right")
        for one in slow:
            numbers = (f"{1e6 * one.seconds:.1f}", f"{1e6 * one.uncertainty_s:.1f}")
            table.add_row(str(one.op.index), one.op.label, " x ".join(map(str, one.op.shape)), *numbers)
        console.print(table)
    lines = [
        f"whole graph {totals['whole_us']:.1f} us, sum of its ops {totals['sum_of_ops_us']:.1f} us",
        f"the delegate took {delegate['ops']} of {totals['ops']} ops in {delegate['partitions']} "
        f"part{'s' if delegate['partitions'] != 1 else ''}; the other {delegate['not_taken']} take "
        f"{delegate['not_taken_us']:.1f} us" + _left(profile),
    ]
    for line in lines:
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _left(profile: Profile) -> str:
    counts: dict[str, int] = {}
    for one in profile.ops:
        if not one.delegated:
            counts[one.op.label] = counts.get(one.op.label, 0) + 1
    told = ", ".join(f"{label} {count}" if count > 1 else label for label, count in counts.items())
    return f": {told}" if told else ""


def tell_load(machine: dict[str, Any]) -> None:
    """A warning where other work ran beside."""
    load = machine["load_average"]["before"]
    if load and load[0] > 0.5:
        click.echo(f"the load average was {load[0]:.1f} before: other work on this machine is in the figures", err=True)
