"""`captionlite bench peers`: captionlite against what people would use instead, on the same weights and photographs."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
import numpy.typing as npt
from rich.console import Console

from captionlite.benchmarks.devices import describe_machine, finish
from captionlite.benchmarks.photo_set import PhotoSet, read_photographs
from captionlite.benchmarks.results import header, write_document
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.files import write_bytes_atomically

if TYPE_CHECKING:
    from captionlite.benchmarks.peers.comparison import Comparison
    from captionlite.runtime.captioner import Captioner
    from captionlite.runtime.manifest import ImageSpec
    from captionlite.training.run import Run

ROUNDS = 15
CALIBRATION = 40
_FILE = click.Path(dir_okay=False, path_type=Path)


@click.command("peers")
@click.argument("run_directory", metavar="RUN", type=click.Path(path_type=Path))
@click.option("--bundle", "bundles", multiple=True, required=True, help="The float32 bundle; again: a quantized one.")
@click.option("--photos", multiple=True, metavar="FOLDER|FILE", required=True, help="What to caption; 48 is plenty.")
@click.option("--rounds", type=click.IntRange(min=1), default=ROUNDS, show_default=True, help="Turns of each.")
@click.option("--peers", "names", metavar="NAME,...", help="Only these.  [default: all]")
@click.option("--out", type=_FILE, help="Write the result here.")
@click.option("--markdown", "page", type=_FILE, help="Write the table here, as Markdown.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    run_directory: Path,
    bundles: tuple[str, ...],
    photos: tuple[str, ...],
    rounds: int,
    names: str | None,
    out: Path | None,
    page: Path | None,
    as_json: bool,
) -> None:
    """Time what people would use instead: Keras, one TFLite graph, ONNX Runtime, SignatureRunner, native C.

    RUN is the training run that the bundles were exported from. Each peer's captions are compared with captionlite's
    before it is timed, and all take turns within every round. A peer that cannot run here is left out with the reason;
    one that breaks, or whose captions are others than they must be, makes the exit code 1.
    """
    chosen = _names(names)
    for path in (out, page):
        if path is not None and not path.absolute().parent.is_dir():
            raise CaptionliteError(
                f"{path}: there is no folder {path.absolute().parent} to write into. Create it first."
            )
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    from captionlite.benchmarks.peers import report
    from captionlite.runtime.interpreter import without_chatter
    from captionlite.training.run import load_run

    machine = describe_machine()
    with without_chatter():
        float32, quantized = _open(bundles)
    photographs = read_photographs(photos, float32.bundle.manifest.image)
    run = load_run(run_directory)
    _check_model(run, [captioner for captioner in (float32, quantized) if captioner is not None])
    comparison, calibration = _compare(run, float32, quantized, photographs, chosen, rounds)
    document = _document(float32, quantized, photographs, comparison, rounds, calibration, finish(machine))
    if out is not None:
        write_document(out, document)
    if page is not None:
        write_bytes_atomically(page, report.markdown(comparison, document).encode())
    if as_json:
        click.echo(json.dumps(document, ensure_ascii=False))
    else:
        console = Console()
        console.print(report.table(comparison, f"{document['model']['name']} against what people use instead"))
        for line in report.remarks(comparison):
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    broken = [entry for entry in comparison.entries if entry.status in ("wrong", "failed")]
    for entry in broken:
        click.echo(f"Error: {entry.name} ({entry.weights}) {entry.status}: {entry.reason}", err=True)
    if broken:
        sys.exit(1)


def _names(given: str | None) -> tuple[str, ...]:
    from captionlite.benchmarks.peers.table import PEERS

    if given is None:
        return tuple(PEERS)
    found = tuple(name.strip() for name in given.split(",") if name.strip())
    unknown = [name for name in found if name not in PEERS]
    if unknown or not found:
        raise click.UsageError(f"--peers: unknown {', '.join(unknown) or 'names'}; there are {', '.join(PEERS)}.")
    return tuple(dict.fromkeys(found))


def _open(bundles: Sequence[str]) -> tuple[Captioner, Captioner | None]:
    """The float32 bundle and the other, whatever their order."""
    from captionlite.benchmarks.evaluation import describe_recipe
    from captionlite.benchmarks.peers.base import PeerError
    from captionlite.runtime.captioner import Captioner

    captioners = [Captioner.from_bundle(name) for name in bundles]
    recipes = [describe_recipe(captioner.bundle.manifest) for captioner in captioners]
    if recipes.count("float32") != 1 or len(recipes) > 2:
        raise PeerError(
            f"--bundle: found the recipes {', '.join(recipes)}, expected one float32 bundle and at most one other. "
            f"`captionlite export RUN --recipe float32` makes it, `captionlite quantize` the other from it."
        )
    float32 = captioners[recipes.index("float32")]
    return float32, next((captioner for captioner in captioners if captioner is not float32), None)


def _check_model(run: Run, captioners: Sequence[Captioner]) -> None:
    from captionlite.benchmarks.model_identity import describe_bundle, describe_run
    from captionlite.benchmarks.peers.base import PeerError

    expected = describe_run(run).id
    for captioner in captioners:
        found = describe_bundle(captioner.bundle).id
        if found != expected:
            raise PeerError(
                f"{captioner.bundle.location}: the model is {found[:12]}, expected {expected[:12]} of {run.directory}. "
                f"Export this run again, or name the run that the bundle was exported from."
            )


def _compare(
    run: Run,
    float32: Captioner,
    quantized: Captioner | None,
    photographs: PhotoSet,
    names: tuple[str, ...],
    rounds: int,
) -> tuple[Comparison, dict[str, Any]]:
    """The comparison, and which photographs peers that quantize by themselves were calibrated on."""
    from captionlite.benchmarks.peers.base import Task
    from captionlite.benchmarks.peers.comparison import compare
    from captionlite.runtime.image import load_image
    from captionlite.runtime.interpreter import without_chatter
    from captionlite.training.progress import progress

    image = float32.bundle.manifest.image
    pixels = tuple(load_image(content, image) for content in photographs.contents)
    calibration, source = _calibration(run, image), "the run's training photographs"
    if not calibration:
        calibration, source = pixels, "the photographs that are captioned"
    with tempfile.TemporaryDirectory(prefix="captionlite-peers-") as scratch:
        task = Task(run, float32, quantized, pixels, calibration, Path(scratch))
        with without_chatter():
            found = compare(task, names, rounds, progress)
    return found, {"photographs": len(calibration), "source": source}


def _calibration(run: Run, image: ImageSpec) -> tuple[npt.NDArray[np.uint8], ...]:
    """Photographs that the model was trained on; none where the data is no longer where the run found it."""
    from captionlite.runtime.image import load_image

    try:
        return tuple(load_image(photo, image) for photo in run.training_photographs(CALIBRATION))
    except (CaptionliteError, OSError):
        return ()


def _document(
    float32: Captioner,
    quantized: Captioner | None,
    photographs: PhotoSet,
    comparison: Comparison,
    rounds: int,
    calibration: dict[str, Any],
    machine: dict[str, Any],
) -> dict[str, Any]:
    from captionlite.benchmarks.model_identity import describe_bundle
    from captionlite.benchmarks.peers.check import TIE

    models = {"float32": dataclasses.asdict(describe_bundle(float32.bundle))}
    if quantized is not None:
        models["quantized"] = dataclasses.asdict(describe_bundle(quantized.bundle))
    return {
        **header("peers", "edge", ("captionlite", *sys.argv[1:]), machine),
        "model": models.get("quantized", models["float32"]),
        "models": models,
        "photographs": dataclasses.asdict(photographs.described),
        "protocol": {
            "name": "turns within rounds",
            "rounds": rounds,
            "warm_up": 1,
            "decoding": "greedy",
            "tie": TIE,
            "calibration": calibration,
        },
        "versions": comparison.versions(),
        "peers": comparison.to_json(),
    }
