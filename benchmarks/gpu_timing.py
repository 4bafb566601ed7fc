"""How fast a family captions and trains on an accelerator: one program from pixels to tokens, on JAX or TensorFlow.

Every sample runs from arrays in the host's memory to arrays in the host's memory, so that the device is synchronised;
compilation and two turns before the first sample are not counted.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
from keras import ops

from captionlite.training.compiled import TrainStep, compiled
from captionlite.training.config import RunConfig
from captionlite.training.families.base import DecoderFamily, State
from captionlite.training.optimizers import build_optimizer
from captionlite.training.vocabulary import PAD_ID

WARM_UP = 2


def caption_program(
    encoder: Any,
    model: DecoderFamily,
    *,
    start_id: int,
    end_id: int,
    suppressed_ids: Sequence[int],
    length: int | None = None,
) -> Callable[[np.ndarray], np.ndarray]:
    """Greedy captions in one compiled program: uint8 (B, H, W, 3) -> tokens int32 (B, max_length), end behind the end.

    The loop ends when every caption has. ``length``: every caption has exactly so many tokens, whatever the weights.
    """
    decode = _greedy(model, start_id, end_id, suppressed_ids, length)
    run = compiled(lambda pixels: decode(_state(encoder, model, pixels)), [*encoder.variables, *model.variables])
    return lambda pixels: np.asarray(run(pixels))


def stage_programs(
    encoder: Any, model: DecoderFamily, *, start_id: int, end_id: int, suppressed_ids: Sequence[int]
) -> tuple[Callable[[np.ndarray], State], Callable[[State], np.ndarray]]:
    """The same as two programs: pixels to the decoder's state, on the device, and the state to tokens.

    Both return when the device has done its work.
    """
    encode = compiled(lambda pixels: _state(encoder, model, pixels), [*encoder.variables, *model.variables])
    decode = compiled(_greedy(model, start_id, end_id, suppressed_ids, None), model.variables)

    def encode_and_wait(pixels: np.ndarray) -> State:
        state: State = encode(pixels)
        if keras.backend.backend() == "jax":
            import jax

            jax.block_until_ready(state)
        else:
            import tensorflow as tf

            tf.test.experimental.sync_devices()
        return state

    return encode_and_wait, lambda state: np.asarray(decode(state))


def _state(encoder: Any, model: DecoderFamily, pixels: Any) -> State:
    return model.full_state(encoder(ops.cast(pixels, "float32"), training=False))


def _greedy(
    model: DecoderFamily, start_id: int, end_id: int, suppressed_ids: Sequence[int], length: int | None
) -> Callable[[State], Any]:
    """The greedy loop, to be compiled: a state of B rows -> tokens int32 (B, max_length or ``length``)."""
    suppressed = np.zeros((1, model.vocabulary_size), np.float32)
    suppressed[0, [*suppressed_ids, *([end_id] if length is not None else [])]] = -np.inf
    steps = model.max_length if length is None else length

    def goes_on(t: Any, token: Any, tokens: Any, running: Any, state: State) -> Any:
        return (t < steps) & ops.any(running)

    def step(t: Any, token: Any, tokens: Any, running: Any, state: State) -> Any:
        position = ops.reshape(t, (1,))
        logits, updates, _ = model.step(token, position, state)
        chosen = ops.cast(ops.argmax(logits + suppressed, axis=-1), "int32")
        chosen = ops.where(running, chosen, end_id)
        tokens = ops.slice_update(tokens, [0, t], chosen[:, None])
        state = model.advance(state, updates, position)
        return t + 1, chosen[:, None], tokens, running & (chosen != end_id), state

    def decode(state: State) -> Any:
        batch = next(iter(state.values())).shape[0]
        first = (
            ops.zeros((), "int32"),
            ops.full((batch, 1), start_id, "int32"),
            ops.full((batch, steps), end_id, "int32"),
            ops.ones((batch,), "bool"),
            state,
        )
        return ops.while_loop(goes_on, step, first)[2]

    return decode


def random_pixels(image_size: tuple[int, int]) -> Callable[[int], np.ndarray]:
    """Noise of so many photographs: what is in a picture does not change how long a caption of a fixed length takes."""
    rng = np.random.default_rng(0)
    return lambda batch: rng.integers(0, 256, (batch, *image_size, 3), np.uint8)


def time_captions(
    program: Callable[[np.ndarray], np.ndarray],
    pixels_of: Callable[[int], np.ndarray],
    batches: Sequence[int],
    repeats: int,
    seconds: float,
) -> list[dict[str, Any]]:
    """One record a batch size: milliseconds of each turn, until ``repeats`` turns or ``seconds`` are over."""
    records = []
    for batch in batches:
        pixels = pixels_of(batch)
        began = time.perf_counter()
        program(pixels)
        compile_s = time.perf_counter() - began
        samples = timed(lambda pixels=pixels: program(pixels), repeats, seconds)  # type: ignore[misc]
        records.append({"batch": batch, "compile_s": round(compile_s, 2), **summary(samples)})
        records[-1]["photographs_per_s"] = round(batch * 1000 / records[-1]["median_ms"], 1)
    return records


def time_training(model: DecoderFamily, config: RunConfig, tokens: int, repeats: int, seconds: float) -> dict[str, Any]:
    """A training step on a batch of the preset's size with captions of ``tokens`` tokens, features in host memory."""
    rng = np.random.default_rng(0)
    photographs = max(1, config.batch_size // config.captions_per_photo)
    features = rng.normal(size=(photographs, *model.feature_shape)).astype(np.float16)
    captions = photographs * config.captions_per_photo
    batch = rng.integers(5, model.vocabulary_size, (captions, tokens + 1)).astype(np.int32)
    optimizer = build_optimizer(config.optimizer, 1000)

    def loss(features: Any, tokens: Any) -> tuple[Any, dict[str, Any]]:
        value, accuracy, _ = model.objective(features, tokens, pad_id=PAD_ID, training=True)
        return value, {"accuracy": accuracy}

    step = TrainStep(model, optimizer, loss)

    def turn() -> None:
        float(step(ops.convert_to_tensor(features), ops.convert_to_tensor(batch))["loss"])

    began = time.perf_counter()
    turn()
    compile_s = time.perf_counter() - began
    samples = timed(turn, repeats, seconds)
    return {
        "precision": keras.config.dtype_policy().name,
        "captions": captions,
        "tokens": tokens,
        "compile_s": round(compile_s, 2),
        **summary(samples),
    }


def timed(turn: Callable[[], Any], repeats: int, seconds: float) -> list[float]:
    """Milliseconds of each turn, after ``WARM_UP`` uncounted ones."""
    for _ in range(WARM_UP):
        turn()
    samples: list[float] = []
    while len(samples) < repeats and (sum(samples) < 1000 * seconds or len(samples) < 3):
        began = time.perf_counter()
        turn()
        samples.append(1000 * (time.perf_counter() - began))
    return samples


def summary(samples_ms: Sequence[float]) -> dict[str, Any]:
    return {
        "median_ms": round(float(np.median(samples_ms)), 4),
        "p90_ms": round(float(np.percentile(samples_ms, 90)), 4),
        "samples_ms": [round(sample, 4) for sample in samples_ms],
    }
