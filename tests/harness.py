"""The one test that every family of decoders goes through; ``CONFIGS`` is the table."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import keras
import numpy as np

from captionlite.training.checkpoints import load_variables, save_variables
from captionlite.training.families import build_family
from captionlite.training.families.base import DecoderFamily
from captionlite.training.generate import KerasGenerator

FEATURE_SHAPE = (3, 4, 20)
VOCABULARY = 23
STEP_TOLERANCE = 1e-5

TRANSFORMER: dict[str, Any] = {
    "name": "transformer",
    "layers": 2,
    "units": 16,
    "heads": 2,
    "key_dim": 8,
    "feed_forward": 24,
    "max_length": 9,
}
LSTM: dict[str, Any] = {
    "name": "lstm",
    "units": 14,
    "embedding": 10,
    "image_bottleneck": 12,
    "logits_bottleneck": 11,
    "max_length": 9,
}
GRU: dict[str, Any] = {"name": "gru_attention", "units": 14, "embedding": 10, "attention": 12, "max_length": 9}

MASKED_LM: dict[str, Any] = {
    "name": "masked_lm",
    "text": "transformer",
    "layers": 2,
    "units": 16,
    "heads": 2,
    "feed_forward": 24,
    "embedding": 12,
    "max_length": 9,
    "memory_layers": 1,
    "image_grid": 2,
    "length_head": True,
}
ALBERT: dict[str, Any] = {
    "name": "masked_lm",
    "text": "albert",
    "layers": 2,
    "units": 16,
    "heads": 2,
    "feed_forward": 24,
    "embedding": 12,
    "positions": 20,
    "max_length": 9,
}

# A new family is a row here.
CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": TRANSFORMER,
    "transformer_pre_norm": {**TRANSFORMER, "norm": "pre"},
    "transformer_memory": {**TRANSFORMER, "norm": "pre", "memory_layers": 1, "heads": 4},
    "transformer_tied": {**TRANSFORMER, "project_features": True, "tied_embedding": True},
    "lstm": LSTM,
    "lstm_token_bias": {**LSTM, "token_bias": True},
    "gru_attention": GRU,
    "gru_attention_as_coded": {**GRU, "carry_hidden": False, "token_bias": True},
    "masked_lm": {**MASKED_LM, "prefix_attention": "causal"},
    "masked_lm_bidirectional": MASKED_LM,
    "masked_lm_late_fusion": {
        **MASKED_LM,
        "memory_layers": 0,
        "embedding": 16,
        "image_grid": None,
        "length_head": False,
    },
    "masked_lm_albert": ALBERT,
}


def build(config: dict[str, Any], seed: int = 0) -> DecoderFamily:
    """A tiny model with weights that are nowhere zero, so that no part of it can be left out unnoticed."""
    random.seed(seed)
    model = build_family(config, FEATURE_SHAPE, VOCABULARY)
    rng = np.random.default_rng(seed)
    for weight in model.weights:
        weight.assign(weight + rng.normal(0.0, 0.1, weight.shape).astype("float32"))
    return model


def features_and_tokens(model: DecoderFamily, photographs: int = 2, captions: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(photographs, *model.feature_shape)).astype("float32")
    tokens = rng.integers(4, VOCABULARY, (photographs * captions, model.max_length)).astype("int32")
    tokens[:, 0] = 2
    return features, tokens


def generator(model: DecoderFamily) -> KerasGenerator:
    return KerasGenerator(model, start_id=2, end_id=3, suppressed_ids=(0, 1, 2))


def assert_full_call_equals_steps(model: DecoderFamily) -> None:
    """Teacher forcing over whole captions and the device's step with fed-back state give the same logits."""
    features, tokens = features_and_tokens(model)
    full = keras.ops.convert_to_numpy(model(features, tokens))
    stepwise = generator(model).logits(np.repeat(features, 3, axis=0), tokens)
    assert full.shape == (6, model.max_length, VOCABULARY)
    np.testing.assert_allclose(stepwise, full, rtol=0, atol=STEP_TOLERANCE)


def assert_no_peeking(model: DecoderFamily) -> None:
    """What comes later in a caption changes nothing before it."""
    features, tokens = features_and_tokens(model)
    changed = tokens.copy()
    changed[:, 5:] = 7
    before, after = (keras.ops.convert_to_numpy(model(features, t))[:, :5] for t in (tokens, changed))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-6)


def assert_photograph_matters(model: DecoderFamily) -> None:
    """Other features give other logits at every position."""
    features, tokens = features_and_tokens(model)
    before, after = (keras.ops.convert_to_numpy(model(f, tokens)) for f in (features, features[::-1].copy()))
    assert (np.abs(after - before).max(axis=-1) > 1e-4).all()


def assert_saves_and_loads(model: DecoderFamily, config: dict[str, Any], path: Path) -> None:
    """Another model with other weights gives the same logits once the file is loaded, bit for bit."""
    features, tokens = features_and_tokens(model)
    save_variables(path, {"model": model.weights}, {"note": "harness"})
    other = build(config, seed=9)
    expected = keras.ops.convert_to_numpy(model(features, tokens))
    assert np.abs(keras.ops.convert_to_numpy(other(features, tokens)) - expected).max() > 1e-3
    assert load_variables(path, {"model": other.weights}) == {"note": "harness"}
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(other(features, tokens)), expected)


def assert_state_table(model: DecoderFamily) -> None:
    """Every row has the shape it promises; attention, where there is any, is a distribution over regions."""
    features, tokens = features_and_tokens(model, photographs=3, captions=1)
    state = model.full_state(features)
    rows = {row.name: row for row in model.state_specs()}
    assert set(state) == set(rows)
    for name, row in rows.items():
        assert tuple(state[name].shape) == (3, *row.shape[1:]), name
        assert keras.backend.standardize_dtype(state[name].dtype) == row.dtype, name
    logits, updates, attention = model.step(tokens[:, :1], np.array([0], "int32"), state)
    assert tuple(logits.shape) == (3, VOCABULARY)
    assert set(updates) == {name for name, row in rows.items() if row.kind != "constant"}
    for name, update in updates.items():
        shape = [3, *rows[name].shape[1:]]
        if rows[name].kind == "appended":
            shape[rows[name].axis] = 1
        assert list(update.shape) == shape, name
    assert (attention is not None) == model.attends
    if attention is not None:
        attention = keras.ops.convert_to_numpy(attention)
        assert attention.shape[0] == 3
        np.testing.assert_allclose(attention.sum(axis=-1), 1.0, atol=1e-5)
