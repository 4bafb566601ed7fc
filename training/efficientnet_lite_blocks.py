"""EfficientNet-Lite in numbers: its members, and block by block what each gives; efficientnet_lite.py builds it."""

import math
from dataclasses import dataclass

STEM_FILTERS = 32
_FILTERS_DIVISOR = 8


@dataclass(frozen=True)
class EfficientNetLite:
    """One member of the family: how it scales EfficientNet-B0, and its input size (H, W) in pixels."""

    name: str
    width: float
    depth: float
    image_size: tuple[int, int]


EFFICIENTNET_LITE0 = EfficientNetLite("efficientnet_lite0", width=1.0, depth=1.0, image_size=(224, 224))
EFFICIENTNET_LITE1 = EfficientNetLite("efficientnet_lite1", width=1.0, depth=1.1, image_size=(240, 240))
EFFICIENTNET_LITE2 = EfficientNetLite("efficientnet_lite2", width=1.1, depth=1.2, image_size=(260, 260))


@dataclass(frozen=True)
class _Stage:
    repeats: int
    kernel: int
    strides: int
    expansion: int
    filters: int


_STAGES = (
    _Stage(repeats=1, kernel=3, strides=1, expansion=1, filters=16),
    _Stage(repeats=2, kernel=3, strides=2, expansion=6, filters=24),
    _Stage(repeats=2, kernel=5, strides=2, expansion=6, filters=40),
    _Stage(repeats=3, kernel=3, strides=2, expansion=6, filters=80),
    _Stage(repeats=3, kernel=5, strides=1, expansion=6, filters=112),
    _Stage(repeats=4, kernel=5, strides=2, expansion=6, filters=192),
    _Stage(repeats=1, kernel=3, strides=1, expansion=6, filters=320),
)


@dataclass(frozen=True)
class Block:
    """One inverted residual: (h, w, C) is what it gives."""

    stage: _Stage
    strides: int
    filters_in: int
    output_shape: tuple[int, int, int]

    @property
    def has_shortcut(self) -> bool:
        return self.strides == 1 and self.filters_in == self.output_shape[-1]


def plan(variant: EfficientNetLite) -> list[Block]:
    """Every inverted residual in order."""
    height, width = (-(-side // 2) for side in variant.image_size)  # behind the stem; "same" padding rounds up
    filters_in, blocks = STEM_FILTERS, []
    for number, stage in enumerate(_STAGES):
        is_end = number in (0, len(_STAGES) - 1)
        filters = _round_filters(stage.filters * variant.width)
        for repeat in range(stage.repeats if is_end else math.ceil(stage.repeats * variant.depth)):
            strides = stage.strides if repeat == 0 else 1
            height, width = -(-height // strides), -(-width // strides)
            blocks.append(Block(stage, strides, filters_in, (height, width, filters)))
            filters_in = filters
    return blocks


def block_ends(variant: EfficientNetLite) -> dict[str, tuple[int, int, int]]:
    """The layer that ends each inverted residual, in order, and (h, w, C) of its output."""
    return {
        f"block{number}_{'add' if block.has_shortcut else 'project_bn'}": block.output_shape
        for number, block in enumerate(plan(variant))
    }


def _round_filters(filters: float) -> int:
    """The nearest multiple of 8 that is not below 90 % of `filters`."""
    rounded = max(_FILTERS_DIVISOR, int(filters + _FILTERS_DIVISOR / 2) // _FILTERS_DIVISOR * _FILTERS_DIVISOR)
    return rounded if rounded >= 0.9 * filters else rounded + _FILTERS_DIVISOR
