"""The three targets of `captionlite bench run`, made ready: loaded, with their photographs and their model."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from captionlite.benchmarks.cold_start import captionlite_command, keras_command
from captionlite.benchmarks.edge_target import WatchedCaptioner, edge_subject, time_batch
from captionlite.benchmarks.latency import Limits
from captionlite.benchmarks.model_identity import describe_bundle, describe_run
from captionlite.benchmarks.photo_set import read_photographs
from captionlite.benchmarks.session import Target
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.interpreter import core_count, without_chatter
from captionlite.runtime.selfcheck import check_here

if TYPE_CHECKING:
    from captionlite.runtime.delegates import DelegateSpec

GPU_BATCHES = (1, 16, 256)
GREEDY = "greedy"


def edge_target(
    bundle: str, photos: Sequence[str], limits: Limits, threads: int | None, delegate: DelegateSpec | None = None
) -> Target:
    """A bundle on this machine's CPU: the encoder on all threads, the decoder on one, as by default.

    With a delegate the encoder goes through it or nowhere: the CPU's times under its name would be a lie. Raises
    BundleError, InterpreterError, ImageError.
    """
    with without_chatter():
        captioner = WatchedCaptioner(Bundle.open(bundle), threads, delegate and replace(delegate, required=True))
        check_here(captioner)
    delegation = captioner.delegation
    photographs = read_photographs(photos, captioner.bundle.manifest.image)
    return Target(
        name="edge",
        model=describe_bundle(captioner.bundle),
        photographs=photographs,
        subject=edge_subject(captioner),
        protocol={"decoding": GREEDY, "encoder_threads": threads or core_count(), "decoder_threads": 1},
        batch=lambda: time_batch(captioner, photographs.contents, limits.min_captions),
        cold_command=captionlite_command(bundle, photographs.paths[0], None if delegate is None else str(delegate)),
        delegate=None if delegation is None else delegation.to_json(),
        notes=() if delegation is None else (str(delegation),),
    )


def keras_target(run: str, photos: Sequence[str], threads: int | None) -> Target:
    """The Keras model of a run on this machine's CPU. Raises RunError, WeightsError, ImageError."""
    from captionlite.benchmarks.keras_target import KerasPrograms, describe_device, keep_to_the_cpu

    keep_to_the_cpu()
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")  # or TensorFlow complains that it finds no GPU
    from captionlite.training.run import load_run

    device = describe_device()
    is_tensorflow = device["backend"] == "tensorflow"
    if threads is not None:
        if not is_tensorflow:
            raise CaptionliteError(f"--threads: {device['backend']} takes as many threads as it likes; leave it out.")
        _limit_tensorflow(threads)
    loaded = load_run(run)
    photographs = read_photographs(photos, loaded.image_spec)
    programs = KerasPrograms(loaded)
    return Target(
        name="keras",
        model=describe_run(loaded),
        photographs=photographs,
        subject=programs.subject(),
        protocol=_protocol(threads or core_count()),
        cold_command=keras_command(run, photographs.paths[0]) if is_tensorflow else None,
        device=device,
        notes=() if is_tensorflow else (f"no cold start: it is measured with TensorFlow, not {device['backend']}",),
    )


def gpu_target(run: str, photos: Sequence[str], batches: Sequence[int], limits: Limits, *, allow_cpu: bool) -> Target:
    """The Keras model of a run on the GPU that KERAS_BACKEND finds; without one only if a CPU is allowed instead.

    Raises CaptionliteError, RunError, WeightsError, ImageError.
    """
    from captionlite.benchmarks.keras_target import KerasPrograms, describe_device, device_memory_bytes, require_gpu

    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    device = describe_device()
    notes = require_gpu(device, allow_cpu)
    from captionlite.training.run import load_run

    loaded = load_run(run)
    photographs = read_photographs(photos, loaded.image_spec)
    programs = KerasPrograms(loaded)
    return Target(
        name="gpu",
        model=describe_run(loaded),
        photographs=photographs,
        subject=programs.subject(),
        protocol=_protocol(None),
        batch=lambda: programs.time_batches(
            photographs.contents, batches, limits.min_captions, limits.min_seconds / len(batches)
        ),
        device=device,
        device_memory=device_memory_bytes,
        notes=(*notes, "no cold start of a GPU; peak memory is the device's"),
        no_energy="the meters that captionlite reads do not see a GPU; ask `nvidia-smi --query-gpu=power.draw`",
    )


def _protocol(threads: int | None) -> dict[str, Any]:
    return {"decoding": GREEDY, "encoder_threads": threads, "decoder_threads": threads}


def _limit_tensorflow(threads: int) -> None:
    import tensorflow as tf

    tf.config.threading.set_intra_op_parallelism_threads(threads)
    tf.config.threading.set_inter_op_parallelism_threads(threads)
