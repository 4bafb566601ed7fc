"""From process start to a caption: `captionlite caption` against the same caption through Keras in TensorFlow.

    python -m captionlite.benchmarks.cold_start --bundle BUNDLE --run RUN --image IMAGE

Both are fresh processes that caption the same photograph greedily with the same trained weights: the one from the
exported bundle, the other from the run it was exported from. They alternate, after one uncounted turn each that fills
the file cache and writes the .pyc files; time and peak memory are medians.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import click

from captionlite.benchmarks.process import Measurement, measure
from captionlite.runtime.errors import CaptionliteError

CAPTIONLITE, KERAS = "captionlite", "keras"


@dataclass(frozen=True)
class Side:
    """One of the two: its caption and every counted turn."""

    caption: str
    turns: tuple[Measurement, ...]

    @property
    def seconds(self) -> float:
        return median(turn.seconds for turn in self.turns)

    @property
    def peak_memory_bytes(self) -> float:
        return median(turn.peak_memory_bytes for turn in self.turns)

    def to_json(self) -> dict[str, Any]:
        return {
            "caption": self.caption,
            "seconds": self.seconds,
            "peak_memory_bytes": self.peak_memory_bytes,
            "turns_seconds": [turn.seconds for turn in self.turns],
            "turns_peak_memory_bytes": [turn.peak_memory_bytes for turn in self.turns],
        }


def captionlite_command(bundle: str, image: str, delegate: str | None = None) -> list[str]:
    """The console script beside this interpreter, or what it does where it is not installed as a script."""
    script = Path(sys.executable).with_name("captionlite")
    start = (
        [str(script)] if script.exists() else [sys.executable, "-c", "import captionlite.runtime.cli as c; c.main()"]
    )
    delegated = [] if delegate is None else ["--delegate", delegate, "--delegate-required"]
    return [*start, "caption", "--bundle", bundle, *delegated, image]


def keras_command(run: str, image: str) -> list[str]:
    return [sys.executable, "-m", "captionlite.benchmarks.keras_caption", run, image]


def alternate(
    commands: dict[str, list[str]], repeats: int, progress: Callable[[str, Measurement], None] | None = None
) -> dict[str, Side]:
    """Run the commands in turn, `repeats` times each after one uncounted turn.

    Raises CaptionliteError when one fails, or does not print the same line every time.
    """
    environment = {**os.environ, "KERAS_BACKEND": "tensorflow", "CUDA_VISIBLE_DEVICES": "", "TF_CPP_MIN_LOG_LEVEL": "3"}
    turns: dict[str, list[Measurement]] = {name: [] for name in commands}
    for _ in range(repeats + 1):
        for name, command in commands.items():
            turn = measure(command, environment)
            if turn.returncode:
                raise CaptionliteError(f"{name} failed (exit {turn.returncode}): {turn.stderr.strip()[-1000:]}")
            turns[name].append(turn)
            if progress is not None:
                progress(name, turn)
    for name, done in turns.items():
        if len({turn.stdout for turn in done}) > 1:
            raise CaptionliteError(f"{name} printed different captions: {sorted({turn.stdout for turn in done})}")
    return {name: Side(done[0].stdout.strip(), tuple(done[1:])) for name, done in turns.items()}


def compare(sides: dict[str, Side]) -> dict[str, Any]:
    """Both sides and captionlite's share of Keras's time and memory (0.1: a tenth)."""
    ours, keras = sides[CAPTIONLITE], sides[KERAS]
    return {
        **{name: side.to_json() for name, side in sides.items()},
        "same_caption": ours.caption == keras.caption,
        "time_ratio": ours.seconds / keras.seconds,
        "memory_ratio": ours.peak_memory_bytes / keras.peak_memory_bytes,
    }


@click.command()
@click.option("--bundle", default="default", show_default=True, help="Bundle directory, zip or name.")
@click.option("--run", required=True, type=click.Path(exists=True, file_okay=False), help="The run it came from.")
@click.option("--image", required=True, type=click.Path(exists=True, dir_okay=False), help="Photograph to caption.")
@click.option("--repeats", type=click.IntRange(min=1), default=5, show_default=True, help="Counted turns of each.")
@click.option("--max-time-ratio", type=float, help="Exit 3 when captionlite takes more than this share of the time.")
@click.option("--max-memory-ratio", type=float, help="Exit 3 when it takes more than this share of the memory.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    bundle: str,
    run: str,
    image: str,
    repeats: int,
    max_time_ratio: float | None,
    max_memory_ratio: float | None,
    as_json: bool,
) -> None:
    """Time and peak memory from process start to caption: captionlite against Keras in TensorFlow."""
    commands = {CAPTIONLITE: captionlite_command(bundle, image), KERAS: keras_command(run, image)}

    def show(name: str, turn: Measurement) -> None:
        click.echo(f"{name:12} {turn.seconds:7.3f} s {turn.peak_memory_bytes / 1e6:7.0f} MB", err=True)

    try:
        result = compare(alternate(commands, repeats, show))
    except CaptionliteError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps({"bundle": bundle, "run": run, "image": image, "repeats": repeats, **result}))
    else:
        for name in (CAPTIONLITE, KERAS):
            side = result[name]
            figures = f"{side['seconds']:.3f} s, {side['peak_memory_bytes'] / 1e6:.0f} MB"
            click.echo(f"{name:12} {figures:18} {side['caption']}")
        click.echo(
            f"captionlite takes {result['time_ratio']:.3f} of the time, {result['memory_ratio']:.3f} of the memory"
        )
    if not result["same_caption"]:
        click.echo(
            "the captions differ (expected now and then of a quantized bundle, never of a float32 one)", err=True
        )
    limits = ((result["time_ratio"], max_time_ratio), (result["memory_ratio"], max_memory_ratio))
    if any(limit is not None and ratio > limit for ratio, limit in limits):
        sys.exit(3)


if __name__ == "__main__":
    main()
