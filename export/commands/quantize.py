"""captionlite quantize: a float32 bundle in, a quantized bundle out."""

from __future__ import annotations

from pathlib import Path

import click

from captionlite.export.commands.printing import print_result


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    "recipe_name",
    required=True,
    metavar="NAME|FILE",
    help="A recipe of captionlite (see `captionlite export --help`) or a JSON file.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The new bundle's directory.")
@click.option(
    "--calibrate",
    metavar="FOLDER|DATA",
    help="Training photographs, where the recipe wants some: a folder of them, or a data set (`flickr8k:PATH`), of "
    "which the train split is taken.",
)
@click.option("--seed", default=0, show_default=True, help="Which 200 of them, if there are more.")
@click.option("--name", help="The new bundle's name; the old one's when not given.")
@click.option("--force", is_flag=True, help="Replace --out if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def command(
    bundle: Path,
    recipe_name: str,
    out: Path,
    calibrate: str | None,
    seed: int,
    name: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Quantize the float32 BUNDLE by a recipe, without its training run, and compare the two."""
    from captionlite.export.bundle_quantizer import quantize_bundle
    from captionlite.export.calibration import Photographs
    from captionlite.export.recipes import recipe
    from captionlite.runtime.bundle import Bundle

    chosen = recipe(recipe_name)
    result = quantize_bundle(
        Bundle.open(bundle),
        chosen,
        out,
        photographs=None if calibrate is None else Photographs.of_data(calibrate, seed),
        name=name,
        force=force,
        report=lambda line: click.echo(line, err=True),
    )
    print_result(result, as_json)
