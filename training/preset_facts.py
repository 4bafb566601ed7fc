"""What is known about a preset: counted from the model itself, built at the published vocabulary, never typed in."""

from __future__ import annotations

import dataclasses
import math
from functools import cache
from typing import Any

from captionlite.training.config import RunConfig, our_figures
from captionlite.training.encoders import encoder_spec
from captionlite.training.errors import ConfigError
from captionlite.training.families import build_family
from captionlite.training.families.base import DecoderFamily

ASSUMED_VOCABULARY = 5000  # where neither a publication nor the preset itself says how many words there are


@dataclasses.dataclass(frozen=True)
class Parameters:
    """Numbers of weights. ``parts`` are the model's layers; where two share a weight, each counts it."""

    total: int
    trainable: int
    parts: dict[str, int]


@dataclasses.dataclass(frozen=True)
class PresetFacts:
    """One preset: what it is made of, how large that is, what others reported of it and what we measured.

    ``feature_shape`` is what the encoder gives, (h, w, C); ``seen_shape`` what the family makes of it first.
    """

    name: str
    description: str
    encoder: str
    image_size: tuple[int, int]
    feature_shape: tuple[int, ...]
    seen_shape: tuple[int, ...]
    family: str
    vocabulary_size: int
    vocabulary_size_is: str  # "published", "the preset's limit" or "assumed"
    decoder: Parameters
    encoder_parameters: int
    trained_blocks: int  # the encoder's last so many are fine-tuned, the rest is frozen
    published: dict[str, Any]
    ours: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def preset_facts(config: RunConfig) -> PresetFacts:
    """Builds encoder and decoder with random weights and counts them.

    Raises ConfigError, WeightsError as training with this preset would.
    """
    spec = encoder_spec(config.encoder.name)
    size, source = _vocabulary_size(config)
    model = build_family(config.family, spec.feature_shape, size, f"{config.name}.family")
    return PresetFacts(
        name=config.name,
        description=config.description,
        encoder=spec.name,
        image_size=spec.image_size,
        feature_shape=spec.feature_shape,
        # A family that averages or flattens the grid says so; the others look at the grid as it is.
        seen_shape=tuple(getattr(model, "pooled_shape", spec.feature_shape)),
        family=model.family,
        vocabulary_size=size,
        vocabulary_size_is=source,
        decoder=count_parameters(model),
        encoder_parameters=_encoder_parameters(spec.name),
        trained_blocks=config.trained_blocks,
        published={key: value for key, value in config.published.items() if key != "vocabulary_size"},
        ours=our_figures().get(config.name, {}),
    )


def count_parameters(model: DecoderFamily) -> Parameters:
    """Every weight of a built model once, and by layer."""

    def count(weights: list[Any]) -> int:
        return sum(math.prod(weight.shape) for weight in weights)

    parts = {layer.name: count(layer.weights) for layer in model.layers if layer.weights}
    return Parameters(count(model.weights), count(model.trainable_weights), parts)


@cache  # several presets share InceptionV3, which takes seconds to build
def _encoder_parameters(name: str) -> int:
    return int(encoder_spec(name).build(None).count_params())


def _vocabulary_size(config: RunConfig) -> tuple[int, str]:
    published = config.published.get("vocabulary_size")
    if published is not None:
        if not isinstance(published, int) or published < 1:
            raise ConfigError(
                f"{config.name}.published.vocabulary_size: found {published!r}, expected a positive whole number"
            )
        return published, "published"
    if config.vocabulary.max_size is not None:
        return config.vocabulary.max_size, "the preset's limit"
    return ASSUMED_VOCABULARY, "assumed"
