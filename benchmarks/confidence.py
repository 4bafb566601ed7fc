"""Fits what `Caption.confidence` means: the chance that a caption fits its photograph, from its mean log-probability.

Whether a caption fits is judged by the words of the people who described the photograph (`EVENT`), which no human needs
to watch. That is a stand-in. On 144 photographs of Flickr8k's and the everyday set's dev splits it agreed with a
reader who looked at photograph and caption (right subject and action; a wrong colour, number or sex forgiven) on 176
of 228 captions (Cohen's kappa 0.54): on 133 of the 168 that it was chosen with and 43 of 60 others. Where it said
"fits" the reader agreed on 83 of 111; where it said "not", people often had used other words for the same thing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from captionlite.benchmarks.calibration import Bools, Floats, Quality, fit_platt, probability, quality
from captionlite.export.model_card import CARD_FILE, with_confidence
from captionlite.runtime.bundle import MAX_MANIFEST_BYTES, Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.decoding import DecodingOptions
from captionlite.runtime.errors import BundleError, CaptionliteError, ImageError
from captionlite.runtime.files import write_bytes_atomically
from captionlite.runtime.jsonreader import parse_json
from captionlite.runtime.manifest import MANIFEST_FILE, ConfidenceSpec, Manifest
from captionlite.training.datasets import Example
from captionlite.training.scoring import tokenize

EVENT = (
    "at least half of the caption's content words were used by people who described the photograph, "
    "and one of them by most of these people"
)
DECODINGS = {"greedy": DecodingOptions(), "beam 3": DecodingOptions(beams=3)}
FORMAT_WITH_CONFIDENCE = (1, 2)
SEED = 0

# Words that say nothing of what is in a photograph. Numbers and colours do.
_STOP_WORDS = """
a an the this that these those some another other others such its his her hers their theirs our your my
he she it they him them we us you i who whom whose which what one ones there here
is are was were be been being am has have had having do does did doing can could will would may might
and or but nor so while when where as than then if not no very just also too
of in on at to into onto from with without by for over under up down out off near next through across along
around about behind between among above below beside besides beneath against inside outside toward towards upon
front back top during before after each both all
"""
STOP_WORDS = frozenset(_STOP_WORDS.split())


def content_words(text: str) -> list[str]:
    """The different words of a text that say what is there, in order, without their endings ("runs" is "running")."""
    return list(dict.fromkeys(_stem(word) for word in tokenize(text) if word not in STOP_WORDS))


def _stem(word: str) -> str:
    """A word without the endings that inflection adds; what is left need not be a word."""
    for ending in ("ing", "ies", "es", "s", "ed"):
        if word.endswith(ending) and len(word) - len(ending) >= 3 and not (ending == "s" and word.endswith("ss")):
            word = word.removesuffix(ending) + ("y" if ending == "ies" else "")
            break
    if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "sl":  # running, runn
        word = word[:-1]
    return word[:-1] if len(word) > 3 and word.endswith("e") else word  # riding, rid; ride


def fits(caption: str, references: Sequence[str]) -> bool:
    """`EVENT` for one caption and what people wrote. A caption without content words fits nothing."""
    words = content_words(caption)
    people = [set(content_words(reference)) for reference in references]
    said_by = [sum(word in one for one in people) for word in words]
    return bool(words) and 2 * sum(n > 0 for n in said_by) >= len(words) and any(2 * n > len(people) for n in said_by)


@dataclass(frozen=True)
class Judged:
    """One caption: of which photograph of which data, decoded how, its mean log-probability, and whether it fits."""

    data: str
    photograph: str
    decoding: str
    logprob: float
    fits: bool


def judge(
    captioner: Captioner, data: str, examples: Sequence[Example], advance: Callable[[int], None] = lambda done: None
) -> Iterator[Judged | ImageError]:
    """Each photograph captioned in each of `DECODINGS`; the error of one that cannot be read."""
    for example in examples:
        try:
            encoded = captioner.encode(example.image)
        except ImageError as error:
            yield error
        else:
            for name, options in DECODINGS.items():
                caption = captioner.decode(encoded, options)
                fitting = fits(caption.text, example.captions)
                yield Judged(data, example.id, name, caption.logprob, fitting)
        advance(1)


@dataclass(frozen=True)
class Group:
    """Captions of one data set, decoded one way: their mean cross-fitted confidence, and how many fit."""

    data: str
    decoding: str
    n: int
    mean_confidence: float
    share: float


@dataclass(frozen=True)
class Calibration:
    """The fit on all captions, and the quality that fits on one half of the photographs had on the other."""

    slope: float
    intercept: float
    photographs: int
    quality: Quality
    groups: tuple[Group, ...]

    @property
    def useful(self) -> bool:
        """Whether the confidence knows more than how often captions fit."""
        return self.slope > 0 and self.quality.brier < self.quality.brier_base_rate

    def to_json(self) -> dict[str, Any]:
        return {
            "slope": self.slope,
            "intercept": self.intercept,
            "photographs": self.photographs,
            "captions": self.quality.n,
            **{name: value for name, value in self.quality.to_json().items() if name != "n"},
            "groups": [
                {**vars(group), "mean_confidence": round(group.mean_confidence, 4), "share": round(group.share, 4)}
                for group in self.groups
            ],
        }


def calibrate(judged: Sequence[Judged]) -> Calibration:
    """Fit, and judge the fit on photographs that it has not seen: each half of them by the fit on the other.

    Captions of one photograph are always in the same half. Raises CaptionliteError for too few photographs.
    """
    logprobs = np.array([one.logprob for one in judged])
    events = np.array([one.fits for one in judged], bool)
    keys = [(one.data, one.photograph) for one in judged]
    photographs = list(dict.fromkeys(keys))
    order = np.random.default_rng(SEED).permutation(len(photographs))
    half_of = {photographs[index]: place % 2 for place, index in enumerate(order)}
    halves = np.array([half_of[key] for key in keys], int)
    for part in (events[halves == 0], events[halves == 1]):
        if not (part.any() and (~part).any()):
            raise CaptionliteError(
                f"cannot fit a confidence: of {len(photographs)} photographs' {len(events)} captions {events.sum()} "
                f"fit, and each half needs some that do and some that do not. Give more photographs."
            )
    confidences, base_rates = _cross_fit(logprobs, events, halves)
    slope, intercept = fit_platt(logprobs, events)
    groups = []
    for data, decoding in dict.fromkeys((one.data, one.decoding) for one in judged):
        inside = np.array([(one.data, one.decoding) == (data, decoding) for one in judged])
        mean, share = float(confidences[inside].mean()), float(events[inside].mean())
        groups.append(Group(data, decoding, int(inside.sum()), mean, share))
    return Calibration(
        slope=slope,
        intercept=intercept,
        photographs=len(photographs),
        quality=quality(confidences, events, logprobs, base_rates),
        groups=tuple(groups),
    )


def _cross_fit(logprobs: Floats, events: Bools, halves: Any) -> tuple[Floats, Floats]:
    """Each caption's confidence by the fit on the other half, and the other half's share of captions that fit."""
    confidences, base_rates = np.empty(len(events)), np.empty(len(events))
    for half in (0, 1):
        here, other = halves == half, halves != half
        confidences[here] = probability(*fit_platt(logprobs[other], events[other]), logprobs[here])
        base_rates[here] = events[other].mean()
    return confidences, base_rates


def write_confidence(directory: Path, spec: ConfidenceSpec, measured: dict[str, Any]) -> Manifest:
    """Put a confidence into a bundle directory's manifest and model card; `measured` goes to the provenance.

    Every file is replaced whole, and after every step the bundle opens: while the card is being changed, the manifest
    does not list it. Fields of a newer minor format are kept. Raises BundleError when the bundle does not open, or
    cannot be written.
    """
    Bundle.open(directory)
    path, card = directory / MANIFEST_FILE, directory / CARD_FILE
    found = parse_json(path.read_bytes()[: MAX_MANIFEST_BYTES + 1], str(path))
    found["format"] = list(max(tuple(found["format"]), FORMAT_WITH_CONFIDENCE))
    found["decoding"]["confidence"] = dict(vars(spec))
    found["provenance"]["confidence"] = measured
    manifest = Manifest.from_json(found, str(path))
    try:
        if card.is_file():
            text = with_confidence(card.read_text(encoding="utf-8"), manifest).encode()
            listed = dict(found["files"])
            found["files"].pop(CARD_FILE, None)
            _write_manifest(path, found)
            write_bytes_atomically(card, text)
            listed[CARD_FILE] = {"sha256": hashlib.sha256(text).hexdigest(), "size_bytes": len(text)}
            found["files"] = dict(sorted(listed.items()))
        _write_manifest(path, found)
    except OSError as error:
        raise BundleError(
            f"{directory}: the confidence cannot be written ({error}). The bundle still opens. Check the space left "
            f"and the permissions, and fit again."
        ) from error
    return Bundle.open(directory).manifest


def _write_manifest(path: Path, found: dict[str, Any]) -> None:
    Manifest.from_json(found, str(path))
    write_bytes_atomically(path, (json.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n").encode())
