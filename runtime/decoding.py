"""How to decode and what comes of it: frozen options, the options in a bundle's own ids, and frozen results.

The roles are those of openai/whisper's decoding.py: inference is `loop.DecoderLoop`, tokens are chosen in `search`
(greedy and sampling) and `beam`, and what may not be chosen is said here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from captionlite.runtime.errors import OptionsError
from captionlite.runtime.labels import Label
from captionlite.runtime.manifest import Manifest
from captionlite.runtime.vocabulary import Vocabulary

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class DecodingOptions:
    """How to decode; by default greedily, the likeliest token at every step. Raises OptionsError for contradictions.

    - `max_length`: largest number of tokens, the end token included; at most (and by default) the bundle's own.
    - `min_length`: the end token is not chosen before so many others.
    - `beams`: that many hypotheses side by side, as one batch; `patience` (Kasai et al. 2022) times as many captions
      are finished before the search ends. Hypotheses are ranked by the sum of their log-probabilities divided by
      length ** `length_penalty`: 0 is the sum, 1 the mean, more prefers longer captions; by default the bundle's own,
      or 1.
    - `temperature`: draw tokens at random, from softmax(logits / temperature) among the `top_k` likeliest, and of
      these the fewest that hold the share `top_p` of probability (Holtzman et al. 2020); `best_of` so many draws,
      ranked like beams. The same `seed` gives the same caption.
    - `no_repeat_ngram`: no sequence of so many tokens occurs twice. `suppress`: these words are not chosen.
      `prefix`: how the caption begins.
    - `n_best`: how many hypotheses the caption lists, itself included.
    - `passes`: so many parallel passes over the whole caption (mask-predict) instead of a token a step, for bundles
      that have the graph `refine`.
    """

    max_length: int | None = None
    min_length: int = 0
    beams: int = 1
    patience: float = 1.0
    length_penalty: float | None = None
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    best_of: int = 1
    seed: int = 0
    no_repeat_ngram: int = 0
    suppress: tuple[str, ...] = ()
    prefix: str = ""
    n_best: int = 1
    passes: int | None = None

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and not value >= least:
                raise OptionsError(f"{name} is {value}, expected at least {least}.")
        if self.patience * self.beams < 1:
            raise OptionsError(f"patience is {self.patience}, expected at least 1 / beams.")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise OptionsError(f"top_p is {self.top_p}, expected more than 0 and at most 1.")
        if not all(np.isfinite(x) for x in (self.temperature, self.patience, self.length_penalty or 0.0)):
            raise OptionsError("temperature, patience and length_penalty must be finite numbers.")
        if self.max_length is not None and self.min_length >= self.max_length:
            raise OptionsError(f"min_length is {self.min_length}, expected less than max_length, {self.max_length}.")
        self._check_together()

    def _check_together(self) -> None:
        given = {f.name for f in fields(self) if getattr(self, f.name) != f.default}
        if self.passes is not None and given - {"passes", "max_length"}:
            others = ", ".join(sorted(given - {"passes", "max_length"}))
            raise OptionsError(f"passes predicts all words at once, so there is nothing for {others} to choose from.")
        if self.temperature == 0 and given & {"top_k", "top_p", "best_of", "seed"}:
            names = ", ".join(sorted(given & {"top_k", "top_p", "best_of", "seed"}))
            raise OptionsError(f"{names}: nothing is drawn at random at temperature 0; give a temperature.")
        if self.temperature > 0 and self.beams > 1:
            raise OptionsError("beams and temperature exclude each other: use best_of for several random captions.")
        if self.beams == 1 and "patience" in given:
            raise OptionsError("patience is for beams; give beams as well.")
        if self.n_best > self.hypotheses:
            raise OptionsError(
                f"n_best is {self.n_best}, but {self.hypotheses} hypotheses are followed; raise beams or best_of."
            )

    @property
    def hypotheses(self) -> int:
        """How many are followed side by side: the batch of the decoder."""
        return max(self.beams, self.best_of)


_LEAST = {
    "max_length": 1, "min_length": 0, "beams": 1, "patience": 0, "temperature": 0, "top_k": 1, "best_of": 1, "seed": 0,
    "no_repeat_ngram": 0, "n_best": 1, "passes": 1,
}  # fmt: skip


@dataclass(frozen=True)
class Hypothesis:
    """Tokens as they were chosen, the end token included when it was reached, and their log-probabilities.

    `score` is what hypotheses are ranked by; `stop_reason` is "end" or "max_length"; `attention` is (tokens, regions).
    """

    tokens: list[int]
    logprobs: list[float]
    score: float
    stop_reason: str
    attention: Floats | None = None


@dataclass(frozen=True)
class Alternative:
    """Another hypothesis than the one that became the caption; its fields are those of `Caption`."""

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    logprob: float
    score: float
    stop_reason: str


@dataclass(frozen=True)
class Caption:
    """A caption and how it came about.

    `tokens` are the ids in the order they were chosen, the end token included when it was reached; `logprobs` has one
    natural logarithm for each of them, `logprob` is their mean. A log-probability is the log-softmax of the logits
    without the bundle's suppressed ids; what the options exclude or a temperature changes does not enter it.
    `stop_reason` is "end" or "max_length". `attention` is float32 (tokens, regions), or None for a family that does
    not attend. `timings_ms` has image, encode, decode, total, and step: decode by the number of tokens.
    `score` is what hypotheses were ranked by, `alternatives` the next best. `confidence` is the calibrated chance that
    the caption fits, or None for a bundle without calibration. `maybe` is what else the photograph may show, by the
    encoder's classifier, of a caption that the bundle has little confidence in; mostly there is none.
    """

    text: str
    tokens: tuple[int, ...]
    logprobs: tuple[float, ...]
    logprob: float
    timings_ms: dict[str, float]
    stop_reason: str
    attention: Floats | None
    score: float = 0.0
    alternatives: tuple[Alternative, ...] = ()
    confidence: float | None = None
    maybe: tuple[Label, ...] = ()


class Plan:
    """Options in the ids of one bundle. Raises OptionsError for what the bundle cannot follow."""

    def __init__(self, options: DecodingOptions, manifest: Manifest, vocabulary: Vocabulary) -> None:
        spec = manifest.decoding
        self.options = options
        self.start_id, self.end_id = spec.start_id, spec.end_id
        self.steps = steps_allowed(manifest, options)
        penalties = (options.length_penalty, spec.length_penalty, 1.0)
        self._length_penalty = next(penalty for penalty in penalties if penalty is not None)
        self.suppressed = _index(spec.suppressed_ids)  # never chosen, and no part of any probability
        self.prefix = tuple(vocabulary.tokenize(options.prefix)) if options.prefix.strip() else ()
        self._banned = sorted({_one_token(word, vocabulary) for word in options.suppress})
        self.restricted = bool(self._banned or options.min_length or options.no_repeat_ngram)
        if len(self.prefix) >= self.steps:
            raise OptionsError(
                f"the prefix has {len(self.prefix)} tokens, but the caption may have {self.steps} at most."
            )
        if options.min_length >= self.steps:
            raise OptionsError(f"min_length is {options.min_length}, expected less than max_length, {self.steps}.")

    def banned(self, tokens: Sequence[int]) -> list[int]:
        """What may not follow these tokens by the options (the bundle's suppressed ids apart)."""
        banned = list(self._banned)
        if len(tokens) < self.options.min_length:
            banned.append(self.end_id)
        n = self.options.no_repeat_ngram
        if n and len(tokens) >= n:
            last = tuple(tokens[len(tokens) - n + 1 :])
            banned += [tokens[i + n - 1] for i in range(len(tokens) - n + 1) if tuple(tokens[i : i + n - 1]) == last]
        return banned

    def score(self, logprob_sum: float, length: int) -> float:
        """What hypotheses are ranked by."""
        return float(logprob_sum / length**self._length_penalty)


def steps_allowed(manifest: Manifest, options: DecodingOptions) -> int:
    """The largest number of tokens that options and bundle allow. Raises OptionsError when they disagree."""
    most = manifest.decoding.max_length
    if options.max_length is not None and options.max_length > most:
        raise OptionsError(f"max_length is {options.max_length}, but this bundle's decoder takes at most {most}.")
    return options.max_length or most


def _one_token(word: str, vocabulary: Vocabulary) -> int:
    ids = vocabulary.tokenize(word)
    if len(ids) != 1:
        raise OptionsError(
            f"suppress: {word!r} is {len(ids)} tokens, expected one word that this vocabulary has whole."
        )
    return ids[0]


def nothing_left() -> OptionsError:
    """What to raise when the options exclude every token."""
    return OptionsError("the options leave no token to choose; loosen suppress, min_length or no_repeat_ngram.")


def _index(ids: Sequence[int]) -> Any:
    """An index for these ids: a slice where they are neighbours, which is much the faster."""
    ordered = sorted(set(ids))
    if ordered and ordered[-1] - ordered[0] == len(ordered) - 1:
        return slice(ordered[0], ordered[-1] + 1)
    return np.array(ordered, np.intp)
