"""One `captionlite bench run`: what is measured of a target, in which order, and the result of what there is.

First the captions one by one, which is what counts; then a batch, cold starts in fresh processes, and the soak. Ctrl-C
ends it at any point after the first caption, with a result that says that it is not complete.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from captionlite.benchmarks import energy as power
from captionlite.benchmarks.cold_start import alternate
from captionlite.benchmarks.countdown import Countdown
from captionlite.benchmarks.devices import ROOT, describe_machine, finish, read_state
from captionlite.benchmarks.latency import Limits, Recording, Subject, Timed, record
from captionlite.benchmarks.photo_set import PhotoSet
from captionlite.benchmarks.results import Model, Result, header, rounded
from captionlite.benchmarks.soak import SoakLog, soak


@dataclass(frozen=True)
class Target:
    """Something to be measured, loaded and ready. What it has no way to do is None."""

    name: Literal["edge", "keras", "gpu"]
    model: Model
    photographs: PhotoSet
    subject: Subject
    protocol: dict[str, Any]  # decoding, encoder_threads, decoder_threads
    batch: Callable[[], dict[str, Any]] | None = None
    cold_command: list[str] | None = None  # a process that captions the first photograph and prints the caption
    device: dict[str, Any] | None = None  # what Keras computes on
    delegate: dict[str, Any] | None = None  # what the encoder of a bundle goes through
    device_memory: Callable[[], int | None] = lambda: None
    notes: tuple[str, ...] = ()
    no_energy: str | None = None  # why no meter could tell


@dataclass(frozen=True)
class Plan:
    """How much of everything."""

    limits: Limits
    quick: bool
    cold_starts: int
    energy: bool = False
    idle_seconds: float = 10.0
    soak_minutes: float | None = None
    command: tuple[str, ...] = ()


@dataclass
class _Measured:
    """What there is so far."""

    recording: Recording = field(default_factory=Recording)
    energy: dict[str, Any] = field(default_factory=lambda: {"unavailable": "not asked for; give --energy"})
    batch: dict[str, Any] | None = None
    cold_start: dict[str, Any] | None = None
    peak_memory_bytes: int | None = None
    soak_log: SoakLog | None = None
    complete: bool = False


def measure(
    target: Target,
    plan: Plan,
    *,
    countdown: Countdown | None = None,
    root: Path = ROOT,
    clock: Callable[[], float] = time.perf_counter,
    sleep: Callable[[float], None] = time.sleep,
) -> Result:
    """Measure a target. Interrupted before the first counted caption it raises KeyboardInterrupt as anything would.

    Raises ImageError, CaptionliteError.
    """
    countdown = countdown or Countdown()
    machine = {**describe_machine(root), **({"accelerator": target.device} if target.device else {})}
    machine |= {"delegate": target.delegate} if target.delegate else {}
    measured = _Measured()
    try:
        _measure(target, plan, measured, countdown, root, clock, sleep)
        measured.complete = True
    except KeyboardInterrupt:
        if not measured.recording.captions:
            raise
    countdown.done()
    photographs = target.photographs.described
    fields = header("latency", target.name, plan.command, finish(machine, root))
    return Result(
        **{**fields, "schema": tuple(fields["schema"]), "command": plan.command},
        complete=measured.complete,
        model=target.model,
        photographs=photographs,
        **measured.recording.fields(photographs.count, plan.limits, {"quick": plan.quick, **target.protocol}),
        cold_start=measured.cold_start,
        peak_memory_bytes=measured.peak_memory_bytes,
        energy=measured.energy,
        batch=measured.batch,
        soak=None if measured.soak_log is None else measured.soak_log.to_json(),
        notes=target.notes,
    )


def _measure(
    target: Target,
    plan: Plan,
    measured: _Measured,
    countdown: Countdown,
    root: Path,
    clock: Callable[[], float],
    sleep: Callable[[float], None],
) -> None:
    contents, limits = target.photographs.contents, plan.limits
    watch: _Watch | None = None
    if plan.energy:
        meter, reason = (None, target.no_energy) if target.no_energy else power.find_meter(root)
        if meter is None:
            measured.energy = {"unavailable": reason}
        else:
            watch = _Watch(meter, clock)
            countdown.say(f"measuring idle power for {plan.idle_seconds:g} s")
            watch.idle(plan.idle_seconds, sleep)

    def between(timed: Timed, seconds: float) -> None:
        if watch is not None:
            watch.sample()
        done = len(measured.recording.captions)
        left_s = max(limits.min_seconds - seconds, (limits.min_captions - done) * seconds / done)
        countdown.tell(f"{done} captions", left_s)

    countdown.say(f"measuring, at least {limits.min_captions} captions and {limits.min_seconds:g} s")
    try:
        warmed_up = watch.start if watch is not None else lambda: None
        record(target.subject, contents, limits, measured.recording, clock=clock, between=between, warmed_up=warmed_up)
    finally:
        if watch is not None and measured.recording.captions:
            measured.energy = watch.describe(len(measured.recording.captions))
    measured.peak_memory_bytes = target.device_memory()
    if target.batch is not None:
        countdown.say("measuring batches")
        measured.batch = target.batch()
    if target.cold_command is not None and plan.cold_starts:
        countdown.say(f"measuring {plan.cold_starts} cold starts")
        side = alternate({target.name: target.cold_command}, plan.cold_starts)[target.name]
        told = side.to_json()
        told["turns_seconds"] = [rounded(seconds) for seconds in told["turns_seconds"]]
        measured.cold_start = {**told, "seconds": rounded(side.seconds)}
        measured.peak_memory_bytes = int(side.peak_memory_bytes)
    if plan.soak_minutes is not None:
        seconds = 60 * plan.soak_minutes
        countdown.say(f"soaking for {plan.soak_minutes:g} minutes")
        measured.soak_log = SoakLog(state=lambda: read_state(root))
        soak(
            target.subject,
            contents,
            seconds,
            measured.soak_log,
            clock=clock,
            between=lambda now_s: countdown.tell(f"{now_s:.0f} s", seconds - now_s),
        )


class _Watch:
    """A meter over idling and work. One that falls silent spoils the energy, not the result."""

    def __init__(self, meter: power.Meter, clock: Callable[[], float]) -> None:
        self._name = meter.name
        self._energy = power.Energy(meter, clock)
        self._idle: power.Reading | None = None
        self._failed = ""

    def idle(self, seconds: float, sleep: Callable[[float], None]) -> None:
        with self._noting():
            self._idle = self._energy.idle(seconds, sleep)

    def start(self) -> None:
        with self._noting():
            self._energy.start()

    def sample(self) -> None:
        if not self._failed:
            with self._noting():
                self._energy.sample()

    def describe(self, captions: int) -> dict[str, Any]:
        with self._noting():
            work = self._energy.stop()
        if self._failed or self._idle is None:
            return {"unavailable": f"{self._name} stopped answering ({self._failed})"}
        return power.describe(self._name, self._idle, work, captions)

    @contextmanager
    def _noting(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:
            self._failed = self._failed or str(error)
