"""Bundles of other formats: the version is read before anything else, so that the advice is right."""

import json
from pathlib import Path
from typing import Any

import pytest
import toy_bundle

from captionlite.runtime import Bundle
from captionlite.runtime.errors import BundleError
from captionlite.runtime.manifest import FORMAT


@pytest.mark.parametrize("version", [[2, 0], [2, 7], [9999, 0]])
def test_a_newer_major_says_what_to_upgrade(bundle: Path, version: list[int]) -> None:
    # Everything else may have changed in a newer format, so nothing else may be complained of.
    (bundle / "manifest.json").write_text(json.dumps({"format": version, "graphs": "elsewhere"}))
    with pytest.raises(BundleError, match=rf"format is {version[0]}\.{version[1]}.*pip install --upgrade captionlite"):
        Bundle.open(bundle)


def test_an_older_major_says_to_export_again(bundle: Path) -> None:
    toy_bundle.forge(bundle, lambda m: m.update(format=[0, 9]))
    with pytest.raises(BundleError, match=r"format is 0\.9.*Export the bundle again"):
        Bundle.open(bundle)


def test_a_newer_minor_is_read(bundle: Path) -> None:
    toy_bundle.forge(bundle, lambda m: m.update(format=[FORMAT[0], FORMAT[1] + 5], invented_later={"x": 1}))
    assert Bundle.open(bundle).manifest.name == "toy"


@pytest.mark.parametrize("version", [None, 1, "1.0", [1], [1, 0, 0], [1.0, 0], [True, 0], ["1", "0"], [-1, 0], {}])
def test_a_version_that_is_none(bundle: Path, version: Any) -> None:
    toy_bundle.forge(bundle, lambda m: m.update(format=version))
    with pytest.raises(BundleError, match=r"manifest\.json: format"):
        Bundle.open(bundle)
