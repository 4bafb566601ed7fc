"""`captionlite gate`: may this bundle be shipped? Its captions and numbers are held to the float model's."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

# Unused here, but without them all the captioning would be in vain: let the command line name the extra first.
import matplotlib  # noqa: F401
import pycocoevalcap.cider.cider  # noqa: F401

from captionlite.benchmarks.evaluation import describe_recipe
from captionlite.benchmarks.gate import Measured, NotComputableError, measure
from captionlite.benchmarks.gate_reference import Facts, open_reference
from captionlite.benchmarks.gate_report import Report, check_writable, print_report, write_report
from captionlite.benchmarks.gate_verdict import (
    MIN_PHOTOGRAPHS,
    bar_for,
    judge,
    not_computable,
    provenance_warnings,
)
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.commands.options import decoding_options, describe_options, read_options
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.interpreter import without_chatter
from captionlite.training.datasets import load_dataset
from captionlite.training.progress import progress

EXIT_QUALITY = 3


@click.command("gate")
@click.argument("bundle_name", metavar="BUNDLE")
@click.option("--reference", required=True, help="The float32 bundle, or the training run, that it was made of.")
@click.option("--data", required=True, help="Data set: a path, or kind:path as for training.")
@click.option("--split", default="test", show_default=True, help="Which of its splits.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many photographs.")
@click.option("--allow-fewer", is_flag=True, help=f"Judge on fewer than {MIN_PHOTOGRAPHS:,} photographs, and say so.")
@click.option(
    "--min-cider-ratio",
    type=click.FloatRange(0, 1, min_open=True),
    help="The part of the reference's CIDEr to reach.  [default: what the bundle's recipe promises]",
)
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the encoder.  [default: all cores]")
@decoding_options
@click.option(
    "--report",
    "directory",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Write gate.json, gate.md and gate.png into this folder.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle_name: str,
    reference: str,
    data: str,
    split: str,
    limit: int | None,
    allow_fewer: bool,
    min_cider_ratio: float | None,
    threads: int | None,
    directory: Path | None,
    as_json: bool,
    **decoding: Any,
) -> None:
    """Hold a bundle to the float model it was made of, and refuse it when its captions got worse.

    Compares encoder outputs, logits along the reference's captions, captions and their scores on at least 1,000
    photographs. The exit code is 3 when the bundle's CIDEr is a smaller part of the reference's than its recipe
    promises (float16 99.9 %, full-int8 and int16x8 98 %, others 99 %), or when its numbers show a broken graph; and 1
    when photographs could not be read, which are left out on both sides.
    """
    options = read_options(decoding)
    if limit is not None and limit < MIN_PHOTOGRAPHS and not allow_fewer:
        raise click.UsageError(
            f"--limit {limit}: a verdict takes {MIN_PHOTOGRAPHS:,} photographs, because on fewer the noise is larger "
            f"than what is asked for; --allow-fewer judges all the same, and says so."
        )
    if directory is not None:
        check_writable(directory)
    dataset = load_dataset(data)
    for line in dataset.report.lines():
        click.echo(f"{dataset.name}: {line}", err=True)
    examples = dataset.split(split)[:limit]
    if len(examples) < MIN_PHOTOGRAPHS and not allow_fewer:
        raise CaptionliteError(
            f"{dataset.name}: the split {split} has {len(examples)} photographs, expected {MIN_PHOTOGRAPHS:,} or more, "
            f"because on fewer the noise is larger than what is asked for. Give a larger split, or --allow-fewer."
        )
    bundle = Bundle.open(bundle_name)
    bar = bar_for(bundle.manifest, min_cider_ratio)
    with without_chatter():
        held_to = open_reference(reference, threads)
        Facts.of_bundle(bundle).require_same(held_to.facts, str(bundle.location), str(held_to.location))
        # Not from_bundle: whether its numbers are right here is this command's own question.
        captioner = Captioner(bundle, threads)
        held_to.check(options)
        captioner.check(options)
    about = {
        "bundle": bundle.manifest.name,
        "location": str(bundle.location),
        "recipe": describe_recipe(bundle.manifest),
        "reference": held_to.name,
        "reference_location": str(held_to.location),
        "reference_kind": held_to.kind,
        "data": dataset.name,
        "split": split,
        "decoding": describe_options(options),
    }
    warnings = provenance_warnings(bundle, held_to, [example.id for example in examples])

    measured: Measured | None = None
    try:
        with progress(len(examples), "comparing") as advance:
            measured = measure(held_to, captioner, examples, options, advance)
    except NotComputableError as error:
        verdict = not_computable(str(error), bar, warnings)
    else:
        verdict = judge(measured, bar, warnings)
    report = Report(about, bar, verdict, measured)
    if directory is not None:
        write_report(directory, report)
    if as_json:
        click.echo(json.dumps(report.to_json(), ensure_ascii=False, allow_nan=False))
    else:
        print_report(report)
    unreadable = measured.unreadable if measured else ()
    for line in (*unreadable, *(f"{problem}." for problem in verdict.problems)):
        click.echo(f"Error: {line}", err=True)
    if not verdict.passed:
        sys.exit(EXIT_QUALITY)
    if unreadable:
        sys.exit(1)
