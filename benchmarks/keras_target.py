"""The targets `keras` and `gpu`: the trained Keras model, compiled, with its cache of keys and values.

Two compiled programs a caption, pixels to state and state to tokens, so that the stages can be told apart; the greedy
loop runs inside the second. On TensorFlow each is a `tf.function` (compiled steps in a Python loop take 1.7 times as
long), on JAX a `jax.jit`. A stage ends when the device has.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from importlib.metadata import version
from itertools import pairwise
from time import perf_counter
from typing import TYPE_CHECKING, Any

from captionlite.benchmarks.latency import Timed
from captionlite.benchmarks.results import rounded
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.image import load_image

if TYPE_CHECKING:
    from captionlite.training.run import Run

GPU_PLATFORMS = ("gpu", "cuda", "rocm")


def keep_to_the_cpu() -> None:
    """Hide every accelerator from the backend; before it is imported."""
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["JAX_PLATFORMS"] = "cpu"


def describe_device() -> dict[str, Any]:
    """Backend, its version, and the device that Keras computes on: {"backend", "version", "kind", "device"}."""
    import keras

    backend = str(keras.backend.backend())
    kind, device = "cpu", "cpu"
    if backend == "jax":
        import jax

        first = jax.devices()[0]
        kind, device = ("gpu" if first.platform in GPU_PLATFORMS else first.platform), str(first.device_kind)
    elif backend == "tensorflow":
        import tensorflow as tf

        gpus = tf.config.list_physical_devices("GPU")
        if gpus:
            kind, device = "gpu", str(tf.config.experimental.get_device_details(gpus[0]).get("device_name", "GPU"))
    return {"backend": backend, "version": version(backend), "keras": keras.__version__, "kind": kind, "device": device}


def require_gpu(device: dict[str, Any], allow_cpu: bool) -> list[str]:
    """Notes for the result. Raises CaptionliteError where there is no GPU and the CPU is not allowed."""
    if device["kind"] == "gpu":
        return []
    if not allow_cpu:
        package = "jax[cuda13]" if device["backend"] == "jax" else "tensorflow[and-cuda]"
        raise CaptionliteError(
            f"--target gpu: {device['backend']} {device['version']} finds no GPU here, only {device['kind']}. Install "
            f"`pip install '{package}'` on a machine with a GPU (docs/gpu.md), or try it on this one with --allow-cpu."
        )
    return [f"no GPU: measured on the {device['kind']} because of --allow-cpu; this is no figure of a GPU"]


class KerasPrograms:
    """A run's compiled programs. `encode` and `decode` return when the device has done its work."""

    def __init__(self, run: Run) -> None:
        from captionlite.benchmarks.gpu_timing import caption_program, stage_programs
        from captionlite.training.vocabulary import END_ID, START_ID

        self.run = run
        ids: dict[str, Any] = {
            "start_id": START_ID,
            "end_id": END_ID,
            "suppressed_ids": run.vocabulary.suppressed_ids,
        }
        self._end = END_ID
        self.encode, self.decode = stage_programs(run.encoder, run.model, **ids)
        self.whole = caption_program(run.encoder, run.model, **ids)

    def subject(self, clock: Callable[[], float] = perf_counter) -> Callable[[bytes], Timed]:
        """One photograph at a time, its stages timed."""

        def subject(photograph: bytes) -> Timed:
            started = clock()
            pixels = load_image(photograph, self.run.image_spec)[None]
            loaded = clock()
            state = self.encode(pixels)
            encoded = clock()
            tokens = self.decode(state)
            decoded = clock()
            said = [int(token) for token in tokens[0]]
            if self._end in said:
                said = said[: said.index(self._end) + 1]
            text = self.run.vocabulary.decode(said)
            ended = clock()
            spans = (started, loaded, encoded, decoded, ended)
            image, encode, decode, post = (1e3 * (end - begin) for begin, end in pairwise(spans))
            return Timed(image, encode, decode, post, 1e3 * (ended - started), len(said), text)

        return subject

    def time_batches(
        self,
        photographs: Sequence[bytes],
        batches: Sequence[int],
        repeats: int,
        seconds: float,
    ) -> dict[str, Any]:
        """From pixels in the host's memory to tokens there, so many photographs at a time, one program for all."""
        import numpy as np

        from captionlite.benchmarks.gpu_timing import time_captions

        loaded = np.stack([load_image(photograph, self.run.image_spec) for photograph in photographs])

        def pixels(batch: int) -> Any:
            return np.resize(loaded, (batch, *loaded.shape[1:]))  # the photographs again from the first, if too few

        records = time_captions(self.whole, pixels, batches, repeats, seconds)
        best = max(records, key=lambda each: each["photographs_per_s"])
        return {
            "way": "one program for encoder and greedy loop, pixels to tokens",
            "batches": records,
            "captions_per_second": rounded(best["photographs_per_s"]),
        }


def device_memory_bytes() -> int | None:
    """The most that JAX had allocated on the first device; None where the backend does not count."""
    import keras

    if keras.backend.backend() == "jax":
        import jax

        with suppress(Exception):  # a platform without statistics returns None or raises something of its own
            return int(jax.devices()[0].memory_stats()["peak_bytes_in_use"])
    elif keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        with suppress(Exception):  # no GPU
            return int(tf.config.experimental.get_memory_info("GPU:0")["peak"])
    return None
