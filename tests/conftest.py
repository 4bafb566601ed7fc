"""What every test shares: a cache of its own, so that none finds or leaves anything in the user's."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """XDG_CACHE_HOME for this process and those it starts; matplotlib keeps its list of fonts, which takes seconds."""
    cache = tmp_path_factory.mktemp("cache")
    fonts = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "matplotlib"
    with pytest.MonkeyPatch.context() as patch:
        if "MPLCONFIGDIR" not in os.environ and fonts.is_dir():
            patch.setenv("MPLCONFIGDIR", str(fonts))
        patch.setenv("XDG_CACHE_HOME", str(cache))
        yield cache
