"""captionlite ensemble: several runs as one captioner."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN...", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run directory to write.")
@click.option("--json", "as_json", is_flag=True, help="Print the run and its members as one JSON object.")
def command(runs: tuple[Path, ...], out: Path, as_json: bool) -> None:
    """Make one captioner of several runs of one family, encoder and vocabulary: at every step they vote.

    It has as many times the bytes and the work; whether its captions are better, `captionlite evaluate` says of its
    bundle. The result can be exported like any run; it has no history and is not continued.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from captionlite.training.ensemble import ensemble_runs

    ensemble_runs(runs, out)
    if as_json:
        click.echo(json.dumps({"run": str(out), "ensemble_of": [str(path) for path in runs]}))
    else:
        click.echo(f"wrote {out}")
