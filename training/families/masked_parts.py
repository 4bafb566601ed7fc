"""What the bimodal masked language model is made of: its sizes, the small text encoder, and the head over both.

The model itself, and where it comes from, is in masked_lm.py.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import keras
import numpy as np
from keras import ops

from captionlite.training.errors import ConfigError
from captionlite.training.families.base import Tensor
from captionlite.training.families.transformer import DecoderLayer, TransformerConfig

HIDDEN = -1e9  # added to the attention scores of what must not be seen


@dataclasses.dataclass(frozen=True)
class MaskedLMConfig:
    """Sizes and masking; the defaults are the published ones, ALBERT-base-v2 for the text."""

    text: Literal["albert", "transformer"] = "albert"
    layers: int = 12
    units: int = 768
    heads: int = 12
    feed_forward: int = 3072
    embedding: int = 128  # width of the word embeddings, and of the head, which is tied to them
    positions: int = 512  # ALBERT's learned positions
    dropout: float = 0.0
    max_length: int = 31
    albert_weights: str | None = None  # a Hugging Face directory or id; null: random
    frozen: bool = False  # ALBERT's weights stay as they are, the head alone is trained
    image_grid: int | None = None  # features are averaged to so many rows and columns before they are flattened
    mask_share: float | None = 0.15  # of a caption's words; null: uniformly from one to all, as mask-predict needs it
    prefix_weight: float = 0.0  # share of the loss that predicts each word from those before it alone
    prefix_attention: Literal["bidirectional", "causal"] = "bidirectional"  # how the words before it see each other
    memory_layers: int = 0  # transformer only: cross-attention over the grid after so many encoder layers; 0: none
    length_head: bool = False  # predicts how long the caption is, for mask-predict


def check_config(config: MaskedLMConfig) -> None:
    """Raises ConfigError for sizes that contradict each other."""
    c = config
    problems = {
        "units must be a multiple of heads": c.units % c.heads != 0,
        "text 'albert' has no cross-attention: memory_layers must be 0": c.text == "albert" and c.memory_layers > 0,
        "text 'albert' sees both sides: prefix_attention must be 'bidirectional'": c.text == "albert"
        and c.prefix_attention == "causal",
        "text 'transformer' has no pretrained weights: albert_weights must be null": c.text == "transformer"
        and c.albert_weights is not None,
        "text 'transformer' starts from nothing: frozen must be false": c.text == "transformer" and c.frozen,
        "max_length must be less than positions": c.text == "albert" and c.max_length >= c.positions,
        "mask_share must lie between 0 and 1": c.mask_share is not None and not 0 < c.mask_share <= 1,
        "prefix_weight must lie between 0 and 1": not 0 <= c.prefix_weight < 1,
    }
    for problem, holds in problems.items():
        if holds:
            raise ConfigError(f"family masked_lm: {problem}")


class BidirectionalLayer(DecoderLayer):
    """A decoder layer whose self-attention sees what it is told to see."""

    def call(  # type: ignore[override]
        self, x: Tensor, hidden: Tensor, cross: tuple[Tensor, Tensor] | None = None, training: bool = False
    ) -> Tensor:
        """x (B, T, units), hidden (B or 1, 1, T or 1, T): 0 where a position sees another and HIDDEN where not."""
        y = self.before(self.self_norm, x)
        attention = self.self_attention
        key, value = attention.keys_values(y)
        scores = ops.matmul(attention.queries(y), ops.transpose(key, (0, 1, 3, 2))) + ops.cast(hidden, key.dtype)
        weights = attention.dropout(ops.softmax(scores, axis=-1), training=training)
        x = self.after(self.self_norm, x + attention.join(ops.matmul(weights, value)))
        if cross is not None:
            y = self.before(self.cross_norm, x)
            attended = self.cross_attention.attend(
                self.cross_attention.queries(y), *cross, causal=False, training=training
            )
            x = self.after(self.cross_norm, x + attended)
        y = self.before(self.feed_forward_norm, x)
        return self.after(self.feed_forward_norm, x + self.feed_forward(y, training=training))


class TransformerText(keras.layers.Layer):  # type: ignore[misc]
    """The small text encoder: pre-norm layers over word and position embeddings, with cross-attention if asked for."""

    def __init__(self, config: MaskedLMConfig, regions: int, vocabulary_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c = config
        layer = TransformerConfig(
            units=c.units,
            heads=c.heads,
            key_dim=c.units // c.heads,
            feed_forward=c.feed_forward,
            dropout=c.dropout,
            norm="pre",
        )
        self.regions, self.attends = regions, c.memory_layers > 0
        self.token_embedding = keras.layers.Embedding(vocabulary_size, c.embedding, name="token_embedding")
        self.widen = keras.layers.Dense(c.units, name="widen") if c.embedding != c.units else None
        self.position_embedding = keras.layers.Embedding(c.max_length + 1, c.units, name="position_embedding")
        self.dropout = keras.layers.Dropout(c.dropout)
        self.text_layers = [
            BidirectionalLayer(layer, memory=not self.attends, name=f"text_{i}") for i in range(c.layers)
        ]
        self.final_norm = keras.layers.LayerNormalization(name="final_norm")
        self.memory_layers = [DecoderLayer(layer, memory=True, name=f"memory_{i}") for i in range(c.memory_layers)]
        if self.attends:
            self.projection = keras.layers.Dense(c.units, name="projection")
            self.grid_embedding = keras.layers.Embedding(regions, c.units, name="grid_embedding")
            self.memory_norm = keras.layers.LayerNormalization(name="memory_norm")

    def build(self, input_shape: Any) -> None:
        """The sublayers build themselves at their first call."""
        self.built = True

    @property
    def embeddings(self) -> Tensor:
        return self.token_embedding.embeddings

    def cross(self, features: Tensor, training: bool = False) -> list[tuple[Tensor, Tensor]]:
        """(P, h, w, C) -> keys and values of each layer, (P, heads, regions, width); none where nothing attends."""
        if not self.attends:
            return []
        x = self.projection(ops.reshape(features, (-1, self.regions, features.shape[-1])))
        x = self.dropout(x + self.grid_embedding(ops.arange(self.regions, dtype="int32"))[None], training=training)
        for layer in self.memory_layers:
            x = layer(x, causal=False, training=training)
        x = self.memory_norm(x)
        return [layer.cross_attention.keys_values(x) for layer in self.text_layers]

    def call(
        self,
        tokens: Tensor,
        positions: Tensor,
        hidden: Tensor,
        cross: list[tuple[Tensor, Tensor]],
        training: bool = False,
    ) -> Tensor:
        """tokens (B, T), positions (T,), hidden (B or 1, 1, T or 1, T) -> (B, T, units)."""
        x = self.token_embedding(tokens)
        if self.widen is not None:
            x = self.widen(x)
        x = self.dropout(x + self.position_embedding(positions)[None], training=training)
        for i, layer in enumerate(self.text_layers):
            x = layer(x, hidden, cross=cross[i] if cross else None, training=training)
        return self.final_norm(x)


class MaskedHead(keras.layers.Layer):  # type: ignore[misc]
    """Text and image to word logits: Dense (gelu) over the two side by side, LayerNorm, the word embeddings, a bias.

    The Dense's kernel stands in two parts, so that the image's share is computed once a photograph. The bias does too:
    transformers' TFAlbertMLMHead, which the published parameter count includes, holds both ``bias`` and
    ``decoder_bias``. There only the second is read; here they are added, so that both are trained as counted.
    """

    def __init__(self, width: int, vocabulary_size: int, epsilon: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        initializer = keras.initializers.TruncatedNormal(stddev=0.02)  # ALBERT's, whichever part it falls to
        self.text_dense = keras.layers.Dense(width, kernel_initializer=initializer, name="text_dense")
        self.image_dense = keras.layers.Dense(
            width,
            use_bias=False,
            kernel_initializer=keras.initializers.TruncatedNormal(stddev=0.02),
            name="image_dense",
        )
        self.norm = keras.layers.LayerNormalization(epsilon=epsilon, name="norm")
        self.bias = self.add_weight(name="bias", shape=(vocabulary_size,), initializer="zeros")
        self.decoder_bias = self.add_weight(name="decoder_bias", shape=(vocabulary_size,), initializer="zeros")

    def build(self, input_shape: Any) -> None:
        """The sublayers build themselves at their first call."""
        self.built = True

    def set_from_frequencies(self, frequencies: np.ndarray, banned_ids: tuple[int, ...]) -> None:
        """Starts the bias at the log share of each token id (V,), so that training begins at the unigram distribution.

        What was never seen, or is banned, starts at the log of 1e-6; unlike ``TokenBias`` this one is trained.
        """
        counts = np.asarray(frequencies, np.float64).copy()
        counts[list(banned_ids)] = 0.0
        self.bias.assign(np.log(np.maximum(counts / counts.sum(), 1e-6)).astype("float32"))

    def call(self, text: Tensor, image: Tensor, embeddings: Tensor) -> Tensor:
        """text (..., units), image (..., width) from ``image_dense``, embeddings (V, width) -> logits (..., V)."""
        x = self.norm(ops.gelu(self.text_dense(text) + image, approximate=True))
        logits = ops.matmul(x, ops.transpose(ops.cast(embeddings, x.dtype)))
        return ops.cast(logits, "float32") + ops.cast(self.bias + self.decoder_bias, "float32")


def averaging(cells: int, size: int) -> np.ndarray:
    """(cells, size): each row averages its part of ``size`` rows; parts overlap where cells do not divide size."""
    if not 1 <= cells <= size:
        raise ConfigError(f"family masked_lm: image_grid is {cells}, expected 1 to {size}, the grid's size")
    weights = np.zeros((cells, size), "float32")
    for i in range(cells):
        first, last = i * size // cells, -(-(i + 1) * size // cells)
        weights[i, first:last] = 1.0 / (last - first)
    return weights
