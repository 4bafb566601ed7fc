"""Caption quality of a bundle on a data set, through the device runtime: what a user of the bundle gets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

from captionlite.runtime.decoding import Caption
from captionlite.runtime.errors import CaptionliteError, ImageError
from captionlite.runtime.image import ImageSource
from captionlite.runtime.manifest import Manifest
from captionlite.training.datasets import Example
from captionlite.training.scoring import Scores, distinct_captions, distinct_words, repeated_phrases, score_captions


class Captions(Protocol):
    """What is evaluated: a `captionlite.runtime.captioner.Captioner`, or anything else that captions a photograph."""

    def caption(self, image: ImageSource) -> Caption: ...


@dataclass(frozen=True)
class EvaluatedPhoto:
    """One photograph: the caption, or the error when it could not be read (then `caption` is None)."""

    example: Example
    caption: Caption | None
    error: str | None = None

    def to_json(self) -> dict[str, Any]:
        """`captionlite caption --json`'s form, with the photograph's id and what people wrote."""
        record: dict[str, Any] = {"id": self.example.id, "image": str(self.example.image)}
        if self.caption is None:
            return {**record, "error": self.error}
        tokens, logprob = list(self.caption.tokens), self.caption.logprob
        return {
            **record,
            "caption": self.caption.text,
            "tokens": tokens,
            "logprob": logprob,
            "references": list(self.example.captions),
        }


@dataclass(frozen=True)
class Evaluation:
    """Scores over the photographs that could be captioned, each figure a mean or count over those."""

    photos: tuple[EvaluatedPhoto, ...]
    scores: Scores
    distinct_words: int
    distinct_captions: int
    repeated_phrases: int
    mean_words: float
    seconds: float  # decoding, resizing and captioning, one photograph after another

    @property
    def failed(self) -> tuple[EvaluatedPhoto, ...]:
        return tuple(photo for photo in self.photos if photo.caption is None)

    def to_json(self) -> dict[str, Any]:
        return {
            **self.scores.to_json(),
            "distinct_words": self.distinct_words,
            "distinct_captions": self.distinct_captions,
            "repeated_phrases": self.repeated_phrases,
            "mean_words": round(self.mean_words, 3),
            "seconds": round(self.seconds, 3),
            "errors": [{"image": str(photo.example.image), "error": photo.error} for photo in self.failed],
        }


def evaluate(
    captioner: Captions, examples: Sequence[Example], advance: Callable[[int], None] | None = None
) -> Evaluation:
    """Caption every example greedily, then score the captions against the examples' own.

    A photograph that cannot be read is kept with its error and left out of the scores. `advance` is called with 1
    after each photograph. Raises CaptionliteError when not one photograph could be captioned.
    """
    started = perf_counter()
    photos = []
    for photo in _caption_all(captioner, examples):
        photos.append(photo)
        if advance is not None:
            advance(1)
    seconds = perf_counter() - started
    captions = {photo.example.id: photo.caption.text for photo in photos if photo.caption is not None}
    if not captions:
        first = f" The first: {photos[0].error}" if photos else ""
        raise CaptionliteError(f"nothing to score: none of {len(photos)} photographs could be captioned.{first}")
    scores = score_captions(captions, {photo.example.id: photo.example.captions for photo in photos})
    texts = list(captions.values())
    return Evaluation(
        photos=tuple(photos),
        scores=scores,
        distinct_words=distinct_words(texts),
        distinct_captions=distinct_captions(texts),
        repeated_phrases=repeated_phrases(texts),
        mean_words=sum(len(text.split()) for text in texts) / len(texts),
        seconds=seconds,
    )


def _caption_all(captioner: Captions, examples: Sequence[Example]) -> Iterator[EvaluatedPhoto]:
    for example in examples:
        try:
            yield EvaluatedPhoto(example, captioner.caption(example.image))
        except ImageError as error:
            yield EvaluatedPhoto(example, None, str(error))


def describe_recipe(manifest: Manifest) -> str:
    """The recipe of the bundle: one name where both graphs share it, else "encoder's/decoder's"."""
    encoder, decoder = manifest.graphs["encoder"].recipe, manifest.graphs["decoder"].recipe
    return encoder if encoder == decoder else f"{encoder}/{decoder}"


def captions_jsonl(photos: Sequence[EvaluatedPhoto]) -> str:
    """One JSON object a line and photograph, in the order evaluated."""
    return "".join(json.dumps(photo.to_json(), ensure_ascii=False) + "\n" for photo in photos)
