"""What a sampled caption is worth in self-critical training: CIDEr-D against the photograph's own captions, and guards.

CIDEr-D (Vedantam et al. 2015) as pycocoevalcap computes it, on the same tokens, but a caption at a time: n-grams weigh
by how few *training* photographs' captions have them, which is counted once, and the references' vectors are made once.
Every caption ends with a token of its own, in references and samples alike: otherwise the reward teaches captions that
break off in mid-phrase ("a dog running in a"), for which CIDEr-D hardly charges.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from captionlite.training.config import SelfCriticalConfig
from captionlite.training.scoring import tokenize

NGRAMS = 4
SIGMA = 6.0  # of the Gaussian that charges a length other than the reference's
END = "</s>"

Ngram = tuple[str, ...]


@dataclass(frozen=True)
class _Vector:
    """A caption's n-grams weighed by rarity, with their lengths, one of each for n = 1 to 4; and its words."""

    weights: tuple[dict[Ngram, float], ...]
    norms: tuple[float, ...]
    words: int


@dataclass(frozen=True)
class _References:
    vectors: tuple[_Vector, ...]
    most: Mapping[Ngram, int]  # n-gram -> the most often that a single reference has it
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Reward:
    """``total`` is what training raises: cider + bleu's weight x bleu_4 - repetition's weight x repeated pairs."""

    total: float
    cider: float
    bleu_4: float


class CaptionReward:
    """Scores samples of the photographs that it was given references of; ``ended`` says whether END was reached."""

    def __init__(self, references: Mapping[Hashable, Sequence[str]], config: SelfCriticalConfig) -> None:
        self._config = config
        tokens = {key: [[*tokenize(text), END] for text in texts] for key, texts in references.items()}
        counts = {key: [ngrams(words) for words in texts] for key, texts in tokens.items()}
        self._document_frequency: Counter[Ngram] = Counter()
        for captions in counts.values():
            self._document_frequency.update(set().union(*captions))
        self._log_photographs = math.log(max(len(references), 1))
        self._references = {
            key: _References(
                tuple(self._vector(grams, len(words)) for grams, words in zip(counts[key], texts, strict=True)),
                _most(counts[key]),
                tuple(map(len, texts)),
            )
            for key, texts in tokens.items()
        }

    def score(self, key: Hashable, caption: str, ended: bool) -> Reward:
        """The reward of one caption of photograph ``key``; KeyError where that has no references."""
        words = tokenize(caption) + [END] * ended
        grams, references = ngrams(words), self._references[key]
        vector = self._vector(grams, len(words))
        cider = sum(_similarity(vector, other) for other in references.vectors) / len(references.vectors) * 10.0
        bleu = sentence_bleu(grams, len(words), references.most, references.lengths)
        repeated = sum(count - 1 for gram, count in grams.items() if len(gram) == 2)
        return Reward(cider + self._config.bleu * bleu - self._config.repetition * repeated, cider, bleu)

    def _vector(self, grams: Counter[Ngram], words: int) -> _Vector:
        weights: tuple[dict[Ngram, float], ...] = tuple({} for _ in range(NGRAMS))
        squares = [0.0] * NGRAMS
        for gram, count in grams.items():
            weight = count * (self._log_photographs - math.log(max(self._document_frequency[gram], 1)))
            weights[len(gram) - 1][gram] = weight
            squares[len(gram) - 1] += weight * weight
        return _Vector(weights, tuple(map(math.sqrt, squares)), words)


def ngrams(words: Sequence[str]) -> Counter[Ngram]:
    """How often each run of one to four words occurs."""
    return Counter(tuple(words[i : i + n]) for n in range(1, NGRAMS + 1) for i in range(len(words) - n + 1))


def _similarity(candidate: _Vector, reference: _Vector) -> float:
    total = 0.0
    for n in range(NGRAMS):
        norms = candidate.norms[n] * reference.norms[n]
        if norms:
            theirs = reference.weights[n]
            # Clipped: saying a phrase twice earns no more than the reference's once.
            total += sum(min(w, theirs[g]) * theirs[g] for g, w in candidate.weights[n].items() if g in theirs) / norms
    return total / NGRAMS * math.exp(-((candidate.words - reference.words) ** 2) / (2 * SIGMA**2))


def _most(captions: Iterable[Counter[Ngram]]) -> dict[Ngram, int]:
    most: Counter[Ngram] = Counter()
    for grams in captions:
        most |= grams
    return dict(most)


def sentence_bleu(grams: Mapping[Ngram, int], words: int, most: Mapping[Ngram, int], lengths: Sequence[int]) -> float:
    """BLEU-4 of one caption, with one added to matches and n-grams beyond single words (Lin and Och 2004).

    Without that a caption that shares no four words with a reference would be worth nothing, as most are.
    """
    if not words:
        return 0.0
    matches, possible = [0] * NGRAMS, [0] * NGRAMS
    for gram, count in grams.items():
        possible[len(gram) - 1] += count
        matches[len(gram) - 1] += min(count, most.get(gram, 0))
    if not matches[0]:
        return 0.0
    logs = [math.log(matches[0] / possible[0])]
    logs += [math.log((matches[n] + 1) / (possible[n] + 1)) for n in range(1, NGRAMS)]
    closest = min(lengths, key=lambda length: (abs(length - words), length))
    return math.exp(sum(logs) / NGRAMS + min(0.0, 1.0 - closest / words))
