"""How far apart disturbances and newcomers move a scene's signature: what the threshold of `runtime.frames` rests on.

    python -m captionlite.benchmarks.frame_margins PHOTO...

Every photograph, as a frame of 640 x 480, is compared with itself disturbed (sensor noise, compression, flickering
light, a moved camera), and with itself after a figure has come in: a person's outline filled from another photograph,
somewhere in the frame, with noise of sigma 5 on both frames.
"""

from __future__ import annotations

import io
import json
import sys
from collections.abc import Callable, Iterator
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from captionlite.runtime.frames import THRESHOLD, distance, signature
from captionlite.runtime.image import open_upright

WIDTH, HEIGHT = 640, 480
Frame = npt.NDArray[np.uint8]  # (HEIGHT, WIDTH, 3)
Pair = tuple[Frame, Frame]

SHARES = (0.005, 0.01, 0.02, 0.04)
"""Parts of the frame that a figure covers."""


def frame_of(photo: str) -> Frame:
    """A photograph as a frame, what sticks out cut off. Raises ImageError."""
    image = open_upright(photo, 4 * WIDTH)
    scale = max(WIDTH / image.width, HEIGHT / image.height)
    size = (max(round(image.width * scale), WIDTH), max(round(image.height * scale), HEIGHT))
    return np.asarray(image.resize(size, Image.Resampling.LANCZOS).crop((0, 0, WIDTH, HEIGHT)))


def noisy(frame: npt.NDArray[Any], sigma: float, random: np.random.Generator) -> Frame:
    """With the noise of a sensor, independent in every pixel and colour."""
    noise = random.normal(0.0, sigma, frame.shape).astype(np.float32)
    disturbed: Frame = np.clip(np.rint(frame + noise), 0, 255).astype(np.uint8)
    return disturbed


def brighter(frame: Frame, factor: float) -> npt.NDArray[np.float32]:
    """In other light; what is white stays white."""
    lit: npt.NDArray[np.float32] = np.clip(frame.astype(np.float32) * factor, 0, 255)
    return lit


def compressed(frame: Frame, quality: int) -> Frame:
    """As JPEG and back."""
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return np.asarray(Image.open(buffer))


def with_figure(frame: Frame, other: Frame, share: float, random: np.random.Generator) -> Frame:
    """With a standing figure that covers `share` of the frame, filled with a piece of another frame."""
    height = min(round((share * WIDTH * HEIGHT * 2.6 / 0.75) ** 0.5), HEIGHT)
    width = round(height / 2.6)
    outline = Image.new("L", (2 * width, 2 * height))
    pen = ImageDraw.Draw(outline)
    pen.ellipse((0.6 * width, 0, 1.4 * width, 0.4 * height), fill=255)
    pen.rounded_rectangle((0.1 * width, 0.36 * height, 1.9 * width, 2 * height), width / 2, fill=255)
    top, left = (int(random.integers(0, most + 1)) for most in (HEIGHT - height, WIDTH - width))
    y, x = (int(random.integers(0, most + 1)) for most in (HEIGHT - height, WIDTH - width))
    image = Image.fromarray(frame)
    image.paste(Image.fromarray(other[y : y + height, x : x + width]), (left, top), outline.resize((width, height)))
    return np.asarray(image)


def disturbances(frame: Frame, random: np.random.Generator) -> Iterator[tuple[str, Pair]]:
    """The same scene twice, by what lies between."""

    def noise(clean: npt.NDArray[Any], sigma: float = 5.0) -> Frame:
        return noisy(clean, sigma, random)

    for sigma in (3, 8):
        yield f"noise of sigma {sigma}", (noise(frame, sigma), noise(frame, sigma))
    for quality in (75, 50):
        yield f"JPEG of quality {quality}", (frame, compressed(frame, quality))
    for percent in (-3, -2, 2, 3):
        yield f"light {percent:+} %, noise of sigma 5", (noise(frame), noise(brighter(frame, 1 + percent / 100)))
    yield "moved by a pixel, noise of sigma 5", (noise(frame), noise(np.roll(frame, 1, axis=1)))


def measure(
    frames: list[Frame], figures: int, seed: int, advance: Callable[[], None] = lambda: None
) -> dict[str, npt.NDArray[np.float64]]:
    """Distances by what was done to the frames; `figures` for each frame and size of a figure."""
    random = np.random.default_rng(seed)
    found: dict[str, list[float]] = {}

    def compare(name: str, pair: Pair) -> None:
        found.setdefault(name, []).append(distance(signature(pair[0]), signature(pair[1])))

    for frame in frames:
        for name, pair in disturbances(frame, random):
            compare(name, pair)
        for share in SHARES:
            for _ in range(figures):
                changed = with_figure(frame, frames[random.integers(len(frames))], share, random)
                compare(f"a figure of {share:.1%}", (noisy(frame, 5.0, random), noisy(changed, 5.0, random)))
        advance()
    return {name: np.array(distances) for name, distances in found.items()}


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False))
@click.option(
    "--figures", type=click.IntRange(min=1), default=10, show_default=True, help="Of each size in each frame."
)
@click.option("--seed", type=int, default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(photos: tuple[str, ...], figures: int, seed: int, as_json: bool) -> None:
    """Distances between a scene and itself disturbed, and itself with somebody in it."""
    with click.progressbar(length=len(photos), label="comparing", file=sys.stderr) as bar:
        found = measure([frame_of(photo) for photo in photos], figures, seed, lambda: bar.update(1))
    rows = {
        name: {
            "frames": len(distances),
            "least": distances.min(),
            "exceeded_by_98_percent": np.quantile(distances, 0.02),
            "median": np.median(distances),
            "greatest": distances.max(),
            "noticed": float((distances >= THRESHOLD).mean()),
        }
        for name, distances in found.items()
    }
    if as_json:
        click.echo(json.dumps({"photographs": len(photos), "threshold": THRESHOLD, "distances": rows}))
        return
    click.echo(f"{'grey levels':36}{'least':>8}{'98 %':>8}{'median':>8}{'most':>8}{'noticed':>10}")
    for name, row in rows.items():
        figures_of = [row[key] for key in ("least", "exceeded_by_98_percent", "median", "greatest")]
        click.echo(f"{name:36}" + "".join(f"{value:8.1f}" for value in figures_of) + f"{row['noticed']:10.1%}")


if __name__ == "__main__":
    main()
