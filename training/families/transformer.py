"""The Transformer with visual attention.

The published form is TensorFlow's tutorial "Image captioning with visual attention"
(https://www.tensorflow.org/text/tutorials/image_captioning): post-norm decoder layers of causal self-attention, cross-
attention over the encoder's grid and a feed-forward block. ``memory_layers`` adds encoder layers over the grid between
the two (0 in the published form); ``norm = "pre"`` moves the normalisation in front of each block.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

import keras
from keras import ops

from captionlite.runtime.manifest import StateSpec
from captionlite.training.families.base import DecoderFamily, State, Tensor, TokenBias, repeat_per_caption


@dataclasses.dataclass(frozen=True)
class TransformerConfig:
    """Sizes of a Transformer decoder; the defaults are the published ones."""

    layers: int = 2
    units: int = 256
    heads: int = 2
    key_dim: int = 256  # width of one head
    feed_forward: int = 512
    dropout: float = 0.5
    max_length: int = 50  # learned positions
    norm: Literal["post", "pre"] = "post"
    memory_layers: int = 0  # encoder layers over the grid
    project_features: bool = False  # a Dense to `units`, with learned grid positions, before the cross-attention
    tied_embedding: bool = False  # the output layer uses the token embedding's matrix


class Attention(keras.layers.Layer):  # type: ignore[misc]
    """Multi-head attention split into its projections, so that keys and values can be computed once and cached.

    Same weights and arithmetic as keras.layers.MultiHeadAttention(heads, key_dim). Tensors are (B, heads, length,
    key_dim).
    """

    def __init__(self, heads: int, key_dim: int, units: int, dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.heads, self.key_dim = heads, key_dim
        self.query = keras.layers.Dense(heads * key_dim, name="query")
        self.key = keras.layers.Dense(heads * key_dim, name="key")
        self.value = keras.layers.Dense(heads * key_dim, name="value")
        self.output_projection = keras.layers.Dense(units, name="output")
        self.dropout = keras.layers.Dropout(dropout)

    def split(self, x: Tensor) -> Tensor:
        """(B, length, heads * key_dim) -> (B, heads, length, key_dim)."""
        length = x.shape[1] if x.shape[1] is not None else ops.shape(x)[1]
        return ops.transpose(ops.reshape(x, (-1, length, self.heads, self.key_dim)), (0, 2, 1, 3))

    def join(self, x: Tensor) -> Tensor:
        """(B, heads, length, key_dim) -> (B, length, units)."""
        length = x.shape[2] if x.shape[2] is not None else ops.shape(x)[2]
        joined = ops.reshape(ops.transpose(x, (0, 2, 1, 3)), (-1, length, self.heads * self.key_dim))
        return self.output_projection(joined)

    def queries(self, x: Tensor) -> Tensor:
        return self.split(self.query(x) * self.key_dim**-0.5)

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.split(self.key(x)), self.split(self.value(x))

    def one(self, projected: Tensor) -> Tensor:
        """(B, heads * key_dim) of a single position -> (B, heads, 1, key_dim)."""
        return ops.reshape(projected, (-1, self.heads, 1, self.key_dim))

    def one_query(self, x: Tensor) -> Tensor:
        return self.one(self.query(x) * self.key_dim**-0.5)

    def one_key_value(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.one(self.key(x)), self.one(self.value(x))

    def join_one(self, context: Tensor) -> Tensor:
        """(B, heads, 1, key_dim) -> (B, units)."""
        return self.output_projection(ops.reshape(context, (-1, self.heads * self.key_dim)))

    def attend(self, query: Tensor, key: Tensor, value: Tensor, causal: bool, training: bool) -> Tensor:
        scores = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2)))  # (B, heads, queries, keys)
        if causal:
            positions = ops.arange(ops.shape(scores)[-1], dtype="int32")
            hidden = positions[None, :] > positions[:, None]
            scores = ops.where(hidden, ops.cast(-1e9 if scores.dtype != "float16" else -6e4, scores.dtype), scores)
        weights = ops.softmax(scores, axis=-1)
        return self.join(ops.matmul(self.dropout(weights, training=training), value))

    def attend_one(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """One query over cached keys: -> (B, units), weights (B, heads, keys)."""
        weights = ops.softmax(ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))), axis=-1)  # (B, heads, 1, keys)
        return self.join_one(ops.matmul(weights, value)), ops.squeeze(weights, axis=2)

    def attend_step(
        self, query: Tensor, new_key: Tensor, new_value: Tensor, key: Tensor, value: Tensor, unwritten: Tensor
    ) -> Tensor:
        """One query over a cache whose columns from ``position`` on are not written yet, and over its own new column.

        ``unwritten`` (1, 1, 1, L) is a large negative number at those columns and 0 before them.
        """
        cached = ops.matmul(query, ops.transpose(key, (0, 1, 3, 2))) + unwritten  # (B, heads, 1, L)
        own = ops.sum(query * new_key, axis=-1, keepdims=True)  # (B, heads, 1, 1)
        weights = ops.softmax(ops.concatenate([cached, own], axis=-1), axis=-1)
        length = key.shape[2]
        context = ops.matmul(weights[..., :length], value) + weights[..., length:] * new_value
        return self.join_one(context)


class FeedForward(keras.layers.Layer):  # type: ignore[misc]
    def __init__(self, units: int, hidden: int, dropout: float, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.widen = keras.layers.Dense(hidden, activation="relu", name="widen")
        self.narrow = keras.layers.Dense(units, name="narrow")
        self.dropout = keras.layers.Dropout(dropout)

    def call(self, x: Tensor, training: bool = False) -> Tensor:
        return self.dropout(self.narrow(self.widen(x)), training=training)


class DecoderLayer(keras.layers.Layer):  # type: ignore[misc]
    """Self-attention, cross-attention (unless ``memory``) and feed-forward, each with a residual and a LayerNorm."""

    def __init__(self, config: TransformerConfig, memory: bool = False, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        c = config
        self.pre = c.norm == "pre"
        self.self_attention = Attention(c.heads, c.key_dim, c.units, c.dropout, name="self_attention")
        self.self_norm = keras.layers.LayerNormalization(name="self_norm")
        if not memory:
            self.cross_attention = Attention(c.heads, c.key_dim, c.units, c.dropout, name="cross_attention")
            self.cross_norm = keras.layers.LayerNormalization(name="cross_norm")
        self.feed_forward = FeedForward(c.units, c.feed_forward, c.dropout, name="feed_forward")
        self.feed_forward_norm = keras.layers.LayerNormalization(name="feed_forward_norm")

    def build(self, input_shape: Any) -> None:
        """The sublayers build themselves at their first call."""
        self.built = True

    def before(self, norm: Any, x: Tensor) -> Tensor:
        return norm(x) if self.pre else x

    def after(self, norm: Any, x: Tensor) -> Tensor:
        return x if self.pre else norm(x)

    def call(
        self, x: Tensor, cross: tuple[Tensor, Tensor] | None = None, causal: bool = True, training: bool = False
    ) -> Tensor:
        y = self.before(self.self_norm, x)
        attended = self.self_attention.attend(
            self.self_attention.queries(y), *self.self_attention.keys_values(y), causal=causal, training=training
        )
        x = self.after(self.self_norm, x + attended)
        if cross is not None:
            y = self.before(self.cross_norm, x)
            attended = self.cross_attention.attend(
                self.cross_attention.queries(y), *cross, causal=False, training=training
            )
            x = self.after(self.cross_norm, x + attended)
        y = self.before(self.feed_forward_norm, x)
        return self.after(self.feed_forward_norm, x + self.feed_forward(y, training=training))

    def step(
        self, x: Tensor, cross: tuple[Tensor, Tensor], cache: tuple[Tensor, Tensor], unwritten: Tensor
    ) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
        """x (B, units) -> x, the new self-attention column, cross-attention weights (B, heads, regions).

        Rank 2 all the way: a Dense on (B, 1, units) with B unknown converts to a dance of reshapes around each product.
        """
        y = self.before(self.self_norm, x)
        column = self.self_attention.one_key_value(y)
        attended = self.self_attention.attend_step(self.self_attention.one_query(y), *column, *cache, unwritten)
        x = self.after(self.self_norm, x + attended)
        y = self.before(self.cross_norm, x)
        attended, weights = self.cross_attention.attend_one(self.cross_attention.one_query(y), *cross)
        x = self.after(self.cross_norm, x + attended)
        y = self.before(self.feed_forward_norm, x)
        return self.after(self.feed_forward_norm, x + self.feed_forward(y)), column, weights


class TransformerDecoder(DecoderFamily):
    """Caption decoder; see the module's docstring for the source."""

    family: ClassVar[str] = "transformer"
    attends: ClassVar[bool] = True
    config_class: ClassVar[type[TransformerConfig]] = TransformerConfig

    def __init__(self, config: TransformerConfig, feature_shape: tuple[int, ...], vocabulary_size: int, **kwargs: Any):
        super().__init__(config, feature_shape, vocabulary_size, **kwargs)
        c = config
        self.regions = feature_shape[0] * feature_shape[1]
        self.token_embedding = keras.layers.Embedding(vocabulary_size, c.units, name="token_embedding")
        self.position_embedding = keras.layers.Embedding(c.max_length, c.units, name="position_embedding")
        self.embedding_dropout = keras.layers.Dropout(c.dropout if c.norm == "pre" else 0.0)
        self.decoder_layers = [DecoderLayer(c, name=f"decoder_{i}") for i in range(c.layers)]
        self.memory_layers = [DecoderLayer(c, memory=True, name=f"memory_{i}") for i in range(c.memory_layers)]
        self.projection: Any = None
        self.grid_embedding: Any = None
        self.memory_norm: Any = None
        self.final_norm: Any = None
        self.head: Any = None
        if c.project_features or c.memory_layers:
            self.projection = keras.layers.Dense(c.units, name="projection")
            self.grid_embedding = keras.layers.Embedding(self.regions, c.units, name="grid_embedding")
            self.memory_norm = keras.layers.LayerNormalization(name="memory_norm")
        if c.norm == "pre":
            self.final_norm = keras.layers.LayerNormalization(name="final_norm")
        if not c.tied_embedding:
            self.head = keras.layers.Dense(vocabulary_size, name="head")
        self.token_bias = TokenBias(vocabulary_size, name="token_bias")

    def output_bias_layer(self) -> TokenBias:
        return self.token_bias

    def memory(self, features: Tensor, training: bool = False) -> Tensor:
        """(P, h, w, C) -> what the cross-attention looks at, (P, regions, C or units)."""
        x = ops.reshape(features, (-1, self.regions, self.feature_shape[-1]))
        if self.projection is None:
            return x
        x = self.projection(x) + self.grid_embedding(ops.arange(self.regions, dtype="int32"))[None]
        if self.config.norm == "post":
            x = self.memory_norm(x)
        x = self.embedding_dropout(x, training=training)
        for layer in self.memory_layers:
            x = layer(x, causal=False, training=training)
        return self.memory_norm(x) if self.config.norm == "pre" else x

    def logits(self, x: Tensor) -> Tensor:
        if self.final_norm is not None:
            x = self.final_norm(x)
        if self.head is not None:
            return self.token_bias(self.head(x))
        return self.token_bias(ops.matmul(x, ops.transpose(ops.cast(self.token_embedding.embeddings, x.dtype))))

    def call(self, features: Tensor, tokens: Tensor, training: bool = False) -> Tensor:
        memory = self.memory(ops.cast(features, self.compute_dtype), training=training)
        positions = ops.arange(tokens.shape[1], dtype="int32")
        x = self.token_embedding(tokens) + self.position_embedding(positions)[None]
        x = self.embedding_dropout(x, training=training)
        for layer in self.decoder_layers:
            keys, values = layer.cross_attention.keys_values(memory)
            cross = repeat_per_caption(keys, tokens), repeat_per_caption(values, tokens)
            x = layer(x, cross=cross, training=training)
        return ops.cast(self.logits(x), "float32")

    def initial_state(self, features: Tensor) -> State:
        memory = self.memory(ops.cast(features, self.compute_dtype))
        state = {}
        for i, layer in enumerate(self.decoder_layers):
            state[f"cross_key_{i}"], state[f"cross_value_{i}"] = layer.cross_attention.keys_values(memory)
        return state

    def state_specs(self) -> tuple[StateSpec, ...]:
        c = self.config
        rows = []
        for i in range(c.layers):
            for part in ("key", "value"):
                constant = (None, c.heads, self.regions, c.key_dim)
                rows.append(StateSpec(f"cross_{part}_{i}", "constant", "float32", constant, None))
                appended = (None, c.heads, c.max_length, c.key_dim)
                rows.append(StateSpec(f"self_{part}_{i}", "appended", "float32", appended, 2))
        return tuple(rows)

    def step(self, token: Tensor, position: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        x = self.token_embedding(token[:, 0]) + self.position_embedding(position)  # (B, units)
        columns = ops.arange(self.max_length, dtype="int32")
        unwritten = ops.cast(columns >= position, "float32")[None, None, None] * -1e9
        updates, maps = {}, []
        for i, layer in enumerate(self.decoder_layers):
            cross = state[f"cross_key_{i}"], state[f"cross_value_{i}"]
            cache = state[f"self_key_{i}"], state[f"self_value_{i}"]
            x, column, weights = layer.step(x, cross, cache, unwritten)
            updates[f"self_key_{i}"], updates[f"self_value_{i}"] = column
            maps.append(weights)
        attention = ops.mean(ops.concatenate(maps, axis=1), axis=1)  # over layers and heads, as published
        return self.logits(x), updates, attention
