"""Greedy search and sampling: every hypothesis goes its own way, one token a step."""

from collections.abc import Callable, Iterator

import numpy as np
import numpy.typing as npt

from captionlite.runtime.decoding import DecodingOptions, Floats, Hypothesis, Plan, nothing_left
from captionlite.runtime.errors import OptionsError
from captionlite.runtime.loop import DecoderLoop
from captionlite.runtime.manifest import Manifest

Pick = Callable[[Floats], int]
"""From logits (vocabulary,), -inf where a token is not allowed, to the id of the token chosen."""


class Walk:
    """One caption (or `best_of` of them, as a batch) from a loop that has begun a photograph: greedy or sampled.

    Iterate over it for the tokens of the first hypothesis as they come; then ask for `hypotheses`.
    """

    def __init__(self, loop: DecoderLoop, plan: Plan) -> None:
        self._loop, self._plan = loop, plan
        self._tokens: list[list[int]] = [[] for _ in range(plan.options.best_of)]
        self._logprobs: list[list[float]] = [[] for _ in self._tokens]
        options = plan.options
        self._is_plain = options.temperature == 0 and options.best_of == 1 and not plan.restricted and not plan.prefix

    def __iter__(self) -> Iterator[int]:
        return self._alone() if len(self._tokens) == 1 else self._side_by_side()

    def _alone(self) -> Iterator[int]:
        """A single caption."""
        loop, plan, (tokens,), (logprobs,) = self._loop, self._plan, self._tokens, self._logprobs
        if self._is_plain:
            for token, logprob in loop.greedy(plan.start_id, plan.steps, plan.end_id, plan.suppressed):
                tokens.append(token)
                logprobs.append(logprob)
                yield token
            return
        pick, row, token = picker(plan), loop.logits[0], plan.start_id
        for position in range(plan.steps):
            loop.step(token, position)
            (normalizer,) = loop.weigh(plan.suppressed)
            loop.record(position)
            token = choose(plan, row, tokens, pick)
            tokens.append(token)
            logprobs.append(row.item(token) - normalizer)
            yield token
            if token == plan.end_id:
                return
            if position + 1 < plan.steps:
                loop.advance(position)

    def _side_by_side(self) -> Iterator[int]:
        """Several captions of one photograph as a batch; those that have ended are computed along and ignored."""
        loop, plan = self._loop, self._plan
        pick, logits = picker(plan), loop.logits
        fed = np.full((len(self._tokens), 1), plan.start_id)
        active = list(range(len(self._tokens)))
        for position in range(plan.steps):
            loop.step(fed, position)
            normalizers = loop.weigh(plan.suppressed)
            loop.record(position)
            for row in active:
                token = choose(plan, logits[row], self._tokens[row], pick)
                self._tokens[row].append(token)
                self._logprobs[row].append(logits.item(row, token) - normalizers[row])
                fed[row, 0] = token
            if active[0] == 0:
                yield self._tokens[0][-1]
            active = [row for row in active if self._tokens[row][-1] != plan.end_id]
            if not active:
                return
            if position + 1 < plan.steps:
                loop.advance(position)

    def to_the_end(self) -> list[Hypothesis]:
        """Take every step at once, then `hypotheses`."""
        plan = self._plan
        if self._is_plain:
            for token, logprob in self._loop.greedy(plan.start_id, plan.steps, plan.end_id, plan.suppressed):
                self._tokens[0].append(token)
                self._logprobs[0].append(logprob)
        else:
            for _ in self:
                pass
        return self.hypotheses()

    def hypotheses(self) -> list[Hypothesis]:
        """All of them, the best first; equal ones in the order they were drawn."""
        found = [
            walked(self._plan, tokens, logprobs, self._loop.attended(row, len(tokens)))
            for row, (tokens, logprobs) in enumerate(zip(self._tokens, self._logprobs, strict=True))
        ]
        return sorted(found, key=lambda hypothesis: -hypothesis.score)


def walked(plan: Plan, tokens: list[int], logprobs: list[float], attention: Floats | None) -> Hypothesis:
    """The hypothesis that these tokens are."""
    logprobs = [min(p, 0.0) for p in logprobs]  # rounding may leave the surest token a hair above 0
    score = plan.score(sum(logprobs), len(logprobs))
    return Hypothesis(tokens, logprobs, score, "end" if tokens[-1] == plan.end_id else "max_length", attention)


def choose(plan: Plan, logits: Floats, tokens: list[int], pick: Pick) -> int:
    """The token after these: of the prefix, or picked among what the options leave of one row of logits."""
    if len(tokens) < len(plan.prefix):
        return plan.prefix[len(tokens)]
    if plan.restricted:
        ban(logits, plan.banned(tokens))
    return pick(logits)


def forced(loop: DecoderLoop, manifest: Manifest, tokens: list[int]) -> list[float]:
    """Log-probabilities of given tokens, the end token included, each after those before it; the loop has begun.

    Raises OptionsError for more tokens than the decoder has steps.
    """
    spec = manifest.decoding
    if len(tokens) > spec.max_length:
        most = spec.max_length - 1
        raise OptionsError(f"the text has {len(tokens) - 1} tokens, but this bundle takes at most {most}.")
    suppressed = list(spec.suppressed_ids)
    fed, logprobs = spec.start_id, []
    for position, token in enumerate(tokens):
        loop.step(fed, position)
        normalizer = loop.weigh(suppressed)[0]
        logprobs.append(loop.logits.item(0, token) - normalizer)
        if position + 1 < len(tokens):
            loop.advance(position)
        fed = token
    return logprobs


def ban(logits: Floats, ids: list[int]) -> None:
    """Take ids out of one row of logits. Raises OptionsError when nothing is left."""
    logits[ids] = -np.inf
    if logits.max() == -np.inf:
        raise nothing_left()


def picker(plan: Plan) -> Pick:
    """How a token is picked: the likeliest (of equal ones the smallest id), or at random by the options."""
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
    weights = np.exp(scores - scores[0])
    probabilities = weights / weights.sum()
    if options.top_p is not None:
        fewest = int(np.searchsorted(np.cumsum(probabilities), options.top_p, side="left")) + 1
        order, probabilities = order[:fewest], probabilities[:fewest]
        probabilities = probabilities / probabilities.sum()
    return order, probabilities
