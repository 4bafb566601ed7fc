"""A run directory in, a bundle out: convert, check, compare with Keras, record golden vectors, write."""

from __future__ import annotations

import dataclasses
import json
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from captionlite.export.convert import SIGNATURE, Calibration, convert
from captionlite.export.errors import ExportError
from captionlite.export.golden import drawn_photographs, golden_vectors
from captionlite.export.graphs import DecoderGraph, EncoderGraph, RefineGraph, decoder_inputs
from captionlite.export.model_card import model_card
from captionlite.export.parity import Parity, measure_parity
from captionlite.export.recipes import GraphRecipe, Recipe
from captionlite.runtime.bundle import Bundle, write_bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.image import ImageSource, load_image
from captionlite.runtime.manifest import (
    FORMAT,
    AttentionSpec,
    DecodingSpec,
    GoldenSpec,
    GraphSpec,
    ImageSpec,
    Manifest,
    TensorSpec,
    VocabularySpec,
)
from captionlite.training.run import Run
from captionlite.training.vocabulary import END_ID, MASK_ID, PAD_ID, START_ID, UNKNOWN_ID

CALIBRATION_PHOTOGRAPHS = 200
PARITY_PHOTOGRAPHS = 20
FLOAT32_LOGITS_TOLERANCE = 1e-4  # absolute, against Keras, with state fed forward


@dataclasses.dataclass(frozen=True)
class ExportResult:
    """The bundle's directory and what is known about it."""

    bundle: Path
    sizes_bytes: dict[str, int]
    ops: dict[str, list[str]]
    parity: Parity


def export_run(
    run: Run,
    recipe: Recipe,
    out: Path,
    *,
    name: str | None = None,
    photographs: Sequence[ImageSource] = (),
    golden: Sequence[Path] = (),
    scores: dict[str, Any] | None = None,
    licences: dict[str, str] | None = None,
    force: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> ExportResult:
    """Writes the run's best weights as a bundle at ``out``.

    ``photographs``: training photographs, for calibration and for parity against Keras. ``golden``: photographs that
    go into the bundle with their golden vectors (drawn pictures when none is given: mind the rights of what you give
    away). ``scores``: caption scores by title, ``licences``: licences by data set, for the manifest and the model card.

    Raises ExportError when the converter refuses or a float32 file strays from Keras, BundleError when ``out`` exists.
    """
    if out.exists() and not force:
        raise ExportError(f"{out}: exists already; give --force to replace it, or another --out")
    seen = [load_image(path, run.image_spec) for path in photographs[:CALIBRATION_PHOTOGRAPHS]]
    if recipe.needs_calibration and not seen:
        raise ExportError(
            f"recipe {recipe.name} needs calibration photographs; "
            "give --calibration FOLDER with 100 or more training photographs"
        )
    pictured = drawn_photographs(run.image_spec.height, run.image_spec.width)

    def calibration() -> Iterator[dict[str, np.ndarray]]:
        for pixels in seen:
            yield {"image": pixels[None]}

    report("converting the encoder")
    encoder = _convert(EncoderGraph(run.encoder, run.model, run.image_spec), recipe.encoder, calibration)
    report("converting the decoder")
    decoder = _convert(DecoderGraph(run.model), recipe.decoder, None)
    graphs = {"encoder": encoder, "decoder": decoder}
    if run.model.refines:
        report("converting the parallel pass")
        graphs["refine"] = _convert(RefineGraph(run.model), recipe.decoder, None)
    vocabulary = run.vocabulary.runtime_vocabulary()
    manifest = _manifest(run, recipe, name or run.config.name, graphs, vocabulary["kind"], len(seen), scores or {})
    _state_licences(manifest, licences or {})
    files = {f"{graph}.tflite": converted.content for graph, converted in graphs.items()}
    files["vocabulary.json"] = json.dumps(vocabulary, ensure_ascii=False).encode()

    with tempfile.TemporaryDirectory(prefix="captionlite-bundle-") as scratch:
        first = Path(scratch) / "bundle"
        write_bundle(first, manifest, {**files, "golden.npz": b"", "README.md": b""})
        captioner = Captioner(Bundle.open(first))
        report("comparing with Keras")
        parity = measure_parity(run, captioner, seen[:PARITY_PHOTOGRAPHS] or pictured)
        _require_parity(recipe, parity)
        report("recording golden vectors")
        chosen = [load_image(path, run.image_spec) for path in golden] or pictured
        files["golden.npz"] = golden_vectors(captioner, chosen)
    provenance = {**manifest.provenance, "parity": parity.to_json()}
    manifest = dataclasses.replace(manifest, provenance=provenance)
    sizes = {file: len(content) for file, content in files.items()}
    files["README.md"] = model_card(manifest, sizes, parity).encode()
    write_bundle(out, manifest, files, force=force)
    return ExportResult(out, sizes, {graph: converted.ops for graph, converted in graphs.items()}, parity)


@dataclasses.dataclass(frozen=True)
class _Converted:
    content: bytes
    ops: list[str]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def _convert(graph: Any, recipe: GraphRecipe, calibration: Calibration | None) -> _Converted:
    content, ops = convert(graph, recipe, calibration)
    return _Converted(content, ops, *signature_specs(content))


def signature_specs(content: bytes) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """Inputs and outputs of a TFLite file by name; a dynamic dimension (-1) is the batch."""
    from ai_edge_litert.interpreter import Interpreter

    runner = Interpreter(model_content=content).get_signature_runner(SIGNATURE)
    sides = []
    for details in (runner.get_input_details(), runner.get_output_details()):
        specs = []
        for name, detail in details.items():
            shape = tuple(None if size < 0 else int(size) for size in detail["shape_signature"])
            specs.append(TensorSpec(name, np.dtype(detail["dtype"]).name, shape))
        sides.append(tuple(specs))
    return sides[0], sides[1]


def _manifest(
    run: Run,
    recipe: Recipe,
    name: str,
    graphs: dict[str, _Converted],
    vocabulary_kind: str,
    calibrated_on: int,
    scores: dict[str, Any],
) -> Manifest:
    expected = {spec.name: spec for spec in decoder_inputs(run.model)}
    found = {spec.name: spec for spec in graphs["decoder"].inputs}
    if found != expected:
        raise ExportError(
            f"decoder.tflite takes {sorted(found.values(), key=str)}, expected {sorted(expected.values(), key=str)}"
        )
    config = run.config
    h, w, _ = run.model.feature_shape
    packages = ("tensorflow", "keras", "litert-quantizer", "ai-edge-litert", "captionlite")
    return Manifest(
        format=FORMAT,
        name=name,
        family=run.model.family,
        graphs={
            graph: GraphSpec(f"{graph}.tflite", recipe.name, converted.inputs, converted.outputs)
            for graph, converted in graphs.items()
        },
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
        ),
        golden=GoldenSpec("golden.npz", recipe.tolerance),
        attention=AttentionSpec((h, w)) if run.model.attends else None,
        provenance={
            "preset": config.name,
            "encoder": dataclasses.asdict(config.encoder),
            "decoder": dict(config.family),
            "parameters": {
                "encoder": int(run.encoder.count_params()),
                "decoder": int(run.model.count_params()),
            },
            "training": {"epochs_at_most": config.epochs, "weights": [d.weight for d in config.data], **run.best},
            "calibration": {"photographs": calibrated_on},
            "tools": {package: version(package) for package in packages},
        },
        scores=scores,
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
    if recipe.name != "float32":
        return
    for tensor in parity.tensors:
        if tensor.name == "decoder/logits" and tensor.max_abs > FLOAT32_LOGITS_TOLERANCE:
            raise ExportError(
                f"float32 logits differ from Keras by up to {tensor.max_abs:.2e}, expected at most "
                f"{FLOAT32_LOGITS_TOLERANCE:.0e}; the family's step and its full call may disagree: run its harness"
            )
