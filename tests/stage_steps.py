"""A stage's steps from weights, features and captions that NumPy makes: the same on every backend, bit for bit.

As a program, `python stage_steps.py FOLDER` writes what each stage's steps leave on the backend of KERAS_BACKEND.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import ops

from captionlite.training.batches import Source
from captionlite.training.config import FineTuningConfig, OptimizerConfig, RunConfig, SelfCriticalConfig
from captionlite.training.datasets import Example
from captionlite.training.families import build_family
from captionlite.training.families.tuned import TunedDecoder
from captionlite.training.stages import SelfCritical, Stage, build_stages
from captionlite.training.vocabulary import WordVocabulary, build_word_vocabulary

STAGES = ("cross_entropy", "fine_tuning", "self_critical")
FEATURE_SHAPE = (2, 2, 12)
CAPTIONS = {
    "1.png": ("a red square", "a red square left"),
    "2.png": ("a blue circle", "one blue circle on the right"),
    "3.png": ("a green triangle", "green triangle on the left"),
    "4.png": ("a red circle", "one red circle on the right"),
    "5.png": ("a blue triangle", "the blue triangle"),
    "6.png": ("a green square", "one green square on the left"),
}
FAMILY = {"name": "transformer", "units": 16, "heads": 2, "key_dim": 8, "feed_forward": 16, "layers": 1,
          "memory_layers": 1, "norm": "pre", "dropout": 0.0, "max_length": 8}  # fmt: skip
OPTIMIZER = OptimizerConfig(learning_rate=0.01, epsilon=1e-3, clipnorm=0.5, weight_decay=0.01, average=0.5)


class Photographs:
    """The part of `captionlite.training.data.RunData` that stages use, its features drawn by NumPy."""

    datasets = ("drawn",)

    def __init__(self) -> None:
        rng = np.random.default_rng(11)
        self._features = {name: rng.normal(size=FEATURE_SHAPE).astype(np.float16) for name in CAPTIONS}

    def examples(self, number: int, split: str) -> tuple[Example, ...]:
        return tuple(Example(Path(name), captions, name) for name, captions in CAPTIONS.items())

    def sources(self, config: RunConfig, vocabulary: WordVocabulary) -> list[Source]:
        encoded = {name: vocabulary.encode_batch(list(captions)) for name, captions in CAPTIONS.items()}
        return [Source("drawn", tuple(CAPTIONS), encoded)]

    def features(self, batch: Any) -> np.ndarray:
        return np.stack([self._features[name] for _, name, _ in batch.rows])


def build_stage(name: str, optimizer: OptimizerConfig = OPTIMIZER, **settings: Any) -> tuple[Stage, Any]:
    """The stage called ``name`` and its model, ready for its first step. No dropout: the backends draw it otherwise."""
    vocabulary = build_word_vocabulary([text for texts in CAPTIONS.values() for text in texts])
    model: Any = build_family(FAMILY, FEATURE_SHAPE, len(vocabulary.pieces), "stage_steps")
    model.build_weights()
    if name == "fine_tuning":
        model = TunedDecoder(_block(), model)
    rng = np.random.default_rng(5)
    for weight in model.weights:
        if weight.dtype == "float32" and weight.name != "moving_variance":
            drawn = rng.normal(0.0, 0.3, weight.shape)
            weight.assign((drawn + (weight.path.endswith("gamma"))).astype(np.float32))
    bias = model.output_bias_layer()
    bias.set_from_frequencies(vocabulary.frequencies, vocabulary.suppressed_ids)
    critical = SelfCriticalConfig(
        **{"epochs": 1, "photographs": 3, "samples": 4, "captions": 2, "optimizer": optimizer, **settings}
    )
    config = RunConfig(
        "stage_steps",
        FAMILY,
        optimizer=optimizer,
        batch_size=6,
        captions_per_photo=2,
        epochs=1 if name == "cross_entropy" else 0,
        label_smoothing=0.1,
        fine_tuning=FineTuningConfig(1, 1, optimizer) if name == "fine_tuning" else None,
        self_critical=critical if name == "self_critical" else None,
        seed=2,
    )
    data: Any = Photographs()
    (stage,) = build_stages(config, model, data, vocabulary)
    assert stage.name == name
    stage.begin()
    return stage, model


def _block() -> Any:
    """What stands for an encoder's last block: a convolution to be trained and a normalisation that is not."""
    grid = keras.Input(FEATURE_SHAPE)
    # By name: Keras counts nameless layers over the whole process, and an optimiser's slots are named after them.
    conv = keras.layers.Conv2D(FEATURE_SHAPE[-1], 2, padding="same", use_bias=False, name="block_conv")
    norm = keras.layers.BatchNormalization(trainable=False, name="block_norm")
    return keras.Model(grid, norm(conv(grid)))


def run_steps(name: str, steps: int = 2) -> dict[str, np.ndarray]:
    """Figures of each step, the samples drawn (self-critical), and every variable after the last one."""
    stage, model = build_stage(name)
    left: dict[str, np.ndarray] = {}
    drawn = note_samples(stage)
    for number, batch in zip(range(steps), stage.plan.epoch(0), strict=False):
        for key, value in stage.run(batch, number).items():
            left[f"figures/{number}/{key}"] = np.array(float(value))
    left |= {f"samples/{number}": tokens for number, tokens in enumerate(drawn)}
    stage.sync()
    left |= named("weights", model.trainable_variables) | named("slots", stage.optimizer.variables)
    stage.optimizer.finalize_variable_values(model.trainable_variables)
    return left | named("averages", model.trainable_variables)


def note_samples(stage: Stage) -> list[np.ndarray]:
    """What the stage's sampler, if it has one, will draw."""
    drawn: list[np.ndarray] = []
    if isinstance(stage, SelfCritical):
        sampler = stage._sampler

        def noting(features: Any, uniform: np.ndarray) -> np.ndarray:
            drawn.append(sampler(features, uniform))
            return drawn[-1]

        vars(stage)["_sampler"] = noting
    return drawn


def named(group: str, variables: Sequence[Any]) -> dict[str, np.ndarray]:
    return {f"{group}/{number}/{v.path.split('/')[-1]}": numpy(v) for number, v in enumerate(variables)}


def numpy(variable: Any) -> np.ndarray:
    return np.array(ops.convert_to_numpy(ops.copy(variable)))


def rewards(steps: int) -> list[float]:
    """The mean reward of each of ``steps`` self-critical steps, from weights that say anything; no true captions."""
    optimizer = OptimizerConfig(learning_rate=0.02)
    stage, _ = build_stage("self_critical", optimizer, photographs=6, samples=16, captions=0, cross_entropy=0.0)
    found = []
    while len(found) < steps:
        for batch in stage.plan.epoch(len(found)):
            found.append(float(stage.run(batch, len(found))["reward"]))
    return found


if __name__ == "__main__":
    for stage_name in STAGES:
        np.savez(Path(sys.argv[1]) / f"{stage_name}.npz", **run_steps(stage_name))  # type: ignore[arg-type]
