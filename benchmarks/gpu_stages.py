"""The stages of the GPU job, each run in a process of its own with Keras on JAX: what they do and what they record."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import json
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import keras

from captionlite.benchmarks.gpu_pack import read_pack
from captionlite.benchmarks.gpu_timing import caption_program, random_pixels, time_captions, time_training
from captionlite.benchmarks.latency import FULL, Limits
from captionlite.benchmarks.session import Plan, measure
from captionlite.benchmarks.targets import gpu_target
from captionlite.runtime.errors import CaptionliteError
from captionlite.training.config import DataConfig, RunConfig, load_config
from captionlite.training.data import load_data
from captionlite.training.encoder_weights import IMAGENET
from captionlite.training.encoders import build_encoder, encoder_spec, front_name
from captionlite.training.errors import ConfigError
from captionlite.training.files import write_text_atomically
from captionlite.training.run import BEST, CONFIG, HISTORY, build_model
from captionlite.training.trainer import train
from captionlite.training.vocabulary import END_ID, PAD_ID, START_ID, UNKNOWN_ID

if TYPE_CHECKING:
    from captionlite.benchmarks.gpu_job import Settings

PACKAGES = ("jax", "jaxlib", "keras", "numpy", "pillow", "tokenizers", "safetensors")
ASSUMED_VOCABULARY = 5000  # where no preset and no publication says how many words there are
AT_HAND = "efficientnet_lite0"  # the encoder whose ImageNet weights travel
PRECISIONS = ("float32", "mixed_bfloat16")


def write_result(settings: Settings, stage: str, result: dict[str, Any]) -> None:
    write_text_atomically(Path(settings.work, "results", f"{stage}.json"), json.dumps(result, indent=1) + "\n")


def environment(settings: Settings, _: str) -> dict[str, Any]:
    """The machine, its devices and the versions."""
    import jax

    versions = {}
    for package in PACKAGES:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:  # carried as bare files
            versions[package] = str(getattr(__import__(package), "__version__", "unknown"))
    driver = None
    if shutil.which("nvidia-smi"):
        query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
        driver = subprocess.run(query, capture_output=True, text=True, timeout=60).stdout.strip()
    return {
        "devices": [f"{device.platform} {device.device_kind}" for device in jax.devices()],
        "gpu": driver,
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions,
    }


def _config(settings: Settings, job: str) -> tuple[RunConfig, list[str]]:
    """The preset with what this machine lacks replaced, and a note for each replacement."""
    name = next(each for each in settings.jobs if Path(each).stem == job)
    config = load_config(name, settings.overrides)
    notes = []
    encoder = config.encoder
    if encoder.weights == IMAGENET and not _is_packed(encoder.name):
        if encoder.name in settings.encoder_weights:
            encoder = dataclasses.replace(encoder, weights=settings.encoder_weights[encoder.name])
        else:
            notes.append(f"encoder {AT_HAND} for {encoder.name}, whose ImageNet weights were not at hand")
            encoder = dataclasses.replace(encoder, name=AT_HAND)
    vocabulary, family = config.vocabulary, config.family
    if vocabulary.sentencepiece is not None and settings.albert is not None:
        vocabulary = dataclasses.replace(vocabulary, sentencepiece=settings.albert)
        family = {**family, "albert_weights": settings.albert}
    packed, _ = read_pack(Path(settings.work))
    data = tuple(
        DataConfig(f"jsonl:{Path(settings.work, 'data', each.name, 'captions.jsonl')}", each.weight) for each in packed
    )
    changed = dataclasses.replace(config, encoder=encoder, vocabulary=vocabulary, family=family, data=data)
    return changed, notes


def _is_packed(encoder: str) -> bool:
    """Whether the encoder's ImageNet weights came along, as a package."""
    package = encoder_spec(encoder).torch_package
    return package is not None and importlib.util.find_spec(package.replace("-", "_")) is not None


def time_job(settings: Settings, job: str) -> dict[str, Any]:
    """Captioning from pixels at each batch size and a training step in each precision, with random weights and the
    preset's own encoder: neither changes how long it takes.
    """
    name = next(each for each in settings.jobs if Path(each).stem == job)
    config = load_config(name, settings.overrides)
    spec = encoder_spec(config.encoder.name)
    words = config.vocabulary.max_size or config.published.get("vocabulary_size") or ASSUMED_VOCABULARY
    if config.vocabulary.sentencepiece is not None:
        words = 30000
    family = {**config.family, **({"albert_weights": None} if "albert_weights" in config.family else {})}
    config = dataclasses.replace(config, family=family, encoder=dataclasses.replace(config.encoder, weights=None))
    encoder = build_encoder(front_name(spec.name, config.trained_blocks), None)
    tokens = min(settings.tokens, int(family.get("max_length", settings.tokens)))
    training = []
    for precision in PRECISIONS:
        keras.mixed_precision.set_dtype_policy(precision)
        try:
            model = build_model(config, words)
        except ConfigError as error:  # ALBERT without keras_hub
            return {"preset": config.name, "skipped": str(error)}
        try:
            training.append(time_training(model, config, tokens, settings.repeats, settings.seconds))
        except Exception as error:  # what an accelerator runs out of, it says in exceptions of its own
            training.append({"precision": precision, "failed": f"{type(error).__name__}: {str(error)[:500]}"})
    keras.mixed_precision.set_dtype_policy("float32")
    model = build_model(config, words)
    ids = {"start_id": START_ID, "end_id": END_ID, "suppressed_ids": (PAD_ID, UNKNOWN_ID, START_ID)}
    program = caption_program(encoder, model, **ids, length=tokens)  # type: ignore[arg-type]
    return {
        "preset": config.name,
        "family": model.family,
        "encoder": spec.name,
        "parameters": {"encoder": int(encoder.count_params()), "decoder": int(model.count_params())},
        "words": words,
        "tokens": tokens,
        "captions": time_captions(
            program, random_pixels(spec.image_size), settings.batches, settings.repeats, settings.seconds
        ),
        "training_step": training,
    }


def features(settings: Settings, _: str) -> dict[str, Any]:
    """Extracts what all the jobs need, once for each encoder and weights."""
    wanted: dict[tuple[str, str | None], RunConfig] = {}
    for job in settings.jobs:
        config, _notes = _config(settings, Path(job).stem)
        if _reason_to_skip(settings, config) is None:
            key = (front_name(config.encoder.name, config.trained_blocks), config.encoder.weights)
            wanted[key] = max(config, wanted.get(key, config), key=lambda each: (each.flip, each.views))
    records = []
    for (encoder, _weights), config in wanted.items():
        began = time.monotonic()
        data = load_data(config, _cache(settings))
        seconds = time.monotonic() - began
        photographs = sum(len(store) for stores in data.copies for store in stores.values())
        records.append({"encoder": encoder, "photographs": photographs, "seconds": round(seconds, 1)})
    return {"extracted": records}


def train_job(settings: Settings, job: str) -> dict[str, Any]:
    """One preset to its end, or to the end of the time: then trainer.Interrupted, and the next call goes on."""
    config, notes = _config(settings, job)
    reason = _reason_to_skip(settings, config)
    if reason is not None:
        return {"preset": config.name, "skipped": reason}
    run = Path(settings.work, "runs", job)
    summary = train(
        config,
        run,
        _cache(settings),
        resume=(run / CONFIG).exists(),
        report=lambda line: print(line, flush=True),
    )
    summary.pop("run")
    history = json.loads((run / HISTORY).read_text())
    return {"notes": notes, "precision": config.precision, **summary, "history": history}


def bench_job(settings: Settings, job: str) -> dict[str, Any]:
    """A trained preset measured as `captionlite bench run --target gpu` does; ``result`` is what that would write."""
    run = Path(settings.work, "runs", job)
    if not (run / BEST).exists():
        return {"preset": job, "skipped": "not trained"}
    limits = Limits(FULL.warm_up, settings.bench_captions, settings.bench_seconds)
    target = gpu_target(str(run), settings.photos, settings.batches, limits, allow_cpu=True)
    plan = Plan(limits, quick=False, cold_starts=0, command=("captionlite.benchmarks.gpu_job", "stage", f"bench-{job}"))
    return {"preset": job, "result": measure(target, plan).to_json()}


def _reason_to_skip(settings: Settings, config: RunConfig) -> str | None:
    if config.vocabulary.sentencepiece is not None and settings.albert is None:
        return "needs ALBERT's weights and tokenizer; give --albert DIRECTORY"
    if not config.data:
        raise CaptionliteError("no data; unpack a folder made by `pack` first")
    return None


def _cache(settings: Settings) -> Path:
    return Path(settings.work, "features")
