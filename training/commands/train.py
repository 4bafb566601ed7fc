"""captionlite train: a preset and data in, a run directory out."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import click

DEFAULT_CACHE = "~/.cache/captionlite/features"


@click.command()
@click.argument("preset")
@click.option(
    "--data", multiple=True, metavar="KIND:PATH[@WEIGHT]", help="A data set; repeatable. Weight: times an epoch."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run directory.")
@click.option(
    "--cache", type=click.Path(path_type=Path), default=DEFAULT_CACHE, show_default=True, help="Feature cache."
)
@click.option(
    "--from", "start", type=click.Path(path_type=Path), help="Start from that run's best weights, with its vocabulary."
)
@click.option("--resume", is_flag=True, help="Continue the run in --out where its last checkpoint stands.")
@click.option("--set", "settings", multiple=True, metavar="KEY=VALUE", help="Change a setting, e.g. epochs=3.")
@click.option("--json", "as_json", is_flag=True, help="Print the summary as one JSON object.")
def command(
    preset: str,
    data: tuple[str, ...],
    out: Path,
    cache: Path,
    start: Path | None,
    resume: bool,
    settings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Train PRESET (a name from `captionlite presets`, or a JSON file) into the run directory --out.

    The backend is KERAS_BACKEND: tensorflow (the default) or jax.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from captionlite.training.config import load_config, parse_data
    from captionlite.training.trainer import Interrupted, train

    config = load_config(preset, settings)
    if data:
        config = dataclasses.replace(config, data=tuple(map(parse_data, data)))
    if start is not None:
        config = dataclasses.replace(config, start=str(start))
    try:
        summary = train(config, out, cache.expanduser(), resume=resume, report=lambda line: click.echo(line, err=True))
    except Interrupted as stop:
        raise click.ClickException(f"{stop}; continue with: captionlite train {preset} --out {out} --resume") from stop
    if as_json:
        click.echo(json.dumps(summary))
    else:
        click.echo(
            f"{summary['run']}: {summary['epochs']} epochs, best {summary['best_epoch']}, "
            f"{summary['train_seconds']:.0f} s ({summary['seconds_per_epoch']:.0f} s an epoch)"
        )
