"""Results of `captionlite bench run` side by side: read, held to each other, put in order.

Figures of two results may stand in one table when they are of the same photographs, the same trained model, and the
same protocol and decoding. Whatever differs is named and refused, or with `force` becomes a warning that stands at the
top of every report. A folder is a survey: it may hold several families, each with one trained model of its own.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captionlite.benchmarks import compare_names as names
from captionlite.benchmarks.compare_names import clean, number, text
from captionlite.benchmarks.results import STAGES, Result, read_document, read_result
from captionlite.runtime.errors import CaptionliteError

FAMILIES = ("lstm", "gru_attention", "transformer", "masked_lm")  # in the order in which they were published
TARGETS = ("edge", "keras", "gpu")
_PROTOCOL = ("name", "decoding", "quick", "warm_up", "min_captions", "min_seconds")
SUMMARY = ("p50", "p90", "p99", "mean")
_PATH = 300  # characters of a path that are shown


class ComparisonError(CaptionliteError):
    """Results that do not belong together, or none."""


@dataclass(frozen=True)
class Entry:
    """One result and what it is called. `ratio`: its median to the first result's; in a survey its family's first."""

    path: str
    result: Result
    label: str
    ratio: float | None
    cider: float | None

    @property
    def whole_ms(self) -> float:
        """The median."""
        return float(self.result.summary["whole"]["p50"])


@dataclass(frozen=True)
class Other:
    """A result of another kind: peers, roofline, scaling."""

    path: str
    kind: str
    document: dict[str, Any]


@dataclass(frozen=True)
class MissingGpu:
    """A trained model without a result of a GPU, and the command that makes one."""

    family: str
    model_id: str
    command: str


@dataclass(frozen=True)
class Comparison:
    """Everything that a report says. `warnings`: what differs and was let through by force."""

    entries: tuple[Entry, ...]
    others: tuple[Other, ...]
    warnings: tuple[str, ...]
    is_survey: bool
    scored_on: str | None  # the data set whose CIDEr is shown
    missing_gpu: tuple[MissingGpu, ...]

    @property
    def families(self) -> tuple[str, ...]:
        """Each once, in the order of the entries."""
        return tuple(dict.fromkeys(clean(entry.result.model.family) for entry in self.entries))

    @property
    def gpus(self) -> tuple[str, ...]:
        """Names of the GPUs that there are results of."""
        return tuple(dict.fromkeys(names.gpu_name(e.result) for e in self.entries if names.is_gpu(e.result)))

    def on_gpu(self, entry: Entry, gpu: str) -> Entry | None:
        """The newest result of the same trained model on that GPU."""
        same = [
            other
            for other in self.entries
            if names.is_gpu(other.result)
            and names.gpu_name(other.result) == gpu
            and other.result.model.id == entry.result.model.id
        ]
        return max(same, key=lambda other: other.result.created, default=None)

    def to_json(self) -> dict[str, Any]:
        """One JSON object: what the tables say, without samples."""
        return {
            "schema": [1, 0],
            "kind": "comparison",
            "survey": self.is_survey,
            "warnings": list(self.warnings),
            "photographs": vars(self.entries[0].result.photographs),
            "scored_on": self.scored_on,
            "results": [self._entry_json(entry) for entry in self.entries],
            "missing_gpu": [vars(missing) for missing in self.missing_gpu],
            "others": [{"file": other.path, "kind": other.kind} for other in self.others],
        }

    def _entry_json(self, entry: Entry) -> dict[str, Any]:
        result = entry.result
        found = {gpu: self.on_gpu(entry, gpu) for gpu in self.gpus}
        return {
            "file": entry.path,
            "label": entry.label,
            "target": result.target,
            "machine": names.machine_name(result),
            "family": result.model.family,
            "recipe": result.model.recipe,
            "model_id": result.model.id,
            "encoder_threads": result.protocol.encoder_threads,
            "decoder_threads": result.protocol.decoder_threads,
            "size_bytes": result.model.size_bytes,
            "summary_ms": {stage: {name: number(result.summary, stage, name) for name in SUMMARY} for stage in STAGES},
            "tokens_per_caption": number(result.tokens_per_caption),
            "captions_per_second": number(result.captions_per_second),
            "batch_captions_per_second": number(result.batch, "captions_per_second"),
            "cold_start_seconds": number(result.cold_start, "seconds"),
            "peak_memory_bytes": result.peak_memory_bytes,
            "joules_per_caption": number(result.energy, "joules_per_caption"),
            "cider": entry.cider,
            "ratio": entry.ratio,
            "gpu_whole_ms": {gpu: other.whole_ms for gpu, other in found.items() if other is not None},
            "caveats": [f"{caveat} {figure}".rstrip() for caveat, figure in names.caveats(result)],
        }


def read_comparison(paths: Sequence[Path], *, force: bool = False) -> Comparison:
    """Files, and folders of which every .json counts.

    Raises ResultError for a file that is no result, ComparisonError for results that do not belong together.
    """
    is_survey = any(path.is_dir() for path in paths)
    found, others = _read(paths)
    if not found:
        raise ComparisonError(
            f"{_listed(str(path) for path in paths)}: no result of kind 'latency'. Make one with "
            f"`captionlite bench run --photos FOLDER --out FILE`."
        )
    if is_survey:
        found.sort(key=_survey_order)
    problems = _problems(found, others, is_survey)
    if problems and not force:
        told = "".join(f"\n- {problem}" for problem in problems)
        raise ComparisonError(
            f"these results cannot be compared:{told}\n--force compares them, and the report says so."
        )
    results = [result for _, result in found]
    scored_on, ciders = names.ciders(results)
    folder = next((path for path in paths if path.is_dir()), paths[0].parent)
    return Comparison(
        entries=tuple(
            Entry(clean(path, _PATH), result, label, ratio, cider)
            for (path, result), label, ratio, cider in zip(
                found, names.labels(found), _ratios(results, is_survey), ciders, strict=True
            )
        ),
        others=tuple(others),
        warnings=tuple(problems),
        is_survey=is_survey,
        scored_on=scored_on,
        missing_gpu=tuple(_missing_gpu(results, folder)),
    )


def _read(paths: Sequence[Path]) -> tuple[list[tuple[str, Result]], list[Other]]:
    """Each file once, however often it was named."""
    files: dict[Path, Path] = {}
    for path in paths:
        inside = sorted(path.glob("*.json")) if path.is_dir() else [path]
        if not inside:
            raise ComparisonError(f"{path}: no .json in this folder. Give results of `captionlite bench run --out`.")
        for file in inside:
            files.setdefault(file.resolve(), file)
    found, others = [], []
    for file in files.values():
        document = read_document(file)
        if document["kind"] == "latency":
            result = read_result(file)
            _check_summary(file, result)
            found.append((str(file), result))
        else:
            others.append(Other(clean(str(file), _PATH), clean(document["kind"]), document))
    return found, others


def _check_summary(file: Path, result: Result) -> None:
    """JSON has numbers that are no time: 1e999, -1."""
    for stage in STAGES:
        for name in SUMMARY:
            value = number(result.summary, stage, name)
            if value is None or value < 0:
                found = result.summary[stage][name]
                raise ComparisonError(
                    f"{file}: summary.{stage}.{name} is {found!r:.40}, expected milliseconds. Measure again with "
                    f"`captionlite bench run`, or restore the file."
                )


def _survey_order(item: tuple[str, Result]) -> tuple[Any, ...]:
    path, result = item
    family, recipe = result.model.family, result.model.recipe
    return (
        FAMILIES.index(family) if family in FAMILIES else len(FAMILIES),
        family,
        TARGETS.index(result.target),
        recipe != "float32",
        recipe,
        names.machine_name(result),
        result.protocol.encoder_threads or 0,
        path,
    )


def _ratios(results: Sequence[Result], is_survey: bool) -> list[float | None]:
    firsts: dict[str, float] = {}
    ratios = []
    for result in results:
        median = float(result.summary["whole"]["p50"])
        first = firsts.setdefault(result.model.family if is_survey else "", median)
        ratios.append(number(median / first) if first > 0 else None)
    return ratios


def _missing_gpu(results: Sequence[Result], folder: Path) -> list[MissingGpu]:
    by_model: dict[str, list[Result]] = {}
    for result in results:
        by_model.setdefault(result.model.id, []).append(result)
    return [
        MissingGpu(clean(same[0].model.family), clean(model_id), names.gpu_command(same, folder))
        for model_id, same in by_model.items()
        if not any(names.is_gpu(result) for result in same)
    ]


def _problems(found: Sequence[tuple[str, Result]], others: Sequence[Other], is_survey: bool) -> list[str]:
    """Why these cannot be compared, each with the next step.

    Other kinds must be of the same model if they are of one; their figures stand in tables of their own, and so may be
    of other photographs.
    """
    photographs: dict[str, tuple[Hashable, str]] = {}
    models: dict[str, dict[str, tuple[Hashable, str]]] = {}  # by family in a survey
    for path, result in found:
        taken, model = result.photographs, result.model
        photographs[path] = taken.sha256, f"{taken.count} of {taken.source} (sha256 {taken.sha256[:8]})"
        group = models.setdefault(model.family if is_survey else "", {})
        group[path] = model.id, f"{model.name} ({model.family}, {model.id[:8]})"
    for other in others:
        model_id, family, name = (text(other.document, "model", field) for field in ("id", "family", "name"))
        if model_id:
            group = models.setdefault(family if is_survey else "", {})
            group[other.path] = model_id, f"{name} ({family}, {model_id[:8]})"
    problems = []
    if told := _difference(photographs):
        problems.append(
            f"photographs.sha256: different photographs: {told}. Measure all of them with the same --photos."
        )
    for family, group in models.items():
        if told := _difference(group):
            step = "Compare what was made of one trained model, or several families by giving their folder."
            if is_survey:
                step = f"Keep results of one trained model of the family {clean(family)} in the folder."
            problems.append(f"model.id: different models: {told}. {step}")
    for field in _PROTOCOL:
        values = {path: (value, repr(value)) for path, r in found for value in [getattr(r.protocol, field)]}
        if told := _difference(values):
            problems.append(f"protocol.{field}: different protocols: {told}. Measure all of them the same way.")
    cut = [path for path, result in found if not result.complete]
    cut += [other.path for other in others if other.document.get("complete") is False]
    if cut:
        problems.append(f"complete: false in {_listed(cut)}: interrupted. Measure again, to the end.")
    return problems


def _difference(values: Mapping[str, tuple[Hashable, str]]) -> str:
    """ "5 of tests/photos (...) in a.json, b.json; 48 of mine (...) in c.json"; nothing where all have the same."""
    groups: dict[Hashable, list[str]] = {}
    for path, (key, _) in values.items():
        groups.setdefault(key, []).append(path)
    if len(groups) < 2:
        return ""
    return "; ".join(f"{clean(values[paths[0]][1], _PATH)} in {_listed(paths)}" for paths in groups.values())


def _listed(paths: Iterable[str]) -> str:
    shown = [clean(path, _PATH) for path in paths]
    return ", ".join(shown[:4]) + (f" and {len(shown) - 4} more" if len(shown) > 4 else "")
