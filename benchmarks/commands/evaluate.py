"""`captionlite evaluate`: BLEU, ROUGE-L and CIDEr of a bundle on a data set, through the device runtime."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

# Unused here, but without them scoring would fail after all the captioning: let the command line name the extra first.
import pycocoevalcap.cider.cider  # noqa: F401
from rich.console import Console
from rich.table import Table

from captionlite.benchmarks.evaluation import Evaluation, captions_jsonl, describe_recipe, evaluate
from captionlite.benchmarks.gallery import gallery
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.commands.options import decoding_options, describe_options, read_options
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.interpreter import without_chatter
from captionlite.training.datasets import load_dataset
from captionlite.training.files import write_text_atomically
from captionlite.training.progress import progress

GALLERY_LIMIT = 200
_N_BEST_ROWS = {
    "best cider": "oracle_cider",
    "mean cider": "n_best_mean_cider",
    "distinct captions": "n_best_distinct_captions",
}
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("evaluate")
@click.option("--bundle", "bundle_name", default="default", show_default=True, help="Bundle directory, zip or name.")
@click.option("--data", required=True, help="Data set: a path, or kind:path as for training.")
@click.option("--split", default="test", show_default=True, help="Which of its splits.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many photographs; CIDEr shifts with n.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the encoder.  [default: all cores]")
@decoding_options
@click.option("--n", "n_best", type=click.IntRange(min=1), help="Score N hypotheses each; needs --beams or --best-of.")
@click.option("--out", type=_FILE, help="Write every caption and its scores here, as JSON lines.")
@click.option("--gallery", "page", type=_FILE, help="Write a page of photographs and captions here, the worst first.")
@click.option("--gallery-limit", type=click.IntRange(min=1), help="How many of them.  [default: 200]")
@click.option("--gallery-random", type=click.IntRange(min=1), help="After them, so many drawn at random from all.")
@click.option("--gallery-seed", type=click.IntRange(min=0), help="Which random ones.  [default: 0]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    bundle_name: str,
    data: str,
    split: str,
    limit: int | None,
    threads: int | None,
    out: Path | None,
    page: Path | None,
    gallery_limit: int | None,
    gallery_random: int | None,
    gallery_seed: int | None,
    as_json: bool,
    **decoding: Any,
) -> None:
    """Score a bundle's captions, by default decoded greedily, against those people wrote.

    Captions and references are split into words as captionlite.training.scoring documents. A photograph that cannot be
    read is listed and left out of the scores; the exit code is then 1.
    """
    options = read_options(decoding)
    if gallery_limit is not None and page is None:
        raise click.UsageError("--gallery-limit says how long the page is; give --gallery FILE as well.")
    if gallery_random is not None and page is None:
        raise click.UsageError("--gallery-random adds to the page; give --gallery FILE as well.")
    if gallery_seed is not None and gallery_random is None:
        raise click.UsageError("--gallery-seed says which random photographs; give --gallery-random N as well.")
    for path in (out, page):
        if path is not None and not path.absolute().parent.is_dir():
            raise CaptionliteError(
                f"{path}: there is no folder {path.absolute().parent} to write into. Create it first."
            )
    dataset = load_dataset(data)
    for line in dataset.report.lines():
        click.echo(f"{dataset.name}: {line}", err=True)
    examples = dataset.split(split)[:limit]
    with without_chatter():
        captioner = Captioner.from_bundle(bundle_name, threads)
        captioner.check(options)

    with progress(len(examples), "captioning") as advance:
        evaluation = evaluate(captioner, examples, advance, options)
    manifest = captioner.bundle.manifest
    about = {
        "bundle": manifest.name,
        "recipe": describe_recipe(manifest),
        "data": dataset.name,
        "split": split,
        "decoding": describe_options(options),
    }
    if out is not None:
        write_text_atomically(out, captions_jsonl(evaluation.photos))
    if page is not None:
        shown = gallery(evaluation, about, gallery_limit or GALLERY_LIMIT, gallery_random or 0, gallery_seed or 0)
        write_text_atomically(page, shown)
    for photo in evaluation.failed:
        click.echo(f"Error: {photo.error}", err=True)

    if as_json:
        click.echo(json.dumps({**evaluation.to_json(), **about}, ensure_ascii=False))
    else:
        _print_table(evaluation, about)
    if evaluation.failed:
        sys.exit(1)


def _print_table(evaluation: Evaluation, about: dict[str, str]) -> None:
    title = f"{about['bundle']} ({about['recipe']}, {about['decoding']}) on {about['data']} {about['split']}"
    table = Table("score", "value", title=title)
    table.columns[1].justify = "right"
    report = evaluation.to_json()
    for key in ("bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider"):
        table.add_row(key, f"{report[key]:.3f}", end_section=key == "cider")
    if evaluation.n_best is not None:
        for name, key in _N_BEST_ROWS.items():
            table.add_row(f"{name} of {evaluation.n_best.n}", f"{report[key]:.3f}")
        table.add_section()
    table.add_row("photographs", str(report["n"]))
    table.add_row("could not be read", str(len(report["errors"])))
    table.add_row("distinct captions", str(report["distinct_captions"]))
    table.add_row("distinct words", str(report["distinct_words"]))
    table.add_row("repeated phrases", str(report["repeated_phrases"]))
    table.add_row("words a caption", f"{report['mean_words']:.1f}")
    table.add_row("ms a photograph", f"{1e3 * report['seconds'] / len(evaluation.photos):.1f}")
    Console().print(table)
