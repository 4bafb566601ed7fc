"""One captionlite bundle under other Pythons: what their command lines answer, and the tolerances learned from it."""

from __future__ import annotations

import json
import math
import signal
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from decimal import ROUND_CEILING, Decimal
from pathlib import Path
from typing import Any

HERE = "here"
MARGIN = 2
LEAST_TOLERANCE = 1e-6  # a few units in the last place of float32: what was equal to the bit on these CPUs may not be


@dataclass(frozen=True)
class Runner:
    """A name and the command line that starts its Python; `environment` is its `captionlite env --json`, or empty."""

    name: str
    command: tuple[str, ...]
    environment: dict[str, Any]
    reason: str | None = None  # why there is no environment

    @property
    def interpreter(self) -> str | None:
        """ "ai-edge-litert", "tflite-runtime" or "tensorflow"."""
        found: str | None = self.environment.get("interpreter", {}).get("name")
        return found


@dataclass(frozen=True)
class Row:
    """One bundle under one runner. `error` is the worst relative RMS error of verify and `tensor` has it; inf is NaN.

    `reasons` say what could not be done; what it would have found is None then.
    """

    runner: str
    bundle: str
    recipe: str
    tensor: str | None = None
    error: float | None = None
    passed: bool | None = None
    captions: tuple[str, ...] | None = None  # "" where the photograph could not be read
    captions_equal: int | None = None
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class Learned:
    """What the runs say of a recipe's tolerance. `worst` is the largest error of all, whatever the interpreter."""

    recipe: str
    stated: float
    error: float | None
    tolerance: float | None
    runner: str | None
    worst: float | None

    @property
    def exceeded(self) -> bool:
        return self.worst is not None and self.worst > self.stated


class UnansweredError(Exception):
    """A command that did not give what it was asked for; the message says what came instead."""


def start(name: str, command: Sequence[str], timeout_s: float) -> Runner:
    """The runner with its environment, or with the reason why it has none."""
    try:
        environment = _objects(command, ["env", "--json"], timeout_s)[0]
        if not isinstance(environment.get("interpreter"), dict):
            raise UnansweredError(f"env --json: no interpreter in {environment}")
    except UnansweredError as error:
        return Runner(name, tuple(command), {}, str(error))
    return Runner(name, tuple(command), environment)


def run(runner: Runner, name: str, recipe: str, files: tuple[Path, Path], photos: list[str], timeout_s: float) -> Row:
    """One bundle under one runner: `files` are the bundle to verify and the one to caption with."""
    if runner.reason is not None:
        return Row(runner.name, name, recipe, reasons=(runner.reason,))
    found: dict[str, Any] = {}
    reasons = []
    try:
        report = _objects(runner.command, ["verify", str(files[0]), "--json"], timeout_s)[0]
        found = dict(zip(("tensor", "error", "passed"), _worst(report), strict=True))
    except UnansweredError as error:
        reasons.append(f"verify: {error}")
    if photos:
        try:
            records = _objects(runner.command, ["caption", "--bundle", str(files[1]), "--json", *photos], timeout_s)
            if [record.get("image") for record in records] != photos:
                raise UnansweredError(
                    f"{len(records)} captions, expected one for each of {len(photos)} photographs in turn"
                )
            found["captions"] = tuple(str(record.get("caption", "")) for record in records)
        except UnansweredError as error:
            reasons.append(f"caption: {error}")
    return Row(runner.name, name, recipe, **found, reasons=tuple(reasons))


def compare(rows: Iterable[Row]) -> list[Row]:
    """The rows with `captions_equal` counted against those of `here`."""
    rows = list(rows)
    here = {row.bundle: row.captions for row in rows if row.runner == HERE}
    counted = []
    for row in rows:
        ours = here.get(row.bundle)
        equal = None
        if row.captions is not None and ours is not None:
            equal = sum(one == other for one, other in zip(row.captions, ours, strict=True))
        counted.append(replace(row, captions_equal=equal))
    return counted


def learn(rows: Iterable[Row], interpreters: dict[str, str | None], stated: dict[str, float]) -> list[Learned]:
    """By recipe, the tolerance that the rows call for; `interpreters` by runner, `stated` tolerances by recipe.

    None is learned where no other runner than `here` has this machine's interpreter.
    """
    rows = [row for row in rows if row.error is not None]
    result = []
    for recipe, tolerance in stated.items():
        of_recipe = [row for row in rows if row.recipe == recipe]
        alike = [row for row in of_recipe if interpreters[row.runner] == interpreters[HERE]]
        if not any(row.runner != HERE for row in alike):
            alike = []
        worst = max(of_recipe, key=_error, default=None)
        most = max(alike, key=_error, default=None)
        result.append(
            Learned(
                recipe,
                tolerance,
                error=None if most is None else most.error,
                tolerance=None if most is None else learned_tolerance(_error(most)),
                runner=None if most is None else most.runner,
                worst=None if worst is None else worst.error,
            )
        )
    return result


def learned_tolerance(error: float) -> float:
    """`MARGIN` times the error, rounded up to one significant digit; inf stays inf.

    In decimal, so that what has one digit already is not pushed up by a binary fraction.
    """
    if not math.isfinite(error):
        return error
    value = max(Decimal(repr(error)) * MARGIN, Decimal(repr(LEAST_TOLERANCE)))
    return float(value.quantize(Decimal(1).scaleb(value.adjusted()), rounding=ROUND_CEILING))


def _error(row: Row) -> float:
    return -1.0 if row.error is None else row.error


def _worst(report: dict[str, Any]) -> tuple[str, float, bool]:
    """The worst tensor of a `verify --json`, its error (NaN as inf), whether all passed. Raises UnansweredError."""
    try:
        errors = {str(name): float(check["error"]) for name, check in report["tensors"].items()}
        errors = {name: math.inf if math.isnan(error) else error for name, error in errors.items()}
        worst = max(errors, key=lambda name: errors[name])
        return worst, errors[worst], bool(report["passed"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UnansweredError(f"not a report of verify ({error!r}): {_shown(json.dumps(report))}") from None


def _objects(command: Sequence[str], arguments: list[str], timeout_s: float) -> list[dict[str, Any]]:
    """What the command line of captionlite prints there, an object a line, at least one. Raises UnansweredError.

    Exit code 1 with every line an object is an answer too: verify has found errors, or caption an unreadable file.
    """
    try:
        done = subprocess.run(
            [*command, "-m", "captionlite.runtime.cli", *arguments],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=timeout_s,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UnansweredError(f"no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise UnansweredError(f"cannot be started: {error}") from None
    stdout, stderr = done.stdout.decode(errors="replace"), done.stderr.decode(errors="replace")
    if done.returncode < 0:
        raise UnansweredError(f"ended by {signal.Signals(-done.returncode).name}{_last_line(stderr)}")
    if done.returncode > 1 or (done.returncode == 1 and not stdout.strip()):
        raise UnansweredError(f"exit code {done.returncode}{_last_line(stderr)}")
    try:
        found = [json.loads(line) for line in stdout.splitlines()]
    except ValueError:
        found = []
    if not found or not all(isinstance(one, dict) for one in found):
        raise UnansweredError(f"printed no JSON objects but {_shown(stdout)}")
    return found


def _last_line(stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip() and not line.startswith("INFO: ")]
    return f": {lines[-1].removeprefix('Error: ')}" if lines else ""


def _shown(text: str) -> str:
    return repr(text if len(text) <= 200 else f"{text[:200]}...")
