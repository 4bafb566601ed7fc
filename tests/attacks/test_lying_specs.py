"""A manifest that is consistent in itself and describes other graphs than the ones beside it."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_bundle

from captionlite.runtime import Captioner
from captionlite.runtime.errors import InterpreterError


def _each_tensor(manifest: dict[str, Any], name: str) -> list[dict[str, Any]]:
    """The state row and every input and output of that name."""
    sides = [graph[side] for graph in manifest["graphs"].values() for side in ("inputs", "outputs")]
    return [spec for specs in (manifest["state"], *sides) for spec in specs if spec["name"] == name]


def rename(manifest: dict[str, Any]) -> None:
    for spec in _each_tensor(manifest, "count"):
        spec["name"] = "number"


def retype(manifest: dict[str, Any]) -> None:
    for spec in _each_tensor(manifest, "count"):
        spec["dtype"] = "float32"


def reshape(manifest: dict[str, Any]) -> None:
    for spec in _each_tensor(manifest, "hidden"):
        spec["shape"][1] = 6


def shorten(manifest: dict[str, Any]) -> None:
    """Fewer steps than the cache has columns."""
    manifest["decoding"]["max_length"] = 3
    for spec in manifest["state"], manifest["graphs"]["decoder"]["inputs"]:
        next(row for row in spec if row["name"] == "history")["shape"][2] = 3


def enlarge_image(manifest: dict[str, Any]) -> None:
    manifest["image"]["height"] = 16
    manifest["graphs"]["encoder"]["inputs"][0]["shape"][1] = 16


def widen_attention(manifest: dict[str, Any]) -> None:
    _each_tensor(manifest, "attention")[0]["shape"][1] = 50
    manifest["attention"]["grid"] = [5, 10]


def drop_attention(manifest: dict[str, Any]) -> None:
    outputs = manifest["graphs"]["decoder"]["outputs"]
    outputs[:] = [spec for spec in outputs if spec["name"] != "attention"]
    del manifest["attention"]


def swap_graphs(manifest: dict[str, Any]) -> None:
    graphs = manifest["graphs"]
    graphs["encoder"]["file"], graphs["decoder"]["file"] = graphs["decoder"]["file"], graphs["encoder"]["file"]


EDITS = {
    rename: r"decoder\.tflite: the graph's inputs are .*'count'.*expected .*'number'",
    retype: r"decoder\.tflite: inputs count is int32, expected float32",
    reshape: r"coder\.tflite: hidden has shape \[1, 5\], expected \[1, 6\]",
    shorten: r"decoder\.tflite: history has shape \[1, 1, 7, 5\], expected \[1, 1, 3, 5\]",
    enlarge_image: r"encoder\.tflite: image has shape \[1, 8, 12, 3\], expected \[1, 16, 12, 3\]",
    widen_attention: r"decoder\.tflite: attention has shape \[1, 6\], expected \[1, 50\]",
    drop_attention: r"decoder\.tflite: the graph's outputs are .*'attention'",
    swap_graphs: r"decoder\.tflite: the graph's inputs are",
}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_the_graph_itself_is_asked(bundle: Path, edit: Any) -> None:
    toy_bundle.forge(bundle, edit)
    with pytest.raises(InterpreterError, match=EDITS[edit]):
        Captioner.from_bundle(bundle).caption(np.zeros((8, 12, 3), np.uint8))
