"""The decoder graph with its state: one step for a batch of hypotheses of one photograph.

State is handled by its kind in the manifest alone, so any family runs through this loop.
"""

from collections.abc import Iterator, Mapping, Sequence
from math import isfinite, log
from typing import Any

import numpy as np
import numpy.typing as npt

from captionlite.runtime.errors import InterpreterError
from captionlite.runtime.interpreter import Graph
from captionlite.runtime.manifest import Manifest

Array = npt.NDArray[Any]
Floats = npt.NDArray[np.float32]

SAFE = 60.0
"""exp() of a logit up to this far from 0 is an ordinary float32, and so is the sum of a whole vocabulary of them."""


class DecoderLoop:
    """`begin` a photograph, then alternate `step` and `advance`; in between, `copy_rows` moves hypotheses.

    `logits` (batch, vocabulary) and `attention` (batch, regions), None for a family that does not attend, are of the
    latest step. They are the graph's own memory: the next step overwrites them, and the next `begin` may replace them.
    """

    logits: Floats
    attention: Floats | None
    likeliest: list[int]
    greatest: list[float]

    def __init__(self, graph: Graph, manifest: Manifest) -> None:
        self.graph = graph
        self.max_length = manifest.decoding.max_length
        self._rows = manifest.state
        self._bound_batch = 0

    def begin(self, encoded: Mapping[str, Array], batch: int = 1) -> None:
        """Set the state for a new photograph: the encoder's outputs, each (1, ...), and zeros for every other row."""
        if batch != self._bound_batch:
            self._bind(batch)
        for row in self._rows:
            value = encoded.get(row.name)
            if value is None:
                self._inputs[row.name].fill(0)
            else:
                self._inputs[row.name][...] = value  # (1, ...) spreads over the batch

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

    def weigh(self, suppressed: Any) -> list[float]:
        """Take ids out of the logits of the latest step; each row's log of the sum of exp(logits).

        `likeliest` and `greatest` then have each row's greatest logit, its id (the smallest of equal ones) and value.
        A log-probability is a logit less its row's number. Raises InterpreterError for logits that are no numbers.
        """
        logits, work = self.logits, self._work
        if self._row is not None:  # a single row in one dimension takes half the time of a batch of one
            self._row[suppressed] = -np.inf
            best = int(self._row.argmax())
            top: float = self._row.item(best)
            self.likeliest, self.greatest = [best], [top]
            if -SAFE < top < SAFE:
                return [log(np.exp(self._row, out=self._work_row).dot(self._ones))]
        else:
            logits[:, suppressed] = -np.inf
            best_ids = logits.argmax(axis=1)  # faster than max
            self.likeliest = best_ids.tolist()
            self.greatest = logits.reshape(-1).take(best_ids + self._offsets).tolist()
            if max(self.greatest) < SAFE and min(self.greatest) > -SAFE:
                np.exp(logits, out=work)
                sums = [row.dot(self._ones) for row in self._work_rows]  # the same sum as a row alone, to the last bit
                if isfinite(sum(sums)):
                    return [log(total) for total in sums]
        if not all(map(isfinite, self.greatest)):
            raise InterpreterError("The decoder returned logits that are no finite numbers. Run `captionlite verify`.")
        np.subtract(logits, np.array(self.greatest, np.float32)[:, None], out=work)  # so that exp cannot overflow
        np.exp(work, out=work)
        return [log(row.dot(self._ones)) + top for row, top in zip(self._work_rows, self.greatest, strict=True)]

    def greedy(self, token: int, steps: int, end: int, suppressed: Any) -> Iterator[tuple[int, float]]:
        """The likeliest token of every step and its log-probability, up to `end` or `steps`; a batch of one.

        What `step`, `weigh`, `record` and `advance` do, in one piece: between two runs of the graph, which empty the
        caches, every call of a Python function costs a third of a microsecond, and a step of a small decoder takes 50.
        """
        row, work, ones = self.logits[0], self._work_row, self._ones
        fed, fed_position, invoke, carried, columns = (
            self._token, self._position, self._invoke, self._carried, self._columns,
        )  # fmt: skip
        attention, attended = self.attention, self._attended
        for position in range(steps):
            fed[0, 0] = token
            fed_position[0] = position
            invoke()
            row[suppressed] = -np.inf
            token = int(row.argmax())
            top = row.item(token)
            if -SAFE < top < SAFE:
                logprob = top - log(np.exp(row, out=work).dot(ones))
            else:
                logprob = top - self.weigh(suppressed)[0]
            if attention is not None:
                attended[position] = attention
            yield token, logprob
            if token == end:
                return
            for state, new in carried:
                state[...] = new
            for column, new in columns[position]:
                column[...] = new

    def record(self, position: int) -> None:
        """Keep the `attention` of the latest step for `attended`."""
        if self.attention is not None:
            self._attended[position] = self.attention

    def attended(self, row: int, length: int) -> Floats | None:
        """A copy of what was recorded of one row, (length, regions)."""
        return None if self.attention is None else self._attended[:length, row].copy()

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
        self._work = np.empty_like(self.logits)
        self._row: Floats | None = self.logits[0] if batch == 1 else None
        self._work_row: Floats = self._work[0]
        self._work_rows: list[Floats] = list(self._work)
        self._ones = np.ones(self.logits.shape[1], np.float32)  # a product with it is a sum in a quarter of the time
        self._offsets = np.arange(batch) * self.logits.shape[1]
        regions = (batch, 0) if self.attention is None else self.attention.shape
        self._attended = np.empty((self.max_length, *regions), np.float32)
        self._bound_batch = batch
