"""Vocabularies that do not match the logits: an id without a piece would fail in the middle of a caption."""

import json
from pathlib import Path
from typing import Any

import pytest
import toy_bundle

from captionlite.runtime import Bundle
from captionlite.runtime.errors import BundleError


def forged(bundle: Path, vocabulary: Any) -> Path:
    return toy_bundle.forge(bundle, changed={"vocabulary.json": json.dumps(vocabulary).encode()})


@pytest.mark.parametrize("count", [0, 1, toy_bundle.V - 1])
def test_fewer_pieces_than_logits(bundle: Path, count: int) -> None:
    forged(bundle, {"kind": "words", "pieces": toy_bundle.PIECES[:count], "join": " "})
    with pytest.raises(BundleError, match=rf"vocabulary\.json: {count} pieces, but the decoder has 12 logits"):
        Bundle.open(bundle)


def test_more_pieces_than_logits(bundle: Path) -> None:
    forged(bundle, {"kind": "words", "pieces": [*toy_bundle.PIECES, "cat"], "join": " "})
    with pytest.raises(BundleError, match=r"vocabulary\.json: pieces has 13 entries, expected at most 12"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "sentencepiece"},
        {"kind": None},
        {"pieces": "a" * toy_bundle.V},
        {"pieces": {str(i): "a" for i in range(toy_bundle.V)}},
        {"pieces": [None] * toy_bundle.V},
        {"pieces": [1] * toy_bundle.V},
        {"pieces": ["a" * 2000] * toy_bundle.V},
        {"pieces": ["\x1b[2J"] * toy_bundle.V},
        {"join": None},
        {"join": 1},
        {"join": " " * 1000},
        {"join": "\x1b[2J"},
    ],
    ids=str,
)
def test_other_contents(bundle: Path, change: dict[str, Any]) -> None:
    forged(bundle, {"kind": "words", "pieces": toy_bundle.PIECES, "join": " ", **change})
    with pytest.raises(BundleError, match=rf"vocabulary\.json: {next(iter(change))}") as caught:
        Bundle.open(bundle)
    assert "\x1b" not in str(caught.value)


@pytest.mark.parametrize("field", ["kind", "pieces", "join"])
def test_a_missing_field(bundle: Path, field: str) -> None:
    vocabulary = {"kind": "words", "pieces": toy_bundle.PIECES, "join": " "}
    del vocabulary[field]
    forged(bundle, vocabulary)
    with pytest.raises(BundleError, match=f"{field} is missing"):
        Bundle.open(bundle)
