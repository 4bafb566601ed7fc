"""Quantization as data: a recipe is a JSON file that says what happens to each graph.

    {"description": "...", "tolerance": 0.05,
     "encoder": {"overrides": [{"operation": "CONV_2D", "mode": "static_wi8_ai8"}]},
     "decoder": {"default": "dynamic_wi8_afp32"}}

The TensorFlow converter makes float32 files only; a recipe is what litert-quantizer lays over them. Operations, modes,
granularities and algorithms have its names where they mean the same. Which recipe wins on which graph was measured:
convolutions want calibrated static int8 (dynamic int8 makes them slower than float), the decoder's step wants dynamic
int8 (weights int8, activations quantized as they come).
"""

from __future__ import annotations

import dataclasses
import hashlib
import importlib.resources
import json
import re
from pathlib import Path
from typing import Any, Literal, TypeAlias

from captionlite.export.errors import ExportError
from captionlite.training.config import from_json
from captionlite.training.errors import ConfigError

Mode: TypeAlias = Literal[
    "no_quantize",
    "float_casting",  # weights float16
    "dynamic_wi8_afp32",
    "dynamic_wi4_afp32",
    "weight_only_wi8_afp32",
    "weight_only_wi4_afp32",
    "static_wi8_ai8",
    "static_wi8_ai16",
]
Granularity: TypeAlias = Literal[
    "CHANNELWISE", "TENSORWISE", "BLOCKWISE_32", "BLOCKWISE_64", "BLOCKWISE_128", "BLOCKWISE_256"
]
Ranges: TypeAlias = Literal["moving_average", "min_max"]
Algorithm: TypeAlias = Literal["min_max_uniform_quantize", "MSE", "OCTAV"]

EVERY_OPERATION, EVERY_NAME = "*", ".*"
TABLE = "GATHER"  # rows of an embedding: its range is that of the stored table, so nothing need be calibrated


@dataclasses.dataclass(frozen=True)
class Override:
    """Ops that litert-quantizer stores in another way than the graph's default: all of this ``operation`` (a
    TFLOperationName; "*" for every one that has the mode) with an output tensor whose name ``regex`` finds.

    static: weights and activations are integers, in calibrated ranges. dynamic: integer weights, activations quantized
    row by row as they come. weight_only: integer weights that are expanded to float32. Of overrides that name the same
    op the last one counts; one whose mode the op does not have is passed over. A ``regex`` that finds nothing is taken
    for a slip and refused, unless the override is ``optional``: about tensors that only some models have.
    """

    mode: Mode
    operation: str = EVERY_OPERATION
    regex: str = EVERY_NAME
    granularity: Granularity = "CHANNELWISE"  # of weights
    algorithm_key: Algorithm = "min_max_uniform_quantize"  # how the range of weights is chosen
    optional: bool = False

    @property
    def needs_calibration(self) -> bool:
        return self.mode.startswith("static_") and self.operation != TABLE


@dataclasses.dataclass(frozen=True)
class GraphRecipe:
    """How one graph is stored: litert-quantizer's mode for all ops that have it, and overrides.

    ``ranges``: how calibration sums up what it sees of an activation. A moving average forgets: it suits photographs,
    which are all alike, and cuts off what only the first or the last step of a caption has.
    """

    default: Mode = "no_quantize"
    ranges: Ranges = "moving_average"
    overrides: tuple[Override, ...] = ()

    @property
    def rules(self) -> tuple[Override, ...]:
        """The default as the first override, then the others."""
        return (*(() if self.default == "no_quantize" else (Override(self.default),)), *self.overrides)

    @property
    def needs_calibration(self) -> bool:
        return any(rule.needs_calibration for rule in self.rules)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """One graph recipe for each graph; without one of its own, ``refine`` (parallel passes) is stored as the decoder.

    ``tolerance`` is the relative RMS error within which another machine must reproduce the golden vectors: float graphs
    agree to rounding; dynamic int8 differs between CPUs with and without int8 dot products. ``min_cider_ratio`` is the
    part of the float32 CIDEr that `captionlite gate` asks of a bundle of this recipe.
    """

    name: str
    description: str
    tolerance: float
    encoder: GraphRecipe
    decoder: GraphRecipe
    refine: GraphRecipe | None = None
    min_cider_ratio: float = 0.99

    def graph(self, name: str) -> GraphRecipe:
        """That of "encoder", "decoder" or "refine"."""
        graphs = {"encoder": self.encoder, "decoder": self.decoder, "refine": self.refine or self.decoder}
        return graphs[name]

    @property
    def needs_calibration(self) -> bool:
        return any(self.graph(name).needs_calibration for name in ("encoder", "decoder", "refine"))

    def to_json(self) -> dict[str, Any]:
        """What `recipe` reads back to an equal recipe."""
        content = json.loads(json.dumps(dataclasses.asdict(self)))
        del content["name"]
        return {key: value for key, value in content.items() if value is not None}

    def provenance(self) -> dict[str, Any]:
        """Name, whole content and its SHA-256, for the manifest."""
        content = self.to_json()
        canonical = json.dumps(content, sort_keys=True, separators=(",", ":"))
        return {"name": self.name, "sha256": hashlib.sha256(canonical.encode()).hexdigest(), "content": content}


@dataclasses.dataclass(frozen=True)
class _File:
    """A recipe file: a recipe without its name."""

    description: str
    tolerance: float
    encoder: GraphRecipe
    decoder: GraphRecipe
    refine: GraphRecipe | None = None
    min_cider_ratio: float = 0.99


def recipe_names() -> list[str]:
    """The recipes inside the package."""
    folder = importlib.resources.files("captionlite.export.recipes")
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json"))


def recipe(name_or_path: str) -> Recipe:
    """A recipe of the package by name, or one from a JSON file; a file's recipe is named after the file.

    Raises ExportError naming the file, the field, what was found and what was expected.
    """
    if name_or_path in recipe_names():
        text = (importlib.resources.files("captionlite.export.recipes") / f"{name_or_path}.json").read_text()
        return _read(text, name_or_path, f"{name_or_path}.json")
    path = Path(name_or_path)
    if name_or_path == "auto" and not path.is_file():
        raise ExportError(
            "recipe auto: is not there to be read but found by a search, over a float32 bundle: captionlite export RUN "
            "--recipe float32 --out FLOAT, then captionlite quantize FLOAT --recipe auto --calibrate DATA --data DATA "
            "--out BUNDLE"
        )
    if not path.is_file():
        there = ", ".join(recipe_names())
        raise ExportError(f"recipe {name_or_path!r}: neither a file nor a recipe of captionlite; there are {there}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ExportError(f"{path}: not readable as a recipe ({error}); expected JSON in UTF-8") from error
    return _read(text, path.stem, str(path))


def _read(text: str, name: str, where: str) -> Recipe:
    try:
        obj = json.loads(text)
    except json.JSONDecodeError as error:
        raise ExportError(f"{where}: not JSON: {error}") from error
    try:
        file: _File = from_json(_File, obj, where)
    except ConfigError as error:
        raise ExportError(str(error)) from error
    found = Recipe(name, **vars(file))
    if not 0 < found.tolerance <= 1:
        raise ExportError(f"{where}.tolerance: found {found.tolerance}, expected a relative error above 0, at most 1")
    if not 0 < found.min_cider_ratio <= 1:
        raise ExportError(
            f"{where}.min_cider_ratio: found {found.min_cider_ratio}, expected a part of float32's CIDEr above 0, at "
            "most 1"
        )
    for graph in ("encoder", "decoder", *(("refine",) if found.refine else ())):
        _check(found.graph(graph), f"{where}.{graph}")
    return found


def _check(graph: GraphRecipe, where: str) -> None:
    """Refuses what the JSON types cannot: regular expressions that are none, ops without a mode."""
    from captionlite.export.quantization import check_override

    for place, rule in ((f"{where}.default", Override(graph.default)), *_places(graph, where)):
        try:
            re.compile(rule.regex)
        except re.error as error:
            raise ExportError(f"{place}.regex: found {rule.regex!r}, expected a regular expression: {error}") from error
        if graph.rules:
            check_override(rule, place)


def _places(graph: GraphRecipe, where: str) -> list[tuple[str, Override]]:
    return [(f"{where}.overrides[{i}]", rule) for i, rule in enumerate(graph.overrides)]
