"""Show and Tell: an LSTM whose first state is the photograph.

O. Vinyals, A. Toshev, S. Bengio and D. Erhan (2015), "Show and Tell: A Neural Image Caption Generator", in the form of
the Keras notebook that ends week 6 of the course "Introduction to Deep Learning" (https://github.com/hse-aml/
intro-to-dl): the averaged features go through a bottleneck into h0, which is c0 as well, and the LSTM's output through
another bottleneck into the logits.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras
from keras import ops

from captionlite.runtime.manifest import StateSpec
from captionlite.training.families.base import DecoderFamily, State, Tensor, TokenBias, repeat_per_caption


@dataclasses.dataclass(frozen=True)
class LstmConfig:
    """Sizes of an LSTM decoder; the defaults are the published ones."""

    units: int = 300
    embedding: int = 100
    image_bottleneck: int = 120
    logits_bottleneck: int = 120
    max_length: int = 20
    dropout: float = 0.0  # of the word embeddings and of the LSTM's output
    token_bias: bool = False  # log token frequencies added to the logits


class LstmDecoder(DecoderFamily):
    """Caption decoder; see the module's docstring for the source."""

    family: ClassVar[str] = "lstm"
    attends: ClassVar[bool] = False
    config_class: ClassVar[type[LstmConfig]] = LstmConfig

    def __init__(self, config: LstmConfig, feature_shape: tuple[int, ...], vocabulary_size: int, **kwargs: Any) -> None:
        super().__init__(config, feature_shape, vocabulary_size, **kwargs)
        c = config
        self.image_bottleneck = keras.layers.Dense(c.image_bottleneck, activation="elu", name="image_bottleneck")
        self.first_state = keras.layers.Dense(c.units, activation="elu", name="first_state")
        self.token_embedding = keras.layers.Embedding(vocabulary_size, c.embedding, name="token_embedding")
        self.lstm = keras.layers.LSTM(c.units, return_sequences=True, name="lstm")
        self.logits_bottleneck = keras.layers.Dense(c.logits_bottleneck, activation="elu", name="logits_bottleneck")
        self.head = keras.layers.Dense(vocabulary_size, name="head")
        self.dropout = keras.layers.Dropout(c.dropout)
        self.token_bias = TokenBias(vocabulary_size, name="token_bias") if c.token_bias else None

    @property
    def pooled_shape(self) -> tuple[int, ...]:
        """What the decoder sees of the features: their average over the grid."""
        return self.feature_shape[-1:]

    def output_bias_layer(self) -> TokenBias | None:
        return self.token_bias

    def first(self, features: Tensor) -> Tensor:
        """Features (P, h, w, C), or vectors (P, C) as they are -> h0, which is c0, (P, units)."""
        x = ops.cast(features, self.compute_dtype)
        if len(x.shape) > 2:
            x = ops.mean(x, axis=tuple(range(1, len(x.shape) - 1)))
        return self.first_state(self.image_bottleneck(x))

    def logits(self, hidden: Tensor) -> Tensor:
        logits = self.head(self.logits_bottleneck(hidden))
        return logits if self.token_bias is None else self.token_bias(logits)

    def call(self, features: Tensor, tokens: Tensor, training: bool = False) -> Tensor:
        first = repeat_per_caption(self.first(features), tokens)
        words = self.dropout(self.token_embedding(tokens), training=training)
        hidden = self.lstm(words, initial_state=[first, first], training=training)
        return ops.cast(self.logits(self.dropout(hidden, training=training)), "float32")

    def initial_state(self, features: Tensor) -> State:
        first = ops.cast(self.first(features), "float32")
        return {"h": first, "c": first}

    def state_specs(self) -> tuple[StateSpec, ...]:
        shape = (None, self.config.units)
        return tuple(StateSpec(name, "carried", "float32", shape, None) for name in ("h", "c"))

    def step(self, token: Tensor, position: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        hidden, (h, c) = self.lstm.cell(self.token_embedding(token[:, 0]), [state["h"], state["c"]])
        updates = {"h": ops.cast(h, "float32"), "c": ops.cast(c, "float32")}
        return ops.cast(self.logits(hidden), "float32"), updates, None
