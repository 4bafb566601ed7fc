"""Mask-predict, filling and scoring, against a model whose answers can be worked out by hand."""

import itertools

import numpy as np
import pytest

from captionlite.runtime.errors import OptionsError
from captionlite.runtime.manifest import DecodingSpec
from captionlite.runtime.masked import fill, mask_predict, pseudo_log_likelihood

PAD, UNKNOWN, START, END, MASK = range(5)
V, L = 11, 6
SPEC = DecodingSpec(START, END, PAD, UNKNOWN, (PAD, UNKNOWN, START, MASK), L, MASK)
WORDS = [5, 6, 7, 8, 9, 10]


class Chain:
    """A distribution over captions of each length: the joint table is there, so every conditional is exact."""

    def __init__(self, captions: dict[tuple[int, ...], float], lengths: dict[int, float] | None = None) -> None:
        self.captions, self.lengths = captions, lengths
        self.calls: list[np.ndarray] = []

    def __call__(self, tokens: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        self.calls.append(tokens.copy())
        assert tokens.dtype == np.int32
        logits = np.full((len(tokens), L + 1, V), -20.0, np.float32)
        logits[:, :, [PAD, UNKNOWN, START, END, MASK]] = 9.0  # the likeliest of all, were they not excluded
        for row, out in zip(tokens, logits, strict=True):
            steps = int(np.flatnonzero(row == END)[0])
            assert row[0] == START
            assert (row[steps + 1 :] == PAD).all()
            given = row[1:steps]
            fitting = {
                c: p
                for c, p in self.captions.items()
                if len(c) == len(given) and all(g in (MASK, w) for g, w in zip(given, c, strict=True))
            }
            for place in range(len(given)):
                for word in WORDS:
                    share = sum(p for c, p in fitting.items() if c[place] == word) / max(sum(fitting.values()), 1e-9)
                    out[place + 1, word] = np.log(max(share, 1e-9))
        if self.lengths is None:
            return logits, None
        known = np.array([np.log(self.lengths.get(steps, 1e-9)) for steps in range(1, L + 1)], np.float32)
        return logits, np.repeat(known[None], len(tokens), axis=0)


def test_one_pass_takes_each_word_by_itself_and_more_passes_make_them_fit() -> None:
    """5 is the likeliest first word and 9 the likeliest second, but never together: the error of one pass."""
    model = Chain({(5, 6): 0.3, (5, 7): 0.3, (8, 9): 0.4}, {3: 1.0})
    assert mask_predict(model, SPEC, 1).tokens == [5, 9, END]
    assert mask_predict(model, SPEC, 2).tokens == [5, 6, END]


def test_the_number_of_masks_falls_evenly_and_the_least_certain_go_first() -> None:
    model = Chain({(5, 6, 7, 8): 0.6, (5, 6, 7, 9): 0.2, (5, 6, 10, 10): 0.2}, {5: 1.0})
    found = mask_predict(model, SPEC, 4)
    assert found.tokens == [5, 6, 7, 8, END]
    masks = [(call[:, 1:] == MASK) for call in model.calls[1:]]
    row = int(np.flatnonzero(model.calls[1][:, 5] == END)[0])
    assert [int(m[row].sum()) for m in masks] == [4, 3, 2, 1]
    assert masks[1][row].tolist()[2:4] == [True, True]  # the third and fourth word are the uncertain ones
    assert masks[3][row].tolist() == [False, False, False, True, False, False]


def test_log_probabilities_are_of_the_pass_that_chose_the_word() -> None:
    found = mask_predict(Chain({(5, 6): 0.75, (5, 7): 0.25}, {3: 0.5, 4: 0.5}), SPEC, 1)
    assert found.tokens == [5, 6, END]
    np.testing.assert_allclose(found.logprobs, np.log([1.0, 0.75, 0.5]), atol=1e-5)


def test_predicted_lengths_decide_between_equals() -> None:
    captions = {(5,): 1.0, (5, 6): 1.0, (5, 6, 7): 1.0}
    for steps, expected in ((2, [5]), (3, [5, 6]), (4, [5, 6, 7])):
        lengths = {s: 0.8 if s == steps else 0.1 for s in (2, 3, 4)}
        assert mask_predict(Chain(captions, lengths), SPEC, 3).tokens == [*expected, END]


def test_without_predicted_lengths_all_are_tried() -> None:
    model = Chain({(5, 6): 0.5, (7, 8): 0.5, (9, 9, 9): 1.0})
    assert mask_predict(model, SPEC, 2).tokens == [9, 9, 9, END]
    assert len(model.calls[1]) == L - 1
    assert mask_predict(model, SPEC, 2, max_length=3).tokens in ([5, 6, END], [7, 8, END])
    with pytest.raises(OptionsError, match="max_length is 1, expected at least 2"):
        mask_predict(model, SPEC, 1, max_length=1)


def test_filling_takes_the_most_certain_mask_first() -> None:
    """The second mask is certain and settles the first one, which alone would rather be 5."""
    model = Chain({(5, 6, 10): 0.3, (5, 7, 10): 0.1, (8, 9, 10): 0.6 * 0.4, (8, 9, 9): 0.36})
    found = fill(model, SPEC, [MASK, MASK, 10])
    assert found.tokens == [5, 6, 10]
    assert found.positions == [0, 1]
    np.testing.assert_allclose(np.exp(found.logprobs), [0.4 / 0.64, 0.75], atol=1e-4)
    assert fill(model, SPEC, [MASK, 9, 9]).tokens == [8, 9, 9]
    with pytest.raises(OptionsError, match=r"there is no \[MASK\]"):
        fill(model, SPEC, [5, 6])


def test_scores_condition_each_word_on_all_others() -> None:
    model = Chain({(5, 6): 0.3, (5, 7): 0.1, (8, 6): 0.2, (8, 7): 0.4})
    found = np.exp(pseudo_log_likelihood(model, SPEC, [5, 6]))
    np.testing.assert_allclose(found, [0.3 / 0.5, 0.3 / 0.4], atol=1e-5)
    assert len(model.calls) == 1  # all in one pass
    for caption in itertools.product((5, 8), (6, 7)):
        assert np.exp(pseudo_log_likelihood(model, SPEC, list(caption))).max() <= 1.0 + 1e-6


@pytest.mark.parametrize("caption", [[], [5] * L])
def test_captions_of_impossible_length_are_refused(caption: list[int]) -> None:
    with pytest.raises(OptionsError, match=f"the text has {len(caption)} tokens, but this bundle takes 1 to {L - 1}"):
        pseudo_log_likelihood(Chain({}), SPEC, caption)
