"""`captionlite bench run`: what a caption costs on this machine, stage by stage, written as a versioned result."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from rich.console import Console
from rich.table import Table

from captionlite.benchmarks.latency import FULL, QUICK, Limits
from captionlite.benchmarks.results import STAGES, Result, write_document
from captionlite.benchmarks.session import Plan, measure
from captionlite.runtime.commands.options import delegate_option
from captionlite.runtime.errors import CaptionliteError

if TYPE_CHECKING:
    from captionlite.benchmarks.session import Target
    from captionlite.runtime.delegates import DelegateSpec

COLD_STARTS, QUICK_COLD_STARTS = 5, 3
IDLE_S, QUICK_IDLE_S = 10.0, 3.0
_STAGE_NAMES = {"image": "read photograph", "encode": "encoder", "step": "one step", "decode": "all steps"}
_STAGE_NAMES |= {"post": "to text", "whole": "whole caption"}


@click.command("run")
@click.option("--target", type=click.Choice(["edge", "keras", "gpu"]), default="edge", show_default=True)
@click.option("--bundle", default=None, help="edge: bundle directory, zip or name.  [default: default]")
@click.option("--run", "run_directory", help="keras, gpu: directory of the training run.")
@click.option("--photos", multiple=True, metavar="FOLDER|FILE...", help="What to caption; tests/photos is made for it.")
@click.argument("more_photos", nargs=-1, metavar="")
@click.option("--quick", is_flag=True, help="128 captions and 10 s instead of 1,024 and 60 s.")
@click.option("--captions", type=click.IntRange(min=1), help="At least so many captions.")
@click.option("--seconds", type=click.FloatRange(min=0), help="For at least so many seconds.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the encoder (keras: of all).  [default: all]")
@delegate_option
@click.option("--batch", "batches", type=click.IntRange(min=1), multiple=True, help="gpu: batch sizes.  [1, 16, 256]")
@click.option("--allow-cpu", is_flag=True, help="gpu: go on where there is none; the result says so.")
@click.option("--cold-starts", type=click.IntRange(min=0), help="Fresh processes to measure.  [default: 5, quick 3]")
@click.option("--energy", is_flag=True, help="Joules a caption, if this machine has a meter.")
@click.option("--soak", "soak_minutes", type=click.FloatRange(min=0, min_open=True), help="Go on for so many minutes.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the result here.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    target: str,
    bundle: str | None,
    run_directory: str | None,
    photos: tuple[str, ...],
    more_photos: tuple[str, ...],
    quick: bool,
    captions: int | None,
    seconds: float | None,
    threads: int | None,
    delegate: DelegateSpec | None,
    batches: tuple[int, ...],
    allow_cpu: bool,
    cold_starts: int | None,
    energy: bool,
    soak_minutes: float | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Measure what a caption costs here: latency by stage, cold start, memory, captions a second, energy.

    One caption after another from a photograph's bytes to the text, greedily, with the settings that everybody gets.
    Ctrl-C ends it; --out then has what was measured by then, marked as not complete. With --delegate the encoder goes
    through that delegate or nothing is measured.
    """
    _check_usage(target, bundle, run_directory, batches, allow_cpu, threads)
    if target != "edge" and delegate is not None:
        raise click.UsageError("--delegate is for --target edge.")
    names = (*photos, *more_photos)
    if not names:
        raise click.UsageError(
            "--photos FOLDER is missing: captionlite comes without photographs. The repository has tests/photos; "
            "results can be compared only if they are of the same ones."
        )
    if out is not None and not out.absolute().parent.is_dir():
        raise CaptionliteError(f"{out}: there is no folder {out.absolute().parent} to write into. Create it first.")
    if soak_minutes is not None and out is None:
        raise click.UsageError("--soak draws a picture beside the result; give --out FILE as well.")
    limits = QUICK if quick else FULL
    if captions is not None:
        limits = replace(limits, min_captions=captions)
    if seconds is not None:
        limits = replace(limits, min_seconds=seconds)
    plan = Plan(
        limits=limits,
        quick=quick,
        cold_starts=(QUICK_COLD_STARTS if quick else COLD_STARTS) if cold_starts is None else cold_starts,
        energy=energy,
        idle_seconds=QUICK_IDLE_S if quick else IDLE_S,
        soak_minutes=soak_minutes,
        command=("captionlite", *sys.argv[1:]),
    )
    ready = _ready(target, bundle or "default", run_directory, names, limits, threads, batches, allow_cpu, delegate)
    result = measure(ready, plan)
    if out is not None:
        write_document(out, result.to_json())
        if result.soak and result.soak["seconds"]:
            _draw(result, out.with_suffix(".soak.png"))
    if as_json:
        click.echo(json.dumps(result.to_json(), ensure_ascii=False))
    else:
        _print(result)
    if not result.complete:
        click.echo(f"interrupted after {result.protocol.captions} captions: this result is not complete", err=True)
        sys.exit(1)


def _check_usage(
    target: str, bundle: str | None, run: str | None, batches: tuple[int, ...], allow_cpu: bool, threads: int | None
) -> None:
    if target == "edge" and run is not None:
        raise click.UsageError("--run is for --target keras or gpu; a bundle is given as --bundle.")
    if target != "edge" and bundle is not None:
        raise click.UsageError(f"--bundle is for --target edge; --target {target} takes --run DIRECTORY.")
    if target != "edge" and run is None:
        raise click.UsageError(f"--target {target} needs --run DIRECTORY, as `captionlite train --out` made it.")
    if target != "gpu" and (batches or allow_cpu):
        raise click.UsageError("--batch and --allow-cpu are for --target gpu.")
    if target == "gpu" and threads is not None:
        raise click.UsageError("--threads is for --target edge or keras.")


def _ready(
    target: str,
    bundle: str,
    run: str | None,
    photos: tuple[str, ...],
    limits: Limits,
    threads: int | None,
    batches: tuple[int, ...],
    allow_cpu: bool,
    delegate: DelegateSpec | None,
) -> Target:
    from captionlite.benchmarks import targets

    if target == "edge":
        return targets.edge_target(bundle, photos, limits, threads, delegate)
    assert run is not None
    try:
        if target == "keras":
            return targets.keras_target(run, photos, threads)
        return targets.gpu_target(run, photos, batches or targets.GPU_BATCHES, limits, allow_cpu=allow_cpu)
    except ModuleNotFoundError as error:
        raise CaptionliteError(
            f"--target {target} runs the Keras model and needs the module {error.name!r}. Install what trains as well: "
            f"`pip install 'captionlite[bench,train]'`, and for JAX the package jax."
        ) from error


def _draw(result: Result, path: Path) -> None:
    from captionlite.benchmarks.soak import plot

    assert result.soak is not None
    plot(result.soak, f"{result.model.name} ({result.model.recipe}) on {_where(result)}", path)
    click.echo(f"{path}: latency, temperature and throttling over time", err=True)


def _where(result: Result) -> str:
    machine, accelerator = result.machine, result.machine.get("accelerator")
    if result.target == "gpu" and accelerator:
        return str(accelerator["device"])
    return f"{machine['device'] or machine['cpu'] or machine['machine']}, {machine['cores']} cores"


def _print(result: Result) -> None:
    table = Table(title=f"{result.model.name} ({result.model.recipe}, {result.target}) on {_where(result)}")
    table.add_column("ms")
    for name in ("p50", "p90", "p99", "mean"):
        table.add_column(name, justify="right")
    for stage in STAGES:
        numbers = (f"{result.summary[stage][name]:.3f}" for name in ("p50", "p90", "p99", "mean"))
        table.add_row(_STAGE_NAMES[stage], *numbers, end_section=stage == "post")
    console = Console()
    console.print(table)
    for line in _facts(result):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _facts(result: Result) -> list[str]:
    """What stands below the table."""
    protocol, photographs = result.protocol, result.photographs
    each = f"{result.tokens_per_caption:.1f} tokens each, {protocol.decoding}"
    lines = [
        f"{protocol.captions} captions in {protocol.seconds:.1f} s, {photographs.count} photographs round and round",
        f"{result.captions_per_second:.1f} captions a second one at a time, {each}",
    ]
    if result.batch is not None:
        lines.append(f"{result.batch['captions_per_second']:.1f} captions a second in batches ({result.batch['way']})")
    if result.cold_start is not None:
        lines.append(f"{result.cold_start['seconds']:.2f} s from process start to caption")
    if result.peak_memory_bytes is not None:
        lines.append(f"{result.peak_memory_bytes / 1e6:.0f} MB of memory at the most")
    lines.append(f"{result.model.size_bytes / 1e6:.1f} MB of model")
    lines.append(_told_energy(result.energy))
    load = result.machine["load_average"]
    if load["before"] and load["before"][0] > 0.5:
        lines.append(
            f"the load average was {load['before'][0]:.1f} before: other work on this machine is in the figures"
        )
    return [*(line for line in lines if line), *result.notes]


def _told_energy(energy: dict[str, Any]) -> str:
    if "unavailable" in energy:
        return "" if energy["unavailable"].startswith("not asked") else f"energy: {energy['unavailable']}"
    return (
        f"{energy['joules_per_caption']:.3g} J a caption with idling, {energy['joules_per_caption_above_idle']:.3g} J "
        f"above it ({energy['meter']}, {energy['idle_watts']:.3g} W idle)"
    )
