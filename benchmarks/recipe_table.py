"""What every recipe costs and what it keeps: one table over float32 bundles, their captions scored and timed.

    python -m captionlite.benchmarks.recipe_table FLOAT32... --calibrate flickr8k:DIR --data flickr8k:DIR --work FOLDER

Each float32 bundle is quantized by each recipe into FOLDER, captions the photographs greedily through the device
runtime, and is timed: the bundles of one model take turns, so that other work on the machine hits them alike. What
FOLDER has from an earlier run, of the same float32 bundle, recipe, calibration and photographs, is not done again;
times are always taken anew.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click

from captionlite.benchmarks.evaluation import evaluate
from captionlite.export.bundle_quantizer import quantize_bundle
from captionlite.export.calibration import Photographs
from captionlite.export.errors import ExportError
from captionlite.export.latency import Latency, graph_latencies
from captionlite.export.recipes import Recipe, recipe, recipe_names
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.image import load_image
from captionlite.runtime.interpreter import without_chatter
from captionlite.training.datasets import Example, load_dataset
from captionlite.training.files import write_text_atomically
from captionlite.training.progress import progress

REFERENCE = "float32"
TIMED_PHOTOGRAPHS, ROUNDS = 8, 20


@dataclass(frozen=True)
class Row:
    """One bundle of a model. `size_bytes` counts the graphs; `refused` says why there is no such bundle.

    `agreement` is the part of captions that are word for word float32's, `cider_ratio` is of float32's CIDEr.
    """

    model: str
    recipe: str
    size_bytes: int = 0
    encoder_ms: float = 0.0
    step_us: float = 0.0
    agreement: float = 0.0
    cider: float = 0.0
    cider_ratio: float = 0.0
    refused: str | None = None


@dataclass(frozen=True)
class Scored:
    """Captions by photograph, and their CIDEr."""

    captions: dict[str, str]
    cider: float


def graphs_bytes(bundle: Bundle) -> int:
    """What recipes make smaller: the sum of the bundle's graphs."""
    manifest = bundle.manifest
    return sum(manifest.files[graph.file].size_bytes for graph in manifest.graphs.values())


def quantized(bundle: Bundle, chosen: Recipe, photographs: Photographs, out: Path) -> Bundle:
    """The bundle as the recipe has it, at ``out``: the one that stands there, if it is that. Raises ExportError."""
    if out.exists():
        try:
            there = Bundle.open(out)
        except CaptionliteError:
            pass
        else:
            facts = there.manifest.provenance
            origin = {spec.file: bundle.manifest.files[spec.file].sha256 for spec in bundle.manifest.graphs.values()}
            calibrated = photographs.provenance()["sha256"] if chosen.needs_calibration else None
            if (
                facts.get("quantized_from", {}).get("sha256") == origin
                and facts.get("recipe") == chosen.provenance()
                and facts.get("calibration", {}).get("sha256") == calibrated
                and facts.get("tools", {}).get("litert-quantizer") == version("litert-quantizer")
            ):
                return there
    quantize_bundle(
        bundle, chosen, out, photographs=photographs, name=f"{bundle.manifest.name}-{chosen.name}", force=True
    )
    return Bundle.open(out)


def scored(captioner: Captioner, examples: Sequence[Example], kept: Path) -> Scored:
    """Greedy captions of the examples and their CIDEr; those in the file ``kept``, if they are of this bundle."""
    manifest = captioner.bundle.manifest
    of: dict[str, Any] = {
        "files": {file: spec.sha256 for file, spec in manifest.files.items() if file != "README.md"},
        "photographs": hashlib.sha256("".join(f"{e.id}\n" for e in examples).encode()).hexdigest(),
        "interpreter": version("ai-edge-litert"),
    }
    try:
        record = json.loads(kept.read_text())
        if record["of"] == of:
            return Scored(record["captions"], record["cider"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # not there, or not whole: caption anew
    with progress(len(examples), f"captioning, {manifest.name}") as advance:
        found = evaluate(captioner, examples, advance)
    captions = {photo.example.id: photo.caption.text for photo in found.photos if photo.caption is not None}
    result = Scored(captions, found.scores.cider)
    write_text_atomically(kept, json.dumps({"of": of, "cider": result.cider, "captions": captions}, ensure_ascii=False))
    return result


def agreement(found: Scored, reference: Scored) -> float:
    """The part of the reference's captions that are found word for word."""
    return sum(found.captions.get(key) == text for key, text in reference.captions.items()) / len(reference.captions)


def measure(
    bundle: Bundle, recipes: Sequence[Recipe], photographs: Photographs, examples: Sequence[Example], work: Path
) -> list[Row]:
    """The rows of one float32 bundle, itself first. Raises CaptionliteError."""
    model = bundle.manifest.name
    captioners: dict[str, Captioner] = {REFERENCE: _captioner(bundle)}
    refused: dict[str, str] = {}
    folder = work / model
    folder.mkdir(parents=True, exist_ok=True)
    for each in recipes:
        click.echo(f"{model}: {each.name}", err=True)
        try:
            captioners[each.name] = _captioner(quantized(bundle, each, photographs, folder / each.name))
        except ExportError as error:
            refused[each.name] = str(error)
    found = {name: scored(captioner, examples, folder / f"{name}.json") for name, captioner in captioners.items()}
    click.echo(f"{model}: timing {len(captioners)} bundles, turn by turn", err=True)
    timed = [load_image(example.image, bundle.manifest.image) for example in examples[:TIMED_PHOTOGRAPHS]]
    times = graph_latencies(captioners, timed, ROUNDS)
    return [
        Row(model, name, refused=refused[name])
        if name in refused
        else _row(model, name, captioners[name].bundle, times[name], found[name], found[REFERENCE])
        for name in (REFERENCE, *(each.name for each in recipes))
    ]


def _captioner(bundle: Bundle) -> Captioner:
    with without_chatter():
        return Captioner(bundle)


def _row(model: str, name: str, bundle: Bundle, times: Latency, found: Scored, reference: Scored) -> Row:
    return Row(
        model=model,
        recipe=name,
        size_bytes=graphs_bytes(bundle),
        encoder_ms=round(times.encoder_ms, 3),
        step_us=round(times.step_us, 1),
        agreement=round(agreement(found, reference), 4),
        cider=round(found.cider, 4),
        cider_ratio=round(found.cider / max(reference.cider, 1e-9), 4),
    )


def markdown(rows: Sequence[Row]) -> str:
    """The rows as a table."""
    lines = [
        "| model | recipe | graphs | encoder | step | captions as float32's | CIDEr | of float32's |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        if row.refused:
            lines.append(f"| `{row.model}` | {row.recipe} | refused: {row.refused} | | | | | |")
            continue
        lines.append(
            f"| `{row.model}` | {row.recipe} | {row.size_bytes / 1e6:.2f} MB | {row.encoder_ms:.2f} ms | "
            f"{row.step_us:.0f} µs | {row.agreement:.1%} | {row.cider:.4f} | {row.cider_ratio:.1%} |"
        )
    return "\n".join(lines)


@click.command()
@click.argument("bundles", nargs=-1, required=True)
@click.option("--recipe", "names", multiple=True, metavar="NAME|FILE", help="Repeatable; all built-in ones by default.")
@click.option("--calibrate", required=True, metavar="FOLDER|DATA", help="Training photographs to calibrate on.")
@click.option("--seed", default=0, show_default=True, help="Which 200 of them.")
@click.option("--data", required=True, metavar="DATA", help="The data set whose captions are scored.")
@click.option("--split", default="test", show_default=True)
@click.option("--limit", type=click.IntRange(min=TIMED_PHOTOGRAPHS), help="Only so many photographs of it.")
@click.option("--work", type=click.Path(path_type=Path, file_okay=False), required=True, help="Where bundles are kept.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON list instead of the table.")
def main(
    bundles: tuple[str, ...],
    names: tuple[str, ...],
    calibrate: str,
    seed: int,
    data: str,
    split: str,
    limit: int | None,
    work: Path,
    as_json: bool,
) -> None:
    """Quantize float32 BUNDLES by every recipe; print size, times and caption scores of each."""
    recipes = [recipe(name) for name in names or recipe_names() if name != REFERENCE]
    photographs = Photographs.of_data(calibrate, seed)
    examples = load_dataset(data).split(split)[:limit]
    seen = sorted({example.id for example in examples} & set(photographs.provenance()["ids"]))
    if seen:
        raise click.UsageError(
            f"{len(seen)} photographs are both in --calibrate and in --data's {split} split, the first {seen[0]}; what "
            "is scored must not have been calibrated on."
        )
    rows = []
    for name in bundles:
        rows += measure(Bundle.open(name), recipes, photographs, examples, work)
        if not as_json:
            click.echo(markdown([row for row in rows if row.model == rows[-1].model]))
    if as_json:
        click.echo(json.dumps([asdict(row) for row in rows], indent=1))


if __name__ == "__main__":
    main()
