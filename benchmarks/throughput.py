"""Photographs a second: `Captioner.caption_many` against `Captioner.caption` in a loop.

    python -m captionlite.benchmarks.throughput --bundle default FOLDER

Both caption the same photographs with the same captioner, from file to text, and take turns: other work on the machine
then hits both alike. A round is a turn of each; the ratio is the median of the rounds' ratios. Every caption must be
equal to the last bit of its log-probabilities.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from time import perf_counter

import click

from captionlite.runtime.captioner import Captioner
from captionlite.runtime.commands.options import decoding_options, read_options
from captionlite.runtime.commands.photographs import expand
from captionlite.runtime.decoding import Caption, DecodingOptions
from captionlite.runtime.errors import CaptionliteError, ImageError
from captionlite.runtime.interpreter import core_count, without_chatter


@dataclass(frozen=True)
class Throughput:
    """Photographs a second, medians over rounds; `ratio` is the median of the rounds' own ratios."""

    photographs: int
    unreadable: int
    cores: int
    load_average: float
    one_at_a_time: float
    caption_many: float
    ratio: float
    rounds_ratios: tuple[float, ...]


def one_at_a_time(captioner: Captioner, images: list[str], options: DecodingOptions) -> Iterator[Caption | ImageError]:
    """The loop that anybody would write."""
    for image in images:
        try:
            yield captioner.caption(image, options)
        except ImageError as error:
            yield error


def measure(
    captioner: Captioner,
    images: list[str],
    options: DecodingOptions,
    rounds: int,
    progress: Callable[[str, float], None] = lambda side, rate: None,
) -> Throughput:
    """Time both, `rounds` times in turn after a few uncounted photographs.

    Raises CaptionliteError when a caption is not the same both ways.
    """
    sides: dict[str, Callable[[list[str]], Iterator[Caption | ImageError]]] = {
        "one_at_a_time": lambda some: one_at_a_time(captioner, some, options),
        "caption_many": lambda some: captioner.caption_many(some, options),
    }
    rates: dict[str, list[float]] = {side: [] for side in sides}
    for side in sides.values():
        for _ in side(images[:50]):  # loads everything that is loaded once
            pass
    expected: list[object] = []
    for _ in range(rounds):
        for name, side in sides.items():
            started = perf_counter()
            results = list(side(images))
            rates[name].append(len(images) / (perf_counter() - started))
            progress(name, rates[name][-1])
            found = [told(result) for result in results]
            expected = expected or found
            for image, one, other in zip(images, expected, found, strict=True):
                if one != other:
                    raise CaptionliteError(f"{image}: {name} says {other}, expected {one} as before.")
    ratios = tuple(b / a for a, b in zip(rates["one_at_a_time"], rates["caption_many"], strict=True))
    return Throughput(
        photographs=len(images),
        unreadable=sum(isinstance(result, ImageError) for result in results),
        cores=core_count(),
        load_average=os.getloadavg()[0],
        one_at_a_time=median(rates["one_at_a_time"]),
        caption_many=median(rates["caption_many"]),
        ratio=median(ratios),
        rounds_ratios=ratios,
    )


def told(result: Caption | ImageError) -> object:
    """What must be equal: the text, and every bit of the numbers behind it."""
    if isinstance(result, ImageError):
        return str(result)
    others = [(other.tokens, other.logprobs) for other in result.alternatives]
    attention = None if result.attention is None else result.attention.tobytes()
    return result.text, result.tokens, result.logprobs, others, attention


@click.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--bundle", default="default", show_default=True, help="Bundle directory, zip or name.")
@click.option("--count", type=click.IntRange(min=1), help="So many photographs, some several times if there are fewer.")
@click.option("--rounds", type=click.IntRange(min=1), default=5, show_default=True, help="Turns of each.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of both.  [default: all cores]")
@decoding_options
@click.option("--min-ratio", type=float, help="Exit 3 when caption_many is less than so many times as fast.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    folder: Path,
    bundle: str,
    count: int | None,
    rounds: int,
    threads: int | None,
    min_ratio: float | None,
    as_json: bool,
    **decoding: object,
) -> None:
    """Photographs a second, one at a time and through caption_many, taking turns."""
    try:
        options = read_options(decoding)
        names = [name for name in expand([str(folder)]) if not isinstance(name, ImageError)]
        if not names:
            raise CaptionliteError(f"{folder}: no image in this folder.")
        with without_chatter():
            captioner = Captioner.from_bundle(bundle, threads)
        captioner.check(options)
        images = list(islice(cycle(names), count or len(names)))
        result = measure(captioner, images, options, rounds, _show)
    except CaptionliteError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps({"bundle": bundle, "folder": str(folder), **asdict(result)}))
    else:
        click.echo(f"{result.photographs} photographs, {result.cores} cores, load average {result.load_average:.1f}")
        click.echo(f"one at a time   {result.one_at_a_time:7.1f} photographs a second")
        click.echo(f"caption_many    {result.caption_many:7.1f} photographs a second, the same captions")
        least, most = min(result.rounds_ratios), max(result.rounds_ratios)
        click.echo(f"ratio           {result.ratio:7.2f} ({least:.2f} to {most:.2f} in {rounds} rounds)")
    if min_ratio is not None and result.ratio < min_ratio:
        sys.exit(3)


def _show(side: str, rate: float) -> None:
    click.echo(f"{side:14} {rate:7.1f} a second", err=True)


if __name__ == "__main__":
    main()
