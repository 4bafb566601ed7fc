"""Beam search: the likeliest captions that a few hypotheses side by side find.

As openai/whisper does it: at every step the best continuations of all hypotheses are taken in order; those with the
end token are finished captions, the first `beams` others go on; the search ends when `beams * patience` are finished.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from captionlite.runtime.decoding import Floats, Hypothesis, Plan, no_finite_logits, nothing_left
from captionlite.runtime.loop import DecoderLoop
from captionlite.runtime.search import SAFE

_DEAD = -1e30  # the score of a row that holds no hypothesis; finite, so that sums and differences stay numbers
_FAR = 1e32  # further than any total that is a number


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
    """Finished captions, the best first, at least `n_best` of them where so many exist; the loop has begun.

    Equal scores are ordered by token ids, so the result does not depend on the machine's sorting. Raises OptionsError
    when the options leave nothing to choose, InterpreterError for broken logits.
    """
    beams = plan.options.beams
    wanted = max(1, round(beams * plan.options.patience))
    finder = _Finder(loop, 2 * beams)  # each hypothesis can end only once: among 2 * beams, beams go on
    live: dict[int, _Node] = {0: _Node(None, plan.start_id, 0.0, 0)}  # by row
    finished: list[_Node] = []
    totals = np.full((beams, 1), _DEAD)
    totals[0] = 0.0
    fed = np.full((beams, 1), plan.start_id)
    attended: list[Floats] = []
    for position in range(plan.steps):
        loop.step(fed, position)
        if loop.attention is not None:
            attended.append(loop.attention.copy())
        finder.normalize(plan.suppressed)
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
        totals[:] = _DEAD
        for row, node in live.items():
            totals[row], fed[row] = node.total, node.token
    # Captions cut at the greatest length count only as far as too few came to their end.
    ended = [_hypothesis(node, plan, "end", attended) for node in finished]
    cut = [_hypothesis(node, plan, "max_length", attended) for node in following[: max(0, beams - len(ended))]]
    return sorted(ended + cut, key=lambda hypothesis: (-hypothesis.score, hypothesis.tokens))


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


def _hypothesis(node: _Node, plan: Plan, stop_reason: str, attended: list[Floats]) -> Hypothesis:
    path = node.path()
    totals = [0.0, *(step.total for step in path)]
    attention = np.stack([a[step.row] for a, step in zip(attended, path, strict=False)]) if attended else None
    return Hypothesis(
        [step.token for step in path],
        [after - before for before, after in pairwise(totals)],
        plan.score(node.total, len(path)),
        stop_reason,
        attention,
    )


class _Finder:
    """The best continuations of all rows, from logits, without sorting the vocabulary."""

    def __init__(self, loop: DecoderLoop, count: int) -> None:
        self._logits = loop.logits  # (beams, vocabulary)
        self._count = count
        self._work = np.empty_like(self._logits)
        self._rows = np.arange(len(self._logits))
        self._reach = 4.0  # nats below the best continuation within which the others are looked for

    def normalize(self, suppressed: Any) -> None:
        """Take the suppressed ids out, and find each row's log of the sum of exp(logits)."""
        logits, work = self._logits, self._work
        logits[:, suppressed] = -np.inf
        greatest = logits[self._rows, logits.argmax(axis=1)]  # (beams,); argmax is faster than max
        if np.abs(greatest).max() < SAFE:
            logsum = np.log(np.exp(logits, out=work).sum(axis=1))
        else:
            np.subtract(logits, greatest[:, None], out=work)
            logsum = np.log(np.exp(work, out=work).sum(axis=1)) + greatest
            if not np.isfinite(logsum).all():
                raise no_finite_logits()
        self._normalizer = logsum[:, None].astype(np.float64)  # (beams, 1)
        self._greatest = greatest

    def total(self, totals: npt.NDArray[np.float64], row: int, token: int) -> float:
        """The sum of log-probabilities of a row's hypothesis continued by a token."""
        return float(self._logits[row, token] + totals[row, 0] - self._normalizer[row, 0])

    def best(self, totals: npt.NDArray[np.float64]) -> list[tuple[float, int, int]]:
        """(total, row, token) of the best continuations, in order; totals (beams, 1). Equal ones by token id, then row.

        All that lie within reach of the best one are found by a single comparison; where these are too few the reach
        grows, so the result does not depend on it.
        """
        logits, base = self._logits, totals - self._normalizer  # (beams, 1)
        peak = (self._greatest + base[:, 0]).max()  # of before the options' bans, which can only lower it
        reach = self._reach
        while True:
            hits = np.flatnonzero(logits >= (peak - reach - base).astype(np.float32))
            if len(hits) >= self._count or reach > _FAR:
                break
            reach *= 2
        # Next time so far that a few more than enough come up.
        self._reach = reach * (0.8 if len(hits) > 6 * self._count else 1.0)
        rows, tokens = np.divmod(hits, logits.shape[1])
        found = logits[rows, tokens] + base[rows, 0]
        order = np.lexsort((rows, tokens, -found))[: self._count]
        triples = zip(found[order].tolist(), rows[order].tolist(), tokens[order].tolist(), strict=True)
        return [triple for triple in triples if triple[0] > _DEAD / 2]
