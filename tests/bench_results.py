"""Results as `captionlite bench run` writes them, made by hand: figures small enough to work out."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from captionlite.benchmarks.results import SCHEMA, STAGES, summarize

PHOTOGRAPHS = {"count": 5, "sha256": "ab" * 32, "source": "tests/photos"}
SCORES = {"drawings test, int8, greedy": {"cider": 0.48}, "drawings test, float32, greedy": {"cider": 0.5}}
TOKENS = (8, 10, 12)


def result(
    recipe: str = "int8",
    threads: int | None = 1,
    *,
    target: str = "edge",
    family: str = "transformer",
    name: str = "default",
    encode_ms: float = 2.0,
    step_ms: float = 0.1,
    scores: dict[str, Any] | None = None,
    **changes: Any,
) -> dict[str, Any]:
    """A result of three captions with 8, 10 and 12 tokens: 1 ms of photograph, encoder, steps, and 0.5 ms of text.

    `changes` replace fields: protocol={...} some of one, command=[...] a whole one.
    """
    steps = [step_ms * tokens for tokens in TOKENS]
    samples: dict[str, Sequence[float]] = {
        "image_ms": [1.0] * len(TOKENS),
        "encode_ms": [encode_ms] * len(TOKENS),
        "step_ms": [step_ms] * len(TOKENS),
        "decode_ms": steps,
        "post_ms": [0.5] * len(TOKENS),
        "whole_ms": [1.5 + encode_ms + step for step in steps],
        "tokens": TOKENS,
    }
    machine: dict[str, Any] = {
        "captionlite": "0.1.0",
        "python": "3.11.7",
        "platform": "Linux-6.1-x86_64",
        "device": None,
        "cpu": "Test CPU",
        "cpu_features": ["avx2", "fma"],
        "cores": 2,
        "interpreter": {"name": "ai-edge-litert", "version": "2.3.0"},
        "numpy": "2.4.6",
        "pillow": "13.0.0",
        "governor": ["performance", None],
        "frequencies_mhz": [{"current": 2000.0, "min": 600.0, "max": 2400.0}],
        "temperature_c": 41.0,
        "temperature_after_c": 55.5,
        "throttled_after": "0x0",
        "load_average": {"before": [0.1, 0.2, 0.3], "after": [1.9, 1.0, 0.5]},
    }
    if target != "edge":
        kind, device = ("gpu", "NVIDIA H200") if target == "gpu" else ("cpu", "cpu")
        machine["accelerator"] = {
            "backend": "jax",
            "version": "0.7.1",
            "keras": "3.15.1",
            "kind": kind,
            "device": device,
        }
    document: dict[str, Any] = {
        "schema": list(SCHEMA),
        "kind": "latency",
        "target": target,
        "created": "2026-11-21T12:00:00Z",
        "command": ["captionlite", "bench", "run", "--photos", "tests/photos"],
        "complete": True,
        "machine": machine,
        "model": {
            "id": family.encode().hex().ljust(64, "0"),
            "name": name,
            "family": family,
            "recipe": recipe,
            "bundle_sha256": None if target != "edge" else "cd" * 32,
            "size_bytes": 8_670_941,
            "graphs_bytes": {"encoder": 5_202_784, "decoder": 3_047_648},
            "scores": SCORES if scores is None else scores,
        },
        "photographs": PHOTOGRAPHS,
        "protocol": {
            "name": "single-stream",
            "quick": False,
            "warm_up": 64,
            "min_captions": 1024,
            "min_seconds": 60.0,
            "decoding": "greedy",
            "encoder_threads": threads,
            "decoder_threads": None if threads is None else 1,
            "captions": 1024,
            "seconds": 61.5,
            "sampled_every": 1,
        },
        "samples": samples,
        "summary": {stage: summarize(samples[f"{stage}_ms"]) for stage in STAGES},
        "tokens_per_caption": 10.0,
        "captions_per_second": 222.2,
        "cold_start": {"seconds": 0.174, "peak_memory_bytes": 74_000_000},
        "peak_memory_bytes": 74_000_000,
        "energy": {"unavailable": "not asked for; give --energy"},
        "batch": {"way": "caption_many", "captions_per_second": 400.0},
        "soak": None,
        "notes": [],
    }
    for field, value in changes.items():
        document[field] = {**document[field], **value} if isinstance(document[field], dict) else value
    return document


def write(path: Path, document: dict[str, Any]) -> Path:
    """The file, as `captionlite bench run --out` has it."""
    path.write_text(json.dumps(document))
    return path
