"""captionlite export: a run directory in, a bundle out."""

from __future__ import annotations

import json
import os
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
    """
    os.environ["KERAS_BACKEND"] = "tensorflow"  # the converter's; a run trained on JAX loads just as well
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from captionlite.export.calibration import Photographs, held_out_names
    from captionlite.export.exporter import export_run
    from captionlite.export.recipes import recipe
    from captionlite.training.run import load_run

    chosen = recipe(recipe_name)
    loaded = load_run(run)
    if calibration is None:
        photographs = Photographs.of_run(loaded)
    else:
        photographs = Photographs.of_folder(calibration, held_out_names(loaded), loaded.config.seed)
    result = export_run(
        loaded,
        chosen,
        out,
        name=name,
        photographs=photographs,
        golden=golden,
        scores=json.loads(scores.read_text()) if scores else None,
        licences=dict(_name_and_text(licence) for licence in licences),
        force=force,
        report=lambda line: click.echo(line, err=True),
    )
    print_result(result, as_json)


def _name_and_text(licence: str) -> tuple[str, str]:
    name, equals, text = licence.partition("=")
    if not (name and equals and text):
        raise click.BadParameter(f"{licence!r}: expected NAME=TEXT", param_hint="--licence")
    return name, text
