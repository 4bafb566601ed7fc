"""Resident memory of one process over thousands of captions: what leaks shows in the difference.

    python -m captionlite.benchmarks.memory --bundle default --count 10000 PHOTO...

First through `Captioner.caption`, then through `Captioner.caption_many`, both in this process.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, islice

import click
import psutil

from captionlite.runtime.captioner import Captioner
from captionlite.runtime.commands.options import decoding_options, read_options
from captionlite.runtime.decoding import Caption, DecodingOptions
from captionlite.runtime.errors import CaptionliteError, ImageError
from captionlite.runtime.interpreter import without_chatter

WARM_UP = 100
"""Captions after which everything is loaded that is loaded once."""


@dataclass(frozen=True)
class Growth:
    """Resident memory in MB (10**6 bytes) after the first WARM_UP captions, after the last, and the difference."""

    captions: int
    warm_mb: float
    last_mb: float
    growth_mb: float


def measure(results: Iterable[Caption | ImageError]) -> Growth:
    """Go through captions and keep none. Raises ImageError at the first photograph that cannot be read."""
    captions, warm_mb = 0, 0.0
    for captions, result in enumerate(results, 1):
        if isinstance(result, ImageError):
            raise result
        if captions == WARM_UP:
            warm_mb = resident_mb()
    last_mb = resident_mb()
    return Growth(captions, warm_mb, last_mb, last_mb - warm_mb)


def resident_mb() -> float:
    """Resident memory of this process in MB (10**6 bytes)."""
    return float(psutil.Process().memory_info().rss / 1e6)


def ways(
    captioner: Captioner, options: DecodingOptions
) -> dict[str, Callable[[Iterable[str]], Iterator[Caption | ImageError]]]:
    """Both ways to caption many photographs, by name."""
    return {
        "caption": lambda images: (captioner.caption(image, options) for image in images),
        "caption_many": lambda images: captioner.caption_many(images, options),
    }


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option("--bundle", default="default", show_default=True, help="Bundle directory, zip or name.")
@click.option("--count", type=click.IntRange(min=WARM_UP + 1), default=10_000, show_default=True, help="Captions each.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads.  [default: all cores]")
@decoding_options
@click.option("--max-growth-mb", type=float, help="Exit 3 when the memory grows by more.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    photos: tuple[str, ...],
    bundle: str,
    count: int,
    threads: int | None,
    max_growth_mb: float | None,
    as_json: bool,
    **decoding: object,
) -> None:
    """Resident memory after the 100th caption and after the last one."""
    try:
        options = read_options(decoding)
        with without_chatter():
            captioner = Captioner.from_bundle(bundle, threads)
        captioner.check(options)
        found = {name: measure(way(islice(cycle(photos), count))) for name, way in ways(captioner, options).items()}
    except CaptionliteError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps({"bundle": bundle, **{name: asdict(growth) for name, growth in found.items()}}))
    else:
        for name, growth in found.items():
            click.echo(
                f"{name:13} {growth.warm_mb:6.1f} MB after {WARM_UP} captions, {growth.last_mb:6.1f} MB after "
                f"{growth.captions}: {growth.growth_mb:+.2f} MB"
            )
    if max_growth_mb is not None and any(growth.growth_mb > max_growth_mb for growth in found.values()):
        sys.exit(3)


if __name__ == "__main__":
    main()
