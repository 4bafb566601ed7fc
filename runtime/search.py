"""Greedy search and sampling: every hypothesis goes its own way, one token a step."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import numpy.typing as npt

from captionlite.runtime.decoding import DecodingOptions, Floats, Hypothesis, Plan, no_finite_logits, nothing_left
from captionlite.runtime.errors import OptionsError
from captionlite.runtime.loop import DecoderLoop
from captionlite.runtime.manifest import Manifest

Pick = Callable[[Floats], int]
"""From logits (vocabulary,), -inf where a token is not allowed, to the id of the token chosen."""

SAFE = 60.0
"""exp() of a logit up to this far from 0 is an ordinary float32, and so is the sum of a whole vocabulary of them."""


class Walk:
    """One caption (or `best_of` of them, as a batch) from a loop that has begun a photograph: greedy or sampled.

    Iterate over it for the tokens of the first hypothesis as they come; then ask for `hypotheses`.
    """

    def __init__(self, loop: DecoderLoop, plan: Plan) -> None:
        self._loop, self._plan = loop, plan
        self._tokens: list[list[int]] = [[] for _ in range(plan.options.best_of)]

    def __iter__(self) -> Iterator[int]:
        loop, plan = self._loop, self._plan
        pick = picker(plan)
        suppressed, end, prefix = plan.suppressed, plan.end_id, plan.prefix
        batch = len(self._tokens)
        loop.keep_history()
        logits = loop.logits
        fed: Any = np.full((batch, 1), plan.start_id) if batch > 1 else plan.start_id
        active = list(range(batch))
        for position in range(plan.steps):
            loop.step(fed, position)
            logits[:, suppressed] = -np.inf
            loop.record(position)
            for row in active:
                tokens = self._tokens[row]
                if position < len(prefix):
                    token = prefix[position]
                else:
                    if plan.restricted:
                        ban(logits[row], plan.banned(tokens))
                    token = pick(logits[row])
                tokens.append(token)
                if batch == 1:
                    fed = token
                else:
                    fed[row] = token
            if active[0] == 0:
                yield self._tokens[0][-1]
            active = [row for row in active if self._tokens[row][-1] != end]
            if not active:
                return
            if position + 1 < plan.steps:
                loop.advance(position)

    def hypotheses(self) -> list[Hypothesis]:
        """All of them, the best first; equal ones in the order they were drawn. Raises InterpreterError."""
        found = []
        for row, tokens in enumerate(self._tokens):
            logits, attention = self._loop.history(row, len(tokens))
            logprobs = token_logprobs(logits, tokens)
            found.append(
                Hypothesis(
                    tokens,
                    logprobs,
                    self._plan.score(sum(logprobs), len(logprobs)),
                    "end" if tokens[-1] == self._plan.end_id else "max_length",
                    attention,
                )
            )
        return sorted(found, key=lambda hypothesis: -hypothesis.score)


def forced(loop: DecoderLoop, manifest: Manifest, tokens: list[int]) -> list[float]:
    """Log-probabilities of given tokens, the end token included, each after those before it; the loop has begun.

    Raises OptionsError for more tokens than the decoder has steps.
    """
    spec = manifest.decoding
    if len(tokens) > spec.max_length:
        most = spec.max_length - 1
        raise OptionsError(f"the text has {len(tokens) - 1} tokens, but this bundle takes at most {most}.")
    loop.keep_history()
    fed = spec.start_id
    for position, token in enumerate(tokens):
        loop.step(fed, position)
        loop.logits[:, list(spec.suppressed_ids)] = -np.inf
        loop.record(position)
        if position + 1 < len(tokens):
            loop.advance(position)
        fed = token
    return token_logprobs(loop.history(0, len(tokens))[0], tokens)


def token_logprobs(logits: Floats, tokens: list[int]) -> list[float]:
    """log softmax of logits (steps, vocabulary), which are overwritten, at the token of each step.

    All steps at once, after the last one: much faster than step by step. Raises InterpreterError for broken logits.
    """
    chosen = logits[np.arange(len(tokens)), tokens]
    if logits.max() < SAFE and chosen.min() > -SAFE:
        logprobs = chosen - np.log(np.exp(logits, out=logits).sum(axis=1))
    else:
        greatest = logits.max(axis=1)
        logprobs = chosen - greatest - np.log(np.exp(logits - greatest[:, None]).sum(axis=1))
        if np.isnan(logprobs).any():
            raise no_finite_logits()
    return [min(p, 0.0) for p in logprobs.tolist()]  # rounding may leave the surest token a hair above 0


def ban(logits: Floats, ids: list[int]) -> None:
    """Take ids out of one row of logits. Raises OptionsError when nothing is left."""
    logits[ids] = -np.inf
    if logits.max() == -np.inf:
        raise nothing_left()


def picker(plan: Plan) -> Pick:
    """How the next token is chosen: the likeliest (of equal ones the smallest id), or at random by the options."""
    if plan.options.temperature == 0:
        return lambda logits: int(logits.argmax())
    random = np.random.default_rng(plan.options.seed)

    def draw(logits: Floats) -> int:
        ids, probabilities = distribution(logits, plan.options)
        # The last edge is 1 up to rounding, and the draw less than 1: clip for the one draw in 1e16 between them.
        place = np.searchsorted(np.cumsum(probabilities), random.random(), side="right")
        return int(ids[min(int(place), len(ids) - 1)])

    return draw


def distribution(logits: Floats, options: DecodingOptions) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """What is drawn from: token ids, the likeliest first, and their probabilities, which sum to 1.

    softmax(logits / temperature), cut to the `top_k` likeliest, then to the fewest of these that hold `top_p` of what
    they hold together; of equally likely tokens at the edge those with smaller ids stay.
    """
    order = np.argsort(-logits, kind="stable")  # equal ones by id
    scores = logits[order].astype(np.float64) / options.temperature
    allowed = int((scores > -np.inf).sum()) if options.top_k is None else options.top_k
    order, scores = order[:allowed], scores[:allowed]
    if not np.isfinite(scores[0]):
        raise no_finite_logits()
    weights = np.exp(scores - scores[0])
    probabilities = weights / weights.sum()
    if options.top_p is not None:
        fewest = int(np.searchsorted(np.cumsum(probabilities), options.top_p, side="left")) + 1
        order, probabilities = order[:fewest], probabilities[:fewest]
        probabilities = probabilities / probabilities.sum()
    return order, probabilities
