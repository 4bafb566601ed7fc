"""What may be chosen and how: sampling against the softmax, the options that exclude, prefixes, streams, n-best lists.

All on the toy bundle through the real interpreter, against NumPy. Beam search has a test of its own in tests/export.
"""

from dataclasses import replace
from itertools import pairwise
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_bundle

from captionlite.runtime import Captioner, DecodingOptions
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.decoding import Plan
from captionlite.runtime.errors import InterpreterError, OptionsError
from captionlite.runtime.search import distribution

PHOTOGRAPHS = toy_bundle.photographs(40, seed=8)
DRAWS = 10_000


@pytest.fixture(scope="module")
def captioner(toy_directory: Path) -> Captioner:
    return Captioner.from_bundle(toy_directory)


def softmax(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """Of the toy's first step, without the ids that it never says."""
    scores = logits.astype(np.float64) / temperature
    scores[list(toy_bundle.SUPPRESSED)] = -np.inf
    weights = np.exp(scores - scores.max())
    return np.asarray(weights / weights.sum())


def draws(captioner: Captioner, image: np.ndarray, **options: Any) -> np.ndarray:
    """How often each id was the first token of ten thousand captions, seeds 0, 1, 2, ..."""
    encoded = captioner.encode(image)
    counts = np.zeros(toy_bundle.V, int)
    for seed in range(DRAWS):
        counts[captioner.decode(encoded, DecodingOptions(max_length=1, seed=seed, **options)).tokens[0]] += 1
    return counts


def assert_drawn_from(probabilities: np.ndarray, counts: np.ndarray) -> None:
    """Pearson's chi-square test at 1 in 1,000, ids with fewer than five expected draws taken together."""
    expected = probabilities * counts.sum()
    assert counts[expected == 0].sum() == 0
    often, rarely = expected >= 5, (expected > 0) & (expected < 5)
    observed, wanted = list(counts[often]), list(expected[often])
    if rarely.any():
        observed.append(counts[rarely].sum())
        wanted.append(expected[rarely].sum())
    statistic = sum((o - w) ** 2 / w for o, w in zip(observed, wanted, strict=True))
    degrees = len(wanted) - 1
    assert degrees >= 2
    limit = degrees * (1 - 2 / (9 * degrees) + 3.09 * sqrt(2 / (9 * degrees))) ** 3  # Wilson and Hilferty 1931
    assert statistic < limit


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_draws_follow_the_softmax(captioner: Captioner, temperature: float) -> None:
    image = PHOTOGRAPHS[1]
    expected = softmax(toy_bundle.decode(image).logits[0], temperature)
    assert_drawn_from(expected, draws(captioner, image, temperature=temperature))


def test_another_temperature_would_be_noticed(captioner: Captioner) -> None:
    image = PHOTOGRAPHS[1]
    counts = draws(captioner, image, temperature=1.0)
    with pytest.raises(AssertionError):
        assert_drawn_from(softmax(toy_bundle.decode(image).logits[0], 1.1), counts)


@pytest.mark.parametrize("k", [3, 5])
def test_top_k_draws_among_the_k_likeliest(captioner: Captioner, k: int) -> None:
    image = PHOTOGRAPHS[2]
    probabilities = softmax(toy_bundle.decode(image).logits[0])
    probabilities[np.argsort(-probabilities)[k:]] = 0
    assert_drawn_from(probabilities / probabilities.sum(), draws(captioner, image, temperature=1.0, top_k=k))


@pytest.mark.parametrize("p", [0.6, 0.9])
def test_top_p_draws_among_the_fewest_that_hold_p(captioner: Captioner, p: float) -> None:
    image = PHOTOGRAPHS[3]
    probabilities = softmax(toy_bundle.decode(image).logits[0], 2.0)
    order = np.argsort(-probabilities)
    held = 0.0
    kept = []
    for token in order:
        kept.append(token)
        held += probabilities[token]
        if held >= p:
            break
    assert 3 <= len(kept) < 9
    nucleus = np.zeros_like(probabilities)
    nucleus[kept] = probabilities[kept] / held
    assert_drawn_from(nucleus, draws(captioner, image, temperature=2.0, top_p=p))


def test_cuts_by_hand() -> None:
    logits = np.log(np.array([0.1, 0.4, 0.3, 0.2], np.float32))

    def cut(logits: np.ndarray = logits, **options: Any) -> list[tuple[int, float]]:
        ids, probabilities = distribution(logits, DecodingOptions(temperature=1.0, **options))
        return [(int(i), round(float(p), 5)) for i, p in zip(ids, probabilities, strict=True)]

    assert cut() == [(1, 0.4), (2, 0.3), (3, 0.2), (0, 0.1)]
    assert cut(top_k=2) == [(1, 0.57143), (2, 0.42857)]
    assert cut(top_p=0.6) == [(1, 0.57143), (2, 0.42857)]
    assert cut(top_p=0.05) == [(1, 1.0)]
    assert cut(top_k=3, top_p=0.7) == [(1, 0.57143), (2, 0.42857)]  # of the three's own sum
    assert cut(top_k=99) == cut()
    banned = logits.copy()
    banned[1] = -np.inf
    assert cut(banned) == [(2, 0.5), (3, 0.33333), (0, 0.16667)]
    tied = np.zeros(4, np.float32)
    assert cut(tied, top_k=2) == [(0, 0.5), (1, 0.5)]  # equal ones by id


def test_the_same_seed_draws_the_same_caption(captioner: Captioner) -> None:
    image = PHOTOGRAPHS[5]
    options = [DecodingOptions(temperature=1.5, seed=seed) for seed in range(20)]
    first = [captioner.caption(image, option).tokens for option in options]
    captioner.caption(PHOTOGRAPHS[6], DecodingOptions(temperature=1.0, best_of=4))
    assert [captioner.caption(image, option).tokens for option in options] == first
    assert len(set(first)) > 10


def test_log_probabilities_are_the_models_own(captioner: Captioner) -> None:
    """Whatever temperature, cut and bans decided, the numbers say what the model thinks of the caption."""
    for seed, image in enumerate(PHOTOGRAPHS[:10]):
        drawn = captioner.caption(image, DecodingOptions(temperature=2.0, top_k=6, seed=seed, suppress=("dog",)))
        words = [toy_bundle.PIECES[token] for token in drawn.tokens if token != toy_bundle.END]
        if drawn.stop_reason == "end" and words:
            scored = captioner.score(image, " ".join(words))
            np.testing.assert_allclose(drawn.logprobs, [p for _, p in scored], atol=1e-5)
    greedy = captioner.caption(PHOTOGRAPHS[0])
    assert greedy.score == pytest.approx(greedy.logprob)


def test_the_best_of_several_draws_leads(captioner: Captioner) -> None:
    image = PHOTOGRAPHS[7]
    options = DecodingOptions(temperature=1.5, best_of=6, n_best=6, length_penalty=0.0)
    found = captioner.caption(image, options)
    scores = [found.score, *(other.score for other in found.alternatives)]
    assert len(scores) == 6
    assert scores == sorted(scores, reverse=True)
    assert found.score == pytest.approx(sum(found.logprobs))
    assert len({found.tokens, *(other.tokens for other in found.alternatives)}) > 1
    for other in found.alternatives:  # each row of the batch kept its own state
        if other.stop_reason == "end" and other.text:
            scored = captioner.score(image, other.text)
            np.testing.assert_allclose(other.logprobs, [p for _, p in scored], atol=1e-5)


def test_no_ngram_occurs_twice(captioner: Captioner) -> None:
    repeating = 0
    for image in PHOTOGRAPHS:
        pairs = list(pairwise(captioner.caption(image).tokens))
        repeating += len(set(pairs)) < len(pairs)
        for options in (DecodingOptions(no_repeat_ngram=2), DecodingOptions(no_repeat_ngram=2, beams=3)):
            pairs = list(pairwise(captioner.caption(image, options).tokens))
            assert len(set(pairs)) == len(pairs)
    assert repeating > 0, "no photograph puts the option to the test any more"


def test_min_length_and_suppressed_words(captioner: Captioner) -> None:
    plain = [captioner.caption(image) for image in PHOTOGRAPHS]
    assert min(len(caption.tokens) for caption in plain) <= 5
    common = max(toy_bundle.PIECES[4:], key=lambda word: sum(word in caption.text.split() for caption in plain))
    for options in ({}, {"beams": 3}, {"temperature": 1.0}):
        chosen = DecodingOptions(min_length=6, suppress=(common,), **options)  # type: ignore[arg-type]
        for image in PHOTOGRAPHS:
            found = captioner.caption(image, chosen)
            assert common not in found.text.split()
            assert len(found.text.split()) >= 6


@pytest.mark.parametrize("options", [{}, {"beams": 3}, {"temperature": 1.0}], ids=["greedy", "beam", "sampled"])
def test_a_prefix_is_continued(captioner: Captioner, options: dict[str, Any]) -> None:
    prefix = [toy_bundle.PIECES.index(word) for word in ("the", "red", "dog")]
    for image in PHOTOGRAPHS[:10]:
        found = captioner.caption(image, DecodingOptions(prefix="the red dog", **options))
        assert list(found.tokens[:3]) == prefix
        assert len(found.tokens) > 3
        assert found.text.startswith("the red dog")
        if found.stop_reason == "end":
            np.testing.assert_allclose(found.logprobs, [p for _, p in captioner.score(image, found.text)], atol=1e-5)


def test_a_stream_is_the_caption_in_pieces(captioner: Captioner) -> None:
    for options in (DecodingOptions(), DecodingOptions(temperature=1.0, seed=3), DecodingOptions(prefix="a dog")):
        for image in PHOTOGRAPHS[:10]:
            pieces = list(captioner.stream(image, options))
            text = captioner.caption(image, options).text
            assert "".join(pieces) == text
            assert len(pieces) == len(text.split())
            assert all(piece.startswith(" ") for piece in pieces[1:])


def test_a_stream_may_be_left(captioner: Captioner) -> None:
    stream = captioner.stream(PHOTOGRAPHS[0])
    next(stream)
    del stream
    assert list(captioner.caption(PHOTOGRAPHS[1]).tokens) == toy_bundle.decode(PHOTOGRAPHS[1]).tokens


@pytest.mark.parametrize("options", [{"beams": 2}, {"temperature": 1.0, "best_of": 2}])
def test_a_stream_cannot_choose_between_captions(captioner: Captioner, options: dict[str, Any]) -> None:
    with pytest.raises(OptionsError, match="choose between whole captions"):
        next(captioner.stream(PHOTOGRAPHS[0], DecodingOptions(**options)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beams": 0}, "beams is 0, expected at least 1"),
        ({"temperature": -0.1}, "temperature is -0.1, expected at least 0"),
        ({"temperature": float("nan")}, "temperature is nan"),
        ({"temperature": float("inf")}, "finite"),
        ({"top_k": 5}, "top_k: nothing is drawn at random at temperature 0"),
        ({"best_of": 2, "seed": 1}, "best_of, seed: nothing is drawn"),
        ({"temperature": 1.0, "top_p": 0.0}, "top_p is 0.0, expected more than 0"),
        ({"temperature": 1.0, "top_p": 1.5}, "at most 1"),
        ({"temperature": 1.0, "beams": 2}, "exclude each other"),
        ({"patience": 2.0}, "patience is for beams"),
        ({"beams": 2, "patience": 0.1}, "at least 1 / beams"),
        ({"n_best": 2}, "n_best is 2, but 1 hypotheses"),
        ({"passes": 3, "beams": 2}, "nothing for beams to choose"),
        ({"passes": 3, "prefix": "a"}, "nothing for prefix"),
        ({"min_length": 5, "max_length": 5}, "expected less than max_length, 5"),
    ],
    ids=str,
)
def test_contradictions_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        DecodingOptions(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"prefix": "a unicorn"}, "unicorn"),
        ({"suppress": ("unicorn",)}, "unicorn"),
        ({"suppress": ("a dog",)}, "'a dog' is 2 tokens"),
        ({"prefix": "a dog", "max_length": 2}, "the prefix has 2 tokens, but the caption may have 2"),
        ({"min_length": toy_bundle.LENGTH}, "expected less than max_length"),
        ({"passes": 2}, "predicts all words"),
    ],
    ids=str,
)
def test_what_this_bundle_cannot_follow_is_refused(captioner: Captioner, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionsError, match=message):
        captioner.check(DecodingOptions(**options))


@pytest.mark.parametrize("options", [{}, {"beams": 2}, {"temperature": 1.0}], ids=["greedy", "beam", "sampled"])
def test_options_that_leave_no_word_are_refused(captioner: Captioner, options: dict[str, Any]) -> None:
    everything = DecodingOptions(suppress=tuple(toy_bundle.PIECES[4:]), min_length=1, **options)
    with pytest.raises(OptionsError, match="leave no token"):
        captioner.caption(PHOTOGRAPHS[0], everything)


def test_a_ban_is_by_what_was_said(captioner: Captioner) -> None:
    plan = Plan(
        DecodingOptions(no_repeat_ngram=3, min_length=2), captioner.bundle.manifest, captioner.bundle.vocabulary
    )
    assert plan.banned([]) == [toy_bundle.END]
    assert plan.banned([4, 5]) == []
    assert plan.banned([4, 5, 6, 4, 5]) == [6]
    assert plan.banned([4, 5, 6, 4, 5, 7, 4, 5]) == [6, 7]
    assert plan.banned([4, 4, 4]) == [4]


@pytest.mark.parametrize("batch", [1, 3])
def test_log_softmax_of_large_logits(captioner: Captioner, batch: int) -> None:
    """Beyond what exp() can hold, for tokens that are all but impossible, and without what is suppressed."""
    loop = captioner.decoder
    loop.begin(captioner.encode(PHOTOGRAPHS[0]), batch)
    rows = np.full((3, toy_bundle.V), -np.inf, np.float32)
    rows[:, 4:7] = [[1000.0, 999.0, -np.inf], [-2000.0, 0.0, 1.0], [0.0, -1.0, 2.0]]
    rows[:, 1] = 5000.0
    expected = [1000.313262, 1.313262, np.log(np.exp([0.0, -1.0, 2.0]).sum())]
    for first in range(0, 3, batch):
        loop.logits[...] = rows[first : first + batch]
        np.testing.assert_allclose(loop.weigh(slice(0, 3)), expected[first : first + batch], rtol=1e-6)
        assert loop.likeliest == [4, 6, 6][first : first + batch]
        assert loop.greatest == [1000.0, 1.0, 2.0][first : first + batch]
    for broken in (np.nan, np.inf):
        loop.logits[...] = rows[2]
        loop.logits[-1, 7] = broken
        with pytest.raises(InterpreterError, match="no finite numbers"):
            loop.weigh(slice(0, 3))


def test_beams_find_at_least_what_greedy_finds(captioner: Captioner) -> None:
    """By the sum of log-probabilities, with as many beams as there are words: nothing is cut off early."""
    better = 0
    for image in PHOTOGRAPHS:
        greedy = captioner.caption(image, DecodingOptions(length_penalty=0.0))
        wide = captioner.caption(image, DecodingOptions(beams=9, length_penalty=0.0, n_best=3, patience=3.0))
        if greedy.stop_reason == "end":
            assert wide.score >= greedy.score - 1e-5
            better += wide.score > greedy.score + 1e-3
        ranked = [wide.score, *(other.score for other in wide.alternatives)]
        assert ranked == sorted(ranked, reverse=True)
        assert len({wide.tokens, *(other.tokens for other in wide.alternatives)}) == 3
    assert better > 0


def test_hypotheses_are_ranked_by_the_bundles_length_penalty_unless_told_otherwise(toy_directory: Path) -> None:
    bundle = Bundle.open(toy_directory)
    manifest = replace(bundle.manifest, decoding=replace(bundle.manifest.decoding, length_penalty=2.0))
    score = [
        Plan(options, found, bundle.vocabulary).score(-6.0, 2)
        for found in (bundle.manifest, manifest)
        for options in (DecodingOptions(beams=3), DecodingOptions(beams=3, length_penalty=0.0))
    ]
    assert score == [-3.0, -6.0, -1.5, -6.0]
