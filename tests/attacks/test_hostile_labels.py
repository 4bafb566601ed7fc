"""Labels that lie about themselves, or would say to a terminal what it obeys: refused before an interpreter starts."""

import json
from pathlib import Path
from typing import Any

import pytest
import toy_bundle

from captionlite.runtime import Bundle
from captionlite.runtime.errors import BundleError

HUGE = 10**30


@pytest.fixture
def labelled(tmp_path: Path) -> Path:
    toy_bundle.write_labelled(tmp_path / "bundle")
    return tmp_path / "bundle"


MANIFEST: dict[str, tuple[Any, str]] = {
    "a size of 10^30": (lambda m: m["labels"].update(size=HUGE), r"labels\.size"),
    "another size": (lambda m: m["labels"].update(size=4), r"graphs\.encoder\.outputs"),
    "one label": (lambda m: m["labels"].update(size=1), r"labels\.size"),
    "another output": (lambda m: m["labels"].update(output="logits"), r"graphs\.encoder\.outputs"),
    "a state as output": (lambda m: m["labels"].update(output="hidden", size=5), r"labels\.output is the state hidden"),
    "an output of integers": (
        lambda m: m["graphs"]["encoder"]["outputs"][2].update(dtype="int8"),
        r"graphs\.encoder\.outputs",
    ),
    "an output of another shape": (
        lambda m: m["graphs"]["encoder"]["outputs"][2].update(shape=[1, 1, 5]),
        r"graphs\.encoder\.outputs",
    ),
    "an output that no label has": (lambda m: m.pop("labels"), r"labels is no row of state"),
    "a file elsewhere": (lambda m: m["labels"].update(file="../labels.json"), r"labels\.file"),
    "a file that is not there": (lambda m: m["labels"].update(file="other.json"), r"files does not list other\.json"),
    "the manifest as file": (lambda m: m["labels"].update(file="manifest.json"), r"labels\.file"),
    "a probability without end": (lambda m: m["labels"].update(least_probability=HUGE), r"labels\.least_probability"),
    "a probability below zero": (lambda m: m["labels"].update(least_probability=-0.1), r"labels\.least_probability"),
    "a probability as truth": (lambda m: m["labels"].update(least_probability=True), r"labels\.least_probability"),
    "a confidence as text": (lambda m: m["labels"].update(below_confidence="0.5"), r"labels\.below_confidence"),
    "a probability beside people beyond 1": (
        lambda m: m["labels"].update(least_beside_people=1.5),
        r"labels\.least_beside_people",
    ),
    "no threshold": (lambda m: m["labels"].pop("below_confidence"), r"labels\.below_confidence is missing"),
    "one field more": (lambda m: m["labels"].update(run="rm"), r"labels\.run is not a field"),
    "a source that commands": (lambda m: m["labels"].update(source="\x1b[2J"), r"labels\.source"),
    "a list": (lambda m: m.update(labels=[]), r"labels is \[\]"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", MANIFEST)
def test_the_manifest_is_refused_by_path(labelled: Path, name: str) -> None:
    edit, path = MANIFEST[name]
    toy_bundle.forge(labelled, edit)
    with pytest.raises(BundleError, match=rf"manifest\.json: .*{path}") as caught:
        Bundle.open(labelled)
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


FILES: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "not readable as JSON"),
    "NaN": (b'{"names": NaN, "words": {}}', "NaN is not JSON"),
    "a list": (b"[]", "the top level"),
    "nesting": (b'{"names":' + b"[" * 100_000, "not readable as JSON"),
    "no words": (b'{"names": ["a", "b", "c", "d", "e"]}', "words is missing"),
    "no people": (b'{"names": ["a", "b", "c", "d", "e"], "words": {}}', "people is missing"),
    "people as an object": (toy_bundle.labels_json(people={}), r"people is \{\}"),
    "a crowd": (toy_bundle.labels_json(people=["a"] * 1000), "people has 1000 entries"),
    "people that command": (toy_bundle.labels_json(people=["\x1b[2J"]), r"people\[0\]"),
    "a field more": (toy_bundle.labels_json(groups=[]), "groups is not a field"),
    "too few names": (toy_bundle.labels_json(names=["a"] * 4), "4 names, but the encoder has 5 labels"),
    "too many names": (toy_bundle.labels_json(names=["a"] * 6), "names has 6 entries, expected at most 5"),
    "a million names": (toy_bundle.labels_json(names=["a"] * 1_000_000), "names has 1000000 entries"),
    "only null": (toy_bundle.labels_json(names=[None] * 5, words={}), "names has no name"),
    "a number": (toy_bundle.labels_json(names=["a", "b", "c", "d", 1]), r"names\[4\] is 1"),
    "an empty name": (toy_bundle.labels_json(names=["a", "b", "c", "d", ""]), r"names\[4\]"),
    "blanks": (toy_bundle.labels_json(names=["a", "b", "c", "d", "  "]), r"names\[4\]"),
    "a long name": (toy_bundle.labels_json(names=["a", "b", "c", "d", "e" * 61]), r"names\[4\]"),
    "a name that commands": (toy_bundle.labels_json(names=["a", "b", "c", "d", "\x1b[2J"]), r"names\[4\]"),
    "a name of two lines": (toy_bundle.labels_json(names=["a", "b", "c", "d", "e\nf"]), r"names\[4\]"),
    "words of no name": (toy_bundle.labels_json(words={"\x1b[2J": []}), "words has '.*which is no name"),
    "words as text": (toy_bundle.labels_json(words={"dog": "puppy"}), r"words\.dog"),
    "a thousand words": (toy_bundle.labels_json(words={"dog": ["a"] * 1000}), r"words\.dog has 1000 entries"),
    "a word of nothing": (toy_bundle.labels_json(words={"dog": [""]}), r"words\.dog\[0\]"),
}


@pytest.mark.timeout(30)
@pytest.mark.parametrize("name", FILES)
def test_the_file_is_refused_by_path(labelled: Path, name: str) -> None:
    data, expected = FILES[name]
    toy_bundle.forge(labelled, changed={"labels.json": data})
    with pytest.raises(BundleError, match=rf"labels\.json: .*{expected}") as caught:
        Bundle.open(labelled)
    assert len(str(caught.value)) < 1000
    assert "\x1b" not in str(caught.value)


def test_a_changed_file_is_damage(labelled: Path) -> None:
    (labelled / "labels.json").write_bytes(toy_bundle.labels_json(words={}))
    with pytest.raises(BundleError, match=r"labels\.json: .*Copy or export the bundle again"):
        Bundle.open(labelled)


def test_a_bundle_of_the_format_before_still_opens(tmp_path: Path) -> None:
    toy_bundle.write(tmp_path / "bundle")
    toy_bundle.forge(tmp_path / "bundle", lambda m: m.update(format=[1, 4]))
    found = json.loads((tmp_path / "bundle" / "manifest.json").read_text())
    assert "labels" not in found
    assert Bundle.open(tmp_path / "bundle").labels is None
