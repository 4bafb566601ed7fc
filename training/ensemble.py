"""Several runs as one captioner, a run of its own that can be exported like any other."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from captionlite.training.albert_vocabulary import load_vocabulary
from captionlite.training.average import require_alike, write_run
from captionlite.training.checkpoints import read_metadata
from captionlite.training.config import FineTuningConfig
from captionlite.training.errors import ConfigError, RunError
from captionlite.training.families.ensemble import EnsembleDecoder
from captionlite.training.run import BEST, VOCABULARY, build_model, load_start, read_config


def ensemble_runs(runs: Sequence[Path], out: Path) -> None:
    """Writes the run directory ``out``: an ensemble of the runs, each with its best weights.

    They have one family, encoder and vocabulary. Where one has trained blocks of the encoder and another has not, the
    other gets those of the encoder's own weights. Raises ConfigError for fewer than two runs or runs that differ,
    RunError when ``out`` exists, and what `load_run` raises.
    """
    if len(runs) < 2:
        raise ConfigError(f"an ensemble: found {len(runs)} run, expected at least two")
    if out.exists():
        raise RunError(f"{out}: exists already; give another --out, or remove it")
    config = require_alike(runs)
    trained = {each.trained_blocks for each in map(read_config, runs)} - {0}
    if len(trained) > 1 or any(read_config(path).members > 1 for path in runs):
        raise ConfigError(
            f"an ensemble: {', '.join(map(str, runs))} have different numbers of trained blocks or members"
        )
    tuning = FineTuningConfig(trained.pop(), epochs=0) if trained else None
    alone = dataclasses.replace(config, fine_tuning=tuning, members=1)
    words = len(load_vocabulary(runs[0] / VOCABULARY).pieces)
    members = []
    for path in runs:
        members.append(build_model(alone, words))
        load_start(path, members[-1])
    model = EnsembleDecoder(members)
    model.bound_biases()
    metadata = {key: value for key, value in read_metadata(runs[0] / BEST).items() if key == "datasets"}
    metadata["ensemble_of"] = [path.name for path in runs]
    write_run(out, dataclasses.replace(alone, members=len(runs)), runs[0], model, metadata)
