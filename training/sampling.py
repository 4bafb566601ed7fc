"""Random captions by a family's own step, a batch in one compiled program: what self-critical training scores."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from captionlite.training.compiled import compiled
from captionlite.training.families.base import DecoderFamily


class Sampler:
    """Draws captions from the model's distribution without dropout, the suppressed tokens left out."""

    def __init__(
        self, model: DecoderFamily, *, start_id: int, end_id: int, pad_id: int, suppressed_ids: tuple[int, ...]
    ) -> None:
        self.model = model
        self._start_id, self._end_id, self._pad_id = start_id, end_id, pad_id
        self._allowed = np.ones((1, model.vocabulary_size), np.float32)
        self._allowed[0, list(suppressed_ids)] = 0.0
        self._changing = [spec.name for spec in model.state_specs() if spec.kind != "constant"]
        self._sample = compiled(self._loop, model.variables)

    def __call__(self, features: Any, uniform: np.ndarray) -> np.ndarray:
        """features (P, h, w, C) and ``uniform`` float32 (L, B) in [0, 1), B = P * K -> int32 (B, L + 1).

        Row b * K + k is the k-th caption of photograph b: the start token, the drawn ones, the end token if it was
        reached within L tokens, and padding. ``uniform`` is all the randomness there is.
        """
        tokens = self._sample(features, ops.convert_to_tensor(uniform))
        return np.asarray(ops.convert_to_numpy(tokens), np.int32)

    def _loop(self, features: Any, uniform: Any) -> Any:
        length, batch = uniform.shape
        copies = batch // features.shape[0]
        state = {name: ops.repeat(value, copies, axis=0) for name, value in self.model.full_state(features).items()}
        constant = {name: value for name, value in state.items() if name not in self._changing}
        changing = {name: state[name] for name in self._changing}
        drawn = ops.full((batch, length), self._pad_id, dtype="int32")
        token = ops.full((batch, 1), self._start_id, dtype="int32")
        running = ops.ones((batch,), dtype="bool")

        def unfinished(t: Any, token: Any, running: Any, drawn: Any, changing: Any) -> Any:
            return ops.logical_and(t < length, ops.any(running))

        def draw(t: Any, token: Any, running: Any, drawn: Any, changing: Any) -> Any:
            position = ops.reshape(t, (1,))
            before = {**constant, **changing}
            logits, updates, _ = self.model.step(token, position, before)
            after = self.model.advance(before, updates, position)
            # The token whose share of the cumulated probability holds the random number.
            mass = ops.cumsum(ops.softmax(ops.cast(logits, "float32"), axis=-1) * self._allowed, axis=-1)
            threshold = ops.take(uniform, t, axis=0)[:, None] * mass[:, -1:]
            chosen = ops.sum(ops.cast(mass <= threshold, "int32"), axis=-1)
            chosen = ops.minimum(chosen, self.model.vocabulary_size - 1)  # rounding, where the number is almost 1
            chosen = ops.where(running, chosen, self._pad_id)
            drawn = ops.slice_update(drawn, [ops.zeros((), "int32"), t], chosen[:, None])
            running = ops.logical_and(running, chosen != self._end_id)
            # A finished caption goes on with the end token, and what comes of it is thrown away.
            token = ops.where(running, chosen, self._end_id)[:, None]
            return t + 1, token, running, drawn, {name: after[name] for name in self._changing}

        start = (ops.zeros((), "int32"), token, running, drawn, changing)
        _, _, _, drawn, _ = ops.while_loop(unfinished, draw, start)
        first = ops.full((batch, 1), self._start_id, dtype="int32")
        return ops.concatenate([first, drawn], axis=1)
