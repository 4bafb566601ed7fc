"""Every family through the shared harness. A new family is a row here."""

from pathlib import Path
from typing import Any

import harness
import pytest

COMMON = {
    "name": "transformer",
    "layers": 2,
    "units": 16,
    "heads": 2,
    "key_dim": 8,
    "feed_forward": 24,
    "max_length": 9,
}
CONFIGS: dict[str, dict[str, Any]] = {
    "transformer": COMMON,
    "transformer_pre_norm": {**COMMON, "norm": "pre"},
    "transformer_memory": {**COMMON, "norm": "pre", "memory_layers": 1, "heads": 4},
    "transformer_tied": {**COMMON, "project_features": True, "tied_embedding": True},
}


@pytest.fixture(params=CONFIGS)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return CONFIGS[request.param]


def test_full_call_equals_step_by_step(config: dict[str, Any]) -> None:
    harness.assert_full_call_equals_steps(harness.build(config))


def test_no_position_sees_what_follows(config: dict[str, Any]) -> None:
    harness.assert_no_peeking(harness.build(config))


def test_photograph_matters_at_every_position(config: dict[str, Any]) -> None:
    harness.assert_photograph_matters(harness.build(config))


def test_saves_and_loads(config: dict[str, Any], tmp_path: Path) -> None:
    harness.assert_saves_and_loads(harness.build(config), config, tmp_path / "weights.safetensors")


def test_state_table(config: dict[str, Any]) -> None:
    harness.assert_state_table(harness.build(config))
