"""Runs of every family that nobody trained: what training would add is of no matter where numbers are compared."""

from pathlib import Path
from typing import Any

import harness
import keras
import numpy as np
from drawings import TINY_PRESET

from captionlite.training.config import RunConfig, from_json
from captionlite.training.datasets import load_dataset
from captionlite.training.run import Run, build_model
from captionlite.training.vocabulary import END_ID, build_word_vocabulary

WIDTHS = ("units", "key_dim", "feed_forward", "embedding", "attention", "image_bottleneck", "logits_bottleneck")


def untrained(name: str, drawings: Path, folder: Path, **changes: Any) -> Run:
    """A run with weights that are nowhere zero; `changes` to the family's config."""
    family = {key: value * 4 if key in WIDTHS else value for key, value in harness.CONFIGS[name].items()} | changes
    settings = {**TINY_PRESET, "encoder": {"name": "wide", "weights": None}, "family": family}
    config: RunConfig = from_json(RunConfig, {**settings, "data": [{"spec": f"jsonl:{drawings}"}]}, "tiny")
    examples = load_dataset(config.data[0].spec).split("train")
    captions = [caption for example in examples for caption in example.captions]
    vocabulary = build_word_vocabulary(captions, mask=name == "masked_lm")
    keras.utils.set_random_seed(5)
    model = build_model(config, len(vocabulary.pieces))
    rng = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight + rng.normal(0.0, 0.1, weight.shape).astype("float32"))
    bias = model.output_bias_layer()
    if bias is not None:  # it bans words, and what bans words must not reach into an integer's scale
        frequencies = vocabulary.frequencies.copy()
        frequencies[END_ID] = 1  # or, untrained, it would end at once
        bias.set_from_frequencies(frequencies, vocabulary.suppressed_ids)
    return Run(folder, config, vocabulary, model, {"datasets": []})
