"""`captionlite confidence`: fits what the confidence of a bundle's captions means, and says how good it is."""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from captionlite.benchmarks.confidence import DECODINGS, EVENT, Calibration, Judged, calibrate, judge, write_confidence
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.errors import BundleError
from captionlite.runtime.interpreter import without_chatter
from captionlite.runtime.manifest import ConfidenceSpec
from captionlite.training.datasets import load_dataset
from captionlite.training.progress import progress

EXIT_QUALITY = 3


@click.command("confidence")
@click.option("--bundle", "bundle_name", required=True, help="Bundle directory, whose manifest is changed.")
@click.option("--data", "specs", required=True, multiple=True, help="Data set, as for training; may be repeated.")
@click.option("--split", default="dev", show_default=True, help="Which of their splits: never the one trained on.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many photographs of each.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the encoder.  [default: all cores]")
@click.option("--dry-run", is_flag=True, help="Measure and print, but leave the bundle as it is.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle_name: str,
    specs: tuple[str, ...],
    split: str,
    limit: int | None,
    threads: int | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Learn from captioned photographs how far a caption's log-probability can be trusted.

    Captions the photographs greedily and with 3 beams, judges each caption by the words that people used, and writes
    the chance of fitting as a function of the mean log-probability into the bundle's manifest and model card. What is
    printed was measured on photographs that the fit had not seen. When the log-probability tells nothing, nothing is
    written and the exit code is 3.
    """
    with without_chatter():
        captioner = Captioner.from_bundle(bundle_name, threads)
        for options in DECODINGS.values():
            captioner.check(options)
    location = captioner.bundle.location
    if not dry_run:
        _check_writable(captioner)
    datasets = [load_dataset(spec) for spec in specs]
    for dataset in datasets:
        for line in dataset.report.lines():
            click.echo(f"{dataset.name}: {line}", err=True)
    parts = [(dataset.name, dataset.split(split)[:limit]) for dataset in datasets]

    judged: list[Judged] = []
    errors: list[str] = []
    with progress(sum(len(examples) for _, examples in parts), "captioning") as advance:
        for name, examples in parts:
            for found in judge(captioner, name, examples, advance):
                if isinstance(found, Judged):
                    judged.append(found)
                else:
                    errors.append(str(found))
    for error in errors:
        click.echo(f"Error: {error}", err=True)
    calibration = calibrate(judged)
    fitted_on = " and ".join(f"{name} {split} ({len(examples):,} photographs)" for name, examples in parts)
    fitted_on += f", decoded {' and '.join(DECODINGS)}"
    measured = calibration.to_json()
    write = calibration.useful and not dry_run
    if write:
        spec = ConfidenceSpec(calibration.slope, calibration.intercept, EVENT, fitted_on)
        write_confidence(location, spec, {name: measured[name] for name in _KEPT})

    if as_json:
        about = {"bundle": captioner.bundle.manifest.name, "event": EVENT, "fitted_on": fitted_on, "written": write}
        click.echo(json.dumps({**about, **measured, "errors": errors}, ensure_ascii=False))
    else:
        _print_report(calibration, fitted_on)
        if write:
            click.echo(f"Written into {location}.")
    if not calibration.useful:
        click.echo(
            "Error: the mean log-probability says no more than how often captions fit, so nothing was written. Check "
            "the bundle with `captionlite evaluate`, or give more photographs.",
            err=True,
        )
        sys.exit(EXIT_QUALITY)
    if errors:
        sys.exit(1)


_KEPT = ("photographs", "captions", "base_rate", "brier", "brier_base_rate", "ece", "auc", "thresholds")


def _check_writable(captioner: Captioner) -> None:
    """Before the captioning, not after it."""
    location = captioner.bundle.location
    if not location.is_dir():
        raise BundleError(
            f"{location}: a zip, and only the manifest of a bundle directory is rewritten. Unpack it, fit the "
            f"directory, and zip its files again without compression (`zip -0 -j`); or --dry-run."
        )
    if not os.access(location, os.W_OK):
        raise BundleError(f"{location}: this directory cannot be written to. Copy the bundle, or --dry-run.")


def _print_report(calibration: Calibration, fitted_on: str) -> None:
    quality = calibration.quality
    click.echo(f"Confidence, the chance that {EVENT}:")
    click.echo("    1 / (1 + exp(-(slope * mean log-probability + intercept)))")
    click.echo(f"Fitted on {fitted_on}. All but slope and intercept")
    click.echo("was measured on one half of the photographs with a fit on the other.")
    console = Console()
    figures: list[tuple[Any, ...]] = [
        ("slope", calibration.slope),
        ("intercept", calibration.intercept),
        ("captions that fit", quality.base_rate),
        ("Brier score", quality.brier),
        ("Brier score of the base rate", quality.brier_base_rate),
        ("expected calibration error", quality.ece),
        ("AUC", quality.auc),
    ]
    console.print(_table("", ("figure", "value"), figures))
    rows: list[tuple[Any, ...]] = [(f"{b.low:.1f} to {b.high:.1f}", b.n, b.mean, b.share) for b in quality.bins if b.n]
    console.print(_table("reliability", ("confidence", "captions", "mean", "fit"), rows))
    rows = [(f"{t.at_least}", t.coverage, t.precision) for t in quality.thresholds]
    console.print(_table("abstaining", ("at least", "captions left", "of these fit"), rows))
    rows = [(f"{g.data}, {g.decoding}", g.n, g.mean_confidence, g.share) for g in calibration.groups]
    console.print(_table("by data and decoding", ("captions", "n", "mean confidence", "fit"), rows))


def _table(title: str, heads: tuple[str, ...], rows: list[tuple[Any, ...]]) -> Table:
    table = Table(*heads, title=title)
    for column in table.columns[1:]:
        column.justify = "right"
    for row in rows:
        table.add_row(*(f"{v:.3f}" if isinstance(v, float) else "-" if v is None else f"{v}" for v in row))
    return table
