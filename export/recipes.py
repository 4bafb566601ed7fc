"""Quantization as data: what happens to each graph, by name.

Which recipe wins on which graph was measured: convolutions want calibrated static int8 (dynamic int8 makes them
slower than float), the decoder's step wants dynamic int8 (weights int8, activations quantized as they come).
"""

from __future__ import annotations

import dataclasses
from typing import Literal

from captionlite.export.errors import ExportError

ConverterMode = Literal["float32", "float16", "dynamic-int8"]


@dataclasses.dataclass(frozen=True)
class Rule:
    """Ops that litert-quantizer quantizes: a TFLOperationName, a regex on the names of output tensors, and how.

    static-int8: int8 weights by channel and int8 activations in calibrated ranges. dynamic-int8: int8 weights by
    channel, activations quantized row by row as they come.
    """

    op: str
    mode: Literal["static-int8", "dynamic-int8"]
    regex: str = ".*"


@dataclasses.dataclass(frozen=True)
class GraphRecipe:
    """How one graph is stored: the TensorFlow converter's mode, then rules laid over a float32 file in order."""

    converter: ConverterMode = "float32"
    rules: tuple[Rule, ...] = ()

    @property
    def needs_calibration(self) -> bool:
        return any(rule.mode == "static-int8" for rule in self.rules)


@dataclasses.dataclass(frozen=True)
class Recipe:
    """A named pair of graph recipes.

    ``tolerance`` is the relative RMS error within which another machine must reproduce the golden vectors: float graphs
    agree to rounding; dynamic int8 differs between CPUs with and without int8 dot products.
    """

    name: str
    encoder: GraphRecipe
    decoder: GraphRecipe
    tolerance: float

    @property
    def needs_calibration(self) -> bool:
        return self.encoder.needs_calibration or self.decoder.needs_calibration


# The convolutions on calibrated int8, the products behind them (the family's part of the encoder) on dynamic int8. Not
# "every op that can": residual sums and means also occur inside normalisations, which int8 ruins.
CONVOLUTIONAL = (
    Rule("CONV_2D", "static-int8"),
    Rule("DEPTHWISE_CONV_2D", "static-int8"),
    Rule("FULLY_CONNECTED", "dynamic-int8"),
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("float32", GraphRecipe(), GraphRecipe(), tolerance=1e-4),
        Recipe("float16", GraphRecipe("float16"), GraphRecipe("float16"), tolerance=1e-3),
        Recipe("int8", GraphRecipe(rules=CONVOLUTIONAL), GraphRecipe("dynamic-int8"), tolerance=5e-2),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of that name; raises ExportError listing what there is."""
    if name not in RECIPES:
        raise ExportError(f"recipe {name!r}: no such recipe; there are {', '.join(RECIPES)}")
    return RECIPES[name]
