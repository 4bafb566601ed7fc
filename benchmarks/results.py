"""A benchmark's result as a file: a versioned JSON object, written whole or not at all and read back strictly.

Every kind of result has `schema`, `kind`, `target`, `created`, `command` and `machine` (devices.py); `read_document`
checks these. The kind "latency", which `captionlite bench run` writes, is a `Result` through and through.

Times are milliseconds. Samples are rounded to 4 significant digits, and of very many every k-th is kept (`Samples`);
`summary` is of all of them, as they were measured.
"""

from __future__ import annotations

import dataclasses
import datetime
import json
import math
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.files import write_bytes_atomically
from captionlite.training.config import from_json
from captionlite.training.errors import ConfigError

SCHEMA = (1, 0)
"""Version (major, minor) that this captionlite writes; it reads every minor version of this major one."""

STAGES = ("image", "encode", "step", "decode", "post", "whole")
"""What a caption is made of: photograph's bytes to pixels, encoder, all decoder steps (and one of them on average), the
rest up to the text, and all of it."""

MAX_SAMPLES = 4096
_AGAIN = "Measure again with `captionlite bench run`, or restore the file."


class ResultError(CaptionliteError):
    """A result file that is missing, damaged, too new or not what was expected."""


@dataclasses.dataclass(frozen=True)
class Model:
    """Which model ran. `id` is what every version of one trained model shares (model_identity.py)."""

    id: str
    name: str
    family: str
    recipe: str
    bundle_sha256: str | None
    size_bytes: int
    graphs_bytes: dict[str, Any]
    scores: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Photographs:
    """Which photographs, in their order; sha256 over the sha256 (bytes, not hex) of each file's content."""

    count: int
    sha256: str
    source: str


@dataclasses.dataclass(frozen=True)
class Protocol:
    """How it was measured; `captions` in `seconds` is what came of at least `min_captions` and `min_seconds`."""

    name: str
    quick: bool
    warm_up: int
    min_captions: int
    min_seconds: float
    decoding: str
    encoder_threads: int | None
    decoder_threads: int | None
    captions: int
    seconds: float
    sampled_every: int  # 1: all samples are here


@dataclasses.dataclass(frozen=True)
class Samples:
    """One number a caption in each list, in the order they came; step_ms is the mean over a caption's steps."""

    image_ms: tuple[float, ...]
    encode_ms: tuple[float, ...]
    step_ms: tuple[float, ...]
    decode_ms: tuple[float, ...]
    post_ms: tuple[float, ...]
    whole_ms: tuple[float, ...]
    tokens: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Result:
    """What `captionlite bench run` measured. `peak_memory_bytes` is a fresh process's that captions one photograph."""

    schema: tuple[int, ...]
    kind: Literal["latency"]
    target: Literal["edge", "keras", "gpu"]
    created: str
    command: tuple[str, ...]
    complete: bool  # false: interrupted; what had been measured by then
    machine: dict[str, Any]
    model: Model
    photographs: Photographs
    protocol: Protocol
    samples: Samples
    summary: dict[str, Any]
    tokens_per_caption: float
    captions_per_second: float
    cold_start: dict[str, Any] | None
    peak_memory_bytes: int | None
    energy: dict[str, Any]
    batch: dict[str, Any] | None
    soak: dict[str, Any] | None = None
    notes: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """The object that `read_result` reads back to an equal result."""
        found: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(self)))
        return found


def header(kind: str, target: str, command: Sequence[str], machine: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that every kind of result begins with; `created` is now, in UTC."""
    now = datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "schema": list(SCHEMA),
        "kind": kind,
        "target": target,
        "created": now,
        "command": list(command),
        "machine": dict(machine),
    }


def sampled_every(captions: int, photographs: int) -> int:
    """Every how many captions a sample is kept, so that at most MAX_SAMPLES are, and of all photographs alike.

    Captions go round and round through the photographs, so the step has no divisor in common with their number.
    """
    every = math.ceil(captions / MAX_SAMPLES)
    while every > 1 and math.gcd(every, photographs) > 1:
        every += 1
    return max(1, every)


def rounded(value: float) -> float:
    """To 4 significant digits: more than a clock on a machine with other work to do can tell."""
    return float(f"{value:.4g}")


def summarize(values_ms: Sequence[float]) -> dict[str, float]:
    """p50, p90, p99 and mean."""
    p50, p90, p99 = np.percentile(values_ms, (50, 90, 99))
    found = {"p50": p50, "p90": p90, "p99": p99, "mean": np.mean(values_ms)}
    return {name: rounded(float(value)) for name, value in found.items()}


def write_document(path: Path, document: Mapping[str, Any]) -> None:
    """Write any kind of result, whole or not at all. Raises ResultError when the file cannot be written."""
    text = json.dumps(document, ensure_ascii=False, allow_nan=False) + "\n"
    try:
        write_bytes_atomically(path, text.encode())
    except OSError as error:
        raise ResultError(f"{path}: cannot be written ({error.strerror}). Choose another --out.") from error


def read_document(path: Path, kind: str | None = None) -> dict[str, Any]:
    """Any kind of result, of which only the common fields have been checked; of one `kind` if that is given.

    Raises ResultError.
    """

    def no_constants(name: str) -> Any:
        raise ValueError(f"{name} is not JSON")

    try:
        found = json.loads(path.read_bytes().decode(), parse_constant=no_constants)
    except OSError as error:
        raise ResultError(f"{path}: cannot be read ({error.strerror}). Give a file that --out wrote.") from error
    except (ValueError, RecursionError) as error:
        raise ResultError(f"{path}: not readable as JSON ({error}). {_AGAIN}") from error
    if not isinstance(found, dict) or "schema" not in found:
        raise ResultError(f"{path}: schema is missing, expected a result of `captionlite bench`. {_AGAIN}")
    schema = found["schema"]
    is_version = isinstance(schema, list) and len(schema) == 2 and all(type(part) is int for part in schema)
    if not is_version or schema[0] < 1:
        raise ResultError(f"{path}: schema is {schema!r}, expected [{SCHEMA[0]}, {SCHEMA[1]}]. {_AGAIN}")
    if schema[0] > SCHEMA[0]:
        raise ResultError(
            f"{path}: schema is {schema[0]}.{schema[1]}, but this captionlite reads {SCHEMA[0]}.x. Upgrade it with "
            f"`pip install --upgrade captionlite`."
        )
    _check(path, found, "kind", str)
    if kind is not None and found["kind"] != kind:
        raise ResultError(f"{path}: kind is {found['kind']!r}, expected {kind!r}. Give a result of that kind.")
    for name, expected in (("target", str), ("created", str), ("command", list), ("machine", dict)):
        _check(path, found, name, expected)
    return found


def read_result(path: Path) -> Result:
    """A result of `captionlite bench run`. Raises ResultError that names file, field, found, expected, next step."""
    found = read_document(path, "latency")
    try:
        result: Result = from_json(Result, _known(Result, found), str(path))
    except ConfigError as error:
        raise ResultError(f"{error}. {_AGAIN}") from error
    _check_samples(path, result)
    return result


def _check(path: Path, found: Mapping[str, Any], name: str, expected: type) -> None:
    if name not in found:
        raise ResultError(f"{path}: {name} is missing. {_AGAIN}")
    if not isinstance(found[name], expected):
        raise ResultError(f"{path}: {name} is {found[name]!r:.80}, expected {expected.__name__}. {_AGAIN}")


def _known(cls: type[Any], obj: Any) -> Any:
    """The fields of `cls` alone: a later minor version may have added others."""
    if not isinstance(obj, dict):
        return obj
    hints = typing.get_type_hints(cls)
    return {
        name: _known(hints[name], value) if dataclasses.is_dataclass(hints[name]) else value
        for name, value in obj.items()
        if name in hints
    }


def _check_samples(path: Path, result: Result) -> None:
    """As many numbers in each list, all of them possible, and a summary of every stage that has any."""
    count = len(result.samples.tokens)
    for field in dataclasses.fields(Samples):
        values = getattr(result.samples, field.name)
        if len(values) != count:
            raise ResultError(
                f"{path}: samples.{field.name} has {len(values)} entries, expected {count} as tokens has. {_AGAIN}"
            )
        for place, value in enumerate(values):
            if not 0 <= value < 1e9:
                raise ResultError(
                    f"{path}: samples.{field.name}[{place}] is {value!r}, expected a number from 0 to 1e9. {_AGAIN}"
                )
    if not count:
        raise ResultError(f"{path}: samples has no captions, expected at least one. {_AGAIN}")
    for stage in STAGES:
        for name in ("p50", "p90", "p99", "mean"):
            value = result.summary.get(stage, {}).get(name) if isinstance(result.summary.get(stage), dict) else None
            if type(value) not in (int, float):
                raise ResultError(f"{path}: summary.{stage}.{name} is {value!r}, expected a number. {_AGAIN}")
