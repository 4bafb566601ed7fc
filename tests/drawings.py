"""A data set that tests draw for themselves: one coloured shape a picture, with captions that say so."""

from __future__ import annotations

import json
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from captionlite.training.encoders import ENCODERS, EncoderSpec

COLOURS = {"red": (220, 30, 30), "green": (30, 180, 60), "blue": (40, 70, 220), "yellow": (240, 220, 40)}
SHAPES = ("square", "circle", "triangle")
PLACES = {"left": 0.25, "right": 0.75}


def _tiny_encoder(weights: str | None, width: int = 32) -> Any:
    import keras

    image = keras.Input((32, width, 3))
    x = keras.layers.Rescaling(1 / 127.5, offset=-1)(image)
    for number, channels in enumerate((8, 16, 24)):
        x = keras.layers.Conv2D(channels, 3, strides=2, padding="same", name=f"conv_{number}")(x)
        x = keras.layers.ReLU(6.0, name=f"relu_{number}")(x)
    return keras.Model(image, x)


# Importing this module adds encoders that are built, run and converted in no time; the second tells rows from columns.
ENCODERS["tiny"] = EncoderSpec(
    "tiny",
    (32, 32),
    (4, 4, 24),
    "pixel / 127.5 - 1",
    _tiny_encoder,
    block_ends={f"relu_{number}": shape for number, shape in enumerate(((16, 16, 8), (8, 8, 16), (4, 4, 24)))},
)
ENCODERS["wide"] = EncoderSpec("wide", (32, 48), (4, 6, 24), "pixel / 127.5 - 1", partial(_tiny_encoder, width=48))


def draw(colour: str, shape: str, place: str, size: int = 96) -> Image.Image:
    image = Image.new("RGB", (size, size), (245, 245, 245))
    pen, x, y, r = ImageDraw.Draw(image), PLACES[place] * size, size / 2, size / 5
    if shape == "square":
        pen.rectangle((x - r, y - r, x + r, y + r), fill=COLOURS[colour])
    elif shape == "circle":
        pen.ellipse((x - r, y - r, x + r, y + r), fill=COLOURS[colour])
    else:
        pen.polygon([(x, y - r), (x - r, y + r), (x + r, y + r)], fill=COLOURS[colour])
    return image


def write_drawings(folder: Path, *, dev_every: int = 4) -> Path:
    """Twenty-four pictures and their captions.jsonl; every ``dev_every``-th is in the dev split. Returns the file."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for number, (colour, shape, place) in enumerate(product(COLOURS, SHAPES, PLACES)):
        name = f"images/{colour}-{shape}-{place}.png"
        draw(colour, shape, place).save(folder / name)
        captions = [f"A {colour} {shape} on the {place}.", f"There is a {colour} {shape}."]
        split = "dev" if number % dev_every == 0 else "train"
        lines.append(json.dumps({"image": name, "captions": captions, "split": split}))
    path = folder / "captions.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


TINY_PRESET = {
    "name": "tiny",
    "encoder": {"name": "tiny", "weights": None},
    "family": {
        "name": "transformer",
        "layers": 1,
        "units": 16,
        "heads": 2,
        "key_dim": 8,
        "feed_forward": 16,
        "dropout": 0.1,
        "max_length": 8,
    },
    "optimizer": {"learning_rate": 0.003},
    "batch_size": 4,
    "epochs": 3,
    "flip": True,
    "monitor": "cider",
    "seed": 3,
}
