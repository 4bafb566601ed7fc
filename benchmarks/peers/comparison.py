"""captionlite and its peers on one model and the same photographs, in one run: prepared, checked, then timed in turns.

In every round each takes one turn: a photograph to warm up, all of its photographs encoded, then all decoded. Another
one begins each round. What counts is the median over rounds, and for ratios the median of each round's ratio to
captionlite's own loop in that round, so that other work on the machine, which comes and goes, hits both sides.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from statistics import median
from typing import Any, Literal

from captionlite.benchmarks.peers.base import Facts, Peer, PeerUnavailable, Task, Turn, Weights
from captionlite.benchmarks.peers.check import Check, check
from captionlite.benchmarks.peers.table import OWN, OWN_ROW, PEERS, Row
from captionlite.benchmarks.results import rounded
from captionlite.training.progress import Progress, silent

Status = Literal["timed", "checked", "skipped", "wrong", "failed"]


@dataclass
class Entry:
    """One peer with one kind of weights: what became of it. "checked" is right but not timed."""

    name: str
    title: str
    weights: Weights
    status: Status
    reason: str = ""
    facts: Facts = field(default_factory=Facts)
    check: Check | None = None
    turns: list[Turn] = field(default_factory=list)
    packages: tuple[str, ...] = ()

    @property
    def step_us(self) -> float:
        """Microseconds a token, median of rounds."""
        return median(turn.step_us for turn in self.turns)

    @property
    def encode_ms(self) -> float:
        """Milliseconds a photograph, median of rounds."""
        return median(turn.encode_ms for turn in self.turns)

    def over(self, other: Entry) -> float:
        """How many times as long as another a token takes: the median of the rounds' ratios."""
        return median(a.step_us / b.step_us for a, b in zip(self.turns, other.turns, strict=True))


@dataclass(frozen=True)
class Comparison:
    """Everything, captionlite's own entries first."""

    entries: tuple[Entry, ...]

    def own(self, weights: Weights) -> Entry | None:
        """captionlite's own entry with these weights, if it was timed."""
        return next((e for e in self.entries if e.name == OWN and e.weights == weights and e.turns), None)

    def ratios(self, entry: Entry) -> dict[str, float]:
        """How many times as long as captionlite's own a token takes, by captionlite's weights."""
        owns = {weights: self.own(weights) for weights in OWN_ROW.weights}
        return {weights: entry.over(own) for weights, own in owns.items() if own is not None and entry.turns}

    def to_json(self) -> list[dict[str, Any]]:
        """One object a peer."""
        return [self._entry_json(entry) for entry in self.entries]

    def versions(self) -> dict[str, str | None]:
        """Of every distribution that had a part in it; None: not installed."""
        return {name: _version(name) for name in sorted({name for entry in self.entries for name in entry.packages})}

    def _entry_json(self, entry: Entry) -> dict[str, Any]:
        turns = entry.turns
        found: dict[str, Any] = {
            "name": entry.name,
            "title": entry.title,
            "weights": entry.weights,
            "status": entry.status,
            "reason": entry.reason or None,
            "note": entry.facts.note or None,
            "threads": entry.facts.threads,
            "choices": entry.facts.choices,
            "check": asdict(entry.check) | {"different": entry.check.different} if entry.check else None,
            "photographs_timed": turns[0].photographs if turns else 0,
            "tokens_timed": turns[0].tokens if turns else 0,
            "samples": {
                "step_us": [rounded(turn.step_us) for turn in turns],
                "encode_ms": [rounded(turn.encode_ms) for turn in turns],
            },
            "summary": None,
        }
        if turns:
            found["summary"] = {
                "step_us": rounded(entry.step_us),
                "encode_ms": rounded(entry.encode_ms),
                "step_over_captionlite": {weights: rounded(r) for weights, r in self.ratios(entry).items()},
            }
        return found


def compare(task: Task, names: Sequence[str], rounds: int, progress: Progress = silent) -> Comparison:
    """Prepare and check these peers, then time those that are right over so many rounds (0: none is timed).

    A peer that cannot run here is "skipped" with its reason, one whose captions are others "wrong", and one that breaks
    "failed"; none of these is timed.
    """
    wanted = [(OWN, OWN_ROW, weights) for weights in OWN_ROW.weights]
    wanted += [(name, PEERS[name], weights) for name in names for weights in PEERS[name].weights]
    if task.quantized is None:
        wanted = [(name, row, weights) for name, row, weights in wanted if weights == "float32"]
    with _prepared(task, wanted, progress) as made:
        entries = [entry for entry, _ in made]
        _check_all(task, made, progress)
        if rounds:
            _time([(e, peer) for e, peer in made if peer is not None and e.status == "checked"], task, rounds, progress)
    return Comparison(tuple(entries))


@contextmanager
def _prepared(
    task: Task, wanted: Sequence[tuple[str, Row, Weights]], progress: Progress
) -> Iterator[list[tuple[Entry, Peer | None]]]:
    made: list[tuple[Entry, Peer | None]] = []
    try:
        with progress(len(wanted), "preparing") as advance:
            for name, row, weights in wanted:
                kind = row.kind
                entry = Entry(name, kind.title, weights, "checked", packages=kind.packages)
                task.report(f"preparing {name} ({weights})")
                peer = None
                try:
                    peer = row.prepare(task, weights)
                    entry.facts = peer.facts
                except PeerUnavailable as reason:
                    entry.status, entry.reason = "skipped", str(reason)
                except Exception as error:  # in other people's libraries; the other peers go on
                    entry.status, entry.reason = "failed", _told(error)
                made.append((entry, peer))
                advance(1)
        yield made
    finally:
        for _, peer in made:
            if peer is not None:
                peer.close()


def _check_all(task: Task, made: Sequence[tuple[Entry, Peer | None]], progress: Progress) -> None:
    """captionlite's own float32 captions are the reference, and those of a quantized bundle for the same files."""
    reference: dict[Weights, list[list[int]]] = {}
    with progress(len(made), "comparing captions") as advance:
        for entry, peer in made:
            advance(1)
            if peer is None:
                continue
            task.report(f"captions of {entry.name} ({entry.weights})")
            try:
                found = peer.captions(task.photographs)
            except Exception as error:  # as above
                entry.status, entry.reason = "failed", _told(error)
                continue
            if entry.name == OWN:
                reference[entry.weights] = found
            counted = entry.name == OWN or entry.weights in peer.own_numerics
            against: Weights = "float32" if counted else entry.weights
            entry.check = check(task.captioner(against), task.photographs, reference[against], found)
            if entry.check.different and not counted:
                entry.status = "wrong"
                entry.reason = (
                    f"{entry.check.different} of {entry.check.photographs} captions are not captionlite's: "
                    f"{entry.check.first_difference}"
                )


def _time(made: list[tuple[Entry, Peer]], task: Task, rounds: int, progress: Progress) -> None:
    gc.collect()
    gc.freeze()  # or Python would look through all of TensorFlow for garbage while others are timed
    try:
        with progress(rounds * len(made), "timing in turns") as advance:
            for number in range(rounds):
                for place in range(len(made)):
                    entry, peer = made[(number + place) % len(made)]
                    entry.turns.append(peer.turn(task.photographs[: peer.timed_photographs]))
                    advance(1)
    finally:
        gc.unfreeze()
    for entry, _ in made:
        entry.status = "timed"


def _told(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or ['it said nothing'])[0]}"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
