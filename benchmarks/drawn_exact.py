"""How many drawings a bundle captions exactly: `python -m captionlite.benchmarks.drawn_exact BUNDLE...`.

The drawings are those of captionlite.training.datasets.drawn: each has one right caption, and the test split shows
combinations that training never saw. Captions are made by the device runtime, greedily; case and punctuation do not
count. Exits 3 when a bundle stays below --at-least.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import zip_longest
from time import perf_counter
from typing import Any

import click

from captionlite.benchmarks.evaluation import Captions, describe_recipe
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.errors import CaptionliteError
from captionlite.training.datasets import Example, load_dataset
from captionlite.training.scoring import tokenize

_CONFUSIONS_SHOWN = 8


@dataclass(frozen=True)
class Exactness:
    """Exact captions among ``n``, and which word stood in another's place how often, most frequent first."""

    n: int
    exact: int
    confusions: tuple[tuple[str, str, int], ...]  # the right word, the one found, how often; "" where one has none
    seconds: float

    @property
    def share(self) -> float:
        return self.exact / self.n

    def to_json(self) -> dict[str, Any]:
        confusions = [{"expected": a, "found": b, "count": count} for a, b, count in self.confusions]
        return {
            "n": self.n,
            "exact": self.exact,
            "share": round(self.share, 4),
            "confusions": confusions,
            "seconds": round(self.seconds, 3),
        }


def exactness(
    captioner: Captions, examples: Sequence[Example], advance: Callable[[int], None] = lambda done: None
) -> Exactness:
    """Captions every example and compares with its one caption, word by word.

    Raises CaptionliteError when there are no examples, or one has several captions and so no single right one.
    """
    if not examples:
        raise CaptionliteError("no drawings to caption; choose a split that has some")
    started = perf_counter()
    exact = 0
    confusions: Counter[tuple[str, str]] = Counter()
    for example in examples:
        if len(example.captions) != 1:
            raise CaptionliteError(
                f"{example.id}: has {len(example.captions)} captions, expected exactly one; use --data drawn:"
            )
        expected, found = tokenize(example.captions[0]), tokenize(captioner.caption(example.image).text)
        exact += found == expected
        confusions.update(pair for pair in zip_longest(expected, found, fillvalue="") if pair[0] != pair[1])
        advance(1)
    shown = tuple((a, b, count) for (a, b), count in confusions.most_common(_CONFUSIONS_SHOWN))
    return Exactness(len(examples), exact, shown, perf_counter() - started)


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--data", default="drawn:", show_default=True, help="The drawings, as in training.")
@click.option("--split", default="test", show_default=True, help="Which of their splits.")
@click.option("--limit", type=click.IntRange(min=1), help="Only the first so many drawings.")
@click.option("--at-least", type=click.FloatRange(0.0, 1.0), default=0.0, help="The share below which to exit 3.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a bundle.")
def main(bundles: tuple[str, ...], data: str, split: str, limit: int | None, at_least: float, as_json: bool) -> None:
    """Share of drawings that each BUNDLE captions exactly."""
    try:
        examples = load_dataset(data).split(split)[:limit]
        shares = []
        for name in bundles:
            captioner = Captioner.from_bundle(name)
            result = exactness(captioner, examples)
            shares.append(result.share)
            manifest = captioner.bundle.manifest
            if as_json:
                about = {"bundle": name, "family": manifest.family, "recipe": describe_recipe(manifest)}
                click.echo(json.dumps({**result.to_json(), **about, "data": data, "split": split}))
                continue
            click.echo(
                f"{name} ({manifest.family}, {describe_recipe(manifest)}): "
                f"{result.exact} of {result.n} exact, {100 * result.share:.1f} %"
            )
            for expected, found, count in result.confusions:
                click.echo(f"  {count:3} x  {found or 'nothing'} for {expected or 'nothing'}")
    except CaptionliteError as error:
        raise click.ClickException(str(error)) from error
    if min(shares) < at_least:
        sys.exit(3)


if __name__ == "__main__":
    main()
