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
    """Ops that litert-quantizer turns to static int8: an op name of its TFLOperationName and a regex on output
    tensors.
    """

    op: str
    regex: str = ".*"


@dataclasses.dataclass(frozen=True)
class GraphRecipe:
    """How one graph is stored: the TensorFlow converter's mode, then the ops to quantize statically after
    calibration.
    """

    converter: ConverterMode = "float32"
    static_int8: tuple[Rule, ...] = ()


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
        return bool(self.encoder.static_int8 or self.decoder.static_int8)


# What an EfficientNet-Lite encoder is made of, and the head that export puts behind it: the whole convolutional part
# runs on int8 without leaving it; softmax and normalisations of the head stay float.
CONVOLUTIONAL = tuple(
    Rule(op) for op in ("CONV_2D", "DEPTHWISE_CONV_2D", "ADD", "AVERAGE_POOL_2D", "CONCATENATION", "MEAN", "PAD")
)

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("float32", GraphRecipe(), GraphRecipe(), tolerance=1e-4),
        Recipe("float16", GraphRecipe("float16"), GraphRecipe("float16"), tolerance=1e-3),
        Recipe("int8", GraphRecipe(static_int8=CONVOLUTIONAL), GraphRecipe("dynamic-int8"), tolerance=5e-2),
    )
}


def recipe(name: str) -> Recipe:
    """The recipe of that name; raises ExportError listing what there is."""
    if name not in RECIPES:
        raise ExportError(f"recipe {name!r}: no such recipe; there are {', '.join(RECIPES)}")
    return RECIPES[name]
