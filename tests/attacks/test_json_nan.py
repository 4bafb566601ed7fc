"""NaN and infinities in JSON, which Python reads and writes although JSON has none: refused both ways."""

import json
from pathlib import Path

import pytest
import toy_bundle

from captionlite.runtime import Bundle
from captionlite.runtime.errors import BundleError


@pytest.mark.parametrize("constant", ["NaN", "Infinity", "-Infinity"])
@pytest.mark.parametrize("field", ["tolerance", "cider"])
def test_a_constant_in_the_manifest(bundle: Path, constant: str, field: str) -> None:
    # A tolerance of NaN would pass nothing, one of Infinity everything.
    path = bundle / "manifest.json"
    text = path.read_text()
    value = {"tolerance": "0.001", "cider": "0.5"}[field]
    changed = text.replace(f'"{field}": {value}', f'"{field}": {constant}')
    assert changed != text
    path.write_text(changed)
    with pytest.raises(BundleError, match=rf"not readable as JSON \({constant} is not JSON\)"):
        Bundle.open(bundle)


def test_a_number_beyond_all_floats(bundle: Path) -> None:
    path = bundle / "manifest.json"
    path.write_text(path.read_text().replace('"tolerance": 0.001', '"tolerance": 1e999'))
    with pytest.raises(BundleError, match=r"golden\.tolerance is inf, expected a number from 0 to 1"):
        Bundle.open(bundle)


def test_a_constant_in_the_vocabulary(bundle: Path) -> None:
    data = json.dumps({"kind": "words", "pieces": toy_bundle.PIECES, "join": float("nan")}).encode()
    toy_bundle.forge(bundle, changed={"vocabulary.json": data})
    with pytest.raises(BundleError, match=r"vocabulary\.json: not readable as JSON \(NaN is not JSON\)"):
        Bundle.open(bundle)
