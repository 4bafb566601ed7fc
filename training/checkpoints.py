"""Variables on disk: safetensors files written to a temporary name, synced and renamed, so that a kill leaves no
broken one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from captionlite.training.errors import RunError, WeightsError
from captionlite.training.files import write_bytes_atomically


def variable_names(prefix: str, variables: Sequence[Any]) -> list[str]:
    """A unique name a variable: its number in the order of creation and the end of its Keras path.

    Not the whole path, which holds counters of the process ("seed_generator_7", "adam_1") that another process counts
    differently.
    """
    names = []
    for number, variable in enumerate(variables):
        *_, layer, name = f"/{variable.path}".split("/")
        names.append(f"{prefix}/{number:04d}/{re.sub(r'_[0-9]+$', '', layer)}/{name}")
    return names


def save_variables(path: Path, groups: dict[str, Sequence[Any]], metadata: dict[str, Any]) -> None:
    """Keras variables by group ("model", "optimizer") and a JSON-able ``metadata``, in one file."""
    import keras

    arrays = {}
    for prefix, variables in groups.items():
        for name, variable in zip(variable_names(prefix, variables), variables, strict=True):
            arrays[name] = np.array(keras.ops.convert_to_numpy(keras.ops.copy(variable)), order="C")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_bytes_atomically(path, save(arrays, {"captionlite": json.dumps(metadata)}))


def read_metadata(path: Path) -> dict[str, Any]:
    """The metadata that ``save_variables`` wrote, without a tensor. Raises RunError for a missing or damaged file."""
    with _open(path) as file:
        return _metadata(file)


def _metadata(file: Any) -> dict[str, Any]:
    metadata = json.loads((file.metadata() or {}).get("captionlite", "{}"))
    assert isinstance(metadata, dict)
    return metadata


@contextmanager
def _open(path: Path) -> Iterator[Any]:
    try:
        with safe_open(str(path), framework="numpy") as file:
            yield file
    except FileNotFoundError as error:
        raise RunError(f"{path}: no such file; train first, or point at a run directory that has it") from error
    except SafetensorError as error:
        raise RunError(f"{path}: damaged ({error}); delete it to fall back on an older checkpoint") from error


def load_variables(path: Path, groups: dict[str, Sequence[Any]]) -> dict[str, Any]:
    """Assigns what ``save_variables`` wrote; returns the metadata. Every tensor must be there with its shape.

    Raises RunError for a missing or damaged file, WeightsError naming the tensor that is missing or does not fit.
    """
    with _open(path) as file:
        metadata, stored = _metadata(file), set(file.keys())
        for prefix, variables in groups.items():
            for name, variable in zip(variable_names(prefix, variables), variables, strict=True):
                if name not in stored:
                    raise WeightsError(f"{path}: has no tensor {name}; was it made by another preset or version?")
                value = file.get_tensor(name)
                if tuple(value.shape) != tuple(variable.shape):
                    raise WeightsError(
                        f"{path}: {name} has shape {tuple(value.shape)}, expected {tuple(variable.shape)}"
                    )
                variable.assign(value.astype(np.float32) if value.dtype == np.float16 else value)
    return metadata
