"""The copies of a photograph that training sees: as it is, mirrored, and views of it, cropped and in another light.

A frozen encoder runs once for each copy (`features`), so copies are numbered and each is the same every time: copy 0
is the photograph as the device will see it, copy 1 its mirror image, copies 2 and up are views.
"""

from __future__ import annotations

import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageEnhance

from captionlite.runtime.image import ImageSource, load_image, open_upright
from captionlite.runtime.manifest import ImageSpec

PLAIN, MIRRORED, FIRST_VIEW = 0, 1, 2

# Part of the key of views in the feature cache: raise it when what follows would draw others.
VERSION = 1
SMALLEST_AREA = 0.5  # of the photograph; much less, and its captions would speak of what is not in the picture
ASPECT = 1.2  # a crop's proportions differ from the photograph's by at most this factor
LIGHT = 0.25  # brightness, contrast and saturation are multiplied by 1 - LIGHT to 1 + LIGHT


def load_copy(source: ImageSource, spec: ImageSpec, copy: int) -> NDArray[np.uint8]:
    """Copy number ``copy`` as uint8 (height, width, 3). Raises ImageError as `load_image` does."""
    if copy < FIRST_VIEW:
        pixels = load_image(source, spec)
        return pixels[:, ::-1] if copy == MIRRORED else pixels
    image = open_upright(source, 2 * max(spec.height, spec.width))
    rng = np.random.default_rng([VERSION, copy, zlib.crc32(image.tobytes())])
    image = image.resize((spec.width, spec.height), Image.Resampling.BILINEAR, box=_crop(image.size, rng))
    for change in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        image = change(image).enhance(rng.uniform(1 - LIGHT, 1 + LIGHT))
    pixels = np.array(image, dtype=np.uint8)
    return pixels[:, ::-1] if rng.random() < 0.5 else pixels


def _crop(size: tuple[int, int], rng: np.random.Generator) -> tuple[float, float, float, float]:
    """A box (left, top, right, bottom) inside an image of ``size`` (width, height)."""
    area = rng.uniform(SMALLEST_AREA, 1.0)
    stretch = np.exp(rng.uniform(-1, 1) * np.log(ASPECT) / 2)
    width, height = (min(1.0, float(np.sqrt(area) * factor)) for factor in (stretch, 1 / stretch))
    left, top = rng.uniform(0, 1 - width), rng.uniform(0, 1 - height)
    return left * size[0], top * size[1], (left + width) * size[0], (top + height) * size[1]
