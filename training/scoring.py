"""Caption scores: BLEU-1..4, ROUGE-L and CIDEr by pycocoevalcap, on tokens made without Java.

Tokenisation. pycocoevalcap expects captions that Stanford's PTB tokenizer (a Java program in its package) has split,
lower-cased and stripped of punctuation. `tokenize` is that, as one regular expression: clitics split off ("dog 's",
"do n't", "can not"), hyphenated words, abbreviations and numbers kept whole, quotes and the punctuation that
pycocoevalcap drops removed, everything else (#, &, $) a token of its own; brackets become -lrb- and so on, which
pycocoevalcap means to drop too but, lower-cased, does not. Candidates and references both go through it.

Cross-check (`python -m captionlite.benchmarks.ptb_check DATA` repeats it): of Flickr8k's 40,460 captions all 40,460
come out exactly as from the Java tokenizer, and CIDEr of each photograph's first caption against its other four is the
same to the last digit (difference 0). The expression was refined on those captions and on 8,999 of COCO and PASCAL-50S,
which agree too. Known to differ, and not worth more rules: '90s, 'tis, ol', @home, "no. 7", month names with a period.

pycocoevalcap, and the NumPy it brings, are the only imports beyond the standard library; keras and TensorFlow stay out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

_TOKEN = re.compile(
    r"""
      can(?=not\b) | (?<=\bcan)not\b                        # cannot -> can not
    | (?:gon|wan)(?=na\b) | got(?=ta\b) | (?:gim|lem)(?=me\b)
    | (?<=gon)na\b | (?<=wan)na\b | (?<=got)ta\b | (?<=gim)me\b | (?<=lem)me\b
    | [^\W\d_]+(?=n't\b) | n't\b                            # don't -> do n't
    | '(?:s|m|d|re|ve|ll)\b                                 # dog's -> dog 's
    | o'clock\b | ma'am\b | c'mon\b | 'n'(?!\w)             # words that keep their apostrophe
    | (?:[^\W\d_]\.){2,}                                    # u.s.
    | (?<![\w'-])[a-hj-z]\.(?![a-z])                        # an initial: u. miami
    | (?<![\w-])(?:mr|mrs|ms|dr|st|jr|sr|vs|mt|ave|blvd|inc|co|corp)\.
    | \d+(?:[.,:/]\d+)+                                     # 3,000  10:30  1/2
    | \w+(?:[-/]\w+)+                                       # black-and-white, his/her
    | [^\W\d_]+(?:\.[^\W\d_]+)+                             # statefarm.com
    | [^\W\d_]&[^\W\d_](?!\w)                               # r&b
    | \w+
    | [^\s\w]
    """,
    re.VERBOSE,
)
# Curly quotes and dashes are what the Java tokenizer rewrites to the ASCII forms that pycocoevalcap drops.
_STRAIGHTEN = str.maketrans({"’": "'", "‘": "'", "“": '"', "”": '"', "–": " - ", "—": " - ", "…": " ... "})
_DROPPED = frozenset("'\"`.?!,:-;")
_BRACKETS = {"(": "-lrb-", ")": "-rrb-", "[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-"}


def tokenize(text: str) -> list[str]:
    """Caption -> lower-case tokens without punctuation, as pycocoevalcap's PTB tokenizer gives them (see above)."""
    tokens = _TOKEN.findall(text.lower().translate(_STRAIGHTEN))
    return [_BRACKETS.get(token, token) for token in tokens if token not in _DROPPED]


@dataclass(frozen=True)
class Scores:
    """Corpus scores as pycocoevalcap gives them (0.50, not 50; CIDEr may exceed 1) over `n` captioned photographs."""

    bleu_1: float
    bleu_2: float
    bleu_3: float
    bleu_4: float
    rouge_l: float
    cider: float
    n: int

    def to_json(self) -> dict[str, float | int]:
        return asdict(self)


BLEU_ORDERS = 4


@dataclass(frozen=True)
class BleuCounts:
    """What one photograph's caption adds to corpus BLEU: counts, which add up over photographs (`bleu_of_sums`).

    For n-grams of 1 to 4 words, how many the caption has (`ngrams`) and how many of them the references have too
    (`matches`, each at most as often as a single reference has it). `reference_words` is the length of the reference
    whose length is closest to the caption's own, `words`.
    """

    matches: tuple[int, ...]
    ngrams: tuple[int, ...]
    words: int
    reference_words: int


@dataclass(frozen=True)
class PhotoScores:
    """What one caption adds to the corpus scores, which are the means of these. BLEU's parts are `BleuCounts`.

    `cider` depends on the photographs scored together, as `score_captions` says.
    """

    rouge_l: float
    cider: float


def score_captions(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> Scores:
    """Score one caption a photograph against that photograph's references.

    Both mappings are keyed by photograph. References without a candidate are left out, so a subset may be scored; but
    CIDEr weighs words by how rare they are among the references *of the scored photographs*, so scores of different
    subsets do not compare, and of a single photograph CIDEr is 0.

    Raises ValueError for no candidates at all, or a candidate whose photograph has no reference.
    Sources: BLEU, Papineni et al. 2002; ROUGE-L, Lin 2004; CIDEr (the D variant), Vedantam et al. 2015.
    """
    return score_photographs(candidates, references)[0]


def score_photographs(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[Scores, dict[str, PhotoScores]]:
    """`score_captions`, and the scores of each photograph beside."""
    return _score(*_tokenized(candidates, references))


def score_hypotheses(
    hypotheses: Mapping[str, Sequence[str]], references: Mapping[str, Sequence[str]]
) -> dict[str, list[float]]:
    """CIDEr of several captions a photograph, in their order: each as if it were the one that `score_captions` got.

    Raises ValueError as `score_captions` does, and for a photograph without a hypothesis.
    """
    from pycocoevalcap.cider.cider import Cider

    without = [key for key, captions in hypotheses.items() if not captions]
    if without:
        raise ValueError(f"{len(without)} photographs without a hypothesis, the first {without[0]!r}")
    found: dict[str, list[float]] = {key: [] for key in hypotheses}
    for rank in range(max(map(len, hypotheses.values()), default=0)):
        # All photographs each time, so that words weigh the same; those that have run out say their last again.
        captions = {key: texts[min(rank, len(texts) - 1)] for key, texts in hypotheses.items()}
        truths, said = _as_text(*_tokenized(captions, references))
        for key, score in zip(truths, Cider().compute_score(truths, said)[1], strict=True):
            if rank < len(hypotheses[key]):
                found[key].append(float(score))
    return found


def bleu_counts(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> dict[str, BleuCounts]:
    """Each photograph's part of the BLEU that `score_captions` gives. Raises ValueError as that does."""
    from pycocoevalcap.bleu.bleu_scorer import BleuScorer, cook_refs, cook_test

    truths, said = _as_text(*_tokenized(candidates, references))
    closest = BleuScorer(n=BLEU_ORDERS)
    found = {}
    for key, captions in truths.items():
        parts = cook_test(said[key][0], cook_refs(captions, n=BLEU_ORDERS), n=BLEU_ORDERS)
        length = closest._single_reflen(parts["reflen"], "closest", parts["testlen"])
        found[key] = BleuCounts(tuple(parts["correct"]), tuple(parts["guess"]), parts["testlen"], length)
    return found


def bleu_of_sums(sums: Any) -> Any:
    """Corpus BLEU-1..4, array (..., 4), of summed counts, array (..., 10): matches, ngrams, words, reference_words.

    pycocoevalcap's formula and its small numbers against division by zero; equal to it for two photographs or more (a
    single one it measures against the average length of the references instead of the closest).
    """
    import numpy as np

    tiny, small = 1e-15, 1e-9
    matches, ngrams = sums[..., :BLEU_ORDERS], sums[..., BLEU_ORDERS : 2 * BLEU_ORDERS]
    precisions = np.cumprod((matches + tiny) / (ngrams + small), axis=-1)
    means = precisions ** (1.0 / np.arange(1, BLEU_ORDERS + 1))
    ratio = (sums[..., -2:-1] + tiny) / (sums[..., -1:] + small)
    return means * np.exp(np.minimum(0.0, 1.0 - 1.0 / ratio))  # the brevity penalty, where the captions are shorter


def _tokenized(
    candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]
) -> tuple[dict[str, list[str]], dict[str, list[list[str]]]]:
    if not candidates:
        raise ValueError("no captions to score: found 0 candidates, expected at least 1")
    without = [key for key in candidates if not references.get(key)]
    if without:
        raise ValueError(f"{len(without)} candidates without a reference, the first for {without[0]!r}")
    return (
        {key: tokenize(caption) for key, caption in candidates.items()},
        {key: [tokenize(caption) for caption in references[key]] for key in candidates},
    )


def score_tokenized(
    candidates: Mapping[str, Sequence[str]], references: Mapping[str, Sequence[Sequence[str]]]
) -> Scores:
    """`score_captions` for captions that are tokens already; both mappings have the same keys."""
    return _score(candidates, references)[0]


def _score(
    candidates: Mapping[str, Sequence[str]], references: Mapping[str, Sequence[Sequence[str]]]
) -> tuple[Scores, dict[str, PhotoScores]]:
    # Not pycocoevalcap.eval: that imports METEOR and SPICE, which start Java.
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge

    truths, hypotheses = _as_text(candidates, references)
    bleu, _ = Bleu(4).compute_score(truths, hypotheses, verbose=0)  # verbose would print lengths to stdout
    rouge_l, rouge_each = Rouge().compute_score(truths, hypotheses)
    cider, cider_each = Cider().compute_score(truths, hypotheses)
    bleu_1, bleu_2, bleu_3, bleu_4 = map(float, bleu)
    scores = Scores(bleu_1, bleu_2, bleu_3, bleu_4, float(rouge_l), float(cider), len(hypotheses))
    each = zip(truths, rouge_each, cider_each, strict=True)  # the scorers keep the order of `truths`
    return scores, {key: PhotoScores(float(rouge), float(cider)) for key, rouge, cider in each}


def _as_text(
    candidates: Mapping[str, Sequence[str]], references: Mapping[str, Sequence[Sequence[str]]]
) -> tuple[dict[str, list[str]], dict[str, list[str]]]:
    """References and candidates as pycocoevalcap takes them: lists of texts by photograph."""
    # Where a caption is empty its text is "": the scorers take that, and give it 0.
    if not any(len(tokens) for captions in references.values() for tokens in captions):
        raise ValueError("no words to score against: every reference caption is empty after tokenisation")
    truths = {key: [" ".join(tokens) for tokens in references[key]] for key in candidates}
    return truths, {key: [" ".join(tokens)] for key, tokens in candidates.items()}


def distinct_words(captions: Iterable[str]) -> int:
    """How many different words the captions use together: a model that plays safe uses few."""
    return len({word for caption in captions for word in tokenize(caption)})


def distinct_captions(captions: Iterable[str]) -> int:
    """How many of the captions differ, after tokenisation."""
    return len({tuple(tokenize(caption)) for caption in captions})


def repeated_phrase(caption: str, longest: int = 5) -> tuple[str, ...] | None:
    """The first phrase of at most `longest` words said twice in a row ("a pile of a pile of a"), or None.

    That is how a stuck decoder reads. "a man and a man" has something in between, so it is no repetition.
    """
    words = tokenize(caption)
    for start in range(len(words)):
        for length in range(1, longest + 1):
            phrase = words[start : start + length]
            if len(phrase) == length and words[start + length : start + 2 * length] == phrase:
                return tuple(phrase)
    return None


def repeated_phrases(captions: Iterable[str]) -> int:
    """How many captions repeat a phrase in a row (`repeated_phrase`)."""
    return sum(repeated_phrase(caption) is not None for caption in captions)
