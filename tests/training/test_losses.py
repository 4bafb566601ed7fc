"""The masked loss against the same formula written in NumPy."""

import keras
import numpy as np
import pytest

from captionlite.training.families.base import BANNED_LOGIT, TokenBias
from captionlite.training.losses import masked_cross_entropy

RNG = np.random.default_rng(0)
LOGITS = RNG.normal(size=(2, 4, 6)).astype("float32")
LABELS = np.array([[4, 5, 3, 0], [2, 3, 0, 0]], "int32")


def log_softmax(logits: np.ndarray) -> np.ndarray:
    shifted = logits - logits.max(axis=-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)))


def numbers(*args: object, **kwargs: object) -> list[float]:
    return [float(keras.ops.convert_to_numpy(x)) for x in masked_cross_entropy(*args, **kwargs)]


def test_mean_over_the_positions_that_are_not_padding() -> None:
    log_probs = log_softmax(LOGITS)
    chosen = [log_probs[i, t, LABELS[i, t]] for i in range(2) for t in range(4) if LABELS[i, t]]
    hits = [log_probs[i, t].argmax() == LABELS[i, t] for i in range(2) for t in range(4) if LABELS[i, t]]
    loss, accuracy, count = numbers(LABELS, LOGITS, 0)
    assert count == 5
    assert loss == pytest.approx(-np.mean(chosen), abs=1e-6)
    assert accuracy == pytest.approx(np.mean(hits), abs=1e-6)


def test_banned_labels_do_not_count() -> None:
    banned = LOGITS.copy()
    banned[..., 2] += BANNED_LOGIT
    loss, _, count = numbers(LABELS, banned, 0)
    assert count == 4
    assert loss < 20


def test_label_smoothing_spreads_over_the_words_that_can_come() -> None:
    banned = LOGITS.copy()
    banned[..., :3] += BANNED_LOGIT
    labels = np.array([[4, 5, 3, 0], [5, 3, 0, 0]], "int32")
    log_probs = log_softmax(banned)
    expected = [
        0.9 * -log_probs[i, t, labels[i, t]] + 0.1 * -log_probs[i, t, 3:].mean()
        for i in range(2)
        for t in range(4)
        if labels[i, t]
    ]
    assert numbers(labels, banned, 0, label_smoothing=0.1)[0] == pytest.approx(np.mean(expected), abs=1e-5)


def test_token_bias_is_log_frequency_with_bans() -> None:
    layer = TokenBias(5)
    layer.set_from_frequencies(np.array([7, 9, 0, 30, 10]), banned_ids=(0, 1, 2))
    bias = keras.ops.convert_to_numpy(layer(np.zeros((1, 5), "float32")))[0]
    np.testing.assert_allclose(bias[3:], np.log([0.75, 0.25]), rtol=1e-6)
    assert (bias[:3] == BANNED_LOGIT).all()
