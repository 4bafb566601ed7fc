"""What a search has measured so far, on disk after every row: a search that was stopped goes on where it stood."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

from captionlite.export.errors import ExportError
from captionlite.export.pareto import Budget, Point, front
from captionlite.runtime.files import write_bytes_atomically

TABLE, MARKDOWN, PLOT, RECIPE = "search.json", "search.md", "pareto.png", "auto.json"
VERSION = 1


@dataclasses.dataclass(frozen=True)
class Trial:
    """One group at one level, all others float32. ``size_bytes``: change of the graphs against float32.

    ``milliseconds``: change of a whole caption where this group leaves the level and all others are int8, because a
    group alone would also pay for the conversions at its edges; None where that was not measured. ``error``: why there
    is no such file.
    """

    group: str
    level: str
    size_bytes: int = 0
    encoder_rms: float = 0.0
    divergence: float = 0.0
    top1_changed: float = 0.0
    milliseconds: float | None = None
    error: str | None = None


class Table:
    """The rows of one search by key. Its inputs are everything that rows depend on but the machine."""

    def __init__(self, folder: Path, inputs: dict[str, Any]) -> None:
        """Reads what an earlier search with the same inputs left in ``folder``, which is made if it is not there.

        Raises ExportError when the folder holds a search with other inputs, or a file that is no table.
        """
        self.folder, self.inputs = folder, inputs
        self.trials: dict[str, Trial] = {}
        self.points: dict[str, Point] = {}
        self.facts: dict[str, Any] = {}
        path = folder / TABLE
        try:
            folder.mkdir(parents=True, exist_ok=True)
            found = json.loads(path.read_text(encoding="utf-8")) if path.exists() else None
            if found is None:
                return
            if found["version"] != VERSION or found["inputs"] != inputs:
                raise ExportError(f"{path}: of a search with other inputs ({_differing(found, inputs)}); {_ELSEWHERE}")
            self.facts = found["facts"]
            self.trials = {key: Trial(**row) for key, row in found["trials"].items()}
            points = {key: {**row, "ciders": tuple(row["ciders"])} for key, row in found["points"].items()}
            self.points = {key: Point(**row) for key, row in points.items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ExportError(f"{path}: not readable as the table of a search ({error}); {_ELSEWHERE}") from error

    def save(self) -> None:
        """Writes the table whole or not at all."""
        content = {
            "version": VERSION,
            "inputs": self.inputs,
            "facts": self.facts,
            "trials": {key: dataclasses.asdict(row) for key, row in self.trials.items()},
            "points": {key: dataclasses.asdict(row) for key, row in self.points.items()},
        }
        write_bytes_atomically(self.folder / TABLE, (json.dumps(content) + "\n").encode())

    def write_markdown(self, points: list[Point], chosen: Point | None, budget: Budget) -> None:
        """The same for people: the points of this search, and what every group did."""
        on_front = {point.key for point in front(points)}
        lines = [
            "# Sensitivity search",
            "",
            f"Budgets: {budget}. " + (f"Chosen: {chosen.name}." if chosen else "No point meets them."),
            "",
            "`front`: no other point is as small, as fast and as good. Times are this machine's, the processor",
            "time of one thread, a whole caption of average length; CIDEr is that of greedy captions on the dev",
            "photographs.",
            "",
            "| point | graphs bytes | encoder ms | step us | caption ms | divergence | CIDEr | front |",
            "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- |",
        ]
        for p in sorted(points, key=lambda p: (p.size_bytes, p.name)):
            mark = "chosen" if chosen and p.key == chosen.key else "front" if p.key in on_front else ""
            lines.append(
                f"| {p.name} | {p.size_bytes:,} | {p.encoder_ms:.2f} | {p.step_us:.0f} | {p.whole_ms:.2f} "
                f"| {p.divergence:.4f} | {p.cider:.4f} | {mark} |"
            )
        lines += [
            "",
            "## One group at a time",
            "",
            "Bytes and divergence (nats a position): the group at this level, everything else float32. Milliseconds of",
            "a caption: against the group in float32, everything else int8.",
            "",
            "| group | level | bytes | ms | encoder RMS | divergence | other likeliest words |",
            "| --- | --- | ---: | ---: | ---: | ---: | ---: |",
        ]
        for row in self.trials.values():
            if row.error:
                lines.append(f"| {row.group} | {row.level} | not possible: {row.error.splitlines()[0]} | | | | |")
                continue
            time = "" if row.milliseconds is None else f"{row.milliseconds:+.3f}"
            lines.append(
                f"| {row.group} | {row.level} | {row.size_bytes:+,} | {time} | {row.encoder_rms:.4f} "
                f"| {row.divergence:.5f} | {100 * row.top1_changed:.2f} % |"
            )
        write_bytes_atomically(self.folder / MARKDOWN, ("\n".join(lines) + "\n").encode())


_ELSEWHERE = "give another --search, or remove the folder to start anew"


def _differing(found: Any, inputs: dict[str, Any]) -> str:
    theirs = found.get("inputs", {})
    names = [name for name in inputs if theirs.get(name) != inputs[name]]
    return ", ".join(names) or "another version of the search"
