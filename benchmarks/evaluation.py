"""Caption quality of a bundle on a data set, through the device runtime: what a user of the bundle gets."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from time import perf_counter
from typing import Any, Protocol

from captionlite.runtime.decoding import Caption, DecodingOptions
from captionlite.runtime.errors import CaptionliteError, ImageError
from captionlite.runtime.image import ImageSource
from captionlite.runtime.manifest import Manifest
from captionlite.training.datasets import Example
from captionlite.training.scoring import (
    PhotoScores,
    Scores,
    distinct_captions,
    distinct_words,
    repeated_phrases,
    score_hypotheses,
    score_photographs,
)


class Captions(Protocol):
    """A `captionlite.runtime.captioner.Captioner`, or anything else that captions a photograph."""

    def caption(self, image: ImageSource, options: DecodingOptions | None = None) -> Caption: ...


class ManyCaptions(Protocol):
    """What is evaluated: a `Captioner`, or anything else that captions photographs in order, errors in their place."""

    def caption_many(
        self, images: Iterable[ImageSource], options: DecodingOptions | None = None
    ) -> Iterator[Caption | ImageError]: ...


@dataclass(frozen=True)
class EvaluatedPhoto:
    """One photograph: the caption and its scores, or the error when it could not be read (then the others are None).

    `alternatives_cider` has the CIDEr of each of the caption's alternatives, where n-best was asked for.
    """

    example: Example
    caption: Caption | None
    error: str | None = None
    scores: PhotoScores | None = None
    alternatives_cider: tuple[float, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """`captionlite caption --json`'s form, with the photograph's id, scores, and what people wrote."""
        record: dict[str, Any] = {"id": self.example.id, "image": str(self.example.image)}
        if self.caption is None:
            return {**record, "error": self.error}
        record |= {
            "caption": self.caption.text,
            "tokens": list(self.caption.tokens),
            "logprob": self.caption.logprob,
        }
        if self.caption.confidence is not None:
            record["confidence"] = round(self.caption.confidence, 4)
        if self.scores is not None:
            record |= {name: round(value, 4) for name, value in asdict(self.scores).items()}
        if self.alternatives_cider:
            record["alternatives"] = [
                {"caption": other.text, "logprob": other.logprob, "score": other.score, "cider": round(cider, 4)}
                for other, cider in zip(self.caption.alternatives, self.alternatives_cider, strict=True)
            ]
        return {**record, "references": list(self.example.captions)}


@dataclass(frozen=True)
class NBest:
    """What lies among the `n` hypotheses a photograph.

    `oracle_cider` takes, of each photograph's hypotheses, the one whose CIDEr is best: nobody can do that without the
    references, so it is no score of the bundle but how much a better ranking could win at most. `mean_cider` takes
    them all, and so says what picking one blindly is worth. `distinct` is how many of the n differ, on average.
    """

    n: int
    oracle_cider: float
    mean_cider: float
    distinct: float

    def to_json(self) -> dict[str, float | int]:
        return {
            "n_best": self.n,
            "oracle_cider": round(self.oracle_cider, 5),
            "n_best_mean_cider": round(self.mean_cider, 5),
            "n_best_distinct_captions": round(self.distinct, 3),
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
    seconds: float  # from the first photograph to the last caption, on all the captioner's threads
    n_best: NBest | None = None

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
            **({} if self.n_best is None else self.n_best.to_json()),
            "seconds": round(self.seconds, 3),
            "errors": [{"image": str(photo.example.image), "error": photo.error} for photo in self.failed],
        }


def evaluate(
    captioner: ManyCaptions,
    examples: Sequence[Example],
    advance: Callable[[int], None] | None = None,
    options: DecodingOptions | None = None,
) -> Evaluation:
    """Caption every example by the options (greedily by default), then score the captions against the examples' own.

    With `n_best` among the options, all those hypotheses are scored as well. A photograph that cannot be read is kept
    with its error and left out of the scores. `advance` is called with 1 after each photograph. Raises
    CaptionliteError when not one photograph could be captioned.
    """
    options = options or DecodingOptions()
    started = perf_counter()
    photos = []
    found = captioner.caption_many((example.image for example in examples), options)
    for example, caption in zip(examples, found, strict=True):
        if isinstance(caption, ImageError):
            photos.append(EvaluatedPhoto(example, None, str(caption)))
        else:
            photos.append(EvaluatedPhoto(example, caption))
        if advance is not None:
            advance(1)
    seconds = perf_counter() - started
    captions = {photo.example.id: photo.caption for photo in photos if photo.caption is not None}
    if not captions:
        first = f" The first: {photos[0].error}" if photos else ""
        raise CaptionliteError(f"nothing to score: none of {len(photos)} photographs could be captioned.{first}")
    references = {photo.example.id: photo.example.captions for photo in photos}
    scores, each = score_photographs({key: caption.text for key, caption in captions.items()}, references)
    n_best: NBest | None = None
    alternatives: dict[str, tuple[float, ...]] = {}
    if options.n_best > 1:
        n_best, alternatives = _score_n_best(captions, references, options.n_best)
    texts = [caption.text for caption in captions.values()]
    return Evaluation(
        photos=tuple(
            replace(photo, scores=each.get(photo.example.id), alternatives_cider=alternatives.get(photo.example.id, ()))
            for photo in photos
        ),
        scores=scores,
        distinct_words=distinct_words(texts),
        distinct_captions=distinct_captions(texts),
        repeated_phrases=repeated_phrases(texts),
        mean_words=sum(len(text.split()) for text in texts) / len(texts),
        seconds=seconds,
        n_best=n_best,
    )


def _score_n_best(
    captions: Mapping[str, Caption], references: Mapping[str, Sequence[str]], n: int
) -> tuple[NBest, dict[str, tuple[float, ...]]]:
    """The summary, and each photograph's CIDEr of its alternatives. A search may end with fewer than n of them."""
    texts = {key: [c.text, *(other.text for other in c.alternatives)] for key, c in captions.items()}
    cider = score_hypotheses(texts, references)
    every = list(cider.values())
    summary = NBest(
        n=n,
        oracle_cider=fmean(max(scores) for scores in every),
        mean_cider=fmean(fmean(scores) for scores in every),
        distinct=fmean(distinct_captions(found) for found in texts.values()),
    )
    return summary, {key: tuple(scores[1:]) for key, scores in cider.items()}


def describe_recipe(manifest: Manifest) -> str:
    """The recipe of the bundle: one name where both graphs share it, else "encoder's/decoder's"."""
    encoder, decoder = manifest.graphs["encoder"].recipe, manifest.graphs["decoder"].recipe
    return encoder if encoder == decoder else f"{encoder}/{decoder}"


def captions_jsonl(photos: Sequence[EvaluatedPhoto]) -> str:
    """One JSON object a line and photograph, in the order evaluated."""
    return "".join(json.dumps(photo.to_json(), ensure_ascii=False) + "\n" for photo in photos)
