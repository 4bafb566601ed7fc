"""What reports say of one result: its name, its machine, its score, and what to keep in mind with its figures.

A result is a file that somebody else may have written. results.py checks what figures are made of; the rest (machine,
scores, energy) is looked up here without trust, and `clean` takes out of every text what would move a cursor.
"""

from __future__ import annotations

import math
import shlex
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from captionlite.benchmarks.latency import FULL, QUICK
from captionlite.benchmarks.results import Result

BUSY = 0.5  # load average from which other work is in the figures
LONGEST = 80  # characters of a name


def clean(text: str, longest: int = LONGEST) -> str:
    """Printable characters in one line, not too many."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= longest else line[: longest - 1] + "…"


def number(value: Any, *keys: str) -> float | None:
    """The finite number below these keys (of the value itself without any), if there is one."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        return float(value) if math.isfinite(value) else None
    except OverflowError:  # an integer of hundreds of digits
        return None


def text(value: Any, *keys: str, longest: int = LONGEST) -> str:
    """The text below these keys, clean; empty if there is none."""
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else None
    return clean(value, longest) if isinstance(value, str) else ""


def is_gpu(result: Result) -> bool:
    """Measured on a GPU, which --target gpu --allow-cpu is not."""
    return result.target == "gpu" and text(result.machine, "accelerator", "kind") == "gpu"


def target_name(result: Result) -> str:
    """edge, keras, gpu, or "gpu on cpu" where there was none."""
    if result.target == "gpu" and not is_gpu(result):
        return f"gpu on {text(result.machine, 'accelerator', 'kind') or 'no GPU'}"
    return str(result.target)


def machine_name(result: Result) -> str:
    """The GPU, the board, or the processor and how many cores; and the delegate that the encoder went through."""
    machine = result.machine
    if is_gpu(result):
        return text(machine, "accelerator", "device") or "GPU"
    name = text(machine, "device") or text(machine, "cpu") or text(machine, "machine") or "unknown machine"
    cores = number(machine, "cores")
    name = name if cores is None else f"{name}, {cores:.0f} core{'' if cores == 1 else 's'}"
    delegate = text(machine, "delegate", "library")
    return f"{name}, encoder on {delegate.rpartition('/')[2]}" if delegate else name


def gpu_name(result: Result) -> str:
    """Device and backend: there may be results of both backends."""
    return f"{machine_name(result)} ({text(result.machine, 'accelerator', 'backend') or 'unknown backend'})"


def threads_name(result: Result) -> str:
    """Of encoder and decoder; one number where both have as many, nothing on a GPU."""
    encoder, decoder = result.protocol.encoder_threads, result.protocol.decoder_threads
    if encoder is None and decoder is None:
        return ""
    shown = ["?" if count is None else str(count) for count in (encoder, decoder)]
    return shown[0] if encoder == decoder else " / ".join(shown)


def threads_label(result: Result) -> str:
    """The encoder's, in a word."""
    count = result.protocol.encoder_threads
    return "" if count is None else f"{count} thread{'' if count == 1 else 's'}"


_PARTS: dict[str, Callable[[Result], str]] = {
    "family": lambda result: clean(result.model.family),
    "target": target_name,
    "recipe": lambda result: clean(result.model.recipe),
    "threads": threads_label,
    "machine": machine_name,
    "name": lambda result: clean(result.model.name),
}
_ALWAYS, _IF_NEEDED = ("target", "recipe"), ("name", "machine")


def labels(found: Sequence[tuple[str, Result]]) -> list[str]:
    """Names by (path, result), as short as they can be and still tell all of them apart."""
    parts = {name: [part(result) for _, result in found] for name, part in _PARTS.items()}
    shown = [name for name, values in parts.items() if name in _ALWAYS or len(set(values)) > 1]

    def joined(names: Sequence[str]) -> list[str]:
        return [" ".join(filter(None, words)) for words in zip(*(parts[name] for name in names), strict=True)]

    for name in _IF_NEEDED:  # a machine that differs where the target does tells nothing more
        fewer = [each for each in shown if each != name]
        if len(set(joined(fewer))) == len(set(joined(shown))):
            shown = fewer
    told = joined(shown)
    told = _apart(told, [f"({clean(Path(path).stem)})" for path, _ in found])
    return _apart(told, [f"#{place}" for place in range(1, len(found) + 1)])


def _apart(told: Sequence[str], more: Sequence[str]) -> list[str]:
    count = Counter(told)
    return [f"{label} {extra}" if count[label] > 1 else label for label, extra in zip(told, more, strict=True)]


def caveats(result: Result) -> list[tuple[str, str]]:
    """What whoever reads this result's figures should know, each with a figure of its own or nothing."""
    told = [(clean(note, 300), "") for note in result.notes]
    if not result.complete:
        told.append(("interrupted before the end, with so many captions", f"{result.protocol.captions:,}"))
    loads = result.machine.get("load_average")
    before = loads.get("before") if isinstance(loads, Mapping) else None
    load = number(before[0]) if isinstance(before, list) and before else None
    if load is not None and load > BUSY:
        told.append(("other work on the machine is in the figures; load average before", f"{load:.1f}"))
    flags = text(result.machine, "throttled_after")
    if flags not in ("", "0x0"):
        told.append(("the machine reports under-voltage or throttling; get_throttled", flags))
    return told


def scores_of(result: Result) -> list[tuple[str, str, float]]:
    """Data set, recipe and CIDEr of the scores that a model came with, of those for this result's decoding.

    Their titles are as `captionlite export --scores` takes them: "Flickr8k test, int8, greedy".
    """
    found = []
    for title, values in result.model.scores.items():
        data, *parts = (part.strip() for part in title.split(","))
        cider = number(values, "cider")
        if cider is not None and len(parts) == 2 and parts[1] == result.protocol.decoding:
            found.append((clean(data), parts[0], cider))
    return found


def ciders(results: Sequence[Result]) -> tuple[str | None, list[float | None]]:
    """The data set that scores most of the results, and each result's CIDEr on it.

    A bundle's manifest may have the scores of its model's other recipes: a score is looked for in all results of one
    trained model. Keras computes what the float32 bundle does, and has its score.
    """
    known: dict[tuple[str, str, str], float] = {}
    for result in results:
        for data, recipe, cider in scores_of(result):
            known.setdefault((data, result.model.id, recipe), cider)
    best: tuple[str | None, list[float | None]] = (None, [None] * len(results))
    for data in dict.fromkeys(data for data, _, _ in known):
        found = [known.get((data, result.model.id, result.model.recipe)) for result in results]
        if found.count(None) < best[1].count(None):
            best = data, found
    return best


def gpu_command(results: Sequence[Result], folder: Path) -> str:
    """The command that measures on a GPU what these results of one trained model are of; --run as one of them had it.

    Where none was of Keras, the run is called as its preset is by default, runs/NAME.
    """
    first = results[0]
    run = next(filter(None, (_option(result.command, "--run") for result in results)), None)
    words = ["captionlite", "bench", "run", "--target", "gpu"]
    words += ["--run", run or f"runs/{clean(first.model.name)}"]
    for photographs in first.photographs.source.split(", "):
        words += ["--photos", clean(photographs, 1000)]
    protocol = first.protocol
    limits = QUICK if protocol.quick else FULL
    words += ["--quick"] if protocol.quick else []
    words += ["--captions", str(protocol.min_captions)] if protocol.min_captions != limits.min_captions else []
    words += ["--seconds", f"{protocol.min_seconds:g}"] if protocol.min_seconds != limits.min_seconds else []
    words += ["--out", str(folder / f"{clean(first.model.family)}-gpu.json")]
    return f"KERAS_BACKEND=jax {shlex.join(words)}"


def _option(command: Sequence[str], name: str) -> str | None:
    """The value of an option on a command line."""
    for place, word in enumerate(command):
        if word == name and place + 1 < len(command):
            return clean(command[place + 1], 1000)
        if word.startswith(f"{name}="):
            return clean(word.removeprefix(f"{name}="), 1000)
    return None
