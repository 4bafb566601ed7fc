"""Show, Attend and Tell: a GRU that looks at the photograph's regions before every word.

K. Xu et al. (2015), "Show, Attend and Tell: Neural Image Caption Generation with Visual Attention", in the form of
TensorFlow's tutorial "Image captioning with visual attention" before it turned to the Transformer (tensorflow/docs,
site/en/tutorials/text/image_captioning.ipynb, 2018-2022): additive attention (Bahdanau et al. 2014) over a projected
grid, its context beside the word in front of a GRU.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras
from keras import ops

from captionlite.runtime.manifest import StateSpec
from captionlite.training.families.base import DecoderFamily, State, Tensor, TokenBias, repeat_per_caption


@dataclasses.dataclass(frozen=True)
class GruAttentionConfig:
    """Sizes of a GRU decoder with attention; the defaults are the published ones."""

    units: int = 512  # of the GRU and of the layer behind it
    embedding: int = 256  # of a word and of a projected region
    attention: int = 512
    max_length: int = 50
    dropout: float = 0.0  # of the word embeddings and of the layer in front of the logits
    # The tutorial's code calls its GRU without initial_state, so that its memory is only what the attention made of
    # the hidden state; its text and the paper pass the hidden state on. False is the code, true is the paper.
    carry_hidden: bool = True
    token_bias: bool = False  # log token frequencies added to the logits


class AdditiveAttention(keras.layers.Layer):  # type: ignore[misc]
    """Weights over regions from V tanh(W1 region + W2 hidden); ``keys`` are the W1 part, computed once a photograph."""

    def __init__(self, units: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.key = keras.layers.Dense(units, name="key")
        self.query = keras.layers.Dense(units, name="query")
        self.score = keras.layers.Dense(1, name="score")

    def build(self, input_shape: Any) -> None:
        """The sublayers build themselves at their first call."""
        self.built = True

    def call(self, hidden: Tensor, regions: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """hidden (B, units), regions (B, R, C), keys (B, R, attention) -> context (B, C), weights (B, R)."""
        mixed = ops.tanh(keys + ops.expand_dims(self.query(hidden), 1))  # (B, R, attention)
        # Rank 2: a Dense on (B, R, attention) with B unknown converts to a dance of shapes around the product.
        scores = self.score(ops.reshape(mixed, (-1, mixed.shape[-1])))
        weights = ops.softmax(ops.reshape(scores, (-1, mixed.shape[1])), axis=-1)
        return ops.squeeze(ops.matmul(ops.expand_dims(weights, 1), regions), 1), weights


class GruAttentionDecoder(DecoderFamily):
    """Caption decoder; see the module's docstring for the source."""

    family: ClassVar[str] = "gru_attention"
    attends: ClassVar[bool] = True
    config_class: ClassVar[type[GruAttentionConfig]] = GruAttentionConfig

    def __init__(
        self, config: GruAttentionConfig, feature_shape: tuple[int, ...], vocabulary_size: int, **kwargs: Any
    ) -> None:
        super().__init__(config, feature_shape, vocabulary_size, **kwargs)
        c = config
        self.regions = feature_shape[0] * feature_shape[1]
        self.projection = keras.layers.Dense(c.embedding, activation="relu", name="projection")
        self.attention = AdditiveAttention(c.attention, name="attention")
        self.token_embedding = keras.layers.Embedding(vocabulary_size, c.embedding, name="token_embedding")
        self.cell = keras.layers.GRUCell(c.units, recurrent_initializer="glorot_uniform", name="gru")
        self.hidden = keras.layers.Dense(c.units, name="hidden")
        self.head = keras.layers.Dense(vocabulary_size, name="head")
        self.dropout = keras.layers.Dropout(c.dropout)
        self.token_bias = TokenBias(vocabulary_size, name="token_bias") if c.token_bias else None

    def output_bias_layer(self) -> TokenBias | None:
        return self.token_bias

    def look(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Features (P, h, w, C) -> regions (P, R, embedding) and their keys (P, R, attention)."""
        grid = ops.reshape(ops.cast(features, self.compute_dtype), (-1, self.regions, self.feature_shape[-1]))
        regions = self.projection(grid)
        return regions, self.attention.key(regions)

    def one(self, word: Tensor, hidden: Tensor, regions: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
        """An embedded word (B, embedding) and the last hidden state -> the next (B, units), weights (B, R)."""
        context, weights = self.attention(hidden, regions, keys)
        if not self.config.carry_hidden:
            hidden = ops.zeros_like(hidden)
        _, (hidden,) = self.cell(ops.concatenate([context, word], axis=-1), [hidden])
        return hidden, weights

    def logits(self, hidden: Tensor, training: bool = False) -> Tensor:
        logits = self.head(self.dropout(self.hidden(hidden), training=training))
        return ops.cast(logits if self.token_bias is None else self.token_bias(logits), "float32")

    def call(self, features: Tensor, tokens: Tensor, training: bool = False) -> Tensor:
        regions, keys = (repeat_per_caption(x, tokens) for x in self.look(features))
        words = self.dropout(self.token_embedding(tokens), training=training)  # (B, T, embedding)
        hidden = ops.zeros((ops.shape(tokens)[0], self.config.units), self.compute_dtype)
        outputs = []
        for t in range(tokens.shape[1]):
            hidden, _ = self.one(words[:, t], hidden, regions, keys)
            outputs.append(hidden)
        return self.logits(ops.stack(outputs, axis=1), training=training)

    def initial_state(self, features: Tensor) -> State:
        regions, keys = self.look(features)
        return {"regions": ops.cast(regions, "float32"), "keys": ops.cast(keys, "float32")}

    def state_specs(self) -> tuple[StateSpec, ...]:
        c = self.config
        return (
            StateSpec("regions", "constant", "float32", (None, self.regions, c.embedding), None),
            StateSpec("keys", "constant", "float32", (None, self.regions, c.attention), None),
            StateSpec("hidden", "carried", "float32", (None, c.units), None),
        )

    def step(self, token: Tensor, position: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        word = self.token_embedding(token[:, 0])
        hidden, weights = self.one(
            word, *(ops.cast(state[n], self.compute_dtype) for n in ("hidden", "regions", "keys"))
        )
        return self.logits(hidden), {"hidden": ops.cast(hidden, "float32")}, weights
