"""The decoder graph with its state: one step for a batch of hypotheses of one photograph.

State is handled by its kind in the manifest alone, so any family runs through this loop.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from captionlite.runtime.interpreter import Graph
from captionlite.runtime.manifest import Manifest

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]


class DecoderLoop:
    """`begin` a photograph, then alternate `step` and `advance`; in between, `copy_rows` moves hypotheses.

    `logits` (batch, vocabulary) and `attention` (batch, regions), None for a family that does not attend, are of the
    latest step. They are the graph's own memory: the next step overwrites them, and the next `begin` may replace them.
    """

    logits: Floats
    attention: Floats | None

    def __init__(self, graph: Graph, manifest: Manifest) -> None:
        self.graph = graph
        self.max_length = manifest.decoding.max_length
        self._rows = manifest.state
        self._bound_batch = 0
        self._history: Floats | None = None

    def begin(self, encoded: Mapping[str, Array], batch: int = 1) -> None:
        """Set the state for a new photograph: the encoder's outputs, each (1, ...), and zeros for every other row."""
        if batch != self._bound_batch:
            self._bind(batch)
        for row in self._rows:
            self._inputs[row.name][...] = encoded.get(row.name, 0)  # (1, ...) spreads over the batch

    def step(self, tokens: int | npt.NDArray[np.integer[Any]], position: int) -> None:
        """Feed one token, or (batch, 1) tokens, at a position counted from 0; `logits` and `attention` are then new."""
        self._token[...] = tokens
        self._position[0] = position
        self._invoke()

    def advance(self, position: int) -> None:
        """Take over the state that the latest step returned, so that the next position can be computed."""
        for state, new in self._carried:
            state[...] = new
        for column, new in self._columns[position]:
            column[...] = new

    def copy_rows(self, sources: Sequence[int], targets: Sequence[int], length: int) -> None:
        """Copy the state of hypotheses, of which `length` positions are filled, to other rows; after `advance`.

        No row may be both source and target.
        """
        for source, target in zip(sources, targets, strict=True):
            for rows in self._carried_rows:
                rows[target][...] = rows[source]
            for columns in self._filled(length):
                columns[target][...] = columns[source]

    def _filled(self, length: int) -> list[list[Array]]:
        """For each appended state, a view of the filled columns of each row."""
        if length not in self._filled_columns:
            self._filled_columns[length] = [[row[:length] for row in state] for state in self._appended]
        return self._filled_columns[length]

    def keep_history(self) -> None:
        """Make room for `record`, once for every batch size."""
        if self._history is None:
            self._history = np.empty((self.max_length, *self.logits.shape), np.float32)
            if self.attention is not None:
                self._attended = np.empty((self.max_length, *self.attention.shape), np.float32)

    def record(self, position: int) -> None:
        """Keep `logits` and `attention` of the latest step for `history`."""
        self._history[position] = self.logits  # type: ignore[index]
        if self.attention is not None:
            self._attended[position] = self.attention

    def history(self, row: int, length: int) -> tuple[Floats, Floats | None]:
        """What was recorded of one row: logits (length, vocabulary), good until the next record; attention, a copy."""
        logits: Floats = self._history[:length, row]  # type: ignore[index]
        return logits, None if self.attention is None else self._attended[:length, row].copy()

    def _bind(self, batch: int) -> None:
        """Resize the graph and keep views of its tensors; those of every column are made here, not at every step."""
        graph = self.graph
        graph.resize_batch(batch)
        inputs, outputs = graph.pinned()
        self._inputs = inputs
        self._token, self._position = inputs["token"], inputs["position"]
        self._invoke = graph.invoke
        self.logits, self.attention = outputs["logits"], outputs.get("attention")
        self._carried = [(inputs[row.name], outputs[row.name]) for row in self._rows if row.kind == "carried"]
        appended = [(inputs[r.name], outputs[r.name], r.axis) for r in self._rows if r.axis is not None]
        self._carried_rows = [list(state) for state, _ in self._carried]
        self._appended = [np.moveaxis(state, axis, 1) for state, _, axis in appended]
        self._filled_columns: dict[int, list[list[Array]]] = {}
        self._columns = [
            [(np.moveaxis(state, axis, 1)[:, p], np.moveaxis(new, axis, 1)[:, 0]) for state, new, axis in appended]
            for p in range(self.max_length)
        ]
        self._history = None
        self._bound_batch = batch
