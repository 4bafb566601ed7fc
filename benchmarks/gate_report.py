"""What the gate found: one JSON object, a Markdown page, one picture, and a table for the terminal."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from captionlite.benchmarks.bootstrap import Interval
from captionlite.benchmarks.evaluation import Evaluation
from captionlite.benchmarks.gate import Measured
from captionlite.benchmarks.gate_verdict import Bar, Verdict, percent
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.files import fsync_directory, write_bytes_atomically

SCHEMA = (1, 0)
"""Of gate.json: a newer minor version only adds fields."""
JSON_FILE, MARKDOWN_FILE, PICTURE_FILE = "gate.json", "gate.md", "gate.png"
DIFFERENT_SHOWN = 10


@dataclass(frozen=True)
class Report:
    """`about` says what was compared with what; `measured` is None where the bundle computes no numbers."""

    about: dict[str, str]
    bar: Bar
    verdict: Verdict
    measured: Measured | None

    def to_json(self, photographs: bool = False) -> dict[str, Any]:
        """Everything as one JSON object; with each photograph if asked for."""
        floors = asdict(self.bar.floors)
        report: dict[str, Any] = {
            "schema": list(SCHEMA),
            **self.about,
            "verdict": self.verdict.to_json(),
            "asked": {"min_cider_ratio": self.bar.min_cider_ratio, "source": self.bar.source, "floors": floors},
        }
        found = self.measured
        if found is None:
            return report
        report |= {
            "photographs": found.n,
            "errors": list(found.unreadable),
            "encoder": {
                output.name: {
                    "mean_cosine": output.mean_cosine,
                    "worst_cosine": output.worst_cosine,
                    "worst_photograph": output.worst_photograph,
                    "snr_db": output.snr_db,
                }
                for output in found.outputs
            },
            "logits": {
                **asdict(found.logits),
                "worst_top1": found.worst_top1.top1,
                "worst_photograph": found.worst_top1.id,
                "by_position": [asdict(step) for step in found.steps],
            },
            "captions": {
                "equal": found.equal_captions,
                "first_differences": found.first_differences,
                "median_first_difference": found.median_first_difference,
                "reference": _variety(found.reference),
                "bundle": _variety(found.candidate),
            },
            **found.bootstrap.to_json(),
        }
        if photographs:
            report["each"] = [asdict(photo) for photo in found.photographs]
        return report


def _variety(evaluation: Evaluation) -> dict[str, float | int]:
    return {
        "distinct_captions": evaluation.distinct_captions,
        "distinct_words": evaluation.distinct_words,
        "repeated_phrases": evaluation.repeated_phrases,
        "mean_words": round(evaluation.mean_words, 3),
    }


def markdown(report: Report) -> str:
    """The page that gate.md is."""
    about, verdict = report.about, report.verdict
    lines = [f"# Gate: {about['bundle']} ({about['recipe']})", "", f"**{verdict.headline}.**", ""]
    lines += [f"- {problem}" for problem in verdict.problems]
    lines += [f"- Warning: {warning}" for warning in verdict.warnings]
    lines += [
        *([""] if verdict.problems or verdict.warnings else []),
        f"Held to {about['reference']} ({about['reference_kind']}).",
        f"Photographs: {about['data']} {about['split']}. Decoding: {about['decoding']}.",
        "",
    ]
    if report.measured is None:
        return "\n".join(lines)
    for title, header, rows, note in _sections(report.measured, report.bar):
        lines += [f"## {title}", "", _row(header), _row(["---", *["---:"] * (len(header) - 1)]), *map(_row, rows), ""]
        lines += [note, ""] if note else []
    lines += [f"![What was measured]({PICTURE_FILE})", ""]
    differing = [photo for photo in report.measured.photographs if photo.first_difference is not None]
    if differing:
        lines += ["## The first captions that differ", "", _row(["photograph", "reference", "bundle"]), "|---|---|---|"]
        lines += [_row([p.id, p.reference, p.candidate]) for p in differing[:DIFFERENT_SHOWN]] + [""]
    if report.measured.unreadable:
        lines += ["## Left out, on both sides", "", *(f"- {error}" for error in report.measured.unreadable), ""]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


Section = tuple[str, list[str], list[list[str]], str]


def _sections(found: Measured, bar: Bar) -> list[Section]:
    """The tables of the page and of the terminal: title, header, rows, and what is said below."""
    scores = [
        [name, f"{pair.reference:.4f}", f"{pair.candidate:.4f}", _signed(pair.difference)]
        for name, pair in found.bootstrap.scores.items()
    ]
    sides = [_variety(side) for side in (found.reference, found.candidate)]
    scores += [
        [name.replace("_", " "), f"{sides[0][name]:g}", f"{sides[1][name]:g}", f"{sides[1][name] - sides[0][name]:+g}"]
        for name in sides[0]
    ]
    ratio = found.bootstrap.cider_ratio
    outputs = [
        [
            output.name,
            f"{output.mean_cosine:.5f}",
            f"{output.worst_cosine:.4f} ({output.worst_photograph})",
            "no noise" if output.snr_db is None else f"{output.snr_db:.1f}",
        ]
        for output in found.outputs
    ]
    steps = [
        [name, str(step.n), f"{step.cosine:.5f}", f"{step.relative_rms:.2e}", f"{percent(step.top1)}"]
        for name, step in [("all", found.logits), *((str(t), step) for t, step in enumerate(found.steps))]
    ]
    middle = found.median_first_difference
    return [
        (
            "Scores",
            ["score", "reference", "bundle", "difference, 95 % interval"],
            scores,
            f"CIDEr ratio {ratio.value:.4f}, 95 % interval {ratio.low:.4f} to {ratio.high:.4f}; at least "
            f"{bar.min_cider_ratio} is asked for {bar.source}. Paired bootstrap over the photographs, "
            f"{len(found.bootstrap.cider_differences):,} resamples, seed {found.bootstrap.seed}. "
            f"{found.equal_captions} of {found.n} captions are equal token by token"
            + ("." if middle is None else f"; the others differ first at step {middle:g} (median, counted from 0)."),
        ),
        (
            "Encoder outputs",
            ["output", "mean cosine", "worst cosine", "SNR, dB"],
            outputs,
            (
                f"A mean cosine below {bar.floors.mean_cosine}, one photograph's below {bar.floors.photograph_cosine} "
                f"or an SNR below {bar.floors.snr_db:g} dB fails whatever the captions score."
            ),
        ),
        (
            "Logits along the reference's captions",
            ["position", "steps", "cosine", "relative RMS", "top-1 agreement"],
            steps,
            (
                f"Each side feeds its own state forward. Agreement below {percent(bar.floors.top1)} over all steps, or "
                f"an SNR below {bar.floors.snr_db:g} dB, fails whatever the captions score. Worst photograph: "
                f"{found.worst_top1.id}, {percent(found.worst_top1.top1)}."
            ),
        ),
    ]


def _signed(interval: Interval) -> str:
    return f"{interval.value:+.4f} ({interval.low:+.4f} to {interval.high:+.4f})"


def print_report(report: Report) -> None:
    """Tables on stdout: positions apart, which are in the files."""
    console = Console()
    about = report.about
    if report.measured is not None:
        for title, header, rows, note in _sections(report.measured, report.bar):
            table = Table(*header, title=title, caption=note, caption_justify="left")
            for column in table.columns[1:]:
                column.justify = "right"
            for row in rows[:1] if title.startswith("Logits") else rows:
                table.add_row(*row)
            console.print(table)
    console.print(f"{about['bundle']} ({about['recipe']}) against {about['reference']} ({about['reference_kind']})")
    for warning in report.verdict.warnings:
        console.print(f"Warning: {warning}", markup=False, highlight=False)
    console.print(report.verdict.headline, markup=False, highlight=False)


def check_writable(directory: Path) -> None:
    """Raises CaptionliteError when the report could not be written: better before the work than after it."""
    parent = directory.absolute().parent
    if directory.exists() and not directory.is_dir():
        raise CaptionliteError(f"{directory}: not a folder. Name a folder for the report.")
    if not parent.is_dir():
        raise CaptionliteError(f"{directory}: there is no folder {parent} to make it in. Create it first.")
    if not os.access(directory if directory.exists() else parent, os.W_OK):
        raise CaptionliteError(f"{directory}: not writable. Check the permissions, or name another folder.")


def write_report(directory: Path, report: Report) -> None:
    """gate.json, gate.md and gate.png into a folder, which is made in one stroke if it is not there.

    In a folder that is there each file is replaced whole, gate.json last. Raises CaptionliteError.
    """
    from captionlite.benchmarks.gate_picture import picture

    text = json.dumps(report.to_json(photographs=True), indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    files = {
        PICTURE_FILE: picture(report.measured, report.bar, report.verdict, report.about),
        MARKDOWN_FILE: markdown(report).encode(),
        JSON_FILE: text.encode(),
    }
    try:
        if directory.is_dir():
            for name, content in files.items():
                write_bytes_atomically(directory / name, content)
            return
        temporary = Path(tempfile.mkdtemp(prefix=f".{directory.name}.", suffix=".tmp", dir=directory.absolute().parent))
        try:
            for name, content in files.items():
                write_bytes_atomically(temporary / name, content)
            temporary.chmod(0o755)
            os.rename(temporary, directory)
            fsync_directory(directory.absolute().parent)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    except OSError as error:
        raise CaptionliteError(f"{directory}: the report cannot be written ({error}). Check the space left.") from error
