"""Is a difference in caption scores more than luck of the photographs? Paired bootstrap over photographs.

Two systems captioned the same photographs. Each resample draws as many photographs as there are, with replacement, the
same for both, and scores both on them (Efron 1979; Koehn 2004 for BLEU). Everything that is drawn is a sum over
photographs: ROUGE-L and CIDEr are means of each photograph's score, CIDEr with the document frequencies of the whole
set, as pycocoevalcap scores it; BLEU comes of counts that add up (`captionlite.training.scoring.bleu_counts`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from captionlite.training.scoring import BLEU_ORDERS, BleuCounts, PhotoScores, bleu_of_sums

RESAMPLES = 10_000
LEVEL = 0.95
SEED = 0
_CHUNK = 500  # resamples at a time: 4 MB of weights with 1,000 photographs

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class PhotoStatistics:
    """What each photograph adds to one system's scores, a row a photograph."""

    bleu: Floats  # (photographs, 2 * BLEU_ORDERS + 2): a `BleuCounts` each
    rouge_l: Floats  # (photographs,)
    cider: Floats  # (photographs,)

    @classmethod
    def of(
        cls, photographs: Sequence[str], counts: Mapping[str, BleuCounts], scores: Mapping[str, PhotoScores]
    ) -> PhotoStatistics:
        """Of what the scorer says by photograph, in the order given, which must be the same for both systems."""
        rows = [(*c.matches, *c.ngrams, c.words, c.reference_words) for c in (counts[p] for p in photographs)]
        return cls(
            np.array(rows, np.float64).reshape(len(photographs), 2 * BLEU_ORDERS + 2),
            np.array([scores[p].rouge_l for p in photographs], np.float64),
            np.array([scores[p].cider for p in photographs], np.float64),
        )


@dataclass(frozen=True)
class Interval:
    """A figure on all photographs, and where the middle 95 % of the resamples have it."""

    value: float
    low: float
    high: float

    def __contains__(self, value: float) -> bool:
        return self.low <= value <= self.high


@dataclass(frozen=True)
class ScorePair:
    """One score of both systems, and the difference of the second from the first."""

    reference: float
    candidate: float
    difference: Interval


@dataclass(frozen=True)
class PairedBootstrap:
    """`scores` by name; `cider_ratio` is the candidate's CIDEr by the reference's.

    `cider_differences` has the difference in each resample, for a picture.
    """

    scores: dict[str, ScorePair]
    cider_ratio: Interval
    cider_differences: Floats  # (resamples,)
    seed: int

    def to_json(self) -> dict[str, Any]:
        return {
            "resamples": len(self.cider_differences),
            "seed": self.seed,
            "level": LEVEL,
            "scores": {name: asdict(pair) for name, pair in self.scores.items()},
            "cider_ratio": asdict(self.cider_ratio),
        }


def paired_bootstrap(
    reference: PhotoStatistics, candidate: PhotoStatistics, resamples: int = RESAMPLES, seed: int = SEED
) -> PairedBootstrap:
    """Both systems' scores on the same photographs in the same order, and intervals of their differences.

    Percentile intervals. Raises ValueError when the systems do not have the same, at least one, photographs, or when
    the reference's CIDEr is 0, of which nothing is a part.
    """
    n = len(reference.cider)
    if n == 0 or len(candidate.cider) != n:
        raise ValueError(f"{n} and {len(candidate.cider)} photographs, expected equally many, at least one")
    if not reference.cider.sum() > 0:
        raise ValueError("the reference's CIDEr is 0, so no ratio to it can be said")
    means = {  # of each score: the reference's, and the difference photograph by photograph, so that equals stay 0
        "rouge_l": (reference.rouge_l, candidate.rouge_l - reference.rouge_l),
        "cider": (reference.cider, candidate.cider - reference.cider),
    }
    columns = np.stack([column for pair in means.values() for column in pair], axis=1)  # (photographs, 4)
    sums, bleu_differences = [], []
    for weights in _draws(n, resamples, seed):
        sums.append(weights @ columns)
        bleu_differences.append(bleu_of_sums(weights @ candidate.bleu) - bleu_of_sums(weights @ reference.bleu))
    drawn, bleus = np.concatenate(sums), np.concatenate(bleu_differences)  # (resamples, 4), (resamples, orders)
    whole = columns.sum(axis=0)
    ours, theirs = bleu_of_sums(candidate.bleu.sum(axis=0)), bleu_of_sums(reference.bleu.sum(axis=0))
    scores = {
        f"bleu_{order + 1}": _pair(theirs[order], ours[order] - theirs[order], bleus[:, order])
        for order in range(BLEU_ORDERS)
    }
    for place, name in enumerate(means):
        difference = drawn[:, 2 * place + 1] / n
        scores[name] = _pair(whole[2 * place] / n, whole[2 * place + 1] / n, difference)
    with np.errstate(divide="ignore", invalid="ignore"):  # few photographs may be drawn so that the reference has 0
        ratios = 1 + drawn[:, 3] / drawn[:, 2]
    return PairedBootstrap(
        scores=scores,
        cider_ratio=_interval(1 + whole[3] / whole[2], ratios[np.isfinite(ratios)]),
        cider_differences=drawn[:, 3] / n,
        seed=seed,
    )


def _draws(n: int, resamples: int, seed: int) -> Iterator[Floats]:
    """How often each photograph is drawn: (at most _CHUNK resamples, n) at a time."""
    random = np.random.default_rng(seed)
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        drawn = random.integers(0, n, (rows, n)) + n * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * n).reshape(rows, n).astype(np.float64)


def _pair(reference: float, difference: float, drawn: Floats) -> ScorePair:
    return ScorePair(float(reference), float(reference + difference), _interval(difference, drawn))


def _interval(value: float, drawn: Floats) -> Interval:
    low, high = np.quantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Interval(float(value), float(low), float(high))
