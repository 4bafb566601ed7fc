"""Captions for a stream of frames: a scene that has not changed is not captioned again.

Whether it has is told from a signature: the frame's mean grey on a grid, less its mean over all of it. The distance of
two is the mean of how far the most changed 4 of the 768 cells, 0.5 % of the frame, are apart, in grey levels of 256.
So something small counts in full, while noise drowns in the averages and a flicker of the light in the mean.

Measured on 48 photographs as frames of 640 x 480 (benchmarks/frame_margins.py), against themselves disturbed (the
largest distance of all):
    sensor noise of sigma 3 and 8                   1.0 and 1.7
    compressed as JPEG of quality 75 and 50         1.6 and 2.2
    2 and 3 % brighter or darker, and noise         3.6 and 5.5
and with a figure in them, a person's outline filled from another photograph (the distance that 98 in 100 exceed):
    0.5, 1, 2 and 4 % of the frame                  9, 15, 31 and 41
A figure of 1 % is 103 pixels high. A camera that moves by a pixel is noticed in one scene of eight, at sharp edges; a
change of colour to another of equal grey is not.
"""

from collections import OrderedDict
from dataclasses import dataclass, field
from hashlib import blake2b
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from captionlite.runtime.captioner import Captioner, with_stages
from captionlite.runtime.decoding import Caption, DecodingOptions
from captionlite.runtime.image import ImageSource, load_image, thumbnail

THRESHOLD = 10.0
"""Grey levels from which a scene has changed: twice what flickering light did, a third of a person."""

ROWS, COLUMNS, CELLS = 24, 32, 4

Signature = npt.NDArray[np.float32]
"""Mean grey of every cell less the frame's mean, float32 (ROWS * COLUMNS,)."""

_GREY = np.array((0.299, 0.587, 0.114), np.float32)  # of red, green and blue: ITU-R BT.601, as Pillow's mode L


def signature(frame: ImageSource) -> Signature:
    """What a frame is compared by: 0.4 ms for an array of 640 x 480. Takes and raises what `load_image` does."""
    cells: Signature = (thumbnail(frame, ROWS, COLUMNS) @ _GREY).ravel()
    cells -= cells.mean()
    return cells


def distance(one: Signature, other: Signature) -> float:
    """How far the scenes of two signatures are apart, in grey levels; see the module's text."""
    apart = np.abs(one - other)
    return float(np.partition(apart, -CELLS)[-CELLS:].mean())


@dataclass
class _Scene:
    """What is known of one frame."""

    encoded: dict[str, npt.NDArray[Any]]
    stages_ms: dict[str, float]
    captions: dict[DecodingOptions, Caption] = field(default_factory=dict)


class FrameCaptioner:
    """Captions frames as they come, each new scene once. One thread at a time, like the captioner."""

    def __init__(
        self,
        captioner: Captioner,
        threshold: float = THRESHOLD,
        options: DecodingOptions | None = None,
        remembered: int = 8,
    ) -> None:
        """`options` are those of every frame that brings none of its own.

        The encodings and captions of the latest `remembered` scenes are kept; should the very same frame come again
        (slides, test pictures), it is not computed again.
        """
        self._captioner = captioner
        self._threshold = threshold
        self._options = options or DecodingOptions()
        self._remembered = remembered
        self._scenes: OrderedDict[bytes, _Scene] = OrderedDict()  # by digest of the pixels, the latest last
        self._current: tuple[Signature, _Scene] | None = None

    def caption(self, frame: ImageSource, options: DecodingOptions | None = None) -> tuple[Caption, bool]:
        """The caption of the frame's scene, and whether the scene has changed since the previous call.

        Changed means: at least `threshold` from the frame that was captioned, not from the previous one, so that a
        slow change is noticed in the end. Of an unchanged scene the caption already there is returned, `timings_ms`
        and all; other options decode it again without encoding. Raises ImageError, OptionsError; after either the
        scene is the one before.
        """
        options = options or self._options
        found = signature(frame)
        if self._current is not None and distance(self._current[0], found) < self._threshold:
            return self._told(self._current[1], options), False
        scene = self._seen(frame)
        caption = self._told(scene, options)
        self._current = found, scene
        return caption, True

    def _seen(self, frame: ImageSource) -> _Scene:
        started = perf_counter()
        pixels = load_image(frame, self._captioner.bundle.manifest.image)
        loaded = perf_counter()
        digest = blake2b(pixels.tobytes(), digest_size=16).digest()
        if digest not in self._scenes:
            hashed = perf_counter()
            encoded = self._captioner.encode_pixels(pixels)
            stages_ms = {"image": (loaded - started) * 1e3, "encode": (perf_counter() - hashed) * 1e3}
            self._scenes[digest] = _Scene(encoded, stages_ms)
        self._scenes.move_to_end(digest)
        while len(self._scenes) > self._remembered:
            self._scenes.popitem(last=False)
        return self._scenes[digest]

    def _told(self, scene: _Scene, options: DecodingOptions) -> Caption:
        if options not in scene.captions:
            caption = with_stages(self._captioner.decode(scene.encoded, options), scene.stages_ms)
            if len(scene.captions) >= self._remembered:
                del scene.captions[next(iter(scene.captions))]
            scene.captions[options] = caption
        return scene.captions[options]
