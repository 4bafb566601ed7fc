"""captionlite quantize: a float32 bundle in, a quantized bundle out."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import click


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
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(result), "bundle": str(result.bundle)}))
        return
    for graph, ops in result.ops.items():
        before, after = (sizes[f"{graph}.tflite"] for sizes in (result.float32_sizes_bytes, result.sizes_bytes))
        click.echo(f"{graph}.tflite  {before:,} -> {after:,} bytes  {len(ops)} kinds of ops: {', '.join(ops)}")
    for tensor in result.parity.tensors:
        click.echo(f"{tensor.name:28} max abs {tensor.max_abs:.2e}  relative RMS {tensor.relative_rms:.2e}")
    parity = result.parity
    click.echo(
        f"{parity.equal_captions} of {parity.photographs} captions equal the float32 bundle's; wrote {result.bundle}"
    )
