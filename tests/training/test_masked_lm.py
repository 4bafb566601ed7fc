"""The masked language model: its parameters, its masks, its prefixes, and both of its text encoders."""

from pathlib import Path
from typing import Any

import harness
import keras
import numpy as np
import pytest

from captionlite.training.config import load_config
from captionlite.training.errors import ConfigError
from captionlite.training.families import build_family
from captionlite.training.families.masked_lm import MaskedLM, averaging
from captionlite.training.vocabulary import END_ID, MASK_ID, PAD_ID, START_ID, UNKNOWN_ID

SMALL: dict[str, Any] = {
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
CONFIGS: dict[str, dict[str, Any]] = {
    "small_causal": {**SMALL, "prefix_attention": "causal"},
    "small_bidirectional": SMALL,
    "small_late_fusion": {**SMALL, "memory_layers": 0, "embedding": 16, "image_grid": None, "length_head": False},
    "albert": ALBERT,
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    if CONFIGS[request.param]["text"] == "albert":
        pytest.importorskip("keras_hub")
    return CONFIGS[request.param]


def build(config: dict[str, Any]) -> MaskedLM:
    model = harness.build(config)
    assert isinstance(model, MaskedLM)
    return model


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def test_goes_through_the_shared_harness(config: dict[str, Any], tmp_path: Path) -> None:
    model = build(config)
    harness.assert_full_call_equals_steps(model)
    harness.assert_no_peeking(model)
    harness.assert_photograph_matters(model)
    harness.assert_saves_and_loads(model, config, tmp_path / "weights.safetensors")
    harness.assert_state_table(model)
