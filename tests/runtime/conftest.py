"""The toy bundle on disk, once per session: as a directory and as a zip."""

from pathlib import Path

import pytest
import toy_bundle

from captionlite.runtime.bundle import pack_bundle


@pytest.fixture(scope="session")
def toy_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle as a directory. Tests that change it copy it first."""
    directory = tmp_path_factory.mktemp("bundles") / "toy"
    toy_bundle.write(directory)
    return directory


@pytest.fixture(scope="session")
def toy_zip(toy_directory: Path) -> Path:
    """The same bundle as an uncompressed zip."""
    path = toy_directory.with_suffix(".zip")
    pack_bundle(toy_directory, path)
    return path
