"""The loop against NumPy: every kind of state, both ends, batches, options, and a decoder that computes nonsense."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import toy_bundle

from captionlite.runtime import Captioner, DecodingOptions
from captionlite.runtime.errors import InterpreterError, OptionsError
from captionlite.runtime.interpreter import Graph
from captionlite.runtime.loop import DecoderLoop

PHOTOGRAPHS = toy_bundle.photographs(40, seed=8)


@pytest.fixture(scope="module")
def captioner(toy_directory: Path) -> Captioner:
    return Captioner.from_bundle(toy_directory)


def test_encoder_outputs_equal_numpy(captioner: Captioner) -> None:
    for image in PHOTOGRAPHS[:5]:
        found = captioner.encode(image)
        expected = toy_bundle.encode(image)
        assert found.keys() == expected.keys()
        for name in expected:
            np.testing.assert_allclose(found[name], expected[name], atol=1e-5)


def test_captions_equal_numpy(captioner: Captioner) -> None:
    # One captioner for all photographs: what one leaves in the state must not reach the next.
    reasons = set()
    for image in PHOTOGRAPHS:
        found, expected = captioner.caption(image), toy_bundle.decode(image)
        assert list(found.tokens) == expected.tokens
        assert found.stop_reason == expected.stop_reason
        np.testing.assert_allclose(found.logprobs, expected.logprobs, atol=1e-4)
        assert found.logprob == pytest.approx(np.mean(expected.logprobs), abs=1e-4)
        assert found.attention is not None
        np.testing.assert_allclose(found.attention, expected.attention, atol=1e-4)
        words = [toy_bundle.PIECES[token] for token in expected.tokens if token != toy_bundle.END]
        assert found.text == " ".join(words)
        reasons.add(found.stop_reason)
    assert reasons == {"end", "max_length"}, "the photographs no longer cover both ways to stop"


def test_same_photograph_twice_gives_the_same_caption(captioner: Captioner) -> None:
    first, second = captioner.caption(PHOTOGRAPHS[0]), captioner.caption(PHOTOGRAPHS[0])
    assert first.tokens == second.tokens
    assert first.logprobs == second.logprobs


def test_zip_and_directory_give_the_same_captions(captioner: Captioner, toy_zip: Path) -> None:
    from_zip = Captioner.from_bundle(toy_zip, threads=1)
    for image in PHOTOGRAPHS[:5]:
        assert from_zip.caption(image).tokens == captioner.caption(image).tokens


@pytest.mark.parametrize("length", [1, 3, toy_bundle.LENGTH])
def test_max_length(captioner: Captioner, length: int) -> None:
    image = next(image for image in PHOTOGRAPHS if toy_bundle.decode(image).stop_reason == "max_length")
    found = captioner.caption(image, DecodingOptions(max_length=length))
    expected = toy_bundle.decode(image, length)
    assert list(found.tokens) == expected.tokens
    assert len(found.tokens) == length
    assert found.stop_reason == "max_length"
    assert found.attention is not None
    assert found.attention.shape == (length, toy_bundle.REGIONS)


def test_max_length_beyond_the_decoder_is_refused(captioner: Captioner) -> None:
    with pytest.raises(OptionsError, match=rf"max_length is {toy_bundle.LENGTH + 1}.*at most {toy_bundle.LENGTH}"):
        captioner.caption(PHOTOGRAPHS[0], DecodingOptions(max_length=toy_bundle.LENGTH + 1))


@pytest.mark.parametrize("length", [0, -1])
def test_senseless_max_length_is_refused(length: int) -> None:
    with pytest.raises(OptionsError, match="expected at least 1"):
        DecodingOptions(max_length=length)


def test_caption_many_keeps_the_order(captioner: Captioner) -> None:
    found = [caption.tokens for caption in captioner.caption_many(iter(PHOTOGRAPHS[:6]))]
    assert found == [captioner.caption(image).tokens for image in PHOTOGRAPHS[:6]]


def test_timings_add_up(captioner: Captioner) -> None:
    timings = captioner.caption(PHOTOGRAPHS[0]).timings_ms
    parts = [timings[stage] for stage in ("image", "encode", "decode")]
    assert min(parts) > 0
    assert sum(parts) == pytest.approx(timings["total"])


def test_a_batch_computes_what_its_rows_compute_alone(captioner: Captioner) -> None:
    # Three rows of one photograph, fed different tokens, against NumPy for each row; then back to a batch of one.
    loop = captioner.decoder
    image = PHOTOGRAPHS[1]
    encoded = captioner.encode(image)
    alone = []
    for token in (4, 5, 6):
        loop.begin(encoded)
        loop.step(toy_bundle.START, 0)
        loop.advance(0)
        loop.step(token, 1)
        alone.append(loop.logits[0].copy())
    loop.begin(encoded, batch=3)
    loop.step(toy_bundle.START, 0)
    assert loop.logits.shape == (3, toy_bundle.V)
    loop.advance(0)
    loop.step(np.array([[4], [5], [6]]), 1)
    np.testing.assert_allclose(loop.logits, np.stack(alone), atol=1e-5)
    assert list(captioner.caption(image).tokens) == toy_bundle.decode(image).tokens


def test_columns_after_the_position_stay_zero(captioner: Captioner) -> None:
    loop = captioner.decoder
    loop.begin(captioner.encode(PHOTOGRAPHS[2]))
    for position in range(3):
        loop.step(4 + position, position)
        loop.advance(position)
    history = loop.graph.inputs["history"]()[0, 0].copy()  # (LENGTH, DEPTH)
    assert (history[:3] != 0).all()
    assert (history[3:] == 0).all()
    assert loop.graph.inputs["count"]()[0, 0] == 3


def test_logits_that_are_not_numbers_are_reported(toy_directory: Path, tmp_path: Path) -> None:
    # A caption made of NaN would look like any other: argmax takes the first NaN without a word.
    directory = tmp_path / "nan"
    shutil.copytree(toy_directory, directory)
    captioner = Captioner.from_bundle(directory)
    encoded = captioner.encode(PHOTOGRAPHS[0])
    encoded["hidden"][...] = np.nan
    captioner.encode_pixels = lambda pixels: encoded  # type: ignore[method-assign]
    with pytest.raises(InterpreterError, match="no finite numbers"):
        captioner.caption(PHOTOGRAPHS[0])


def test_loop_knows_a_family_without_attention(toy_directory: Path) -> None:
    from captionlite.runtime.bundle import Bundle

    bundle = Bundle.open(toy_directory)
    graph = Graph.from_bundle(bundle, "decoder", 1)
    del graph.outputs["attention"]
    loop = DecoderLoop(graph, bundle.manifest)
    loop.begin({})
    assert loop.attention is None
