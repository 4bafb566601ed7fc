"""Parallel passes of a masked language model: mask-predict, filling in masks, and pseudo-log-likelihood.

All three run one graph, `refine`: a whole caption with masks in it, and the photograph's constants, to logits at every
position. The algorithms take any function of that form, so that the Keras model can be held against the device.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from captionlite.runtime.errors import InterpreterError, OptionsError
from captionlite.runtime.interpreter import Graph
from captionlite.runtime.manifest import DecodingSpec, Manifest

Floats = npt.NDArray[np.float32]
Tokens = npt.NDArray[np.int32]

Refine = Callable[[Tokens], tuple[Floats, Floats | None]]
"""tokens (B, L + 1) -> logits (B, L + 1, V), and length_logits (B, L) or None; of one photograph."""

LENGTHS = 5
"""How many lengths are tried when the model predicts lengths; all of them when it does not."""


class RefineGraph:
    """The graph `refine` of one photograph after another: `begin`, then call it as often as needed."""

    def __init__(self, graph: Graph, manifest: Manifest) -> None:
        self._graph = graph
        self._constants = [row.name for row in manifest.state if row.kind == "constant"]
        self._encoded: Mapping[str, npt.NDArray[Any]] = {}
        self._fresh = False

    def begin(self, encoded: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take the encoder's outputs, each (1, ...), of a new photograph."""
        self._encoded, self._fresh = encoded, False

    def __call__(self, tokens: Tokens) -> tuple[Floats, Floats | None]:
        """One pass. Raises InterpreterError for logits that are no finite numbers."""
        if not self._fresh or len(tokens) != self._graph.batch:
            self._graph.resize_batch(len(tokens))
            for name in self._constants:
                self._graph.inputs[name]()[...] = self._encoded[name]  # (1, ...) spreads over the batch
            self._fresh = True
        self._graph.inputs["tokens"]()[...] = tokens
        self._graph.invoke()
        logits = self._graph.outputs["logits"]().copy()
        if not np.isfinite(logits).all():
            raise InterpreterError("The refine graph returned logits that are no finite numbers. Export it again.")
        lengths = self._graph.outputs.get("length_logits")
        return logits, None if lengths is None else lengths().copy()


@dataclass(frozen=True)
class Refined:
    """A caption from parallel passes. `tokens` ends with the end token; `logprobs` has one number for each of them.

    A word's is from the pass that chose it. The end token's is the log-probability of the length, 0 where the model
    does not predict lengths.
    """

    tokens: list[int]
    logprobs: list[float]


@dataclass(frozen=True)
class Filled:
    """A template with its masks filled in. `positions` counts the words from 0; `logprobs` has one for each mask."""

    tokens: list[int]
    positions: list[int]
    logprobs: list[float]


def mask_predict(refine: Refine, spec: DecodingSpec, passes: int, max_length: int | None = None) -> Refined:
    """A caption in `passes` parallel passes (Ghazvininejad et al. 2019).

    The likeliest lengths by the model's own prediction (or all, where it predicts none) are decoded side by side: in
    the first pass every word from nothing but the photograph, then in each further one the least certain words again,
    ever fewer of them. The caption with the greatest mean log-probability wins. One more pass asks for the lengths.
    """
    longest = max_length or spec.max_length
    if longest < 2:
        raise OptionsError("max_length is 1, expected at least 2: a word and the end of the caption.")
    steps = np.arange(2, longest + 1)  # a word at least, and the end token
    _, length_logits = refine(_canvas(spec, np.array([longest])))
    length_logprobs = np.zeros(spec.max_length)
    if length_logits is not None:
        length_logprobs = _log_softmax(length_logits[0].astype(np.float64))
        steps = steps[np.argsort(-length_logprobs[steps - 1], kind="stable")[:LENGTHS]]
    tokens = _canvas(spec, steps)
    words = tokens == spec.mask_id  # (B, L + 1)
    counts = words.sum(axis=1)
    logprobs = np.zeros(tokens.shape)
    masked = words
    for i in range(passes):
        if i:  # mask the least certain again: of n words, n * (passes - i) / passes
            again = counts * (passes - i) // passes
            order = np.argsort(np.where(words, logprobs, np.inf), axis=1, kind="stable")
            masked = np.argsort(order, axis=1, kind="stable") < again[:, None]
            if not masked.any():
                break
            tokens = np.where(masked, np.int32(spec.mask_id or 0), tokens)
        found, certainty = _predict(refine(tokens)[0], spec)
        tokens, logprobs = np.where(masked, found, tokens), np.where(masked, certainty, logprobs)
    means = (logprobs.sum(axis=1) + length_logprobs[steps - 1]) / (counts + (length_logits is not None))
    best = int(means.argmax())
    chosen = np.flatnonzero(words[best])
    return Refined(
        [*(int(token) for token in tokens[best, chosen]), spec.end_id],
        [*(float(p) for p in logprobs[best, chosen]), float(length_logprobs[steps[best] - 1])],
    )


def fill(refine: Refine, spec: DecodingSpec, template: list[int]) -> Filled:
    """Fills in the masks of a caption, ids without start and end, the most certain one first.

    Raises OptionsError when there is none, or when the caption is too long.
    """
    tokens = _whole(spec, template)
    masks = tokens[0] == spec.mask_id
    if not masks.any():
        raise OptionsError("there is no [MASK] in the text; write it where a word is wanted.")
    logprobs = np.zeros(tokens.shape[1])
    while True:
        open_ = np.flatnonzero(tokens[0] == spec.mask_id)
        if not len(open_):
            break
        found, certainty = _predict(refine(tokens)[0], spec)
        place = open_[certainty[0, open_].argmax()]
        tokens[0, place], logprobs[place] = found[0, place], certainty[0, place]
    places = np.flatnonzero(masks)
    return Filled(
        [int(token) for token in tokens[0, 1 : len(template) + 1]],
        [int(place) - 1 for place in places],
        [float(logprobs[place]) for place in places],
    )


def pseudo_log_likelihood(refine: Refine, spec: DecodingSpec, caption: list[int]) -> list[float]:
    """The log-probability of each word of a caption given all the others (Salazar et al. 2020), in one pass.

    `caption`: ids without start and end. Raises OptionsError when it is empty or too long.
    """
    tokens = np.repeat(_whole(spec, caption), len(caption), axis=0)
    rows = np.arange(len(caption))
    tokens[rows, rows + 1] = spec.mask_id or 0
    logits = _allowed(refine(tokens)[0], spec)[rows, rows + 1]
    return [float(p) for p in _log_softmax(logits)[rows, caption]]


def golden_pass(refine: Refine, spec: DecodingSpec, caption: list[int]) -> Floats:
    """What golden vectors keep of a pass: logits (V,) of a caption's first word, masked, the others given."""
    words = [spec.mask_id or 0, *caption[1:]][: spec.max_length - 1]
    logits: Floats = refine(_whole(spec, words))[0][0, 1]
    return logits


def _canvas(spec: DecodingSpec, steps: npt.NDArray[np.integer[Any]]) -> Tokens:
    """Start, masks, the end token at step `steps` (B,), padding behind: (B, L + 1)."""
    columns = np.arange(spec.max_length + 1)[None]
    tokens = np.where(columns < steps[:, None], spec.mask_id or 0, spec.pad_id)
    tokens = np.where(columns == steps[:, None], spec.end_id, tokens)
    tokens[:, 0] = spec.start_id
    return tokens.astype(np.int32)


def _whole(spec: DecodingSpec, caption: list[int]) -> Tokens:
    """A caption between start and end, as one row."""
    if not 1 <= len(caption) < spec.max_length:
        raise OptionsError(f"the text has {len(caption)} tokens, but this bundle takes 1 to {spec.max_length - 1}.")
    tokens = _canvas(spec, np.array([len(caption) + 1]))
    tokens[0, 1 : len(caption) + 1] = caption
    return tokens


def _allowed(logits: Floats, spec: DecodingSpec) -> npt.NDArray[np.float64]:
    """Logits without what cannot stand inside a caption: the special tokens, the end token among them."""
    scores = logits.astype(np.float64)
    scores[..., [*spec.suppressed_ids, spec.end_id]] = -np.inf
    return scores


def _predict(logits: Floats, spec: DecodingSpec) -> tuple[Tokens, npt.NDArray[np.float64]]:
    """The likeliest word at every position (B, L + 1), and its log-probability."""
    scores = _allowed(logits, spec)
    found = scores.argmax(axis=-1)
    best = np.take_along_axis(scores, found[..., None], axis=-1)
    return found.astype(np.int32), -np.log(np.exp(scores - best).sum(axis=-1))


def _log_softmax(scores: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    shifted = scores - scores.max(axis=-1, keepdims=True)
    with np.errstate(divide="ignore"):
        logs: npt.NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs
