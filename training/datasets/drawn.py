"""Drawings with exact captions, made on the fly: for tests, and for trying everything without any data.

A drawing shows two or three like shapes in a row, and one other shape above, below, left or right of them, jittered in
place, size and shade, under the grain of a camera: "two red circles above a blue square". There is exactly one right
caption for every drawing. The grain matters: on perfectly even areas the rounding of an int8 encoder is the same error
everywhere (measured: cosine to the float features 0.88 without grain, 0.98 with it, as on photographs).

Combinations of the words are split into train, dev and test, so that dev and test ask for captions never seen in
training.

The spec is ``drawn:`` or ``drawn:COUNT`` (drawings in all, 4000 unless said) or ``drawn:COUNT,SEED``. The pictures are
written once to ~/.cache/captionlite/drawings (or below XDG_CACHE_HOME).
"""

import os
import random
import re
import shutil
import tempfile
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from captionlite.training.datasets.base import Dataset, Example
from captionlite.training.errors import DatasetError

VERSION = 2  # part of the cache folder's name: raise it when the same seed would draw other pictures
DEFAULT_COUNT = 4000
SIZE = 224  # pixels
SMOOTHING = 2  # drawn so many times larger and averaged down
GRAIN = (6.0, 14.0)  # standard deviation of a pixel, from and to
JPEG_QUALITY = 90  # grain makes PNG files four times as large

COLOURS = {"red": (215, 35, 35), "green": (35, 165, 60), "blue": (40, 75, 215), "yellow": (240, 205, 30)}
SHAPES = ("circle", "square", "triangle")
COUNTS = ("two", "three")
PLACES = {"above": (0, -1), "below": (0, 1), "left of": (-1, 0), "right of": (1, 0)}

# Of the combinations that the seed has shuffled, one in ten is dev and one in ten is test.
_HELD_OUT_EVERY = 10

Thing = tuple[str, str]  # colour, shape


@dataclass(frozen=True, order=True)
class Scene:
    """What a drawing shows: ``count`` like things at ``place`` of one other thing."""

    count: str
    things: Thing
    place: str
    other: Thing

    @property
    def caption(self) -> str:
        colour, shape = self.things
        return f"{self.count} {colour} {shape}s {self.place} a {' '.join(self.other)}"


def scenes() -> list[Scene]:
    """Every combination; the two things differ in colour and in shape.

    No single thing stands beside another: "a circle above a square" would be "a square below a circle" as well, two
    right captions for one drawing.
    """
    things = list(product(COLOURS, SHAPES))
    return [
        Scene(count, first, place, other)
        for count, first, place, other in product(COUNTS, things, PLACES, things)
        if first[0] != other[0] and first[1] != other[1]
    ]


def split_scenes(seed: int) -> dict[str, list[Scene]]:
    """The combinations of each split; no combination is in two."""
    shuffled = scenes()
    random.Random(f"drawn scenes {seed}").shuffle(shuffled)
    tenth = len(shuffled) // _HELD_OUT_EVERY
    return {"train": shuffled[2 * tenth :], "dev": shuffled[:tenth], "test": shuffled[tenth : 2 * tenth]}


def draw_scene(scene: Scene, rng: random.Random) -> Image.Image:
    """One drawing of a scene, RGB (SIZE, SIZE)."""
    unit = SIZE * SMOOTHING
    ground = tuple(rng.randint(225, 255) for _ in range(3))
    image = Image.new("RGB", (unit, unit), ground)
    pen = ImageDraw.Draw(image)
    radius = unit * rng.uniform(0.10, 0.13)
    across, down = PLACES[scene.place]
    dx, dy = (unit * rng.uniform(-0.03, 0.03) for _ in range(2))
    centre_x, centre_y = unit / 2 + dx, unit / 2 + dy
    distance = unit * rng.uniform(0.22, 0.26)
    number = COUNTS.index(scene.count) + 2
    for i in range(number):
        # In a row across the line between the two: beside each other above and below, on top of each other at a side.
        along = (i - (number - 1) / 2) * radius * rng.uniform(2.25, 2.35)
        x = centre_x + across * distance + (along if down else 0)
        y = centre_y + down * distance + (along if across else 0)
        _draw_thing(pen, scene.things, x, y, radius, rng)
    _draw_thing(pen, scene.other, centre_x - across * distance, centre_y - down * distance, radius, rng)
    return _grainy(image.reduce(SMOOTHING), rng)


def _grainy(image: Image.Image, rng: random.Random) -> Image.Image:
    noise = np.random.default_rng(rng.getrandbits(64)).normal(0.0, rng.uniform(*GRAIN), (SIZE, SIZE, 3))
    return Image.fromarray(np.clip(np.rint(np.asarray(image) + noise), 0, 255).astype(np.uint8))


def _draw_thing(pen: ImageDraw.ImageDraw, thing: Thing, x: float, y: float, radius: float, rng: random.Random) -> None:
    colour, shape = thing
    shade = rng.randint(-15, 15)
    fill = tuple(min(255, max(0, value + shade)) for value in COLOURS[colour])
    if shape == "circle":
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=fill)
    elif shape == "square":
        half = radius * 0.9
        pen.rectangle((x - half, y - half, x + half, y + half), fill=fill)
    else:
        pen.polygon([(x, y - radius), (x - radius, y + 0.8 * radius), (x + radius, y + 0.8 * radius)], fill=fill)


def detect(path: Path) -> bool:
    """Never: there is nothing on disk to recognize."""
    return False


def load(path: Path) -> Dataset:
    """The drawings of "COUNT", "COUNT,SEED" or "" as a data set with the splits train, dev and test.

    Raises:
        DatasetError: the spec does not read so, asks for fewer than ten drawings, or the cache cannot be written.
    """
    text = "" if str(path) == "." else str(path)
    match = re.fullmatch(r"(\d{1,7})?(?:,(\d{1,9}))?", text)
    if match is None:
        raise DatasetError(f"drawn:{text}: expected drawn:, drawn:COUNT or drawn:COUNT,SEED, for example drawn:2000.")
    count, seed = int(match[1] or DEFAULT_COUNT), int(match[2] or 0)
    if count < _HELD_OUT_EVERY:
        raise DatasetError(f"drawn:{text}: expected at least {_HELD_OUT_EVERY} drawings.")
    folder = _cache_folder() / f"drawn-{VERSION}-{count}-{seed}"
    planned = plan(count, seed)
    if not folder.is_dir():
        try:
            _draw_all(folder, planned, seed)
        except OSError as error:
            raise DatasetError(f"{folder}: the drawings cannot be written: {error.strerror or error}.") from error
    splits = {
        split: tuple(Example(folder / name, (scene.caption,), name) for name, scene in rows)
        for split, rows in planned.items()
    }
    return Dataset(f"drawn_{count}", splits, licence="CC0-1.0")


def plan(count: int, seed: int) -> dict[str, list[tuple[str, Scene]]]:
    """File name and scene of each drawing by split, eight in ten train; a split's scenes are taken in turn."""
    held_out = count // _HELD_OUT_EVERY
    sizes = {"train": count - 2 * held_out, "dev": held_out, "test": held_out}
    return {
        split: [(f"{split}-{i:06d}.jpg", chosen[i % len(chosen)]) for i in range(sizes[split])]
        for split, chosen in split_scenes(seed).items()
    }


def _draw_all(folder: Path, planned: dict[str, list[tuple[str, Scene]]], seed: int) -> None:
    """Draws into a folder beside ``folder`` and renames it, so that a cache is whole or not there."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        for rows in planned.values():
            for name, scene in rows:
                draw_scene(scene, random.Random(f"{seed} {name}")).save(
                    partial / name, quality=JPEG_QUALITY, subsampling=0
                )
        partial.chmod(0o755)
        try:
            os.replace(partial, folder)
        except OSError:
            if not folder.is_dir():  # unless another process has made the same drawings meanwhile
                raise
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def _cache_folder() -> Path:
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path("~/.cache").expanduser()) / "captionlite" / "drawings"
