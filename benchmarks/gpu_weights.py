"""Trained weights on their way home: float16, in files of a limited size that hold everything a run directory needs.

Writing them takes no Keras, which on the GPU's machine only the stages can import.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load, save

from captionlite.runtime.errors import CaptionliteError
from captionlite.training.config import DataConfig, RunConfig, from_json
from captionlite.training.files import write_bytes_atomically, write_text_atomically

# As captionlite.training.run names them. The texts travel in the metadata of the first file.
BEST, CONFIG, HISTORY = "best.safetensors", "config.json", "history.json"
TEXTS = (CONFIG, HISTORY, "tokenizer.json", "tokenizer.frequencies.json")
FLOAT16_MAX = 65504.0
ENTRY_BYTES = 120  # of a tensor in a file's header, beside its name


def write_weights(run: Path, out: Path, name: str, limit_bytes: int, licences: dict[str, str]) -> list[Path]:
    """The best weights of ``run`` as ``out/name.safetensors``, or in parts ``name-1.safetensors``, ...

    What float16 cannot hold (banned logits) stays as it is. ``licences`` by data set, for the data travelled without.

    Raises CaptionliteError when one tensor alone is larger than ``limit_bytes``.
    """
    with safe_open(str(run / BEST), framework="numpy") as file:
        best = json.loads(file.metadata()["captionlite"])
    for dataset in best.get("datasets", ()):
        dataset["licence"] = licences.get(dataset["name"], dataset["licence"])
    texts = {each: (run / each).read_text(encoding="utf-8") for each in TEXTS}
    first = {"captionlite": json.dumps(best), **texts}
    digest = hashlib.sha256(json.dumps(first).encode()).hexdigest()[:16]
    parts: list[dict[str, np.ndarray]] = [{}]
    used = len(json.dumps(first)) + ENTRY_BYTES
    for tensor, value in load((run / BEST).read_bytes()).items():
        small = _small(value)
        needed = small.nbytes + len(tensor) + ENTRY_BYTES
        if used + needed > limit_bytes and (parts[-1] or len(parts) == 1):
            parts.append({})
            used = ENTRY_BYTES
        if used + needed > limit_bytes:
            raise CaptionliteError(f"{run}: {tensor} has {small.nbytes} bytes in float16, the limit is {limit_bytes}.")
        parts[-1][tensor] = small
        used += needed
    files = []
    for number, arrays in enumerate(parts, start=1):
        path = out / (f"{name}.safetensors" if len(parts) == 1 else f"{name}-{number}.safetensors")
        metadata = {"part": json.dumps([number, len(parts)]), "run": digest, **(first if number == 1 else {})}
        write_bytes_atomically(path, save(arrays, metadata))
        files.append(path)
    return files


def _small(value: np.ndarray) -> np.ndarray:
    if value.dtype != np.float32 or (value.size and np.abs(value).max() > FLOAT16_MAX):
        return value
    return value.astype(np.float16)


def import_weights(files: Sequence[Path], out: Path, data: Sequence[DataConfig] = ()) -> RunConfig:
    """Makes a run directory of what ``write_weights`` wrote (all parts of it); returns the run's configuration.

    ``data``: where the training data is on this machine, which export takes calibration photographs from.

    Raises CaptionliteError for parts that are missing, damaged or of different runs, or an ``out`` that exists;
    WeightsError when the weights do not fit the configuration that came with them.
    """
    from captionlite.training.curves import draw_curves
    from captionlite.training.run import load_run, write_json

    if out.exists():
        raise CaptionliteError(f"{out}: exists already; give another --out.")
    arrays: dict[str, np.ndarray] = {}
    metadata: dict[str, str] = {}
    numbers = []
    for path in files:
        try:
            with safe_open(str(path), framework="numpy") as file:
                found = file.metadata() or {}
                arrays.update({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - no dict
        except (OSError, SafetensorError) as error:
            raise CaptionliteError(f"{path}: cannot be read ({error}); fetch it again.") from None
        if "part" not in found:
            raise CaptionliteError(f"{path}: not written by the GPU job.")
        if metadata and found["run"] != metadata["run"]:
            raise CaptionliteError(f"{path}: of another run than {files[0]}, or of another time; give one run's parts.")
        numbers.append(tuple(json.loads(found["part"])))
        metadata.update(found)
    if not numbers or sorted(numbers) != [(i + 1, numbers[0][1]) for i in range(numbers[0][1])]:
        raise CaptionliteError(
            f"{', '.join(map(str, files))}: parts {sorted(numbers)}; give every part of one run once."
        )
    config: RunConfig = from_json(RunConfig, json.loads(metadata[CONFIG]), f"{files[0]}: {CONFIG}")
    if data:
        config = dataclasses.replace(config, data=tuple(data))
    out.mkdir(parents=True)
    for name in TEXTS:
        write_text_atomically(out / name, metadata[name])
    write_json(out / CONFIG, config.to_json())
    history: list[dict[str, Any]] = json.loads(metadata[HISTORY])
    if history:
        draw_curves(history, config.name, out / "curves.png")
    whole = {name: value.astype(np.float32) if value.dtype == np.float16 else value for name, value in arrays.items()}
    write_bytes_atomically(out / BEST, save(whole, {"captionlite": metadata["captionlite"]}))
    load_run(out)  # everything fits, or the error says what does not
    return config
