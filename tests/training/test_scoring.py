"""Scores: the tokenizer against the Java one, figures against hand-worked values, and the counters."""

import json
import math
import shutil
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from captionlite.training.scoring import (
    Scores,
    distinct_captions,
    distinct_words,
    repeated_phrase,
    repeated_phrases,
    score_captions,
    tokenize,
)

# Caption, and what pycocoevalcap's PTB tokenizer makes of it (checked against the jar below where there is a java).
PTB = [
    (
        "A child in a pink dress climbs up a set of stairs .",
        "a child in a pink dress climbs up a set of stairs",
    ),
    ("A black dog and a tri-colored dog playing.", "a black dog and a tri-colored dog playing"),
    ("The dog's ball , the boys' room", "the dog 's ball the boys room"),
    ("He doesn't swim; she can't. They cannot!", "he does n't swim she ca n't they can not"),
    (
        "I'm sure they're here, we've won, he'll jump",
        "i 'm sure they 're here we 've won he 'll jump",
    ),
    ('A sign saying "STOP" - big -- red: wow...', "a sign saying stop big red wow"),
    ("jersey ( # 7 ) [left] {x}", "jersey -lrb- # 7 -rrb- -lsb- left -rsb- -lcb- x -rcb-"),
    ("Mr. Smith of the U.S. team at U. Miami", "mr. smith of the u.s. team at u. miami"),
    ("a statefarm.com hat and his/her bag", "a statefarm.com hat and his/her bag"),
    ("3,000 people at 10:30 with 1/2 a cup for $5 & 50 %", "3,000 people at 10:30 with 1/2 a cup for $ 5 & 50 %"),
    ("five o'clock shadow on a Slip 'n' Slide", "five o'clock shadow on a slip 'n' slide"),
    ("They're gonna wanna gimme R&B", "they 're gon na wan na gim me r&b"),
    ("the dog’s “big” tail – long", "the dog 's big tail long"),
    ("a café , 12-year-old", "a café 12-year-old"),
    ("this is plan b. next", "this is plan b. next"),
    ("   ", ""),
]


@pytest.mark.parametrize(("caption", "expected"), PTB)
def test_tokens_are_those_of_the_ptb_tokenizer(caption: str, expected: str) -> None:
    assert tokenize(caption) == expected.split()


@pytest.mark.skipif(shutil.which("java") is None, reason="no java on the PATH")
def test_the_expected_tokens_come_from_the_jar() -> None:
    from captionlite.benchmarks.ptb_check import ptb_tokenize

    assert ptb_tokenize([caption for caption, _ in PTB]) == [expected.split() for _, expected in PTB]


@pytest.mark.skipif(shutil.which("java") is None, reason="no java on the PATH")
def test_cross_check_reports_what_differs_and_what_that_costs() -> None:
    from captionlite.benchmarks.ptb_check import cross_check

    report = cross_check(
        [
            ["a dog runs on grass .", "a brown dog runs .", "the '90s dog"],
            ["a man surfs", "a man rides a wave"],
        ]
    )
    assert (report["captions"], report["identical"]) == (5, 4)
    assert report["differing"] == [["the '90s dog", "the '90s dog", "the 90s dog"]]
    assert report["scores_ptb"]["n"] == report["scores_ours"]["n"] == 2


@given(st.text())
def test_tokens_never_hold_space_or_dropped_punctuation(text: str) -> None:
    for token in tokenize(text):
        assert token
        assert not any(character.isspace() for character in token)
        assert token not in {".", ",", "!", "?", ":", ";", "-", "'", '"', "`"}


@given(st.lists(st.sampled_from(["dog", "dogs", "two", "a", "t-shirt", "runs"])))
def test_plain_words_pass_unchanged(words: list[str]) -> None:
    assert tokenize(" ".join(words)) == words


DOG, MAN = "a brown dog runs across the wet grass", "two men ride bicycles down a busy street"


def test_identical_captions_score_one_and_cider_ten() -> None:
    scores = score_captions({"1": DOG, "2": MAN}, {"1": [DOG], "2": [MAN]})
    assert scores.bleu_1 == pytest.approx(1, abs=1e-6)
    assert scores.bleu_4 == pytest.approx(1, abs=1e-6)
    assert scores.rouge_l == pytest.approx(1)
    assert scores.cider == pytest.approx(10)
    assert scores.n == 2


def test_swapped_captions_score_next_to_nothing() -> None:
    scores = score_captions({"1": MAN, "2": DOG}, {"1": [DOG], "2": [MAN]})
    assert scores.bleu_4 < 1e-3
    assert scores.cider == pytest.approx(0)  # the one shared word, "a", is in both photographs' references


def test_hand_worked_figures() -> None:
    scores = score_captions({"1": "a dog runs", "2": "a man"}, {"1": ["a dog sits down"], "2": ["a man"]})
    # Words: 2 of 3 and 2 of 2 matched; the candidates have 5 words, the references 6.
    brevity = math.exp(1 - 6 / 5)
    assert scores.bleu_1 == pytest.approx(brevity * 4 / 5, rel=1e-6)
    assert scores.bleu_2 == pytest.approx(brevity * math.sqrt(4 / 5 * 2 / 3), rel=1e-6)
    # ROUGE-L: longest common subsequence 2 of 3 and of 4, beta 1.2; the other photograph scores 1.
    precision, recall, beta = 2 / 3, 2 / 4, 1.2
    first = (1 + beta**2) * precision * recall / (recall + beta**2 * precision)
    assert scores.rouge_l == pytest.approx((first + 1) / 2)


def test_best_of_several_references_counts_for_bleu() -> None:
    one = score_captions({"1": DOG, "2": MAN}, {"1": ["a cat"], "2": [MAN]})
    two = score_captions({"1": DOG, "2": MAN}, {"1": ["a cat", DOG], "2": [MAN]})
    assert two.bleu_4 > one.bleu_4
    assert two.cider > one.cider


def test_case_and_punctuation_do_not_matter() -> None:
    references = {"1": [DOG], "2": [MAN]}
    loud = {"1": DOG.upper() + " !", "2": MAN.capitalize() + "."}
    assert score_captions(loud, references) == score_captions({"1": DOG, "2": MAN}, references)


def test_references_without_a_candidate_are_left_out() -> None:
    references = {"1": [DOG], "2": [MAN], "3": ["a cat sleeps"]}
    subset = {"1": DOG, "2": MAN}
    assert score_captions(subset, references) == score_captions(subset, {key: references[key] for key in subset})


def test_an_empty_caption_scores_nothing_and_breaks_nothing() -> None:
    scores = score_captions({"1": "", "2": ""}, {"1": [DOG], "2": [MAN]})
    assert scores.cider == 0
    assert scores.rouge_l == 0
    assert scores.bleu_1 == pytest.approx(0, abs=1e-6)


def test_nothing_to_score_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 candidates"):
        score_captions({}, {"1": [DOG]})
    with pytest.raises(ValueError, match=r"1 candidates without a reference, the first for '2'"):
        score_captions({"1": DOG, "2": MAN}, {"1": [DOG], "2": []})
    with pytest.raises(ValueError, match="every reference caption is empty"):
        score_captions({"1": DOG}, {"1": ["..."]})


def test_scores_are_quiet_and_serialisable(capfd: pytest.CaptureFixture[str]) -> None:
    scores = score_captions({"1": DOG, "2": MAN}, {"1": [DOG], "2": [MAN]})
    assert capfd.readouterr() == ("", "")
    assert Scores(**json.loads(json.dumps(scores.to_json()))) == scores
    assert list(scores.to_json()) == ["bleu_1", "bleu_2", "bleu_3", "bleu_4", "rouge_l", "cider", "n"]


def test_scoring_loads_no_keras() -> None:
    code = (
        "import sys; from captionlite.training.scoring import score_captions;"
        "score_captions({'1': 'a dog'}, {'1': ['a dog']});"
        "print([m for m in ('keras', 'tensorflow', 'jax', 'transformers') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_distinct_words_and_captions() -> None:
    captions = ["A dog runs .", "a dog runs", "a cat sits"]
    assert distinct_words(captions) == 5
    assert distinct_captions(captions) == 2
    assert distinct_words([]) == distinct_captions([]) == 0


@pytest.mark.parametrize(
    ("caption", "phrase"),
    [
        ("a pile of a pile of a", ("a", "pile", "of")),
        ("a man in a red red shirt", ("red",)),
        ("a man and a woman and a woman and a dog", ("and", "a", "woman")),
        ("a man and a man", None),
        ("two dogs play", None),
        ("", None),
    ],
)
def test_repeated_phrase(caption: str, phrase: tuple[str, ...] | None) -> None:
    assert repeated_phrase(caption) == phrase


def test_repeated_phrases_counts_captions() -> None:
    assert repeated_phrases(["a red red red shirt", "a dog", "on a on a on a"]) == 2
    assert repeated_phrase("one two three four five six one two three four five six", longest=5) is None
