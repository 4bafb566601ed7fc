"""One real service with the toy bundle for all tests that do not change it."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import serving

pytest.importorskip("uvicorn", reason="the extra serve is not installed")


@pytest.fixture(scope="session")
def service(toy_directory: Path) -> Iterator[serving.Client]:
    """`captionlite serve` on a free port."""
    with serving.serve(toy_directory, "--workers", "2") as client:
        yield client
