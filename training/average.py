"""The average of several runs' weights, as a run of its own.

Runs that went on from the same one can be averaged weight by weight (Wortsman et al. 2022, WiSE-FT): between plain and
self-critical training lie captioners with the scores of the one and more of the words of the other.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from keras import ops

from captionlite.training.checkpoints import load_variables, read_metadata, save_variables
from captionlite.training.config import RunConfig
from captionlite.training.errors import ConfigError, RunError
from captionlite.training.files import fsync_directory
from captionlite.training.run import BEST, CONFIG, VOCABULARY, load_run, read_config, write_json


def average_runs(parts: Sequence[tuple[Path, float]], out: Path) -> None:
    """Writes the run directory ``out``: the best weights of each run, times its share, summed.

    Everything but the weights is the first run's. Raises ConfigError for shares that do not sum to 1 or runs of other
    models, RunError when ``out`` exists, and what `load_run` raises.
    """
    total = sum(share for _, share in parts)
    if len(parts) < 2 or not math.isclose(total, 1.0, abs_tol=1e-6):
        raise ConfigError(f"shares: found {len(parts)} that sum to {total:g}, expected at least two that sum to 1")
    if out.exists():
        raise RunError(f"{out}: exists already; give another --out, or remove it")
    first = parts[0][0]
    config = require_alike([path for path, _ in parts])
    encoders = {path: read_config(path).encoder_facts() for path, _ in parts}
    for path, facts in encoders.items():
        if facts != encoders[first]:
            raise ConfigError(f"{path}: other blocks of the encoder were trained than in {first}")
    run = load_run(first)
    sums: list[Any] = [0.0] * len(run.model.weights)
    for path, share in parts:
        load_variables(path / BEST, {"model": run.model.weights})
        sums = [
            done + share * np.asarray(ops.convert_to_numpy(ops.copy(weight)), np.float64)
            for done, weight in zip(sums, run.model.weights, strict=True)
        ]
    load_variables(first / BEST, {"model": run.model.weights})  # what is no float, such as a random state, stays
    for weight, value in zip(run.model.weights, sums, strict=True):
        if "float" in str(weight.dtype):
            weight.assign(np.asarray(value, np.float32))
    metadata = {key: value for key, value in read_metadata(first / BEST).items() if key == "datasets"}
    metadata["average_of"] = [{"run": path.name, "share": share} for path, share in parts]
    write_run(out, config, first, run.model, metadata)


def require_alike(runs: Sequence[Path]) -> RunConfig:
    """The first run's config. Raises ConfigError naming the run of another family, encoder or vocabulary."""
    first, *others = runs
    config, words = read_config(first), (first / VOCABULARY).read_text()
    for path in others:
        other = read_config(path)
        sizes = [{**each.family, "dropout": None} for each in (other, config)]  # dropout is no weight
        if sizes[0] != sizes[1] or other.encoder != config.encoder or (path / VOCABULARY).read_text() != words:
            raise ConfigError(
                f"{path}: another family, encoder or vocabulary than {first}; take runs that one was started --from "
                f"the other"
            )
    return config


def write_run(out: Path, config: RunConfig, first: Path, model: Any, metadata: dict[str, Any]) -> None:
    """A run directory of these weights with the vocabulary of ``first``, whole or not at all."""
    partial = out.with_name(f"{out.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    for file in first.glob(f"{Path(VOCABULARY).stem}*"):
        shutil.copyfile(file, partial / file.name)
    write_json(partial / CONFIG, config.to_json())
    save_variables(partial / BEST, {"model": model.weights}, metadata)
    os.replace(partial, out)
    fsync_directory(out.parent)
