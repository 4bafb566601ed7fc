"""A run directory in, a bundle out: convert, check, compare with Keras, record golden vectors, write."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from captionlite.export.calibration import NO_CALIBRATION, Calibration, Photographs, require_photographs
from captionlite.export.convert import convert
from captionlite.export.errors import ExportError
from captionlite.export.golden import drawn_photographs, golden_vectors
from captionlite.export.graphs import DecoderGraph, EncoderGraph, RefineGraph, decoder_inputs
from captionlite.export.labels import Labelling
from captionlite.export.model_card import model_card
from captionlite.export.parity import Parity, measure_parity
from captionlite.export.quantization import quantize_graphs
from captionlite.export.recipes import GraphRecipe, Recipe
from captionlite.export.tflite_file import check_ops, signature_specs
from captionlite.runtime.bundle import Bundle, write_bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.image import load_image
from captionlite.runtime.manifest import (
    FORMAT,
    AttentionSpec,
    DecodingSpec,
    GoldenSpec,
    GraphSpec,
    ImageSpec,
    Manifest,
    VocabularySpec,
)
from captionlite.runtime.selfcheck import proven_here
from captionlite.training.datasets.photos import Photo
from captionlite.training.run import Run
from captionlite.training.vocabulary import END_ID, MASK_ID, PAD_ID, START_ID, UNKNOWN_ID

PACKAGES = ("tensorflow", "keras", "litert-quantizer", "ai-edge-litert", "captionlite")
PARITY_PHOTOGRAPHS = 20
FLOAT32_LOGITS_TOLERANCE = 1e-4  # absolute, against Keras, with state fed forward


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """The bundle's directory and what is known about it."""

    bundle: Path
    sizes_bytes: dict[str, int]
    ops: dict[str, list[str]]
    parity: Parity
    measured: dict[str, Any] = dataclasses.field(default_factory=dict)  # what ``measure`` found out


def export_run(
    run: Run,
    recipe: Recipe,
    out: Path,
    *,
    name: str | None = None,
    photographs: Photographs | Sequence[Photo] = (),
    golden: Sequence[Path] = (),
    scores: dict[str, Any] | None = None,
    licences: dict[str, str] | None = None,
    labels: Labelling | None = None,
    measure: Callable[[Captioner], dict[str, Any]] | None = None,
    force: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> ExportResult:
    """Writes the run's best weights as a bundle at ``out``.

    ``photographs``: training photographs, for calibration and for parity against Keras. ``golden``: photographs that
    go into the bundle with their golden vectors (drawn pictures when none is given: mind the rights of what you give
    away). ``scores``: caption scores by title, ``licences``: licences by data set, for the manifest and the model card.
    ``labels``: a classifier to put onto the encoder.
    ``measure`` is given the bundle's captioner, and what it returns goes into the manifest's provenance.

    Raises ExportError when the converter or the quantizer refuses or a float32 file strays from Keras, BundleError when
    ``out`` exists.
    """
    if out.exists() and not force:
        raise ExportError(f"{out}: exists already; give --force to replace it, or another --out")
    if not isinstance(photographs, Photographs):
        photographs = Photographs(tuple(photographs), "photographs given by the caller")
    seen = photographs.load(run.image_spec)
    require_photographs(recipe, graph_names(run), bool(seen), "--calibration FOLDER")
    pictured = drawn_photographs(run.image_spec.height, run.image_spec.width)
    vocabulary = run.vocabulary.runtime_vocabulary()
    shared = {"golden.npz": b"", "README.md": b""}
    shared["vocabulary.json"] = json.dumps(vocabulary, ensure_ascii=False).encode()
    if labels is not None:
        shared[labels.spec.file] = labels.content
    with tempfile.TemporaryDirectory(prefix="captionlite-bundle-") as scratch:

        def opened(kind: str, manifest: Manifest, graphs: dict[str, bytes]) -> Captioner:
            files = {f"{graph}.tflite": content for graph, content in graphs.items()}
            write_bundle(Path(scratch) / kind, manifest, {**shared, **files})
            return Captioner(Bundle.open(Path(scratch) / kind))

        def described(name: str) -> Manifest:
            return _manifest(run, recipe, name, converted, vocabulary["kind"], labels)

        converted = convert_graphs(run, report, labels)
        calibration = Calibration(seen, lambda: opened("float32", described("float32"), converted))
        graphs = quantize_graphs(converted, recipe, calibration.samples, report)
        ops = {graph: check_ops(content) for graph, content in graphs.items()}
        # What goes in and out is said of the converter's files: litert-quantizer forgets that a batch is dynamic.
        manifest = described(name or run.config.name)
        manifest.scores.update(scores or {})
        manifest.provenance["calibration"] = photographs.provenance() if recipe.needs_calibration else NO_CALIBRATION
        _state_licences(manifest, licences or {})
        captioner = opened("bundle", manifest, graphs)
        report("comparing with Keras")
        head = None if labels is None else labels.head
        parity = measure_parity(run, captioner, seen[:PARITY_PHOTOGRAPHS] or pictured, head)
        _require_parity(recipe, parity)
        report("recording golden vectors")
        chosen = [load_image(path, run.image_spec) for path in golden] or pictured
        shared["golden.npz"] = golden_vectors(captioner, chosen)
        measured = {} if measure is None else measure(captioner)
        if labels is not None:
            manifest.provenance["labels"] = labels.provenance(captioner)
    manifest.provenance.update(measured, parity=parity.to_json())
    files = {**{f"{graph}.tflite": content for graph, content in graphs.items()}, **shared}
    sizes = {file: len(content) for file, content in files.items() if file != "README.md"}
    files["README.md"] = model_card(manifest, sizes, parity).encode()
    write_bundle(out, manifest, files, force=force)
    return ExportResult(out, sizes, ops, parity, measured)


def graph_names(run: Run) -> tuple[str, ...]:
    return ("encoder", "decoder", "refine") if run.model.refines else ("encoder", "decoder")


def convert_graphs(run: Run, report: Callable[[str], None], labels: Labelling | None = None) -> dict[str, bytes]:
    """The run's graphs by name as float32 TFLite files."""
    modules: dict[str, Callable[[], Any]] = {
        "encoder": lambda: EncoderGraph(run.encoder, run.model, run.image_spec, labels.head if labels else None),
        "decoder": lambda: DecoderGraph(run.model),
        "refine": lambda: RefineGraph(run.model),
    }
    contents = {}
    for name in graph_names(run):
        report(f"converting the {name}")
        contents[name] = convert(modules[name]())
    return contents


def _manifest(
    run: Run, recipe: Recipe, name: str, graphs: dict[str, bytes], vocabulary_kind: str, labels: Labelling | None
) -> Manifest:
    specs = {graph: signature_specs(content) for graph, content in graphs.items()}
    expected = {spec.name: spec for spec in decoder_inputs(run.model)}
    found = {spec.name: spec for spec in specs["decoder"][0]}
    if found != expected:
        raise ExportError(
            f"decoder.tflite takes {sorted(found.values(), key=str)}, expected {sorted(expected.values(), key=str)}"
        )
    config = run.config
    return Manifest(
        format=FORMAT,
        name=name,
        family=run.model.family,
        graphs={graph: GraphSpec(f"{graph}.tflite", recipe.name, *sides) for graph, sides in specs.items()},
        state=run.model.state_specs(),
        image=ImageSpec(run.image_spec.height, run.image_spec.width),
        vocabulary=VocabularySpec("vocabulary.json", vocabulary_kind, len(run.vocabulary)),
        decoding=DecodingSpec(
            START_ID,
            END_ID,
            PAD_ID,
            UNKNOWN_ID,
            run.vocabulary.suppressed_ids,
            run.model.max_length,
            MASK_ID if run.model.refines else None,
            length_penalty=config.length_penalty,
        ),
        golden=GoldenSpec("golden.npz", recipe.tolerance),
        proven=proven_here(),
        labels=None if labels is None else labels.spec,
        attention=AttentionSpec(run.model.grid) if run.model.attends else None,
        provenance={
            "preset": config.name,
            "encoder": config.encoder_facts(),
            "decoder": dict(config.family),
            "parameters": {
                "encoder": int(run.encoder.count_params()),
                "decoder": int(run.model.count_params()),
            },
            "training": {"epochs_at_most": config.epochs, "weights": [d.weight for d in config.data], **run.best},
            "recipe": recipe.provenance(),
            "tools": {package: version(package) for package in PACKAGES},
        },
    )


def _state_licences(manifest: Manifest, licences: dict[str, str]) -> None:
    datasets = manifest.provenance["training"].get("datasets", [])
    for name, licence in licences.items():
        named = [data for data in datasets if data["name"] == name]
        if not named:
            there = ", ".join(data["name"] for data in datasets) or "none"
            raise ExportError(f"licence of {name}: the run has no data set of that name; it has {there}")
        for data in named:
            data["licence"] = licence


def _require_parity(recipe: Recipe, parity: Parity) -> None:
    if any(recipe.graph(graph) != GraphRecipe() for graph in ("encoder", "decoder")):
        return
    for tensor in parity.tensors:
        if tensor.name == "decoder/logits" and tensor.max_abs > FLOAT32_LOGITS_TOLERANCE:
            raise ExportError(
                f"float32 logits differ from Keras by up to {tensor.max_abs:.2e}, expected at most "
                f"{FLOAT32_LOGITS_TOLERANCE:.0e}; the family's step and its full call may disagree: run its harness"
            )
