"""Greedy decoding of several photographs as one batch of the decoder.

A decoder step reads all its weights for however few rows: four rows take about twice as long as one (105 us against
48 us for the default bundle on x86-64), so four captions together take little more than half as long as one by one.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from captionlite.runtime.decoding import DecodingOptions, Hypothesis, Plan
from captionlite.runtime.loop import Array, DecoderLoop
from captionlite.runtime.search import Walk, choose, picker, walked

GROUP = 4
"""Photographs a batch. More gain nothing: int8 kernels work on 4 or 5 rows at once, and the longest caption decides."""

Encoded = Mapping[str, Array]


def is_greedy(options: DecodingOptions) -> bool:
    """Whether a caption is one row of the decoder with nothing drawn at random: these can share a batch."""
    return options.hypotheses == 1 and options.temperature == 0 and options.passes is None


class Together:
    """Greedy captions of up to GROUP photographs at once, the same to the last bit as one at a time.

    Whether a batch computes that is up to the interpreter's kernels, so the first group is decoded both ways; where
    the two differ at all, everything is decoded one at a time.
    """

    def __init__(self, loop: DecoderLoop) -> None:
        self._loop = loop
        self._exact: bool | None = None

    def decode(self, encoded: Sequence[Encoded], plan: Plan) -> list[Hypothesis]:
        """A hypothesis for each of up to GROUP photographs. Raises InterpreterError, OptionsError."""
        if self._exact is False:
            return self._one_by_one(encoded, plan)
        found = self._as_batch(encoded, plan)
        if self._exact is None:
            alone = self._one_by_one(encoded, plan)
            self._exact = all(map(_same, found, alone))
            return alone
        return found

    def _one_by_one(self, encoded: Sequence[Encoded], plan: Plan) -> list[Hypothesis]:
        found = []
        for one in encoded:
            self._loop.begin(one)
            found += Walk(self._loop, plan).to_the_end()
        return found

    def _as_batch(self, encoded: Sequence[Encoded], plan: Plan) -> list[Hypothesis]:
        loop, end = self._loop, plan.end_id
        rows = list(encoded) + [encoded[-1]] * (GROUP - len(encoded))  # always GROUP: resizing takes longer
        loop.begin({name: np.concatenate([row[name] for row in rows]) for name in rows[0]}, GROUP)
        logits = loop.logits
        tokens: list[list[int]] = [[] for _ in encoded]
        logprobs: list[list[float]] = [[] for _ in encoded]
        fed = np.full((GROUP, 1), plan.start_id)
        pick = picker(plan)
        plain = not plan.restricted and not plan.prefix
        active = list(range(len(encoded)))
        for position in range(plan.steps):
            loop.step(fed, position)
            normalizers = loop.weigh(plan.suppressed)
            loop.record(position)
            for row in active:
                token = loop.likeliest[row] if plain else choose(plan, logits[row], tokens[row], pick)
                tokens[row].append(token)
                logprobs[row].append(logits.item(row, token) - normalizers[row])
                fed[row, 0] = token
            active = [row for row in active if tokens[row][-1] != end]
            if not active:
                break
            if position + 1 < plan.steps:
                loop.advance(position)
        return [walked(plan, tokens[i], logprobs[i], loop.attended(i, len(tokens[i]))) for i in range(len(encoded))]


def _same(one: Hypothesis, other: Hypothesis) -> bool:
    """Equal to the last bit."""
    attended = one.attention is None or other.attention is None or np.array_equal(one.attention, other.attention)
    return attended and (one.tokens, one.logprobs) == (other.tokens, other.logprobs)
