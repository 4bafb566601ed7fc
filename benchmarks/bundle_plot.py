"""The picture of bundles side by side: what a caption costs in bytes and in time, and what it is worth.

    captionlite bench run --bundle BUNDLE --photos FOLDER --quick --out RESULT.json     # of each, on a quiet machine
    python -m captionlite.benchmarks.bundle_plot RESULT.json... --out bundles.png

A bundle's score is the one its manifest states (`captionlite export --scores`): nothing is captioned here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import click

from captionlite.benchmarks.compare_names import number
from captionlite.benchmarks.plots import MARKERS, SERIES, label, new_figure, tidy, to_png
from captionlite.benchmarks.results import Result, ResultError, read_result
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.files import write_bytes_atomically

FLOAT = "float32"


@dataclass(frozen=True)
class Point:
    """One bundle: megabytes (10^6 bytes) of all its files, median milliseconds of a whole caption, its CIDEr."""

    name: str
    recipe: str
    megabytes: float
    whole_ms: float
    cider: float


def point(path: Path, data: str, decoding: str) -> Point:
    """The result's bundle. Raises ResultError for a file that is none or a bundle without that score."""
    result = read_result(path)
    model = result.model
    title = f"{data}, {model.recipe}, {decoding}"
    cider = number(model.scores.get(title) or {}, "cider")
    if cider is None:
        known = ", ".join(repr(each) for each in model.scores) or "none"
        raise ResultError(
            f"{path}: the bundle {model.name!r} states no CIDEr of {title!r}; it has {known}. `captionlite evaluate "
            "--json` measures it, `captionlite export --scores` puts it into a bundle."
        )
    return Point(model.name, model.recipe, model.size_bytes / 1e6, _whole_ms(result), cider)


def draw(points: Sequence[Point], scored_on: str) -> bytes:
    """A PNG of two panels, CIDEr over megabytes and over milliseconds; further up and to the left is better."""
    figure = new_figure(11, 4.6)
    panels = figure.subplots(1, 2, sharey=True)
    names = list(dict.fromkeys(each.name for each in points))
    for axes, unit in zip(panels, ("MB, all files of the bundle", "a whole caption, median, ms"), strict=True):
        for each in points:
            cost = each.megabytes if axes is panels[0] else each.whole_ms
            number_of = names.index(each.name)
            axes.plot(
                cost,
                each.cider,
                MARKERS[number_of % len(MARKERS)],
                color=SERIES[number_of % len(SERIES)],
                fillstyle="none" if each.recipe == FLOAT else "full",
                markersize=10,
                markeredgewidth=1.6,
            )
            axes.annotate(
                label(f"{each.name} {each.recipe}"), (cost, each.cider), xytext=(9, -4), textcoords="offset points"
            )
        axes.set_xlim(0, 1.3 * max(each.megabytes if axes is panels[0] else each.whole_ms for each in points))
        axes.margins(y=0.2)
        axes.set_xlabel(unit)
        tidy(axes)
    panels[0].set_ylabel(label(f"CIDEr, {scored_on}", 60))
    return to_png(figure)


def _whole_ms(result: Result) -> float:
    return float(result.summary["whole"]["p50"])


@click.command()
@click.argument("results", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--data", default="Flickr8k test", show_default=True, help="The scores' data set, as in their titles.")
@click.option("--decoding", default="beam 3", show_default=True, help="The scores' decoding.")
@click.option("--out", required=True, type=click.Path(dir_okay=False, path_type=Path))
def main(results: tuple[Path, ...], data: str, decoding: str, out: Path) -> None:
    """Draw the bundles of RESULT... (`bench run`): size and time against CIDEr."""
    try:
        points = [point(path, data, decoding) for path in results]
        write_bytes_atomically(out, draw(points, f"{data}, {decoding}"))
    except CaptionliteError as error:
        raise click.ClickException(str(error)) from None
    for each in points:
        click.echo(
            f"{each.name} {each.recipe}: {each.megabytes:.2f} MB, {each.whole_ms:.2f} ms, CIDEr {each.cider:.3f}"
        )


if __name__ == "__main__":
    main()
