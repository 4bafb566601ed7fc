"""captionlite quantize: a float32 bundle in, a quantized bundle out."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from captionlite.export.commands.printing import print_result

if TYPE_CHECKING:
    from captionlite.export.calibration import Photographs
    from captionlite.export.recipes import Recipe
    from captionlite.runtime.bundle import Bundle

AUTO = "auto"
GATE_FAILED = 3
_POSITIVE = click.FloatRange(min=0, min_open=True)


@click.command()
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--recipe",
    "recipe_name",
    required=True,
    metavar="NAME|FILE|auto",
    help="A recipe of captionlite (see `captionlite export --help`), a JSON file, or `auto`: search for one.",
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The new bundle's directory.")
@click.option(
    "--calibrate",
    metavar="FOLDER|DATA",
    help="Training photographs, where the recipe wants some: a folder of them, or a data set (`flickr8k:PATH`), of "
    "which the train split is taken.",
)
@click.option("--seed", default=0, show_default=True, help="Which 200 of them, if there are more.")
@click.option("--data", help="auto: the data set on which captions are compared, at most 1,000 photographs.")
@click.option("--split", default="dev", show_default=True, help="auto: which of its splits; never test.")
@click.option("--budget-mb", type=_POSITIVE, help="auto: the graphs have at most so many MB (10^6 bytes).")
@click.option("--budget-ms", type=_POSITIVE, help="auto: a caption takes at most so long here, on one thread.")
@click.option("--min-cider", type=_POSITIVE, help="auto: greedy captions have at least this CIDEr on the split.")
@click.option(
    "--search",
    type=click.Path(path_type=Path, file_okay=False),
    help="auto: the folder of everything tried, from which a search that was stopped goes on.  [default: OUT-search]",
)
@click.option("--name", help="The new bundle's name; the old one's when not given.")
@click.option("--force", is_flag=True, help="Replace --out if it exists.")
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def command(
    bundle: Path,
    recipe_name: str,
    out: Path,
    calibrate: str | None,
    seed: int,
    data: str | None,
    split: str,
    budget_mb: float | None,
    budget_ms: float | None,
    min_cider: float | None,
    search: Path | None,
    name: str | None,
    force: bool,
    as_json: bool,
) -> None:
    """Quantize the float32 BUNDLE by a recipe, without its training run, and compare the two.

    With `--recipe auto` the recipe is searched for: every group of ops is quantized alone, what damages least for what
    it saves is combined, and the best of these caption the photographs of --data beside the recipes made by hand. The
    smallest and fastest is taken that is within the budgets and not measurably worse than the best there; the exit code
    is 3 when none is. It is left as auto.json in the folder of the search, a recipe like any other.
    """
    from captionlite.export.bundle_quantizer import quantize_bundle
    from captionlite.export.calibration import Photographs
    from captionlite.export.errors import ExportError
    from captionlite.export.recipes import recipe
    from captionlite.runtime.bundle import Bundle

    given = {"--data": data, "--budget-mb": budget_mb, "--budget-ms": budget_ms, "--min-cider": min_cider}
    if recipe_name != AUTO:
        unused = [option for option, value in {**given, "--search": search}.items() if value is not None]
        if unused:
            raise click.UsageError(
                f"{', '.join(unused)}: for --recipe auto, which searches; {recipe_name} is a recipe."
            )
    elif calibrate is None or data is None:
        raise click.UsageError(
            "--recipe auto needs --calibrate (training photographs, to find ranges) and --data (other photographs with "
            "captions, to compare on); both may be the same data set: the one takes its train split, the other dev."
        )
    if out.exists() and not force:  # a search takes minutes: better said before it
        raise ExportError(f"{out}: exists already; give --force to replace it, or another --out")
    opened = Bundle.open(bundle)
    photographs = None if calibrate is None else Photographs.of_data(calibrate, seed)
    if photographs is not None and data is not None:
        folder = search or out.with_name(f"{out.name}-search")
        chosen = _found(opened, photographs, data, split, (budget_mb, budget_ms, min_cider), folder, seed)
    else:
        chosen = recipe(recipe_name)
    result = quantize_bundle(
        opened,
        chosen,
        out,
        photographs=photographs,
        name=name,
        force=force,
        report=lambda line: click.echo(line, err=True),
    )
    print_result(result, as_json)


def _found(
    bundle: Bundle,
    photographs: Photographs,
    data: str,
    split: str,
    budgets: tuple[float | None, float | None, float | None],
    folder: Path,
    seed: int,
) -> Recipe:
    """The recipe that the search ends with; exit code 3 when nothing meets the budgets."""
    from captionlite.export.auto import BudgetError, search
    from captionlite.export.dev_set import DevSet
    from captionlite.export.pareto import Budget
    from captionlite.training.progress import progress

    def report(line: str) -> None:
        click.echo(line, err=True)

    try:
        dev = DevSet.load(data, split, bundle, seed)
        found = search(bundle, photographs, dev, Budget(*budgets), folder, seed=seed, progress=progress, report=report)
    except BudgetError as error:
        report(f"Error: {error}")
        sys.exit(GATE_FAILED)
    except KeyboardInterrupt:
        report(f"stopped; what was measured is in {folder}, and the same command goes on from there")
        raise
    report(f"chosen after {found.minutes:.1f} minutes: {found.point.name}; its recipe is {found.path}")
    return found.recipe
