"""`captionlite bench roofline`: what this machine could do at the most, and how far a bundle's graphs are from it."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from captionlite.benchmarks import roofline
from captionlite.benchmarks.commands.bench_profile import Left, check_folder, profiled, tell_load
from captionlite.benchmarks.countdown import Countdown
from captionlite.benchmarks.devices import describe_machine, finish
from captionlite.benchmarks.graph_costs import read_costs
from captionlite.benchmarks.model_identity import describe_bundle
from captionlite.benchmarks.op_profile import ROUNDS
from captionlite.benchmarks.peaks import KILOBYTES, Peaks, matrix_vector, measure_peaks
from captionlite.benchmarks.results import header, write_document
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.interpreter import core_count, without_chatter

BURSTS = {"encoder": 4, "decoder": 16}  # about one caption's worth of each
TIMING_ROUNDS, QUICK_TIMING_ROUNDS = 100, 20
PEAK_ROUNDS, QUICK_PEAK_ROUNDS = 4, 1
QUICK_PROFILE_ROUNDS = 15
WANTED = 2.0  # times the floor


@click.command("roofline")
@click.argument("bundle", default="default")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the encoder; a step has one.  [default: all]")
@click.option("--profile/--no-profile", "with_profile", default=True, help="Say what the gap is made of.")
@click.option("--quick", is_flag=True, help="Fewer rounds of everything.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the result here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle: str, threads: int | None, with_profile: bool, quick: bool, out: Path | None, as_json: bool) -> None:
    """Hold a bundle's encoder and decoder step against what this machine could do at the most.

    BUNDLE is a directory, a zip or a name [default: default]. The floor is the sum over a graph's ops of the longer of
    two times: its multiply-adds at the rate of the best kernel, its bytes at the bandwidth of the cache or memory that
    they come from, both measured here with the same interpreter. Half a minute a thread count.
    """
    check_folder(out)
    machine = describe_machine()
    encoder_threads = threads or core_count()
    countdown = Countdown()
    with without_chatter():
        captioner = Captioner.from_bundle(bundle, encoder_threads)
        given = roofline.feeds(captioner, encoder_threads)
    costs = {name: read_costs(feed.content, feed.where) for name, feed in given.items()}
    countdown.say("timing encoder and step")
    rounds, left = QUICK_TIMING_ROUNDS if quick else TIMING_ROUNDS, Left(countdown, "rounds")
    of = roofline.WARM_UP_ROUNDS + rounds
    timed = roofline.time_graphs(given, BURSTS, rounds, between=lambda done: left(done, of))
    peaks: dict[int, Peaks] = {}
    for count in sorted({feed.threads for feed in given.values()}):
        countdown.say(f"measuring this machine on {count} thread{'s' if count > 1 else ''}")
        each = QUICK_PEAK_ROUNDS if quick else PEAK_ROUNDS
        peaks[count] = measure_peaks(count, kilobytes=_sizes(machine), rounds=each, between=Left(countdown, "probes"))
    graphs = {}
    for name, feed in given.items():
        profile = None
        if with_profile:
            profile = profiled(name, feed, QUICK_PROFILE_ROUNDS if quick else ROUNDS, countdown)
        one_row = matrix_vector(_largest(costs[name]), feed.threads, rounds=2) if name == "decoder" else {}
        graphs[name] = roofline.describe(feed, costs[name], peaks[feed.threads], timed[name], profile, one_row)
    countdown.done()
    document = {
        **header("roofline", "edge", ("captionlite", *sys.argv[1:]), finish(machine)),
        "model": asdict(describe_bundle(captioner.bundle)),
        "peaks": {str(count): found.to_json() for count, found in peaks.items()},
        "graphs": graphs,
    }
    if out is not None:
        write_document(out, document)
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False))
        return
    _print(document, peaks)
    tell_load(document["machine"])


def _sizes(machine: dict[str, Any]) -> tuple[int, ...]:
    """The sizes to read from, none of them more than an eighth of the memory that is free."""
    free = machine.get("memory_available_bytes") or 1 << 30
    return tuple(size for size in KILOBYTES if 1024 * size <= free // 8)


def _largest(cost: Any) -> int:
    """Bytes of weights of the op that has most of them."""
    return max((op.weight_bytes for op in cost.ops), default=0) or 1 << 16


def _print(document: dict[str, Any], peaks: dict[int, Peaks]) -> None:
    console = Console()

    def say(line: str) -> None:
        console.print(line, highlight=False, markup=False, soft_wrap=True)

    table = Table(title=f"{document['model']['name']} ({document['model']['recipe']}) against its floor here")
    for column in ("us", *document["graphs"]):
        table.add_column(column, justify="left" if column == "us" else "right")
    graphs = document["graphs"].values()
    rows = {
        "threads": [str(g["threads"]) for g in graphs],
        "floor, op by op": [f"{g['floor_us']:.1f}" for g in graphs],
        "  of it bound by products": [f"{g['derivation']['bound_by_products_us']:.1f}" for g in graphs],
        "  of it bound by bytes": [f"{g['derivation']['bound_by_bytes_us']:.1f}" for g in graphs],
        "floor of totals": [f"{g['floor_of_totals_us']:.1f}" for g in graphs],
        "measured, median": [f"{g['measured_us']['median']:.1f}" for g in graphs],
        "measured, fastest": [f"{g['measured_us']['fastest']:.1f}" for g in graphs],
        "median / floor": [f"{g['measured_over_floor']:.2f}" for g in graphs],
        "fastest / floor": [f"{g['fastest_over_floor']:.2f}" for g in graphs],
    }
    for name, cells in rows.items():
        table.add_row(name, *cells)
    console.print(table)
    for count, found in peaks.items():
        told = found.to_json()
        rates = ", ".join(f"{k} {v:.0f}" for k, v in told["giga_multiply_adds_per_second"].items())
        say(f"{count} thread{'s' if count > 1 else ''}: {rates} G multiply-adds/s")
        curve = ", ".join(
            f"{int(size) // 1024} kB {speed:.0f}" for size, speed in told["read_gigabytes_per_second"].items()
        )
        say(f"  reading, GB/s: {curve}")
    for name, graph in document["graphs"].items():
        cost, derived = graph["cost"], graph["derivation"]
        products = ", ".join(f"{k} {v / 1e6:.2f}" for k, v in cost["multiply_adds"].items() if v)
        say(
            f"{name}: {products} M multiply-adds; {cost['weight_bytes'] / 1e6:.2f} MB of weights at "
            f"{derived['weights_read_from_gigabytes_per_second']:.0f} GB/s (it touches "
            f"{cost['working_set_bytes'] / 1e6:.1f} MB in all), {cost['activation_bytes'] / 1e6:.2f} MB of activations"
        )
        for kind, found in graph["matrix_vector"].items():
            say(
                f"  one row by {found['weight_bytes'] / 1e3:.0f} kB of weights, {kind}: "
                f"{found['multiply_adds_per_second'] / 1e9:.0f} G multiply-adds/s, "
                f"{found['bytes_per_second'] / 1e9:.0f} GB/s"
            )
        _print_gap(say, name, graph)


def _print_gap(say: Any, name: str, graph: dict[str, Any]) -> None:
    over = graph["measured_over_floor"]
    verdict = "within" if over <= WANTED else "more than"
    say(f"{name}: {over:.2f} times its floor, {verdict} {WANTED:.1f} times")
    if graph["profile"] is None:
        return
    for row in [row for row in graph["by_type"] if row["lost_us"] > 0][:6]:
        say(
            f"  {row['type']} x {row['ops']}: {row['measured_us']:.1f} us, floor {row['floor_us']:.1f}, "
            f"{row['lost_us']:.1f} above it"
        )
    say(
        f"  sum of ops {graph['profile']['sum_of_ops_us']:.1f} us of {graph['profile']['whole_us']:.1f}; going from op "
        f"to op and around the graph costs about {graph['going_from_op_to_op_us']:.1f} us of that"
    )
