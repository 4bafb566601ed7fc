"""The face of the runtime: a bundle loaded once, then any number of photographs captioned."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain, islice
from math import exp
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from captionlite.runtime.beam import beam_search
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.decoding import Alternative, Caption, DecodingOptions, Hypothesis, Plan, steps_allowed
from captionlite.runtime.errors import ImageError, InterpreterError, OptionsError
from captionlite.runtime.image import ImageSource, load_image
from captionlite.runtime.interpreter import Graph, core_count
from captionlite.runtime.loop import DecoderLoop
from captionlite.runtime.masked import RefineGraph, fill, mask_predict, pseudo_log_likelihood
from captionlite.runtime.search import Walk, forced
from captionlite.runtime.selfcheck import check_here
from captionlite.runtime.together import GROUP, Together, is_greedy

if TYPE_CHECKING:
    from captionlite.runtime.delegates import DelegateSpec, Delegation
    from captionlite.runtime.many import Crew

FEW = 8
"""So many photographs `caption_many` does one at a time first: loading graphs for more threads takes as long."""


class Captioner:
    """Captions photographs with one bundle. One thread at a time: the graphs' tensors are shared between calls."""

    def __init__(
        self, bundle: Bundle, threads: int | None = None, delegate: "DelegateSpec | str | None" = None
    ) -> None:
        """Load both graphs: the encoder on `threads` threads (all cores by default) or a delegate, the decoder on one.

        A decoder step is too small to share: more threads make it slower. Raises BundleError, InterpreterError.
        """
        self.bundle = bundle
        self._threads = threads or core_count()
        self._refine: RefineGraph | None = None
        self._latest_plan: Plan | None = None
        self._crew: Crew | None = None
        self.delegation: Delegation | None = None  # what came of the delegate, if one was asked for
        if delegate is None:
            self._encoder = Graph.from_bundle(bundle, "encoder", self._threads)
        else:
            from captionlite.runtime.delegates import load_encoder, parse_delegate

            spec = parse_delegate(delegate) if isinstance(delegate, str) else delegate
            self._encoder, self.delegation = load_encoder(bundle, self._threads, spec)
        self._decoder = DecoderLoop(Graph.from_bundle(bundle, "decoder", 1), bundle.manifest)
        self._together = Together(self._decoder)

    @classmethod
    def from_bundle(
        cls,
        path_or_name: str | Path = "default",
        threads: int | None = None,
        *,
        self_check: bool = True,
        delegate: "DelegateSpec | str | None" = None,
    ) -> "Captioner":
        """Open a bundle directory, a bundle zip or a name, and load it. Raises BundleError, InterpreterError.

        With `self_check` an interpreter that the bundle was not proven on, and any delegate, has to compute a golden
        photograph first, once: WrongNumbersError where an interpreter does not (`runtime/selfcheck.py`). A `delegate`
        (`LIB[:KEY=VALUE,...]`, the encoder's) that does not leaves the encoder to the CPU; `delegation` tells.
        """
        captioner = cls(Bundle.open(path_or_name), threads, delegate)
        if self_check:
            check_here(captioner)
        return captioner

    @property
    def decoder(self) -> DecoderLoop:
        """The decoder with its state, for those who feed it their own tokens (verification, evaluation)."""
        return self._decoder

    def encode(self, image: ImageSource) -> dict[str, npt.NDArray[Any]]:
        """Everything that is computed once per photograph: the encoder's outputs by name, each (1, ...).

        Raises ImageError.
        """
        return self.encode_pixels(load_image(image, self.bundle.manifest.image))

    def encode_pixels(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        """`encode` for what `load_image` returned: uint8 (height, width, 3) of the bundle's own size."""
        self._encoder.inputs["image"]()[0] = pixels
        try:
            self._encoder.invoke()
        except InterpreterError as error:
            if self.delegation is None or not self.delegation.active:
                raise
            self.leave_delegate(str(error))
            return self.encode_pixels(pixels)
        return {name: view().copy() for name, view in self._encoder.outputs.items()}

    def leave_delegate(self, reason: str) -> None:
        """Load the encoder again, on the CPU. Raises DelegateError where the delegate is required."""
        from captionlite.runtime.delegates import encoder_on_cpu

        assert self.delegation is not None
        self._encoder = encoder_on_cpu(self.bundle, self._threads, self.delegation, reason)

    def encode_timed(self, image: ImageSource) -> tuple[dict[str, npt.NDArray[Any]], dict[str, float]]:
        """What `encode` returns, and the milliseconds that `image` (loading) and `encode` took. Raises ImageError."""
        started = perf_counter()
        pixels = load_image(image, self.bundle.manifest.image)
        loaded = perf_counter()
        encoded = self.encode_pixels(pixels)
        return encoded, {"image": (loaded - started) * 1e3, "encode": (perf_counter() - loaded) * 1e3}

    def caption(self, image: ImageSource, options: DecodingOptions | None = None) -> Caption:
        """Caption one photograph: a path, file bytes, a Pillow image or a uint8 array.

        Raises ImageError, and OptionsError when the bundle cannot follow the options.
        """
        encoded, stages_ms = self.encode_timed(image)
        return with_stages(self.decode(encoded, options), stages_ms)

    def decode(self, encoded: Mapping[str, npt.NDArray[Any]], options: DecodingOptions | None = None) -> Caption:
        """The caption for what `encode` returned; `timings_ms` has decode and step. Raises OptionsError."""
        options = options or DecodingOptions()
        started = perf_counter()
        if options.passes is not None:
            hypotheses = [self._in_passes(encoded, options.passes, options)]
        else:
            plan = self._plan(options)
            self._decoder.begin(encoded, options.hypotheses)
            if options.beams > 1:
                hypotheses = beam_search(self._decoder, plan)
            else:
                hypotheses = Walk(self._decoder, plan).to_the_end()
        return self._with_labels(self._caption(hypotheses[: options.n_best], started), encoded)

    def decode_many(
        self, encoded: Sequence[Mapping[str, npt.NDArray[Any]]], options: DecodingOptions | None = None
    ) -> list[Caption]:
        """`decode` for several, GROUP at a time as one batch where the options are greedy. Raises OptionsError.

        `timings_ms["decode"]` is then the batch's by the number of captions.
        """
        options = options or DecodingOptions()
        if not is_greedy(options):
            return [self.decode(one, options) for one in encoded]
        plan = self._plan(options)
        captions = []
        for first in range(0, len(encoded), GROUP):
            started = perf_counter()
            together = encoded[first : first + GROUP]
            group = self._together.decode(together, plan)
            own = (perf_counter() - started) / len(group)
            captions += [
                self._with_labels(self._caption([hypothesis], perf_counter() - own), one)
                for hypothesis, one in zip(group, together, strict=True)
            ]
        return captions

    def check(self, options: DecodingOptions) -> None:
        """Raises OptionsError when this bundle cannot follow the options: better before the first photograph."""
        if options.passes is None:
            self._plan(options)
        else:
            self.refiner("--passes")
            steps_allowed(self.bundle.manifest, options)

    def stream(self, image: ImageSource, options: DecodingOptions | None = None) -> Iterator[str]:
        """The caption in pieces, as they come; joined, they are its text. Greedy or one random caption.

        Raises ImageError, and OptionsError for options that choose between whole captions.
        """
        options = options or DecodingOptions()
        if options.hypotheses > 1 or options.passes is not None:
            raise OptionsError(
                "stream tells each word as soon as it is chosen, but beams, best_of and passes choose between whole "
                "captions; leave them out."
            )
        plan = self._plan(options)
        encoded = self.encode(image)
        self._decoder.begin(encoded)
        tokens: list[int] = []
        told = ""
        for token in Walk(self._decoder, plan):
            tokens.append(token)
            text = self.bundle.vocabulary.detokenize(tokens)
            if text != told and text.startswith(told):
                yield text[len(told) :]
                told = text

    def caption_many(
        self, images: Iterable[ImageSource], options: DecodingOptions | None = None
    ) -> Iterator[Caption | ImageError]:
        """Captions in the order of the photographs, the same as one at a time, on all of the captioner's threads.

        A photograph that cannot be read is yielded as its ImageError, and the others go on. After the first few, each
        thread loads and encodes photographs with graphs of its own (20 MB a thread with the default bundle), at most a
        few dozen ahead of the one yielded (`pipeline.look_ahead`). `images` is read in the caller's thread, and what it
        raises comes after the captions of those before. The captioner is free for other calls meanwhile; closing the
        iterator ends the threads. Raises OptionsError.
        """
        options = options or DecodingOptions()
        self.check(options)
        return self._caption_many(iter(images), options)

    def _caption_many(self, images: Iterator[ImageSource], options: DecodingOptions) -> Iterator[Caption | ImageError]:
        # One accelerator does not get faster when several threads ask it.
        alone = self._threads == 1 or (self.delegation is not None and self.delegation.active)
        few = None if alone else 0 if self._crew else FEW
        for image in islice(images, few):
            yield self._caption_or_error(image, options)
        for image in images:  # if there are more than a few
            from captionlite.runtime.many import Crew  # which loads thread pools: 6 ms of a cold start

            crew, self._crew = self._crew or Crew([Captioner(self.bundle, 1) for _ in range(self._threads)]), None
            try:
                yield from crew.captions(chain((image,), images), options)
            finally:
                self._crew = crew  # not while it works, because a second iterator would take it

    def _caption_or_error(self, image: ImageSource, options: DecodingOptions) -> Caption | ImageError:
        try:
            return self.caption(image, options)
        except ImageError as error:
            return error.with_traceback(None)

    def fill(self, image: ImageSource, template: str) -> Caption:
        """Replace each [MASK] in a caption by the word that fits the photograph and the rest of the caption.

        `tokens` and `logprobs` are those of the masks alone, from left to right. Raises ImageError, and OptionsError
        for a bundle that predicts a token a step, or a text with other words than its vocabulary's.
        """
        started = perf_counter()
        spec = self.bundle.manifest.decoding
        refine = self.refiner("--fill")
        ids = self.bundle.vocabulary.tokenize(template, spec.mask_id)
        encoded = self.encode(image)
        encoded_at = perf_counter()
        refine.begin(encoded)
        filled = fill(refine, spec, ids)
        ended = perf_counter()
        return Caption(
            text=self.bundle.vocabulary.detokenize(filled.tokens),
            tokens=tuple(filled.tokens[place] for place in filled.positions),
            logprobs=tuple(filled.logprobs),
            logprob=sum(filled.logprobs) / len(filled.logprobs),
            timings_ms={
                "encode": (encoded_at - started) * 1e3,
                "decode": (ended - encoded_at) * 1e3,
                "total": (ended - started) * 1e3,
            },
            stop_reason="end",
            attention=None,
        )

    def score(self, image: ImageSource, caption: str) -> list[tuple[str, float]]:
        """How well a caption fits: its pieces, each with its log-probability.

        A token a step: each after those before it, the end token included as "". A bundle with the graph `refine`:
        each given all the others (pseudo-log-likelihood), which judges no length. Raises ImageError, and OptionsError
        for words that the vocabulary does not have.
        """
        manifest, vocabulary = self.bundle.manifest, self.bundle.vocabulary
        ids = vocabulary.tokenize(caption)
        encoded = self.encode(image)
        if manifest.decoding.mask_id is not None:
            refine = self.refiner("score")
            refine.begin(encoded)
            logprobs = pseudo_log_likelihood(refine, manifest.decoding, ids)
            return list(zip((vocabulary.pieces[i] for i in ids), logprobs, strict=True))
        self._decoder.begin(encoded)
        logprobs = forced(self._decoder, manifest, [*ids, manifest.decoding.end_id])
        return list(zip([*(vocabulary.pieces[i] for i in ids), ""], logprobs, strict=True))

    def refiner(self, what: str) -> RefineGraph:
        """The graph of parallel passes, loaded at its first use. Raises OptionsError where the bundle has none."""
        if "refine" not in self.bundle.manifest.graphs:
            raise OptionsError(
                f"{what} needs a bundle that predicts all words of a caption at once (family masked_lm); "
                f"{self.bundle.manifest.name!r} is of the family {self.bundle.manifest.family}, which predicts one "
                f"after another."
            )
        if self._refine is None:
            self._refine = RefineGraph(Graph.from_bundle(self.bundle, "refine", self._threads), self.bundle.manifest)
        return self._refine

    def _in_passes(self, encoded: Mapping[str, npt.NDArray[Any]], passes: int, options: DecodingOptions) -> Hypothesis:
        manifest = self.bundle.manifest
        refine = self.refiner("--passes")
        refine.begin(encoded)
        found = mask_predict(refine, manifest.decoding, passes, steps_allowed(manifest, options))
        return Hypothesis(found.tokens, found.logprobs, sum(found.logprobs) / len(found.logprobs), "end")

    def _plan(self, options: DecodingOptions) -> Plan:
        """The options in this bundle's ids; the latest is kept, because photographs come with equal options."""
        if self._latest_plan is None or self._latest_plan.options != options:
            self._latest_plan = Plan(options, self.bundle.manifest, self.bundle.vocabulary)
        return self._latest_plan

    def _confidence(self, logprob: float) -> float | None:
        """The calibrated chance that a caption of this mean log-probability fits (Platt 1999), where it was fitted."""
        spec = self.bundle.manifest.decoding.confidence
        if spec is None:
            return None
        return 1.0 / (1.0 + exp(min(-(spec.slope * logprob + spec.intercept), 700.0)))  # exp() overflows at 710

    def _with_labels(self, caption: Caption, encoded: Mapping[str, npt.NDArray[Any]]) -> Caption:
        """The caption, beside one that is not sure what the classifier offers; nothing where no confidence is known."""
        labels = self.bundle.labels
        if labels is None or caption.confidence is None or caption.confidence >= labels.spec.below_confidence:
            return caption
        logits = encoded.get(labels.spec.output)
        return caption if logits is None else replace(caption, maybe=labels.offered(logits, caption.text))

    def _caption(self, hypotheses: Sequence[Hypothesis], started: float) -> Caption:
        best, *others = (self._described(hypothesis) for hypothesis in hypotheses)
        decode_ms = (perf_counter() - started) * 1e3
        return Caption(
            **vars(best),
            attention=hypotheses[0].attention,
            alternatives=tuple(others),
            confidence=self._confidence(best.logprob),
            timings_ms={"decode": decode_ms, "step": decode_ms / len(best.tokens)},
        )

    def _described(self, hypothesis: Hypothesis) -> Alternative:
        return Alternative(
            text=self.bundle.vocabulary.detokenize(hypothesis.tokens),
            tokens=tuple(hypothesis.tokens),
            logprobs=tuple(hypothesis.logprobs),
            logprob=sum(hypothesis.logprobs) / len(hypothesis.logprobs),
            score=hypothesis.score,
            stop_reason=hypothesis.stop_reason,
        )


def with_stages(caption: Caption, stages_ms: dict[str, float]) -> Caption:
    """The caption with what was measured before it was decoded, and the sum of all stages."""
    timings = {**stages_ms, **caption.timings_ms}
    return replace(caption, timings_ms={**timings, "total": sum(stages_ms.values()) + timings["decode"]})
