"""Several captioners of one vocabulary as one: at every step their log-probabilities are averaged.

They look at the same frozen blocks of the encoder, and each goes on with its own: blocks, decoder and state. The mean
of log-probabilities is the product of experts (Hinton 1999), up to what the next softmax divides by.
"""

from __future__ import annotations

from collections.abc import Sequence

import keras
from keras import ops

from captionlite.runtime.manifest import StateSpec
from captionlite.training.errors import ConfigError
from captionlite.training.families.base import EXPORTED_BANNED_LOGIT, DecoderFamily, State, Tensor


class EnsembleDecoder(DecoderFamily):
    """``members``: built models of one family, vocabulary, length and input; not to be trained together."""

    def __init__(self, members: Sequence[DecoderFamily]) -> None:
        first = members[0]
        super().__init__(first.config, first.feature_shape, first.vocabulary_size, name=first.name)
        if first.refines:
            raise ConfigError(f"members: the family {first.family} predicts all words at once and has no ensemble")
        self.members = list(members)
        self.family, self.attends = first.family, first.attends  # type: ignore[misc]
        self.build_weights()

    @property
    def grid(self) -> tuple[int, int]:
        return self.members[0].grid

    def call(self, features: Tensor, tokens: Tensor, training: bool = False) -> Tensor:
        return _mean([_log_probabilities(member(features, tokens, training=training)) for member in self.members])

    def state_and_grid(self, features: Tensor) -> tuple[State, Tensor]:
        """The grid is the first member's."""
        begun = [member.state_and_grid(features) for member in self.members]
        return _joined([state for state, _ in begun]), begun[0][1]

    def initial_state(self, features: Tensor) -> State:
        return self.state_and_grid(features)[0]

    def state_specs(self) -> tuple[StateSpec, ...]:
        return tuple(
            StateSpec(_name(number, row.name), row.kind, row.dtype, row.shape, row.axis)
            for number, member in enumerate(self.members)
            for row in member.state_specs()
        )

    def step(self, token: Tensor, position: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        logits, updates, maps = [], [], []
        for number, member in enumerate(self.members):
            own = {row.name: state[_name(number, row.name)] for row in member.state_specs()}
            each, update, attention = member.step(token, position, own)
            logits.append(_log_probabilities(each))
            updates.append(update)
            maps.append(attention)
        return _mean(logits), _joined(updates), _mean(maps) if self.attends else None

    def bound_biases(self) -> None:
        """What float16 cannot hold of the members' banned tokens is cut, here because an export knows one bias only."""
        for member in self.members:
            bias = member.output_bias_layer()
            if bias is not None:
                bias.bias.assign(ops.maximum(bias.bias.value, EXPORTED_BANNED_LOGIT))


def _name(number: int, row: str) -> str:
    return f"member_{number}_{row}"


def _joined(states: Sequence[State]) -> State:
    return {_name(number, row): value for number, state in enumerate(states) for row, value in state.items()}


def _log_probabilities(logits: Tensor) -> Tensor:
    """Banned tokens stay about as far down as they are: the softmax takes a constant off every token."""
    return keras.ops.log_softmax(logits, axis=-1)


def _mean(tensors: Sequence[Tensor]) -> Tensor:
    return sum(tensors[1:], tensors[0]) / len(tensors)
