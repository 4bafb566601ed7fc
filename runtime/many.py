"""Captioners side by side for many photographs: what `Captioner.caption_many` runs once there are more than a few."""

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy.typing as npt

from captionlite.runtime import pipeline
from captionlite.runtime.captioner import Captioner, with_stages
from captionlite.runtime.decoding import Caption, DecodingOptions
from captionlite.runtime.errors import ImageError
from captionlite.runtime.image import ImageSource
from captionlite.runtime.together import GROUP, is_greedy

GATHERED = 4 * GROUP
"""Greedy captions that are decoded in one go: the first batch finds the decoder out of the cache, the others do not."""

Encoded = tuple[dict[str, npt.NDArray[Any]], dict[str, float]]
"""The encoder's outputs by name, and milliseconds by stage."""


class Crew:
    """Captioners of one thread each, with graphs of their own. For one `captions` at a time."""

    def __init__(self, captioners: Sequence[Captioner]) -> None:
        self._captioners = captioners

    def captions(self, images: Iterable[ImageSource], options: DecodingOptions) -> Iterator[Caption | ImageError]:
        """Captions in the order of the photographs; errors, threads and look-ahead are those of `pipeline.run`.

        Greedy captions all come from one decoder, in batches: its weights stay in the cache that cores share. Other
        searches take so much longer that every thread decodes.
        """
        encoders = [captioner.encode_timed for captioner in self._captioners]
        decoders = [partial(_decode, captioner, options) for captioner in self._captioners]
        if is_greedy(options):
            return pipeline.run(images, encoders, decoders[:1], GATHERED)
        return pipeline.run(images, encoders, decoders, GROUP)


def _decode(captioner: Captioner, options: DecodingOptions, group: list[Encoded]) -> list[Caption]:
    captions = captioner.decode_many([encoded for encoded, _ in group], options)
    return [with_stages(caption, stages_ms) for (_, stages_ms), caption in zip(group, captions, strict=True)]
