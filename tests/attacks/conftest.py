"""A whole bundle to tamper with; `toy_bundle.forge` makes its checksums right again, as an attacker would."""

from pathlib import Path

import pytest
import toy_bundle


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    """A valid toy bundle directory inside its own folder."""
    directory = tmp_path / "inner" / "bundle"
    toy_bundle.write(directory)
    return directory
