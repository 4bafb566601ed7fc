"""captionlite average: several runs' weights averaged into one run."""

from __future__ import annotations

import json
import os
from pathlib import Path

import click


@click.command()
@click.argument("runs", nargs=-1, required=True, metavar="RUN:SHARE...")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run directory to write.")
@click.option("--json", "as_json", is_flag=True, help="Print the run and its parts as one JSON object.")
def command(runs: tuple[str, ...], out: Path, as_json: bool) -> None:
    """Average the weights of runs that one was started from the other, such as plain:0.5 self_critical:0.5.

    Shares sum to 1. The result can be exported like any run; it has no history and is not continued.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from captionlite.training.average import average_runs

    parts = []
    for text in runs:
        path, _, share = text.rpartition(":")
        try:
            parts.append((Path(path), float(share)))
        except ValueError:
            raise click.UsageError(f"{text}: expected RUN:SHARE, for example runs/a:0.5") from None
    average_runs(parts, out)
    if as_json:
        click.echo(json.dumps({"run": str(out), "average_of": [{"run": str(p), "share": share} for p, share in parts]}))
    else:
        click.echo(f"wrote {out}")
