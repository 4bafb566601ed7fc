"""Captions straight from the Keras model: the reference that exported bundles are held to, and the trainer's dev
captions.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from captionlite.training.compiled import compiled
from captionlite.training.families.base import DecoderFamily


class KerasGenerator:
    """Step-by-step decoding of a family on the active backend, a batch of photographs at a time."""

    def __init__(self, model: DecoderFamily, *, start_id: int, end_id: int, suppressed_ids: tuple[int, ...]) -> None:
        self.model = model
        self.start_id, self.end_id = start_id, end_id
        self._suppression = np.zeros((1, model.vocabulary_size), np.float32)
        self._suppression[0, list(suppressed_ids)] = -np.inf
        self._initial = compiled(model.full_state, model.variables)
        self._step = compiled(self._one_step, model.variables)

    def _one_step(self, token: Any, position: Any, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        logits, updates, _ = self.model.step(token, position, state)
        return logits, self.model.advance(state, updates, position)

    def logits(self, features: np.ndarray, tokens: np.ndarray) -> np.ndarray:
        """Step by step with the given tokens: features (B, h, w, C), tokens int32 (B, T) -> logits (B, T, V)."""
        state = self._initial(ops.convert_to_tensor(features))
        rows = []
        for t in range(tokens.shape[1]):
            logits, state = self._step(ops.convert_to_tensor(tokens[:, t : t + 1]), self._position(t), state)
            rows.append(ops.convert_to_numpy(logits))
        return np.stack(rows, axis=1)

    def generate(self, features: np.ndarray, temperature: float = 0.0, seed: int = 0) -> list[list[int]]:
        """features (B, h, w, C) -> token ids per photograph, without start and end; temperature 0 is greedy."""
        rng = np.random.default_rng(seed)
        batch = len(features)
        state = self._initial(ops.convert_to_tensor(features))
        token = np.full((batch, 1), self.start_id, np.int32)
        chosen = np.full((batch, self.model.max_length), self.end_id, np.int32)
        running = np.ones(batch, bool)
        for t in range(self.model.max_length):
            logits, state = self._step(ops.convert_to_tensor(token), self._position(t), state)
            scores = ops.convert_to_numpy(logits) + self._suppression
            if temperature:
                # The Gumbel-max trick: the argmax of scores plus Gumbel noise is a draw from their softmax.
                scores = scores / temperature + rng.gumbel(size=scores.shape)
            following = np.where(running, scores.argmax(axis=-1), self.end_id).astype(np.int32)
            chosen[:, t] = following
            running &= following != self.end_id
            if not running.any():
                break
            token = following[:, None]
        return [self._cut(row) for row in chosen]

    def _cut(self, row: np.ndarray) -> list[int]:
        ends = np.flatnonzero(row == self.end_id)
        return [int(token) for token in (row[: ends[0]] if len(ends) else row)]

    @staticmethod
    def _position(t: int) -> Any:
        return ops.convert_to_tensor(np.array([t], np.int32))
