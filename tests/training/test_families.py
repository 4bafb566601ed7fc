"""Every family through the shared harness, as trained; tests/export has the same table, as exported."""

from pathlib import Path
from typing import Any

import harness
import pytest


@pytest.fixture(params=harness.CONFIGS)
def config(request: pytest.FixtureRequest) -> dict[str, Any]:
    return harness.CONFIGS[request.param]


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
