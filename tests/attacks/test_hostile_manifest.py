"""Manifests written to exhaust memory or time, or to confuse: refused quickly, by name."""

import json
from pathlib import Path
from typing import Any

import pytest
import toy_bundle
from click.testing import CliRunner

from captionlite.runtime import Bundle
from captionlite.runtime.cli import cli
from captionlite.runtime.errors import BundleError

HUGE = 10**30
EDITS: dict[str, Any] = {
    "image of 10^30 rows": lambda m: m["image"].update(height=HUGE),
    "image of -1 rows": lambda m: m["image"].update(height=-1),
    "vocabulary of 10^30": lambda m: m["vocabulary"].update(size=HUGE),
    "captions of 10^30 tokens": lambda m: m["decoding"].update(max_length=HUGE),
    "captions of no token": lambda m: m["decoding"].update(max_length=0),
    "negative id": lambda m: m["decoding"].update(end_id=-1),
    "a million suppressed ids": lambda m: m["decoding"].update(suppressed_ids=[0] * 1_000_000),
    "state of 2^80 elements": lambda m: m["state"][3].update(shape=[None, 2**20, 2**20, 2**20]),
    "dimension zero": lambda m: m["state"][1].update(shape=[None, 0]),
    "negative dimension": lambda m: m["state"][1].update(shape=[None, -5]),
    "a hundred dimensions": lambda m: m["state"][1].update(shape=[None] + [1] * 100),
    "dimension as text": lambda m: m["state"][1].update(shape=[None, "5"]),
    "dimension as truth": lambda m: m["state"][1].update(shape=[None, True]),
    "free dimension inside": lambda m: m["state"][1].update(shape=[None, None]),
    "unknown type": lambda m: m["state"][1].update(dtype="object"),
    "type of NumPy's": lambda m: m["state"][1].update(dtype="O8,V9999999"),
    "file of 2^62 bytes": lambda m: m["files"]["README.md"].update(size_bytes=2**62),
    "file of -1 bytes": lambda m: m["files"]["README.md"].update(size_bytes=-1),
    "tolerance without end": lambda m: m["golden"].update(tolerance=1e300),
    "grid of 10^60 cells": lambda m: m["attention"].update(grid=[HUGE, HUGE]),
    "grid of a million sides": lambda m: m["attention"].update(grid=[1] * 1_000_000),
    "grid of as many cells in fractions": lambda m: m["attention"].update(grid=[2.0, 3.0]),
    "grid of as many cells below zero": lambda m: m["attention"].update(grid=[-2, -3]),
    "confidence without end": lambda m: m["decoding"].update(
        confidence={"slope": HUGE, "intercept": 0, "event": "x", "fitted_on": "x"}
    ),
    "graphs as a list": lambda m: m.update(graphs=[]),
    "state as an object": lambda m: m.update(state={}),
    "a list for all": None,
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", EDITS)
def test_refused_by_path(bundle: Path, name: str) -> None:
    if EDITS[name] is None:
        (bundle / "manifest.json").write_text("[]")
    else:
        toy_bundle.forge(bundle, EDITS[name])
    with pytest.raises(BundleError, match=r"manifest\.json: ") as caught:
        Bundle.open(bundle)
    assert len(str(caught.value)) < 1000


@pytest.mark.timeout(30)
@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "\ufeff{}",
        '{"format": [1, 0], "format": [1, 0]}',
        '{"format": [1, ' + "9" * 10_000 + "]}",
        "[" * 200_000,
        '{"a":' * 100_000,
        '{"format": [1e999, 0]}',
    ],
    ids=["empty", "cut", "null", "byte order mark", "twice", "10000 digits", "lists", "objects", "infinite"],
)
def test_text_that_no_parser_likes(bundle: Path, text: str) -> None:
    (bundle / "manifest.json").write_text(text)
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        Bundle.open(bundle)


def test_bytes_that_are_no_text(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b'{"name": "\xff\xfe"}')
    with pytest.raises(BundleError, match="not readable as JSON"):
        Bundle.open(bundle)


def test_commands_to_the_terminal_are_not_passed_on(bundle: Path) -> None:
    # "\x1b]0;" sets the window's title, "\x1b[2J" wipes the screen.
    toy_bundle.forge(bundle, lambda m: m["provenance"].update({"data\x1b[2J": "\x1b]0;owned\x07"}))
    for options in ([], ["--json"]):
        result = CliRunner().invoke(cli, ["inspect", str(bundle), *options])
        assert result.exit_code == 0
        assert "\x1b" not in result.output
        assert "owned" in result.output
    toy_bundle.forge(bundle, lambda m: m.update(name="\x1b[2J"))
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    assert "\x1b" not in str(caught.value)


def test_a_file_name_is_not_passed_on_either(bundle: Path) -> None:
    toy_bundle.forge(bundle, lambda m: m["files"].update({"\x1b[2J": {"sha256": "0" * 64, "size_bytes": 0}}))
    with pytest.raises(BundleError) as caught:
        Bundle.open(bundle)
    assert "\x1b" not in str(caught.value)


def test_an_unknown_field_is_not_passed_on_either(bundle: Path) -> None:
    for place in ("", "decoding"):
        manifest = json.loads((bundle / "manifest.json").read_text())
        (manifest[place] if place else manifest)["\x1b[2J"] = 1
        other = bundle.parent / f"other-{place}"
        toy_bundle.write(other)
        (other / "manifest.json").write_text(json.dumps(manifest))
        with pytest.raises(BundleError, match="not a field of this format") as caught:
            Bundle.open(other)
        assert "\x1b" not in str(caught.value)
