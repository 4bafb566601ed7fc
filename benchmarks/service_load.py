"""The service under load: four clients send good, huge, truncated and hostile uploads, and everything is checked.

    python -m captionlite.benchmarks.service_load --clients 4 --seconds 60 PHOTO...

In one run, against the real command on loopback:
- cold start: from starting the process to the first caption through it, and memory after 1,000 requests;
- load: every good upload must get the very tokens that `Captioner.caption` gives here, every bad one a 4xx that says
  why; the process must stay the same and its memory flat;
- throughput: good uploads alone, in turns with `Captioner.caption` called directly in this process;
- kill: kill -9 under load, restarted by the rules that the systemd unit states; only what was in flight may be lost.
Exit code 3 when a bar is missed.
"""

from __future__ import annotations

import json
import os
import random
import sys
from collections.abc import Callable, Sequence
from itertools import cycle
from pathlib import Path
from statistics import median, quantiles
from threading import Event, Lock, Thread
from time import perf_counter, sleep
from typing import Any

import click

from captionlite.benchmarks.service_clients import Tally, for_seconds, run_clients
from captionlite.benchmarks.service_process import (
    Supervisor,
    first_caption_s,
    free_port,
    resident_mb,
    stop,
)
from captionlite.benchmarks.service_uploads import Upload, bad_uploads, good_uploads
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.files import write_bytes_atomically
from captionlite.runtime.interpreter import core_count, without_chatter

LIMIT_MB = 10
GOOD_SHARE = 0.7
WARM_UP_S = 10.0
ROUNDS = 5


def measure_load(options: Sequence[str], good: list[Upload], bad: list[Upload], clients: int, seconds: float) -> Any:
    """Mixed uploads for `seconds`, after a warm-up of the same."""

    def choose(draw: random.Random) -> Upload:
        return draw.choice(good) if draw.random() < GOOD_SHARE else draw.choice(bad)

    port = free_port()
    _, process = first_caption_s(port, options, good[0])
    start_mb = resident_mb(process)
    run_clients(port, clients, choose, for_seconds(min(WARM_UP_S, seconds)), Tally())
    tally, seen = Tally(), [resident_mb(process)]
    done = Event()

    def watch() -> None:
        while not done.wait(0.5):
            seen.append(resident_mb(process))

    watcher = Thread(target=watch)
    watcher.start()
    run_clients(port, clients, choose, for_seconds(seconds), tally)
    done.set()
    watcher.join()
    alive = process.poll() is None
    sleep(0.2)
    end_mb = resident_mb(process) if alive else float("nan")
    code = stop(process)
    if not tally.good_ms:
        raise CaptionliteError(f"Not one good upload was captioned: {tally.failed[:1] or tally.lost[:1]}")
    return {
        "seconds": seconds,
        "clients": clients,
        "answers": dict(sorted(tally.answers.items())),
        "wrong_captions": tally.wrong[:10],
        "good_without_caption": tally.failed[:10],
        "bad_without_4xx": tally.let_in[:10],
        "broken_connections": tally.lost[:10],
        "same_process": alive,
        "exit_code": code,
        "good_p50_ms": median(tally.good_ms),
        "good_p99_ms": quantiles(tally.good_ms, n=100)[98] if len(tally.good_ms) > 1 else tally.good_ms[0],
        "good_per_second": len(tally.good_ms) / seconds,
        "memory_start_mb": start_mb,
        "memory_warm_mb": seen[0],
        "memory_end_mb": end_mb,
        "memory_peak_mb": max(seen),
        "memory_growth_mb": _growth(seen),
    }


def _growth(seen: list[float]) -> float:
    """Between the medians of the first and the last quarter: one large upload at the right moment is no growth."""
    quarter = max(len(seen) // 4, 1)
    return median(seen[-quarter:]) - median(seen[:quarter])


def measure_throughput(
    options: Sequence[str], good: list[Upload], captioner: Captioner, clients: int, seconds: float
) -> Any:
    """Captions a second through the service and directly, in turns of a share of `seconds` each."""
    raw = [upload for upload in good if upload.name.endswith(", raw")]
    port = free_port()
    _, process = first_caption_s(port, options, raw[0])
    turn_s = seconds / (2 * ROUNDS)
    direct, served = [], []
    for _ in range(ROUNDS):
        ends, count = perf_counter() + turn_s, 0
        for upload in cycle(raw):
            captioner.caption(upload.body)
            count += 1
            if perf_counter() >= ends:
                break
        direct.append(count / turn_s)
        tally = Tally()
        run_clients(port, clients, lambda draw: draw.choice(raw), for_seconds(turn_s), tally)
        served.append(len(tally.good_ms) / turn_s)
    stop(process)
    ratios = [one / other for one, other in zip(served, direct, strict=True)]
    return {
        "direct_per_second": median(direct),
        "served_per_second": median(served),
        "ratio": median(ratios),
        "rounds_ratios": ratios,
    }


def measure_kill(options: Sequence[str], good: list[Upload], clients: int, seconds: float) -> Any:
    """kill -9 a third of the way, restarted by the unit's rules; then a clean stop, after which it stays down.

    In flight is what was sent before the killed process was gone: until then the kernel still takes connections for it.
    """
    port = free_port()
    supervisor = Supervisor(port, options)
    tally, after = Tally(), Tally()
    started = perf_counter()
    killed_at: list[float] = []
    back_at: list[float] = []

    def choose(draw: random.Random) -> Upload:
        if not killed_at and perf_counter() - started > seconds / 3:
            killed_at.append(perf_counter())
            supervisor.kill()
        if killed_at and not back_at and tally.good_ms and supervisor.restarts and _answers(port):
            back_at.append(perf_counter())
        return draw.choice(good)

    run_clients(port, clients, choose, for_seconds(seconds), tally)
    run_clients(port, clients, lambda draw: draw.choice(good), for_seconds(seconds / 6), after)
    gone_at = supervisor.gone_at  # of the killed one: stop() is another end
    code = supervisor.stop()
    return {
        "restart": supervisor.rules.restart,
        "restart_s": supervisor.rules.restart_s,
        "restarts": supervisor.restarts,
        "away_s": back_at[0] - killed_at[0] if back_at else None,
        "in_flight_lost": sum(began <= gone_at for began in tally.lost_at),
        "others_lost": sum(began > gone_at for began in tally.lost_at) + len(after.lost),
        "lost": [*tally.lost, *after.lost][:10],
        "wrong_captions": [*tally.wrong, *after.wrong][:10],
        "good_without_caption": [*tally.failed, *after.failed][:10],
        "captions_after": len(after.good_ms),
        "exit_code": code,
    }


def _answers(port: int) -> bool:
    import socket

    try:
        socket.create_connection(("127.0.0.1", port), 1).close()
    except OSError:
        return False
    return True


def measure_cold(options: Sequence[str], good: list[Upload], clients: int, repeats: int, requests: int) -> Any:
    """Cold starts, and the memory of the last of these processes after `requests` good requests."""
    times: list[float] = []
    for turn in range(repeats + 1):  # the first fills the file cache
        port = free_port()
        seconds, process = first_caption_s(port, options, good[0])
        if turn:
            times.append(seconds)
        if turn < repeats:
            stop(process)
    first_mb = resident_mb(process)
    tally, asked = Tally(), [0]
    lock = Lock()

    def enough() -> bool:
        with lock:
            asked[0] += 1
            return asked[0] > requests

    run_clients(port, clients, lambda draw: draw.choice(good), enough, tally)
    memory_mb = resident_mb(process)
    stop(process)
    return {
        "first_caption_s": median(times),
        "turns_s": times,
        "memory_first_mb": first_mb,
        "requests": len(tally.good_ms),
        "memory_mb": memory_mb,
    }


def bars(found: dict[str, Any], max_growth_mb: float, min_ratio: float | None) -> dict[str, bool]:
    """What must hold, by name."""
    load, kill = found["load"], found["kill"]
    held = {
        "no wrong caption": not load["wrong_captions"] and not kill["wrong_captions"],
        "every good upload captioned": not load["good_without_caption"] and not kill["good_without_caption"],
        "every bad upload a 4xx that says why": not load["bad_without_4xx"],
        "no connection broken": not load["broken_connections"],
        "no crash": load["same_process"] and load["exit_code"] == 0 and kill["exit_code"] == 0,
        f"memory grows by at most {max_growth_mb:g} MB": load["memory_growth_mb"] <= max_growth_mb,
        "kill -9 loses what was in flight only": kill["others_lost"] == 0,
        "started again once, by the unit's rules": kill["restarts"] == 1 and kill["captions_after"] > 0,
        "1,000 requests captioned": found["cold"]["requests"] == 1000,
    }
    if min_ratio is not None:
        held[f"at least {min_ratio:g} of direct calls"] = found["throughput"]["ratio"] >= min_ratio
    return held


def table(found: dict[str, Any]) -> str:
    """The figures for people."""
    load, through, kill, cold = (found[name] for name in ("load", "throughput", "kill", "cold"))
    memory = [f"{name} {load[f'memory_{name}_mb']:.0f}" for name in ("start", "warm", "end", "peak")]
    rules = f"Restart={kill['restart']}, RestartSec={kill['restart_s']:g}"
    rows = {
        "machine": f"{found['cores']} cores, load average {found['load_average']:.1f}, {found['workers']} workers",
        "load": f"{load['clients']} clients, {load['seconds']:g} s, {load['good_per_second']:.0f} good a second",
        "answers": ", ".join(f"{name}: {count}" for name, count in load["answers"].items()),
        "wrong captions": str(len(load["wrong_captions"])),
        "bad without a 4xx": str(len(load["bad_without_4xx"])),
        "good uploads": f"p50 {load['good_p50_ms']:.1f} ms, p99 {load['good_p99_ms']:.1f} ms",
        "memory": f"{', '.join(memory)} MB; growth {load['memory_growth_mb']:+.1f} MB",
        "throughput": f"{through['served_per_second']:.0f} a second, {through['direct_per_second']:.0f} directly; "
        f"ratio {through['ratio']:.2f}",
        "kill -9": f"{kill['in_flight_lost']} in flight lost, {kill['others_lost']} others; {kill['restarts']} restart "
        f"({rules}), away {kill['away_s'] or 0:.1f} s; {kill['captions_after']} captions after",
        "cold start": f"{cold['first_caption_s']:.2f} s to the first caption, {cold['memory_first_mb']:.0f} MB then, "
        f"{cold['memory_mb']:.0f} MB after {cold['requests']:,} requests",
    }
    lines = [*rows.items(), *(("ok" if held else "MISSED", name) for name, held in found["bars"].items())]
    return "\n".join(f"{name:18} {value}" for name, value in lines)


@click.command()
@click.argument("photos", nargs=-1, required=True, type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--bundle", default="default", show_default=True, help="Bundle directory, zip or name.")
@click.option("--clients", type=click.IntRange(min=1), default=4, show_default=True)
@click.option("--seconds", type=click.FloatRange(min=2), default=60, show_default=True, help="Of the mixed load.")
@click.option("--workers", type=click.IntRange(1, 64), help="Of the service.  [default: its own]")
@click.option("--max-growth-mb", type=float, default=10, show_default=True, help="Exit 3 when memory grows by more.")
@click.option("--min-ratio", type=float, help="Exit 3 when it serves less than this share of direct calls.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="Write the JSON there.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of the table.")
def main(
    photos: tuple[Path, ...],
    bundle: str,
    clients: int,
    seconds: float,
    workers: int | None,
    max_growth_mb: float,
    min_ratio: float | None,
    out: Path | None,
    as_json: bool,
) -> None:
    """Load, throughput, kill and cold start of `captionlite serve`, all checked."""
    from captionlite.runtime.service.limits import default_workers

    options = ["--bundle", bundle, "--max-upload-mb", str(LIMIT_MB)]
    options += ["--workers", str(workers)] if workers else []
    try:
        with without_chatter():
            captioner = Captioner.from_bundle(bundle)
        good, bad = good_uploads(photos, captioner), bad_uploads(photos[0], LIMIT_MB * 10**6)
        found: dict[str, Any] = {
            "bundle": captioner.bundle.manifest.name,
            "photos": len(photos),
            "cores": core_count(),
            "workers": workers or default_workers(),
            "load_average": os.getloadavg()[0],
        }
        parts: dict[str, Callable[[], Any]] = {
            "cold": lambda: measure_cold(options, good, clients, 5, 1000),
            "load": lambda: measure_load(options, good, bad, clients, seconds),
            "throughput": lambda: measure_throughput(options, good, captioner, clients, seconds / 2),
            "kill": lambda: measure_kill(options, good, clients, max(seconds / 3, 12)),
        }
        for name, part in parts.items():
            click.echo(f"{name} ...", err=True)
            found[name] = part()
    except CaptionliteError as error:
        raise click.ClickException(str(error)) from error
    found["bars"] = bars(found, max_growth_mb, min_ratio)
    if out is not None:
        write_bytes_atomically(out, (json.dumps(found, indent=1) + "\n").encode())
    click.echo(json.dumps(found) if as_json else table(found))
    if not all(found["bars"].values()):
        sys.exit(3)


if __name__ == "__main__":
    main()
