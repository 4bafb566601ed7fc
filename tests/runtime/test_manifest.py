"""The manifest is read strictly: every field is asked for, every contradiction is named by its JSON path."""

import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import toy_bundle

from captionlite.runtime.errors import BundleError
from captionlite.runtime.manifest import FORMAT, AttentionSpec, ConfidenceSpec, Manifest, ProvenSpec

CONFIDENCE = ConfidenceSpec(slope=2.5, intercept=1.25, event="CIDEr of at least 0.5", fitted_on="drawings, dev")
PROVEN = (ProvenSpec("ai-edge-litert", "2.3.0", "x86_64"), ProvenSpec("tflite-runtime", "2.14.0", "armv7l"))
OPTIONAL = (("attention",), ("decoding", "confidence"), ("decoding", "length_penalty"), ("proven",))


def valid() -> dict[str, Any]:
    """The toy's manifest as parsed JSON, with all that is optional and with made-up checksums."""
    manifest = toy_bundle.manifest()
    decoding = replace(manifest.decoding, confidence=CONFIDENCE, length_penalty=2.5)
    found = replace(manifest, decoding=decoding, proven=PROVEN).to_json()
    names = ("encoder.tflite", "decoder.tflite", "vocabulary.json", "golden.npz")
    found["files"] = {name: {"sha256": "0" * 64, "size_bytes": 1} for name in names}
    copied: dict[str, Any] = json.loads(json.dumps(found))
    return copied


def paths(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[tuple[str | int, ...]]:
    """Every field of every object that the format defines, as a path of keys."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        if isinstance(key, str) and path[:1] not in (("provenance",), ("scores",)) and path != ("files",):
            yield (*path, key)
        yield from paths(child, (*path, key))


def parent_of(manifest: dict[str, Any], path: tuple[str | int, ...]) -> Any:
    found: Any = manifest
    for key in path[:-1]:
        found = found[key]
    return found


def written(path: tuple[str | int, ...]) -> str:
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path)
    return text.removeprefix(".")


FIELDS = list(paths(valid()))


def test_the_valid_manifest_is_read() -> None:
    manifest = Manifest.from_json(valid(), "here")
    assert manifest.name == "toy"
    assert manifest.attention == AttentionSpec((2, 3))
    assert manifest.decoding.confidence == CONFIDENCE
    assert manifest.proven == PROVEN
    assert manifest.to_json() == valid()
    assert len(FIELDS) > 80


@pytest.mark.parametrize("path", OPTIONAL, ids=written)
def test_what_is_optional_may_be_missing_and_is_then_not_written(path: tuple[str | int, ...]) -> None:
    manifest = valid()
    del parent_of(manifest, path)[path[-1]]
    assert Manifest.from_json(manifest, "here").to_json() == manifest


@pytest.mark.parametrize("minor", range(FORMAT[1]))
def test_older_minor_versions_are_read(minor: int) -> None:
    manifest = valid()
    manifest["format"] = [FORMAT[0], minor]
    for path in OPTIONAL:
        del parent_of(manifest, path)[path[-1]]
    found = Manifest.from_json(manifest, "here")
    assert (found.format, found.attention, found.decoding.confidence) == ((FORMAT[0], minor), None, None)
    assert found.proven == ()


@pytest.mark.parametrize("path", [path for path in FIELDS if path not in OPTIONAL], ids=written)
def test_a_missing_field_is_named(path: tuple[str | int, ...]) -> None:
    manifest = valid()
    del parent_of(manifest, path)[path[-1]]
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(manifest, "x/manifest.json")
    assert f"x/manifest.json: {written(path)} is missing" in str(caught.value)


WRONG = [
    pytest.param(path, wrong, id=f"{written(path)}={wrong!r}")
    for path in FIELDS
    for wrong in (True, {"a": 1}, [[1]], 1.5, "\x1b[2J")
    if not (path in (("provenance",), ("scores",)) and isinstance(wrong, dict))  # any object is right there
    and not (path[-1] in ("slope", "intercept", "length_penalty") and wrong == 1.5)  # and any number here
]


@pytest.mark.parametrize(("path", "wrong"), WRONG)
def test_a_wrong_type_is_named(path: tuple[str | int, ...], wrong: Any) -> None:
    manifest = valid()
    parent_of(manifest, path)[path[-1]] = wrong
    with pytest.raises(BundleError) as caught:
        Manifest.from_json(manifest, "x/manifest.json")
    assert written(path) in str(caught.value)
    assert "\x1b" not in str(caught.value)


def test_an_unknown_field_is_refused_at_this_minor_version_and_taken_from_a_newer_one() -> None:
    manifest = valid()
    manifest["decoding"]["temperature"] = 0.5
    with pytest.raises(BundleError, match=r"decoding\.temperature is not a field of this format"):
        Manifest.from_json(manifest, "here")
    manifest["format"] = [FORMAT[0], FORMAT[1] + 1]
    assert Manifest.from_json(manifest, "here").format == (FORMAT[0], FORMAT[1] + 1)


def _set(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    keys: list[str | int] = [int(key) if key.isdigit() else key for key in path.split(".")]

    def edit(manifest: dict[str, Any]) -> None:
        parent_of(manifest, tuple(keys))[keys[-1]] = copy.deepcopy(value)

    return edit


CONTRADICTIONS = {
    "image size": (_set("image.height", 9), "graphs.encoder.inputs is not exactly"),
    "vocabulary size": (_set("vocabulary.size", 13), "logits"),
    "state not an input": (_set("state.0.name", "other"), "graphs.decoder.inputs names"),
    "state of another type": (_set("state.1.dtype", "float16"), "graphs.decoder.inputs: found"),
    "state of another shape": (_set("state.1.shape", [None, 6]), "graphs.decoder.inputs: found"),
    "state without batch": (_set("state.1.shape", [1, 5]), "first dimension of null"),
    "constant that no encoder gives": (_set("graphs.encoder.outputs.0.name", "hidden2"), "hidden2 is no row of state"),
    "encoder output of another shape": (
        _set("graphs.encoder.outputs.1.shape", [1, 6]),
        "graphs.encoder.outputs: found",
    ),
    "length of the cache": (_set("decoding.max_length", 8), "state history: size 7 on axis 2"),
    "axis of a carried row": (_set("state.1.axis", 1), "only appended rows have an axis"),
    "axis out of range": (_set("state.3.axis", 4), r"state\[3\]\.axis is 4"),
    "axis of the batch": (_set("state.3.axis", 0), r"state\[3\]\.axis is 0"),
    "suppressed end": (_set("decoding.suppressed_ids", [3]), "end_id is suppressed"),
    "suppressed twice": (_set("decoding.suppressed_ids", [0, 0]), "suppressed_ids has 0 twice"),
    "start is end": (_set("decoding.start_id", 3), "are the same"),
    "id beyond the vocabulary": (_set("decoding.pad_id", 12), r"decoding\.pad_id is 12"),
    "file not listed": (_set("golden.file", "other.npz"), "files does not list other.npz"),
    "two rows of one name": (_set("state.1.name", "projected"), "state has projected twice"),
    "reserved name": (_set("state.1.name", "token"), "a name that the loop itself uses"),
    "attention without batch": (_set("graphs.decoder.outputs.4.shape", [1, 6]), "attention is float32"),
    "grid of too few regions": (_set("attention.grid", [2, 2]), "2 x 2 = 4, but the decoder attends to 6 regions"),
    "grid of too many regions": (_set("attention.grid", [7, 7]), "7 x 7 = 49, but the decoder attends to 6 regions"),
    "grid without columns": (_set("attention.grid", [6, 0]), r"attention\.grid\[1\] is 0"),
    "grid turned inside out": (_set("attention.grid", [-2, -3]), r"attention\.grid\[0\] is -2"),
    "grid of one number": (_set("attention.grid", [6]), r"attention\.grid is \[6\], expected two integers"),
    "grid of three numbers": (_set("attention.grid", [1, 2, 3]), "expected two integers, the rows and columns"),
    "grid of nothing": (_set("attention", {}), r"attention\.grid is missing"),
    "negative slope": (_set("decoding.confidence.slope", -0.5), r"decoding\.confidence\.slope is -0\.5"),
    "slope that is no number": (_set("decoding.confidence.slope", float("nan")), r"slope is nan, expected a number"),
    "slope without end": (_set("decoding.confidence.slope", float("inf")), r"slope is inf, expected a number"),
    "intercept without end": (_set("decoding.confidence.intercept", -float("inf")), r"intercept is -inf, expected"),
    "confidence in nothing": (_set("decoding.confidence.event", ""), r"decoding\.confidence\.event is ''"),
    "rank 5": (_set("state.3.shape", [None, 1, 7, 5, 1]), "1 to 4 dimensions"),
    "proven twice": (_set("proven.1", vars(PROVEN[0])), "proven has ai-edge-litert 2.3.0 on x86_64 twice"),
    "proven too often": (_set("proven", [vars(PROVEN[0])] * 65), "proven has 65 entries, expected at most 64"),
    "proven on nothing": (_set("proven.0.version", ""), r"proven\[0\]\.version is ''"),
    "proven on much": (_set("proven.0.machine", "x" * 101), r"proven\[0\]\.machine is 'xxx"),
    "proven by somebody": (_set("proven.0.by", "me"), r"proven\[0\]\.by is not a field of this format"),
    "another resize": (_set("image.resize", "crop"), "expected 'squash'"),
    "another vocabulary": (_set("vocabulary.kind", "characters"), "expected 'words'"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_a_contradiction_is_named(name: str) -> None:
    edit, expected = CONTRADICTIONS[name]
    manifest = valid()
    edit(manifest)
    with pytest.raises(BundleError, match=expected):
        Manifest.from_json(manifest, "here")


def test_a_grid_needs_a_decoder_that_attends() -> None:
    manifest = valid()
    outputs = manifest["graphs"]["decoder"]["outputs"]
    outputs[:] = [spec for spec in outputs if spec["name"] != "attention"]
    with pytest.raises(BundleError, match=r"attention\.grid is there, but graphs\.decoder\.outputs has no attention"):
        Manifest.from_json(manifest, "here")
    del manifest["attention"]
    assert Manifest.from_json(manifest, "here").attention is None


def test_file_names_that_differ_in_case_alone_are_refused() -> None:
    manifest = valid()
    manifest["files"]["GOLDEN.npz"] = manifest["files"]["golden.npz"]
    with pytest.raises(BundleError, match=r"files has golden\.npz twice"):
        Manifest.from_json(manifest, "here")
