"""Beam search: the likeliest captions that a few hypotheses side by side find.

As openai/whisper does it: at every step the best continuations of all hypotheses are taken in order; those with the
end token are finished captions, the first `beams` others go on; the search ends when `beams * patience` are finished.
"""

from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from captionlite.runtime.decoding import Floats, Hypothesis, Plan, nothing_left
from captionlite.runtime.loop import DecoderLoop

_DEAD = -1e30  # the score of a row that holds no hypothesis; finite, so that sums and differences stay numbers
_FAR = 1e32  # nats: further than any total that is a number
_LOWEST = -3e38  # of float32


@dataclass(slots=True)
class _Node:
    """The latest token of a hypothesis; `row` is where in the batch its logits stood, `total` the sum so far."""

    before: "_Node | None"
    token: int
    total: float
    row: int

    def path(self) -> list["_Node"]:
        """From the first token to this one."""
        nodes, node = [], self
        while node.before is not None:
            nodes.append(node)
            node = node.before
        return nodes[::-1]

    def tokens(self) -> list[int]:
        return [node.token for node in self.path()]


def beam_search(loop: DecoderLoop, plan: Plan) -> list[Hypothesis]:
    """The `n_best` finished captions, the best first; the loop has begun.

    Equal scores are ordered by token ids, so the result does not depend on the machine's sorting. Raises OptionsError
    when the options leave nothing to choose, InterpreterError for broken logits.
    """
    beams = plan.options.beams
    wanted = max(1, round(beams * plan.options.patience))
    finder = _Finder(loop, 2 * beams)  # each hypothesis can end only once: among 2 * beams, beams go on
    live: dict[int, _Node] = {0: _Node(None, plan.start_id, 0.0, 0)}  # by row
    finished: list[_Node] = []
    totals = [0.0] + [_DEAD] * (beams - 1)
    fed = np.full((beams, 1), plan.start_id)
    attended: list[Floats] = []
    for position in range(plan.steps):
        loop.step(fed, position)
        if loop.attention is not None:
            attended.append(loop.attention.copy())
        finder.normalizers = loop.weigh(plan.suppressed)
        if position < len(plan.prefix):
            token = plan.prefix[position]
            candidates = [(finder.total(totals, 0, token), 0, token)]
        else:
            if plan.restricted:
                for row, node in live.items():
                    loop.logits[row, plan.banned(node.tokens())] = -np.inf
            candidates = finder.best(totals)
        following: list[_Node] = []
        for total, row, token in candidates:
            node = _Node(live[row], token, total, row)
            if token != plan.end_id:
                following.append(node)
                if len(following) == beams:
                    break
            elif len(finished) < wanted:
                finished.append(node)
        if not following and not finished:
            raise nothing_left()
        if len(finished) >= wanted or not following or position + 1 == plan.steps:
            break
        loop.advance(position)
        live, sources, targets = _seat(following, beams)
        loop.copy_rows(sources, targets, position + 1)
        totals = [_DEAD] * beams
        for row, node in live.items():
            totals[row], fed[row, 0] = node.total, node.token
    # Captions cut at the greatest length count only as far as too few came to their end.
    nodes = [(node, "end") for node in finished]
    nodes += [(node, "max_length") for node in following[: max(0, beams - len(finished))]]
    found = [_hypothesis(node, plan, stop_reason) for node, stop_reason in nodes]
    order = sorted(range(len(found)), key=lambda i: (-found[i].score, found[i].tokens))[: plan.options.n_best]
    if not attended:
        return [found[i] for i in order]
    return [
        replace(found[i], attention=np.stack([a[n.row] for a, n in zip(attended, nodes[i][0].path(), strict=False)]))
        for i in order
    ]


def _seat(nodes: list[_Node], beams: int) -> tuple[dict[int, _Node], list[int], list[int]]:
    """Rows of the batch for the hypotheses, and which rows are to be copied to which.

    The best child of a row stays in it, where the state is right already; its siblings take rows that died out.
    """
    live: dict[int, _Node] = {}
    siblings = []
    for node in nodes:
        if node.row in live:
            siblings.append(node)
        else:
            live[node.row] = node
    targets = [row for row in range(beams) if row not in live][: len(siblings)]
    live.update(zip(targets, siblings, strict=True))
    return live, [node.row for node in siblings], targets


def _hypothesis(node: _Node, plan: Plan, stop_reason: str) -> Hypothesis:
    path = node.path()
    totals = [0.0, *(step.total for step in path)]
    logprobs = [after - before for before, after in pairwise(totals)]
    return Hypothesis([step.token for step in path], logprobs, plan.score(node.total, len(path)), stop_reason)


class _Finder:
    """The best continuations of all rows, from logits, without sorting the vocabulary.

    Passes over (beams, vocabulary) are NumPy's; what has a number for each beam is faster as a list.
    """

    def __init__(self, loop: DecoderLoop, count: int) -> None:
        self._loop = loop
        self._logits = loop.logits  # (beams, vocabulary)
        self.normalizers: list[float] = []  # of the latest step, see DecoderLoop.weigh
        self._flat = self._logits.reshape(-1)
        beams, self._vocabulary = self._logits.shape
        self._count = count
        self._within = np.empty(self._logits.shape, bool)
        self._bound = np.empty((beams, 1), np.float32)
        self._reach = 4.0  # nats below the best continuation within which the others are looked for

    def total(self, totals: list[float], row: int, token: int) -> float:
        """The sum of log-probabilities of a row's hypothesis continued by a token."""
        return float(self._logits[row, token]) + totals[row] - self.normalizers[row]

    def best(self, totals: list[float]) -> list[tuple[float, int, int]]:
        """(total, row, token) of the best continuations, in order; equal ones by token id, then row.

        All that lie within reach of the best one are found by a single comparison; where these are too few the reach
        grows, so the result does not depend on it.
        """
        base = [total - normalizer for total, normalizer in zip(totals, self.normalizers, strict=True)]
        # Of before the options' bans, which can only lower it.
        peak = max(top + b for top, b in zip(self._loop.greatest, base, strict=True))
        reach = self._reach
        while True:
            self._bound[:, 0] = [max(peak - reach - b, _LOWEST) for b in base]
            hits = np.greater_equal(self._logits, self._bound, out=self._within).reshape(-1).nonzero()[0]
            if len(hits) >= self._count or reach > _FAR:
                break
            reach *= 1.5 if reach < 20.0 else 1e6
        # Next time so far that a few more than enough come up.
        self._reach = min(reach, 20.0) * (0.85 if len(hits) > 3 * self._count else 1.0)
        found = []
        for place, logit in zip(hits.tolist(), self._flat.take(hits).tolist(), strict=True):
            row, token = divmod(place, self._vocabulary)
            found.append((-(logit + base[row]), token, row))
        found.sort()
        return [(-cost, row, token) for cost, token, row in found[: self._count] if cost < -_DEAD / 2]
