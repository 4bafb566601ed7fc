"""A float32 bundle in, a quantized bundle out: without the training run, without Keras, without TensorFlow."""

from __future__ import annotations

import dataclasses
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

from captionlite.export.calibration import NO_CALIBRATION, Calibration, Photographs, require_photographs
from captionlite.export.errors import ExportError
from captionlite.export.golden import golden_vectors
from captionlite.export.model_card import model_card
from captionlite.export.parity import Parity, measure_bundle_parity
from captionlite.export.quantization import quantize_graphs
from captionlite.export.recipes import Recipe
from captionlite.export.tflite_file import check_ops, is_quantized
from captionlite.runtime.bundle import Bundle, write_bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.manifest import FORMAT, GoldenSpec, Manifest
from captionlite.runtime.selfcheck import proven_here
from captionlite.runtime.verify import read_golden

PARITY_PHOTOGRAPHS = 20  # for calibration as well, beside those of the golden vectors
PACKAGES = ("litert-quantizer", "ai-edge-litert", "captionlite")


@dataclasses.dataclass(frozen=True)
class QuantizeResult:
    """The new bundle's directory, sizes before and after, the ops of each graph, and how far it is from float32."""

    bundle: Path
    float32_sizes_bytes: dict[str, int]
    sizes_bytes: dict[str, int]
    ops: dict[str, list[str]]
    parity: Parity


def quantize_bundle(
    bundle: Bundle,
    chosen: Recipe,
    out: Path,
    *,
    photographs: Photographs | None = None,
    name: str | None = None,
    force: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> QuantizeResult:
    """Writes the float32 ``bundle`` as ``chosen`` has it at ``out``, in one stroke.

    ``photographs``: training photographs, where the recipe calibrates. The golden photographs stay, with vectors of the
    new bundle; scores and confidence, which are the float32 bundle's, do not.

    Raises ExportError when the bundle is quantized already, when the recipe needs photographs, when the quantizer
    refuses, or when ``out`` exists.
    """
    if out.exists() and not force:
        raise ExportError(f"{out}: exists already; give --force to replace it, or another --out")
    manifest = bundle.manifest
    contents = {graph: bundle.read(spec.file) for graph, spec in manifest.graphs.items()}
    require_float32(bundle)
    if not any(chosen.graph(graph).rules for graph in contents):
        raise ExportError(f"recipe {chosen.name}: it quantizes nothing, and the bundle is float32 already")
    require_photographs(chosen, list(contents), photographs is not None, "--calibrate FOLDER")
    seen = photographs.load(manifest.image) if photographs else []
    pictured = list(read_golden(bundle).images)
    reference = Captioner(bundle)
    calibration = Calibration(seen, lambda: reference)
    graphs = quantize_graphs(contents, chosen, calibration.samples, report)
    ops = {graph: check_ops(content) for graph, content in graphs.items()}
    files = {manifest.graphs[graph].file: content for graph, content in graphs.items()}
    files[manifest.vocabulary.file] = bundle.read(manifest.vocabulary.file)
    if manifest.labels is not None:
        files[manifest.labels.file] = bundle.read(manifest.labels.file)
    calibrated = photographs.provenance() if photographs and chosen.needs_calibration else NO_CALIBRATION
    written = _manifest(bundle, chosen, name, calibrated)
    if manifest.decoding.confidence is not None:
        report("its confidence was fitted on the float32 bundle and is left out; fit it anew: captionlite confidence")
    with tempfile.TemporaryDirectory(prefix="captionlite-bundle-") as scratch:
        first = Path(scratch) / "bundle"
        write_bundle(first, written, {**files, manifest.golden.file: b"", "README.md": b""})
        captioner = Captioner(Bundle.open(first))
        report("comparing with the float32 bundle")
        parity = measure_bundle_parity(reference, captioner, [*pictured, *seen[:PARITY_PHOTOGRAPHS]])
        report("recording golden vectors")
        files[manifest.golden.file] = golden_vectors(captioner, pictured)
    written.provenance["parity"] = parity.to_json()
    sizes = {file: len(content) for file, content in files.items()}
    files["README.md"] = model_card(written, sizes, parity).encode()
    write_bundle(out, written, files, force=force)
    before = {file: spec.size_bytes for file, spec in manifest.files.items() if file in sizes}
    return QuantizeResult(out, before, sizes, ops, parity)


def require_float32(bundle: Bundle) -> None:
    """Raises ExportError when a graph is quantized, or when the manifest lacks what the model card states."""
    for spec in bundle.manifest.graphs.values():
        if is_quantized(bundle.read(spec.file)):
            raise ExportError(
                f"{bundle.location}/{spec.file}: quantized already (recipe {spec.recipe}), expected float32; make a "
                "float32 bundle of the run first: captionlite export RUN --recipe float32"
            )
    missing = [key for key in ("parameters", "encoder", "training") if key not in bundle.manifest.provenance]
    if missing:
        raise ExportError(
            f"{bundle.location}/manifest.json: provenance has no {', '.join(missing)}, which the model card states; "
            "export the bundle again"
        )


def _manifest(bundle: Bundle, chosen: Recipe, name: str | None, calibrated: dict[str, Any]) -> Manifest:
    old = bundle.manifest
    origin = {
        "name": old.name,
        "sha256": {spec.file: old.files[spec.file].sha256 for spec in old.graphs.values()},
        "scores": old.scores,
    }
    provenance = {key: value for key, value in old.provenance.items() if key != "confidence"}
    provenance |= {
        "recipe": chosen.provenance(),
        "calibration": calibrated,
        "quantized_from": origin,
        "tools": {**provenance.get("tools", {}), **{package: version(package) for package in PACKAGES}},
    }
    return dataclasses.replace(
        old,
        format=FORMAT,
        name=name or old.name,
        graphs={graph: dataclasses.replace(spec, recipe=chosen.name) for graph, spec in old.graphs.items()},
        decoding=dataclasses.replace(old.decoding, confidence=None),
        golden=GoldenSpec(old.golden.file, chosen.tolerance),
        proven=proven_here(),
        provenance=provenance,
        scores={},
    )
