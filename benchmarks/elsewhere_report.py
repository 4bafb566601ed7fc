"""What bundles did under other Pythons, as three tables in Markdown and as JSON."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from captionlite.benchmarks.elsewhere_runs import MARGIN, Learned, Row, Runner


@dataclass(frozen=True)
class Report:
    """All that was found: rows by bundle, then by runner. `golden` is the number of photographs recorded here."""

    runners: tuple[Runner, ...]
    rows: tuple[Row, ...]
    learned: tuple[Learned, ...]
    photographs: int
    golden: int | None

    def to_json(self) -> dict[str, Any]:
        """One JSON object; an error that is no number (inf, from NaN) is the string "inf"."""
        return {
            "photographs": self.photographs,
            "golden_photographs_recorded_here": self.golden,
            "margin": MARGIN,
            "runners": [asdict(runner) for runner in self.runners],
            "rows": [{**_finite(asdict(row)), "captions": row.captions and list(row.captions)} for row in self.rows],
            "learned": [{**_finite(asdict(one)), "exceeded": one.exceeded} for one in self.learned],
        }


def markdown(report: Report) -> str:
    """The runners, the bundles under each, and the tolerances learned."""
    own = "golden vectors of the bundles"
    golden = own if report.golden is None else f"golden vectors of {report.golden} photographs, recorded here"
    runners = [
        (
            runner.name,
            _text(runner.environment.get("machine")),
            " ".join([_text(runner.environment.get("cpu")), *runner.environment.get("cpu_features", ())]),
            " ".join(_text(runner.environment.get("interpreter", {}).get(key)) for key in ("name", "version")),
            _text(runner.environment.get("python")),
            _text(runner.environment.get("numpy")),
        )
        for runner in report.runners
    ]
    notes: list[str] = []
    for row in report.rows:
        notes += [reason for reason in row.reasons if reason not in notes]
    rows = [
        (
            row.bundle,
            row.recipe,
            row.runner,
            "-" if row.error is None else f"{row.error:.1e}",
            _text(row.tensor),
            {True: "yes", False: "NO", None: "-"}[row.passed],
            "-" if row.captions_equal is None else f"{row.captions_equal} of {report.photographs}",
            " ".join(f"[{notes.index(reason) + 1}]" for reason in row.reasons),
        )
        for row in report.rows
    ]
    learned = [
        (
            one.recipe,
            "-" if one.error is None else f"{one.error:.1e}",
            _text(one.runner),
            "-" if one.tolerance is None else f"{one.tolerance:g}",
            f"{one.stated:g}" + (" EXCEEDED" if one.exceeded else ""),
        )
        for one in report.learned
    ]
    return "\n".join(
        [
            *_table(("runner", "machine", "CPU", "interpreter", "Python", "NumPy"), runners),
            "",
            f"Worst tensor of verify, on {golden}:",
            "",
            *_table(("bundle", "recipe", "runner", "error", "tensor", "passed", "captions as here", "notes"), rows),
            "",
            *(line for number, note in enumerate(notes, 1) for line in (f"[{number}] {' '.join(note.split())}", "")),
            f"Tolerances: learned is {MARGIN} times the largest error under this machine's interpreter, rounded up:",
            "",
            *_table(("recipe", "largest error", "under", "learned", "stated"), learned),
        ]
    )


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    cells = [head, *([cell.replace("|", "\\|") for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [f"| {' | '.join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))} |" for row in cells]
    return [lines[0], f"| {' | '.join('-' * width for width in widths)} |", *lines[1:]]


def _text(value: object) -> str:
    return "-" if value is None else str(value)


def _finite(record: dict[str, Any]) -> dict[str, Any]:
    return {k: "inf" if isinstance(v, float) and math.isinf(v) else v for k, v in record.items()}
