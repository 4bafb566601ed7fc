"""A family's decoder behind the encoder's last blocks, which are trained with it.

To everything that trains or exports a captioner it is one decoder: its features are what the encoder's frozen blocks
give, and the trained ones belong to what it computes once per photograph.
"""

from __future__ import annotations

from typing import Any

from keras import ops

from captionlite.runtime.manifest import StateSpec
from captionlite.training.families.base import DecoderFamily, State, Tensor


class TunedDecoder(DecoderFamily):
    """``blocks``, a functional model from the frozen encoder's grid to the features of ``decoder``, a built family."""

    def __init__(self, blocks: Any, decoder: DecoderFamily) -> None:
        super().__init__(decoder.config, tuple(blocks.input_shape[1:]), decoder.vocabulary_size, name=decoder.name)
        self.blocks, self.decoder = blocks, decoder
        self.family, self.attends, self.refines = decoder.family, decoder.attends, decoder.refines  # type: ignore[misc]
        self.build_weights()

    @property
    def grid(self) -> tuple[int, int]:
        return self.decoder.grid

    @property
    def decoder_alone(self) -> DecoderFamily:
        return self.decoder

    def _encoded(self, features: Tensor) -> Tensor:
        return self.blocks(ops.cast(features, self.compute_dtype))

    def call(self, features: Tensor, tokens: Tensor, training: bool = False) -> Tensor:
        return self.decoder(self._encoded(features), tokens, training=training)

    def objective(
        self, features: Tensor, tokens: Tensor, *, pad_id: int, label_smoothing: float = 0.0, training: bool = False
    ) -> tuple[Tensor, Tensor, Tensor]:
        encoded = self._encoded(features)
        return self.decoder.objective(
            encoded, tokens, pad_id=pad_id, label_smoothing=label_smoothing, training=training
        )

    def initial_state(self, features: Tensor) -> State:
        return self.decoder.initial_state(self._encoded(features))

    def state_and_grid(self, features: Tensor) -> tuple[State, Tensor]:
        grid = self._encoded(features)
        return self.decoder.initial_state(grid), grid

    def state_specs(self) -> tuple[StateSpec, ...]:
        return self.decoder.state_specs()

    def step(self, token: Tensor, position: Tensor, state: State) -> tuple[Tensor, State, Tensor | None]:
        return self.decoder.step(token, position, state)

    def refine(self, tokens: Tensor, state: State) -> dict[str, Tensor]:
        return self.decoder.refine(tokens, state)

    def load_pretrained(self) -> None:
        self.decoder.load_pretrained()

    def output_bias_layer(self) -> Any:
        return self.decoder.output_bias_layer()
