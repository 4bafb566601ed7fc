"""The reward is pycocoevalcap's CIDEr-D on the same tokens, and its guards charge what they are for."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pycocoevalcap.cider.cider import Cider

from captionlite.training.config import SelfCriticalConfig
from captionlite.training.rewards import END, CaptionReward, ngrams, sentence_bleu

REFERENCES = {
    "dogs": ["A brown dog runs through the grass.", "Two dogs run.", "The dog's ball is red."],
    "boat": ["A boat on a lake at sunset.", "A small boat."],
    "girl": ["A girl in a red dress jumps.", "A girl jumps into the air in a red dress.", "The girl jumps."],
}
WORDS = sorted({word.strip(".").lower() for texts in REFERENCES.values() for text in texts for word in text.split()})
captions = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)


def reward(**changes: Any) -> CaptionReward:
    return CaptionReward(REFERENCES, SelfCriticalConfig(**changes))


@given(st.fixed_dictionaries(dict.fromkeys(REFERENCES, captions)))
def test_cider_is_pycocoevalcaps(samples: dict[str, str]) -> None:
    ours = reward()
    # What pycocoevalcap sees: the same tokens, the end token one of them. Its weights come from the references given.
    texts = {key: [f"{' '.join(_plain(text))} {END}" for text in texts] for key, texts in REFERENCES.items()}
    said = {key: [f"{' '.join(_plain(text))} {END}".strip()] for key, text in samples.items()}
    _, theirs = Cider().compute_score(texts, said)
    for key, expected in zip(texts, theirs, strict=True):
        assert ours.score(key, samples[key], ended=True).cider == pytest.approx(expected, abs=1e-9)


def _plain(text: str) -> list[str]:
    from captionlite.training.scoring import tokenize

    return tokenize(text)


def test_a_caption_that_breaks_off_is_worth_less() -> None:
    whole = reward().score("boat", "a small boat", ended=True)
    assert reward().score("boat", "a small boat", ended=False).total < whole.total
    assert reward().score("boat", "a small", ended=False).total < whole.total


def test_each_pair_said_twice_costs_its_price() -> None:
    text = "a red dress and a red dress and a red dress"
    cheap, dear = (reward(bleu=0.0, repetition=price).score("girl", text, ended=True) for price in (0.0, 0.25))
    # "a red" and "red dress" three times, "dress and" and "and a" twice: 2 + 2 + 1 + 1 pairs too many.
    assert cheap.total - dear.total == pytest.approx(0.25 * 6)
    assert cheap.total == cheap.cider


def test_bleu_by_hand() -> None:
    found = sentence_bleu(ngrams(["a", "b", "c", "x"]), 4, dict(ngrams(["a", "b", "c", "d", "e"])), [5])
    # 3 of 4 words, 2 of 3 pairs, 1 of 2 triples, 0 of 1: with one added from pairs on; one word too short.
    expected = math.exp((math.log(3 / 4) + math.log(3 / 4) + math.log(2 / 3) + math.log(1 / 2)) / 4 + 1 - 5 / 4)
    assert found == pytest.approx(expected)
    assert sentence_bleu(ngrams([]), 0, {("a",): 1}, [1]) == 0.0
    assert sentence_bleu(ngrams(["z"]), 1, {("a",): 1}, [1]) == 0.0


def test_the_true_caption_scores_best() -> None:
    scores = {text: reward().score("boat", text, ended=True).total for text in ("a small boat", "a boat", "a girl", "")}
    assert max(scores, key=lambda text: scores[text]) == "a small boat"
    assert scores[""] == min(scores.values())
