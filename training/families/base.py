"""What every family of caption decoders has in common.

A family is one Keras model holding two views of the same weights: the full-sequence ``call`` that training uses and the
single ``step`` that the device runs. The shared harness in tests/training/harness.py holds the two equal.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import keras
import numpy as np

from captionlite.runtime.manifest import StateSpec
from captionlite.training.losses import masked_cross_entropy

Tensor = Any  # a tensor of the active Keras backend
State = dict[str, Tensor]

BANNED_LOGIT = -1e9  # the published notebook's value: its loss ignores every label whose loss reaches 1e8
EXPORTED_BANNED_LOGIT = -1e4  # the same ban, within float16's range, for files that store float16


class DecoderFamily(keras.Model):  # type: ignore[misc]
    """Base class of the caption decoders.

    Shapes: ``P`` photographs, ``B = P * K`` captions (K per photograph), ``T`` tokens, ``V`` vocabulary, ``L`` =
    max_length.
    """

    family: ClassVar[str]
    attends: ClassVar[bool]
    refines: ClassVar[bool] = False  # has `refine`: a whole caption in one parallel pass

    def __init__(self, config: Any, feature_shape: tuple[int, ...], vocabulary_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.config = config
        self.feature_shape = feature_shape
        self.vocabulary_size = vocabulary_size

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the features that the decoder looks at: what its attention is over."""
        return self.feature_shape[0], self.feature_shape[1]

    @property
    def max_length(self) -> int:
        """The largest number of decoder steps (tokens after the start token, the end token included)."""
        return int(self.config.max_length)

    def call(self, features: Tensor, tokens: Tensor, training: bool = False) -> Tensor:
        """Teacher forcing: features (P, h, w, C) and input tokens int32 (B, T) -> logits (B, T, V).

        ``tokens`` starts with the start token; logits at t predict token t + 1. B is a multiple of P: the captions of
        one photograph stand together and share what is computed from it.
        """
        raise NotImplementedError

    def objective(
        self, features: Tensor, tokens: Tensor, *, pad_id: int, label_smoothing: float = 0.0, training: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What training minimises and the dev figures report: loss in nats, masked accuracy, number of positions.

        tokens int32 (B, T + 1), start token first. Teacher forcing unless a family says otherwise.
        """
        logits = self(features, tokens[:, :-1], training=training)
        return masked_cross_entropy(tokens[:, 1:], logits, pad_id, label_smoothing)

    @property
    def decoder_alone(self) -> DecoderFamily:
        """Without the encoder's trained blocks, if any: the family's own model."""
        return self

    def initial_state(self, features: Tensor) -> State:
        """Everything that is computed once per photograph: features (B, h, w, C) -> the named constants and first
        states.
        """
        raise NotImplementedError

    def state_and_grid(self, features: Tensor) -> tuple[State, Tensor]:
        """``initial_state`` and what it was computed from, behind the encoder's trained blocks: (B, h, w, C)."""
        return self.initial_state(features), features

    def state_specs(self) -> tuple[StateSpec, ...]:
        """The rows of the bundle's state table (shapes with the batch axis as None)."""
        raise NotImplementedError

    def step(self, token: Tensor, position: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        """One step: token int32 (B, 1), position int32 (1,) -> logits (B, V), state updates, attention (B, regions)
        or None.

        The updates hold the replacement of each carried row and the new column of each appended row.
        """
        raise NotImplementedError

    def refine(self, tokens: Tensor, state: State) -> dict[str, Tensor]:
        """Families that predict all positions at once: tokens int32 (B, L + 1) from the start token on, and the
        constants -> ``logits`` (B, L + 1, V), and ``length_logits`` (B, L) where the family predicts lengths.
        """
        raise NotImplementedError

    def load_pretrained(self) -> None:
        """Takes over published weights, if the config names any; called once, when a run begins."""

    def full_state(self, features: Tensor) -> State:
        """``initial_state`` completed with the zeros that the runtime starts the other rows from."""
        state = dict(self.initial_state(features))
        batch = keras.ops.shape(features)[0]
        for spec in self.state_specs():
            if spec.name not in state:
                state[spec.name] = keras.ops.zeros((batch, *spec.shape[1:]), dtype=spec.dtype)
        return state

    def advance(self, state: State, updates: State, position: Tensor) -> State:
        """The state after a step, as the runtime computes it: carried rows replaced, appended columns written."""
        after = dict(state)
        for spec in self.state_specs():
            if spec.kind == "carried":
                after[spec.name] = updates[spec.name]
            elif spec.kind == "appended":
                assert spec.axis is not None
                start = [keras.ops.zeros((), "int32")] * len(spec.shape)
                start[spec.axis] = keras.ops.cast(position[0], "int32")
                after[spec.name] = keras.ops.slice_update(state[spec.name], start, updates[spec.name])
        return after

    def build_weights(self) -> None:
        """Creates every weight by one call on zeros, so that weights can be loaded or counted."""
        features = np.zeros((1, *self.feature_shape), "float32")
        self(features, np.zeros((1, 2), "int32"))

    def output_bias_layer(self) -> Any:
        """The ``TokenBias`` whose constants are set from token frequencies, or None if the family has none."""
        return None


class TokenBias(keras.layers.Layer):  # type: ignore[misc]
    """Adds log token frequency to the logits, so that training starts from the unigram distribution.

    A constant, as in the published TensorFlow tutorial (its TokenOutput layer): padding, unknown and start are banned.
    """

    def __init__(self, vocabulary_size: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.bias = self.add_weight(name="bias", shape=(vocabulary_size,), initializer="zeros", trainable=False)

    def set_from_frequencies(self, frequencies: np.ndarray, banned_ids: tuple[int, ...]) -> None:
        """frequencies: counts per token id (V,); tokens never seen get the log of 1e-9 of the total mass (finite)."""
        counts = np.asarray(frequencies, np.float64).copy()
        counts[list(banned_ids)] = 0.0
        shares = counts / counts.sum()
        bias = np.log(np.maximum(shares, 1e-9))
        bias[list(banned_ids)] = BANNED_LOGIT
        self.bias.assign(bias.astype("float32"))

    def call(self, logits: Tensor) -> Tensor:
        return logits + keras.ops.cast(self.bias, logits.dtype)


def repeat_per_caption(tensor: Tensor, tokens: Tensor) -> Tensor:
    """(P, ...) -> (B, ...): each photograph's row as often as it has captions in ``tokens`` (B, T)."""
    photographs, captions = tensor.shape[0], tokens.shape[0]
    if photographs is None or captions is None or photographs == captions:
        return tensor
    return keras.ops.repeat(tensor, captions // photographs, axis=0)


def config_from_json(cls: type[Any], obj: dict[str, Any], where: str) -> Any:
    """A family's frozen config dataclass from its JSON object; unknown fields are refused by name."""
    from captionlite.training.errors import ConfigError

    known = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(set(obj) - known - {"name"})
    if unknown:
        raise ConfigError(f"{where}: unknown field {unknown[0]!r}; {cls.__name__} has {', '.join(sorted(known))}")
    return cls(**{key: value for key, value in obj.items() if key != "name"})
