"""A run with fewer words: the words that its training captions hardly use leave the vocabulary and the weights.

The output head and the word embeddings have a row a word and are most of a small decoder, while captions keep to few
words. What stays is computed as before: the logits of the words kept are the full model's, so a greedy caption that
has none of the words left out comes out the same. Probabilities are not: they are shared among fewer words.
"""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from captionlite.export.errors import ExportError
from captionlite.export.exporter import ExportResult, export_run
from captionlite.export.recipes import Recipe
from captionlite.export.shortlist_loss import DevSplits, shortlist_loss
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.training.albert_vocabulary import SentencePieceVocabulary
from captionlite.training.checkpoints import variable_names
from captionlite.training.families import build_family
from captionlite.training.families.base import DecoderFamily
from captionlite.training.families.ensemble import EnsembleDecoder
from captionlite.training.families.tuned import TunedDecoder
from captionlite.training.run import Run
from captionlite.training.vocabulary import WordVocabulary

FEWEST_WORDS = 10
"""A shortlist of fewer words is a slip of the pen: no caption says anything with "a", "the" and "in" alone."""


class ShortlistError(ExportError):
    """A shortlist that leaves too few words."""


@dataclasses.dataclass(frozen=True)
class Shortlist:
    """Which pieces of a vocabulary stay: `ids` in ascending order, every special piece among them.

    `words` and `all_words` count without the special pieces. `rule` is what was asked for. `share` is the part that
    the words kept have of the training captions' words, of those that are in the vocabulary at all.
    """

    ids: tuple[int, ...]
    words: int
    all_words: int
    share: float
    rule: str

    @property
    def drops_nothing(self) -> bool:
        return self.words == self.all_words

    def to_json(self) -> dict[str, Any]:
        """For the manifest."""
        return {
            "rule": self.rule,
            "words": self.words,
            "all_words": self.all_words,
            "share_of_training_words": round(self.share, 5),
        }


def shortlist(vocabulary: WordVocabulary, *, words: int | None = None, min_count: int | None = None) -> Shortlist:
    """The `words` most frequent words of the training captions, or those seen at least `min_count` times.

    Equally frequent words stay in the order of their ids, which is alphabetical within a count. Special pieces ([MASK]
    too) always stay, and do not count as words. More words than there are keep them all.

    Raises ShortlistError when fewer than FEWEST_WORDS would be left, ExportError when the pieces are not words.
    """
    if (words is None) == (min_count is None):
        raise ValueError(f"expected words or min_count, found words={words!r} and min_count={min_count!r}")
    if isinstance(vocabulary, SentencePieceVocabulary):
        raise ExportError(
            "no shortlist of a SentencePiece vocabulary such as bimodal_albert's: its pieces are parts of words, and "
            "without some of them texts are split into others than the model was trained on. Export it whole, by a "
            "recipe that stores the embeddings small (int8), or train a family with a vocabulary of words (preset "
            "bimodal_small)"
        )
    counts = vocabulary.frequencies
    specials = set(vocabulary.special_ids)
    every = [i for i in range(len(vocabulary)) if i not in specials]
    by_frequency = sorted(every, key=lambda i: (-int(counts[i]), i))
    if words is not None:
        kept, rule = by_frequency[:words], "the most frequent"
    else:
        kept, rule = [i for i in every if counts[i] >= min_count], f"those seen at least {min_count:,} times"
    if len(kept) < FEWEST_WORDS:
        most = int(counts[by_frequency[FEWEST_WORDS - 1]]) if len(every) >= FEWEST_WORDS else None
        hint = "" if most is None or words is not None else f"; min_count {most:,} leaves at least {FEWEST_WORDS}"
        raise ShortlistError(
            f"{rule}: {len(kept)} of {len(every):,} words would be left, expected at least {FEWEST_WORDS}{hint}"
        )
    share = float(counts[kept].sum() / max(int(counts[every].sum()), 1))
    return Shortlist(tuple(sorted({*kept, *specials})), len(kept), len(every), share, rule)


def shorten(run: Run, keep: Sequence[int]) -> Run:
    """The run with these pieces of its vocabulary alone, the special ones among them; their order stays.

    The encoder is shared; the decoder is a new model of the same family and config. Raises ExportError when the family
    has a weight whose vocabulary axis cannot be told, VocabularyError when a special piece is missing.
    """
    ids = sorted(set(keep))
    vocabulary = run.vocabulary.shortened(ids)
    return run.with_decoder(vocabulary, shortened_model(run.model, run.config.family, ids))


def shortened_model(model: DecoderFamily, family: dict[str, Any], keep: Sequence[int]) -> DecoderFamily:
    """A model of the same `family` config with len(keep) pieces, its weights taken over, rows of these ids alone.

    Which axis of a weight is the vocabulary's nobody needs to say: it is the one whose size changes with the
    vocabulary's, and no other weight may change its shape.
    """
    ids = np.asarray(keep)
    if isinstance(model, TunedDecoder):
        return TunedDecoder(model.blocks, shortened_model(model.decoder, family, keep))
    if isinstance(model, EnsembleDecoder):
        return EnsembleDecoder([shortened_model(member, family, keep) for member in model.members])
    short = build_family(family, model.feature_shape, len(ids))
    sizes = model.vocabulary_size, len(ids)
    names, short_names = (variable_names(model.family, each.weights) for each in (model, short))
    if names != short_names:
        stray = sorted(set(names) ^ set(short_names))[0]
        raise ExportError(f"no shortlist of this model: {stray} comes or goes with the size of the vocabulary")
    for name, old, new in zip(names, model.weights, short.weights, strict=True):
        axis = vocabulary_axis(name, tuple(old.shape), tuple(new.shape), sizes)
        value = ops.convert_to_numpy(old)
        new.assign(value if axis is None else np.take(value, ids, axis=axis))
    return short


def vocabulary_axis(path: str, full: tuple[int, ...], short: tuple[int, ...], sizes: tuple[int, int]) -> int | None:
    """The axis of a weight that has a row a piece, or None; `sizes` are the two vocabularies'.

    Raises ExportError naming the weight when its shapes differ in any other way.
    """
    if full == short:
        return None
    differing = [axis for axis, pair in enumerate(zip(full, short, strict=False)) if pair[0] != pair[1]]
    if len(full) != len(short) or [(full[axis], short[axis]) for axis in differing] != [sizes]:
        raise ExportError(
            f"{path}: its shape goes from {full} to {short} as the vocabulary goes from {sizes[0]} to {sizes[1]} "
            "pieces, expected one axis of that size; the family cannot have a shortlist"
        )
    return differing[0]


def export_shortlisted(
    run: Run,
    kept: Shortlist,
    recipe: Recipe,
    out: Path,
    *,
    dev: DevSplits,
    report: Callable[[str], None] = lambda line: None,
    **options: Any,
) -> ExportResult:
    """`export_run` of the shortened run, with what the shortlist costs measured on the `dev` photographs.

    For that the whole run is exported too, by the same recipe, into a folder that goes again. Where there is no dev
    photograph the bundle is written all the same, and says that nothing was measured. `options` are `export_run`'s.
    """
    photographs = options.get("photographs", ())

    def measure(captioner: Captioner) -> dict[str, Any]:
        for reason in dev.missing:
            report(f"no dev photographs: {reason}")
        loss = None
        if dev.photographs:
            report(f"captioning {dev.photographs:,} dev photographs with the shortlist")
            said_short = dev.captions(captioner)
            report(f"exporting all {kept.all_words:,} words as well, to know what the shortlist costs")
            with tempfile.TemporaryDirectory(prefix="captionlite-all-words-") as scratch:
                whole = export_run(run, recipe, Path(scratch) / "bundle", photographs=photographs, report=report)
                report(f"captioning {dev.photographs:,} dev photographs with all words")
                said = dev.captions(Captioner(Bundle.open(whole.bundle)))
            loss = shortlist_loss(dev, said, said_short)
        return {"shortlist": {**kept.to_json(), "recipe": recipe.name, "loss": loss}}

    return export_run(shorten(run, kept.ids), recipe, out, measure=measure, report=report, **options)
