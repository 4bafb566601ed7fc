"""From encoder outputs to a caption: the decoder step with its state, and greedy search.

The roles are those of openai/whisper's decoding.py: inference (`DecoderLoop`), the choice of tokens (`greedy`), and
frozen options and results. State is handled by its kind in the manifest alone, so any family runs through this loop.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt

from captionlite.runtime.errors import InterpreterError, OptionsError
from captionlite.runtime.interpreter import Graph
from captionlite.runtime.manifest import Manifest


@dataclass(frozen=True)
class DecodingOptions:
    """How to decode. `max_length` is the largest number of tokens, at most (and by default) the bundle's own.

    `passes`: so many parallel passes over the whole caption (mask-predict) instead of a token a step, for bundles that
    have the graph `refine`.
    """

    max_length: int | None = None
    passes: int | None = None

    def __post_init__(self) -> None:
        if self.max_length is not None and self.max_length < 1:
            raise OptionsError(f"max_length is {self.max_length}, expected at least 1.")
        if self.passes is not None and self.passes < 1:
            raise OptionsError(f"passes is {self.passes}, expected at least 1.")


@dataclass(frozen=True)
class Caption:
    """A caption and how it came about.

    `tokens` are the ids in the order they were chosen, the end token included when it was reached; `logprobs` has one
    natural logarithm for each of them, `logprob` is their mean. A log-probability is the log-softmax of the logits
    without the suppressed ids. `stop_reason` is "end" or "max_length". `attention` is float32 (tokens, regions), or
    None for a family that does not attend. `timings_ms` has image, encode, decode and total.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    logprob: float
    timings_ms: dict[str, float]
    stop_reason: str
    attention: npt.NDArray[np.float32] | None


class DecoderLoop:
    """The decoder graph with its state: `begin` a photograph, then alternate `step` and `advance`."""

    def __init__(self, graph: Graph, manifest: Manifest) -> None:
        self.graph = graph
        self.max_length = manifest.decoding.max_length
        self.logits = graph.outputs["logits"]  # () -> (batch, vocabulary), of the latest step
        self.attention = graph.outputs.get("attention")  # () -> (batch, regions), of the latest step
        self._rows = manifest.state
        self._token, self._position = graph.inputs["token"], graph.inputs["position"]
        self._carried = [(graph.inputs[r.name], graph.outputs[r.name]) for r in self._rows if r.kind == "carried"]
        # Where an appended column goes at each position, made here once instead of at every step.
        self._appended = [
            (graph.inputs[row.name], graph.outputs[row.name], _columns(row.axis, self.max_length))
            for row in self._rows
            if row.axis is not None
        ]

    def begin(self, encoded: Mapping[str, npt.NDArray[Any]], batch: int = 1) -> None:
        """Set the state for a new photograph: the encoder's outputs, each (1, ...), and zeros for every other row."""
        self.graph.resize_batch(batch)
        for row in self._rows:
            view = self.graph.inputs[row.name]()
            view[...] = encoded.get(row.name, 0)  # (1, ...) spreads over the batch

    def step(self, tokens: int | npt.NDArray[np.integer[Any]], position: int) -> None:
        """Feed one token, or (batch, 1) tokens, at a position counted from 0; `logits` and `attention` are then new."""
        self._token()[...] = tokens
        self._position()[...] = position
        self.graph.invoke()

    def advance(self, position: int) -> None:
        """Take over the state that the latest step returned, so that the next position can be computed."""
        for state, new in self._carried:
            state()[...] = new()
        for state, column, places in self._appended:
            state()[places[position]] = column()


def greedy(
    loop: DecoderLoop, manifest: Manifest, options: DecodingOptions
) -> tuple[list[int], list[float], npt.NDArray[np.float32] | None, str]:
    """Take the likeliest token at every step until the end token; the loop must have begun a photograph.

    Returns tokens, their log-probabilities, attention (tokens, regions) or None, and the stop reason. Raises
    OptionsError when the options ask for more steps than the bundle's decoder has.
    """
    spec = manifest.decoding
    max_length = steps_allowed(manifest, options)
    choose = _chooser(manifest)
    tokens: list[int] = []
    logprobs: list[float] = []
    attention = None
    if loop.attention is not None:
        attention = np.empty((max_length, loop.attention().shape[-1]), np.float32)
    token = spec.start_id
    for position in range(max_length):
        loop.step(token, position)
        token, logprob = choose(loop.logits()[0])
        tokens.append(token)
        logprobs.append(logprob)
        if attention is not None and loop.attention is not None:
            attention[position] = loop.attention()[0]
        if token == spec.end_id:
            break
        if position + 1 < max_length:
            loop.advance(position)
    stop_reason = "end" if token == spec.end_id else "max_length"
    return tokens, logprobs, None if attention is None else attention[: len(tokens)], stop_reason


def steps_allowed(manifest: Manifest, options: DecodingOptions) -> int:
    """The largest number of tokens that options and bundle allow. Raises OptionsError when they disagree."""
    most = manifest.decoding.max_length
    if options.max_length is not None and options.max_length > most:
        raise OptionsError(f"max_length is {options.max_length}, but this bundle's decoder takes at most {most}.")
    return options.max_length or most


def forced(loop: DecoderLoop, manifest: Manifest, tokens: list[int]) -> list[float]:
    """Log-probabilities of given tokens, the end token included, each after those before it; the loop has begun.

    Raises OptionsError for more tokens than the decoder has steps.
    """
    spec = manifest.decoding
    if len(tokens) > spec.max_length:
        most = spec.max_length - 1
        raise OptionsError(f"the text has {len(tokens) - 1} tokens, but this bundle takes at most {most}.")
    logprobs = []
    fed = spec.start_id
    for position, token in enumerate(tokens):
        loop.step(fed, position)
        scores = loop.logits()[0].astype(np.float64)
        scores[list(spec.suppressed_ids)] = -np.inf
        scores -= scores.max()
        logprobs.append(float(scores[token] - np.log(np.exp(scores).sum())))
        if position + 1 < len(tokens):
            loop.advance(position)
        fed = token
    return logprobs


def _chooser(manifest: Manifest) -> Callable[[npt.NDArray[np.float32]], tuple[int, float]]:
    """A function from logits (vocabulary,) to the likeliest allowed token and its log-probability."""
    scores = np.empty(manifest.vocabulary.size, np.float32)
    suppressed = np.array(manifest.decoding.suppressed_ids, np.intp)

    def choose(logits: npt.NDArray[np.float32]) -> tuple[int, float]:
        np.copyto(scores, logits)
        scores[suppressed] = -np.inf
        token = int(scores.argmax())
        if not isfinite(scores[token]):  # argmax stops at the first NaN
            raise InterpreterError("The decoder returned logits that are no finite numbers. Run `captionlite verify`.")
        # log softmax(scores)[token], with the greatest score taken out first so that exp cannot overflow
        np.subtract(scores, scores[token], out=scores)
        np.exp(scores, out=scores)
        return token, -float(np.log(scores.sum()))

    return choose


def _columns(axis: int, length: int) -> list[tuple[slice, ...]]:
    """For each position, the index of that one column along `axis`."""
    return [(*(slice(None),) * axis, slice(position, position + 1)) for position in range(length)]
