"""Beam search on the device against one written anew here: no state, no cache, whole captions through the Keras model.

Every family's converted decoder, fifty pictures, every number of beams; and the options that change a search.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import harness
import keras
import numpy as np
import pytest
import toy_bundle
from drawings import ENCODERS

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow converts; KERAS_BACKEND is another", allow_module_level=True)

from converted import FirstState, graph

from captionlite.export.convert import convert
from captionlite.export.graphs import DecoderGraph
from captionlite.runtime.beam import beam_search
from captionlite.runtime.decoding import DecodingOptions, Hypothesis, Plan
from captionlite.runtime.interpreter import Graph
from captionlite.runtime.loop import DecoderLoop
from captionlite.runtime.manifest import DecodingSpec, Manifest
from captionlite.runtime.search import Walk
from captionlite.runtime.vocabulary import Vocabulary
from captionlite.training.compiled import compiled
from captionlite.training.families import build_family
from captionlite.training.families.base import DecoderFamily

PHOTOGRAPHS = 50
START, END, SUPPRESSED = 2, 3, (0, 1, 2)
FAMILIES = ("transformer", "transformer_memory", "lstm", "gru_attention", "masked_lm")
MASK = 4  # of masked_lm
END_BIAS = {"transformer": 0.5, "transformer_memory": 0.0, "lstm": 1.0, "gru_attention": 2.0, "masked_lm": 0.3}

Beam = tuple[list[int], list[float]]


@cache
def pictures() -> np.ndarray:
    """Features (50, 4, 6, 24) of pictures with a bright patch each, through a tiny encoder, and standardized."""
    rng = np.random.default_rng(4)
    pixels = rng.uniform(0, 120, (PHOTOGRAPHS, 32, 48, 3)).astype("float32")
    for image in pixels:
        top, left = rng.integers(0, 16), rng.integers(0, 32)
        image[top : top + 16, left : left + 16] = rng.uniform(100, 255, 3)
    keras.utils.set_random_seed(5)
    features = np.asarray(ENCODERS["wide"].build(None)(pixels))
    return 2.0 * (features - features.mean(axis=0)) / features.std(axis=0).clip(1e-3)


@cache
def model_of(name: str) -> DecoderFamily:
    """A tiny model whose captions differ from picture to picture, some of which end and some of which are cut."""
    keras.utils.set_random_seed(0)
    model = build_family(harness.CONFIGS[name], (4, 6, 24), harness.VOCABULARY)
    rng = np.random.default_rng(7)
    for weight in model.weights:
        weight.assign(weight + rng.normal(0.0, 0.35, weight.shape).astype("float32"))
        if weight.shape == (harness.VOCABULARY,):  # the bias of the logits
            weight.assign(weight + END_BIAS[name] * np.eye(harness.VOCABULARY)[END])
    return model


@cache
def whole_captions(name: str) -> Callable[[np.ndarray, np.ndarray], Any]:
    """The full-sequence call: features (P, ...), tokens (P * K, T) -> logits (P * K, T, V)."""
    model = model_of(name)
    return compiled(lambda features, tokens: model(features, tokens), model.variables)


@cache
def device(name: str) -> tuple[Graph, DecoderLoop, Manifest, Vocabulary]:
    """What the runtime has of the model: the graph of first states, the loop, and a manifest and words for it."""
    model = model_of(name)
    decoder = convert(DecoderGraph(model))
    first = convert(FirstState(model))
    mask = MASK if name == "masked_lm" else None
    spec = DecodingSpec(START, END, 0, 1, SUPPRESSED if mask is None else (*SUPPRESSED, mask), model.max_length, mask)
    words = tuple(f"w{i}" for i in range(harness.VOCABULARY))
    manifest = replace(toy_bundle.manifest(), state=model.state_specs(), decoding=spec)
    return (
        graph(first),
        DecoderLoop(graph(decoder), manifest),
        manifest,
        Vocabulary(words, " ", frozenset({0, 1, 2, 3})),
    )


def plan_of(name: str, options: DecodingOptions) -> Plan:
    _, _, manifest, vocabulary = device(name)
    return Plan(options, manifest, vocabulary)


def on_device(name: str, options: DecodingOptions) -> list[list[Hypothesis]]:
    """All hypotheses of every picture."""
    first, loop, _, _ = device(name)
    plan = plan_of(name, replace(options, n_best=options.beams))
    found = []
    for features in pictures():
        first.inputs["features"]()[...] = features[None]
        first.invoke()
        loop.begin({key: view().copy() for key, view in first.outputs.items()}, options.beams)
        found.append(beam_search(loop, plan))
    return found


def reference(name: str, options: DecodingOptions) -> list[list[tuple[list[int], list[float], float]]]:
    """(tokens, log-probabilities, score), best first, for every picture; whole captions through Keras at every step."""
    beams, end, length = options.beams, END, model_of(name).max_length
    suppressed = list(device(name)[2].decoding.suppressed_ids)
    enough = max(1, round(beams * options.patience))
    live: list[list[Beam]] = [[([], [])] for _ in range(PHOTOGRAPHS)]
    done: list[list[Beam]] = [[] for _ in range(PHOTOGRAPHS)]
    cut: list[list[Beam]] = [[] for _ in range(PHOTOGRAPHS)]
    for step in range(length):
        fed = np.full((PHOTOGRAPHS, beams, length), START, "int32")
        for p, hypotheses in enumerate(live):
            for b, (tokens, _) in enumerate(hypotheses):
                fed[p, b, 1 : len(tokens) + 1] = tokens
        logits = np.asarray(whole_captions(name)(pictures(), fed.reshape(-1, length)), "float64")[:, step]
        logits = logits.reshape(PHOTOGRAPHS, beams, -1)
        logits[..., suppressed] = -np.inf
        logprobs = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
        for p, hypotheses in enumerate(live):
            if not hypotheses:
                continue
            continued = [
                (-(sum(past) + logprobs[p, b, token]), token, [*tokens, token], [*past, logprobs[p, b, token]])
                for b, (tokens, past) in enumerate(hypotheses)
                for token in range(harness.VOCABULARY)
                if np.isfinite(logprobs[p, b, token]) and not forbidden(tokens, token, options)
            ]
            live[p] = []
            for _, token, tokens, past in sorted(continued):
                if token == end:
                    if len(done[p]) < enough:
                        done[p].append((tokens, past))
                else:
                    live[p].append((tokens, past))
                if len(live[p]) == beams:
                    break
            if len(done[p]) >= enough or step == length - 1:
                cut[p] = live[p][: max(0, beams - len(done[p]))]
                live[p] = []
    penalty = 1.0 if options.length_penalty is None else options.length_penalty
    return [
        sorted(((t, p, sum(p) / len(p) ** penalty) for t, p in [*done[i], *cut[i]]), key=lambda h: -h[2])
        for i in range(PHOTOGRAPHS)
    ]


def forbidden(tokens: list[int], token: int, options: DecodingOptions) -> bool:
    if token == END and len(tokens) < options.min_length:
        return True
    n = options.no_repeat_ngram
    said = [*tokens, token]
    grams = [tuple(said[i : i + n]) for i in range(len(said) - n + 1)]
    return n > 0 and bool(grams) and grams[-1] in grams[:-1]


def assert_equal(name: str, options: DecodingOptions) -> None:
    found, expected = on_device(name, options), reference(name, options)
    for hypotheses, all_wanted in zip(found, expected, strict=True):
        wanted = all_wanted[: options.beams]
        assert [h.tokens for h in hypotheses] == [tokens for tokens, _, _ in wanted]
        for hypothesis, (_, logprobs, score) in zip(hypotheses, wanted, strict=True):
            assert hypothesis.score == pytest.approx(score, abs=1e-4)
            np.testing.assert_allclose(hypothesis.logprobs, logprobs, atol=1e-4)
            assert (hypothesis.stop_reason == "end") == (hypothesis.tokens[-1] == END)


@pytest.mark.parametrize("beams", [1, 3, 5])
@pytest.mark.parametrize("name", FAMILIES)
def test_beam_search_finds_what_the_whole_model_finds(name: str, beams: int) -> None:
    assert_equal(name, DecodingOptions(beams=beams))


@pytest.mark.parametrize("name", FAMILIES)
def test_the_pictures_cover_both_ends_of_a_caption(name: str) -> None:
    """Else the test above would compare less than it seems to."""
    found = on_device(name, DecodingOptions(beams=3))
    assert {h.stop_reason for hypotheses in found for h in hypotheses} == {"end", "max_length"}
    assert len({tuple(hypotheses[0].tokens) for hypotheses in found}) > 15


@pytest.mark.parametrize(
    "options",
    [
        {"length_penalty": 0.0},
        {"length_penalty": 2.0, "patience": 2.0},
        {"no_repeat_ngram": 2},
        {"no_repeat_ngram": 1, "min_length": 4},
        {"min_length": 6},
    ],
    ids=str,
)
def test_beam_search_follows_its_options(options: dict[str, Any]) -> None:
    name = "transformer_memory"
    plain = [h[0].tokens for h in on_device(name, DecodingOptions(beams=3))]
    changed = DecodingOptions(beams=3, **options)
    assert [h[0].tokens for h in on_device(name, changed)] != plain, "the option changes nothing here"
    assert_equal(name, changed)


@pytest.mark.parametrize("name", FAMILIES)
def test_one_beam_is_greedy(name: str) -> None:
    first, loop, _, _ = device(name)
    found = on_device(name, DecodingOptions(beams=1))
    for features, hypotheses in zip(pictures(), found, strict=True):
        first.inputs["features"]()[...] = features[None]
        first.invoke()
        loop.begin({key: view().copy() for key, view in first.outputs.items()})
        walk = Walk(loop, plan_of(name, DecodingOptions()))
        tokens = list(walk)
        (greedy,) = walk.hypotheses()
        assert tokens == greedy.tokens == hypotheses[0].tokens
        np.testing.assert_allclose(hypotheses[0].logprobs, greedy.logprobs, atol=1e-5)
        assert greedy.stop_reason == hypotheses[0].stop_reason
        if greedy.attention is not None:
            assert hypotheses[0].attention is not None
            np.testing.assert_array_equal(hypotheses[0].attention, greedy.attention)


@pytest.mark.parametrize("name", [name for name in FAMILIES if name not in ("lstm", "masked_lm")])
def test_attention_of_a_beam_is_of_its_own_words(name: str) -> None:
    """Hypotheses change rows as the search goes; fed the caption again, alone, the decoder attends alike."""
    first, loop, _, _ = device(name)
    for features, hypotheses in list(zip(pictures(), on_device(name, DecodingOptions(beams=5)), strict=True))[:10]:
        first.inputs["features"]()[...] = features[None]
        first.invoke()
        for hypothesis in hypotheses[:3]:
            loop.begin({key: view().copy() for key, view in first.outputs.items()})
            fed = [START, *hypothesis.tokens[:-1]]
            for position, token in enumerate(fed):
                loop.step(token, position)
                assert loop.attention is not None
                assert hypothesis.attention is not None
                np.testing.assert_allclose(hypothesis.attention[position], loop.attention[0], atol=1e-5)
                loop.advance(position)
