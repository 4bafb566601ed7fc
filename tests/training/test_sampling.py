"""Samples are draws from the step's own distribution: held against a loop over the step in NumPy, token by token."""

from typing import Any

import keras
import numpy as np
import pytest
from harness import CONFIGS, FEATURE_SHAPE, VOCABULARY

from captionlite.training.families import build_family
from captionlite.training.generate import KerasGenerator
from captionlite.training.sampling import Sampler
from captionlite.training.vocabulary import END_ID, PAD_ID, START_ID, UNKNOWN_ID

SUPPRESSED = (PAD_ID, UNKNOWN_ID, START_ID)
PHOTOGRAPHS, COPIES = 3, 4


@pytest.mark.parametrize("name", ["transformer_memory", "lstm", "gru_attention"])
def test_every_token_is_the_one_that_its_random_number_means(name: str) -> None:
    keras.utils.set_random_seed(5)
    model: Any = build_family(CONFIGS[name], FEATURE_SHAPE, VOCABULARY, name)
    model.build_weights()
    ids: dict[str, Any] = {"start_id": START_ID, "end_id": END_ID, "suppressed_ids": SUPPRESSED}
    rng = np.random.default_rng(7)
    features = rng.normal(size=(PHOTOGRAPHS, *FEATURE_SHAPE)).astype(np.float32)
    uniform = rng.random((model.max_length, PHOTOGRAPHS * COPIES), np.float32)
    drawn = Sampler(model, pad_id=PAD_ID, **ids)(features, uniform)
    assert drawn.shape == (PHOTOGRAPHS * COPIES, model.max_length + 1)
    assert drawn.dtype == np.int32
    assert (drawn[:, 0] == START_ID).all()

    generator = KerasGenerator(model, **ids)
    logits = generator.logits(np.repeat(features, COPIES, axis=0), np.where(drawn == PAD_ID, END_ID, drawn)[:, :-1])
    logits[..., list(SUPPRESSED)] = -np.inf
    probabilities = np.exp(logits - logits.max(axis=-1, keepdims=True))
    cumulated = np.cumsum(probabilities / probabilities.sum(axis=-1, keepdims=True), axis=-1)
    for row, tokens in enumerate(drawn):
        for t, token in enumerate(tokens[1:]):
            if END_ID in tokens[1 : t + 1]:
                assert token == PAD_ID
                continue
            upper, lower = cumulated[row, t, token], cumulated[row, t, token - 1]
            assert token not in SUPPRESSED
            assert lower - 1e-5 <= uniform[t, row] <= upper + 1e-5
    assert len({tuple(row) for row in drawn}) > COPIES  # they differ


def test_extreme_random_numbers_choose_an_allowed_token() -> None:
    model: Any = build_family(CONFIGS["lstm"], FEATURE_SHAPE, VOCABULARY, "lstm")
    model.build_weights()
    sampler = Sampler(model, start_id=START_ID, end_id=END_ID, pad_id=PAD_ID, suppressed_ids=SUPPRESSED)
    features = np.ones((1, *FEATURE_SHAPE), np.float32)
    for extreme in (0.0, np.nextafter(np.float32(1), np.float32(0))):
        drawn = sampler(features, np.full((model.max_length, 2), extreme, np.float32))
        said = drawn[:, 1:][drawn[:, 1:] != PAD_ID]
        assert said.size
        assert not set(said.tolist()) & set(SUPPRESSED)
        assert said.max() < VOCABULARY
