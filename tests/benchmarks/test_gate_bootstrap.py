"""The statistics of the gate: sums that are pycocoevalcap's scores, and intervals that are right where one can know."""

import numpy as np
import pytest

from captionlite.benchmarks.bootstrap import PhotoStatistics, paired_bootstrap
from captionlite.training.scoring import bleu_counts, bleu_of_sums, score_photographs

WORDS = ["a", "dog", "runs", "on", "the", "red", "grass", "fast", "man", "jumps"]


def sentences(n: int, seed: int) -> list[str]:
    random = np.random.default_rng(seed)
    return [" ".join(random.choice(WORDS, random.integers(1, 9))) for _ in range(n)]


def statistics(captions: list[str], references: dict[str, list[str]]) -> PhotoStatistics:
    said = dict(zip(references, captions, strict=True))
    return PhotoStatistics.of(list(said), bleu_counts(said, references), score_photographs(said, references)[1])


def references(n: int, seed: int = 5) -> dict[str, list[str]]:
    return {str(i): sentences(3, seed + i) for i in range(n)}


@pytest.mark.parametrize("captions", [sentences(40, 1), [""] * 20 + sentences(20, 2), ["dog"] * 40, ["a dog"] * 40])
def test_summed_counts_are_pycocoevalcaps_bleu(captions: list[str]) -> None:
    truths = references(40)
    said = dict(zip(truths, captions, strict=True))
    scores = score_photographs(said, truths)[0]
    found = bleu_of_sums(statistics(captions, truths).bleu.sum(axis=0))
    np.testing.assert_allclose(
        found, [scores.bleu_1, scores.bleu_2, scores.bleu_3, scores.bleu_4], rtol=1e-12, atol=1e-300
    )


def test_counts_of_one_caption() -> None:
    counts = bleu_counts({"x": "the dog the dog runs"}, {"x": ["the dog", "a dog runs on the red grass fast"]})["x"]
    # "the" and "dog" once each although said twice, because no reference has either twice; "the dog", "dog runs".
    assert counts.matches == (3, 2, 0, 0)
    assert counts.ngrams == (5, 4, 3, 2)
    assert (counts.words, counts.reference_words) == (5, 2)  # 3 from the one, 3 from the other: the shorter


def test_all_scores_of_both_are_the_scorers_own() -> None:
    truths = references(30)
    captions = [sentences(30, seed) for seed in (3, 4)]
    found = paired_bootstrap(*(statistics(side, truths) for side in captions), resamples=50)
    for side, name in zip(captions, ("reference", "candidate"), strict=True):
        expected = score_photographs(dict(zip(truths, side, strict=True)), truths)[0]
        for score, pair in found.scores.items():
            assert getattr(pair, name) == pytest.approx(getattr(expected, score), abs=1e-12), score
    for pair in found.scores.values():
        assert pair.difference.value == pytest.approx(pair.candidate - pair.reference, abs=1e-12)
        assert pair.difference.low < pair.difference.value < pair.difference.high
    ratio = found.scores["cider"].candidate / found.scores["cider"].reference
    assert found.cider_ratio.value == pytest.approx(ratio)


def test_equal_captions_differ_by_nothing_in_any_resample() -> None:
    truths = references(25)
    same = statistics(sentences(25, 7), truths)
    found = paired_bootstrap(same, same, resamples=300)
    for pair in found.scores.values():
        assert (pair.difference.value, pair.difference.low, pair.difference.high) == (0.0, 0.0, 0.0)
    assert (found.cider_ratio.value, found.cider_ratio.low, found.cider_ratio.high) == (1.0, 1.0, 1.0)


def synthetic(cider: np.ndarray, rouge_l: np.ndarray | None = None) -> PhotoStatistics:
    return PhotoStatistics(np.ones((len(cider), 10)), cider if rouge_l is None else rouge_l, cider)


def test_a_constant_difference_has_an_interval_without_width() -> None:
    cider = np.random.default_rng(0).uniform(0, 2, 64)  # 64, an eighth: exact in floating point
    found = paired_bootstrap(synthetic(np.round(cider * 8) / 8), synthetic(np.round(cider * 8) / 8 - 0.125))
    for name in ("cider", "rouge_l"):
        difference = found.scores[name].difference
        assert (difference.value, difference.low, difference.high) == (-0.125, -0.125, -0.125)
    assert found.cider_ratio.low < found.cider_ratio.value < found.cider_ratio.high < 1


def test_the_interval_is_that_of_the_mean() -> None:
    """Of many independent differences: 1.96 standard errors either way."""
    random = np.random.default_rng(1)
    cider, noise = random.uniform(0.2, 1, 900), random.normal(0.01, 0.3, 900)
    found = paired_bootstrap(synthetic(cider), synthetic(cider + noise)).scores["cider"].difference
    error = noise.std() / 30
    assert found.low == pytest.approx(noise.mean() - 1.96 * error, abs=0.1 * error)
    assert found.high == pytest.approx(noise.mean() + 1.96 * error, abs=0.1 * error)


def test_the_same_photographs_are_drawn_for_both() -> None:
    """Photographs differ far more than the systems do; only a paired bootstrap does not mind."""
    random = np.random.default_rng(2)
    cider = random.uniform(0, 3, 400)
    found = paired_bootstrap(synthetic(cider), synthetic(1.1 * cider))
    assert found.cider_ratio.low == pytest.approx(1.1)
    assert found.cider_ratio.high == pytest.approx(1.1)


def test_seeds() -> None:
    random = np.random.default_rng(3)
    one, other = synthetic(random.uniform(0, 1, 30)), synthetic(random.uniform(0, 1, 30))
    first, again, third = (paired_bootstrap(one, other, 200, seed) for seed in (1, 1, 2))
    assert first.to_json() == again.to_json()
    assert first.to_json()["cider_ratio"] != third.to_json()["cider_ratio"]
    assert len(first.cider_differences) == 200


def test_what_cannot_be_compared() -> None:
    one = synthetic(np.array([0.5, 0.2]))
    with pytest.raises(ValueError, match="2 and 3 photographs"):
        paired_bootstrap(one, synthetic(np.ones(3)))
    with pytest.raises(ValueError, match="at least one"):
        paired_bootstrap(synthetic(np.ones(0)), synthetic(np.ones(0)))
    with pytest.raises(ValueError, match="CIDEr is 0"):
        paired_bootstrap(synthetic(np.zeros(3)), synthetic(np.ones(3)))


def test_resamples_in_which_the_reference_has_nothing_are_left_out_of_the_ratio() -> None:
    found = paired_bootstrap(synthetic(np.array([0.0, 0.5])), synthetic(np.array([0.0, 0.4])), resamples=400)
    assert (found.cider_ratio.low, found.cider_ratio.high) == (pytest.approx(0.8), pytest.approx(0.8))
    assert found.scores["cider"].difference.high == 0.0  # there they are
