"""What the decoding loop costs beside the graph: `python -m captionlite.benchmarks.loop_overhead PHOTO...`.

Greedy decoding is timed per token, everything of it (state of a new photograph, feeding, choosing, log-probabilities),
against nothing but the interpreter's `invoke()` of the same graph, as often; and a step of beam search against a step
of greedy decoding. All of them take turns within every round, and the median round counts.
"""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any
from unittest.mock import patch

import click

from captionlite.benchmarks.evaluation import describe_recipe
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.decoding import DecodingOptions
from captionlite.runtime.interpreter import without_chatter


@dataclass(frozen=True)
class Overhead:
    """Medians over rounds; times in microseconds, `greedy_over_invoke` and `beam_over_greedy` medians of ratios."""

    bundle: str
    recipe: str
    rounds: int
    tokens_a_round: int
    invoke_us: float
    greedy_us_a_token: float
    greedy_over_invoke: float
    beams: int
    beam_invoke_us: float
    beam_us_a_step: float
    beam_over_greedy: float


def measure(captioner: Captioner, photographs: list[Path], rounds: int, beams: int) -> Overhead:
    """Time a bundle's decoder over photographs that have been encoded before; see the module's text."""
    manifest = captioner.bundle.manifest
    encoded = [captioner.encode(photograph) for photograph in photographs]
    greedy, beam = DecodingOptions(), DecodingOptions(beams=beams)
    raw_invoke = captioner.decoder.graph._interpreter.invoke

    def decode(options: DecodingOptions) -> tuple[float, int]:
        """Seconds and steps of all photographs."""
        steps, seconds = 0, 0.0
        for one in encoded:
            started = perf_counter()
            caption = captioner.decode(one, options)
            seconds += perf_counter() - started
            steps += max(len(caption.tokens), 1)
        return seconds, steps

    def invoke(times: int) -> float:
        started = perf_counter()
        for _ in range(times):
            raw_invoke()
        return (perf_counter() - started) / times

    beam_steps = _steps(captioner, encoded, beam)
    samples: list[dict[str, float]] = []
    tokens = 0
    for _ in range(rounds + 1):  # the first warms up
        sample: dict[str, float] = {}
        decode(greedy)  # back to a batch of one; resizing is no part of a step
        seconds, tokens = decode(greedy)
        sample["greedy"] = seconds / tokens
        sample["invoke"] = invoke(tokens)
        seconds, tokens_again = decode(greedy)
        sample["greedy"] = (sample["greedy"] + seconds / tokens_again) / 2  # before and after what it is held against
        decode(beam)
        sample["beam"] = decode(beam)[0] / beam_steps
        sample["beam_invoke"] = invoke(beam_steps)
        samples.append(sample)
    samples = samples[1:]

    def median_us(key: str) -> float:
        return round(1e6 * statistics.median(sample[key] for sample in samples), 2)

    return Overhead(
        manifest.name,
        describe_recipe(manifest),
        rounds,
        tokens,
        median_us("invoke"),
        median_us("greedy"),
        round(statistics.median(s["greedy"] / s["invoke"] for s in samples), 3),
        beams,
        median_us("beam_invoke"),
        median_us("beam"),
        round(statistics.median(s["beam"] / s["greedy"] for s in samples), 3),
    )


def _steps(captioner: Captioner, encoded: list[dict[str, Any]], options: DecodingOptions) -> int:
    """How many steps a search takes, which is more than its caption has tokens: counted at the loop."""
    loop = captioner.decoder
    step, count = loop.step, 0

    def counted(*args: Any) -> None:
        nonlocal count
        count += 1
        step(*args)

    with patch.object(loop, "step", counted):
        for one in encoded:
            captioner.decode(one, options)
    return count


@click.command()
@click.argument("photographs", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--bundle", "bundles", multiple=True, default=("default",), show_default=True, help="May be repeated.")
@click.option("--rounds", type=click.IntRange(min=1), default=30, show_default=True)
@click.option("--beams", type=click.IntRange(min=2), default=5, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a bundle.")
def main(photographs: tuple[Path, ...], bundles: tuple[str, ...], rounds: int, beams: int, as_json: bool) -> None:
    """Time the decoding loop against the bare graph."""
    for name in bundles:
        with without_chatter():
            captioner = Captioner.from_bundle(name)
            found = measure(captioner, list(photographs), rounds, beams)
        if as_json:
            click.echo(json.dumps(asdict(found)))
            continue
        click.echo(
            f"{found.bundle} ({found.recipe}): greedy {found.greedy_us_a_token:.1f} us a token over invoke() "
            f"{found.invoke_us:.1f} us = {found.greedy_over_invoke:.3f}; beam {found.beams} {found.beam_us_a_step:.1f} "
            f"us a step (invoke() {found.beam_invoke_us:.1f}) over greedy = {found.beam_over_greedy:.3f}"
        )


if __name__ == "__main__":
    main()
