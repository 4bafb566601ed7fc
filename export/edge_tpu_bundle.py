"""The Edge TPU compiler's output into a bundle.

    edgetpu_compiler BUNDLE/encoder.tflite            # Coral's, on x86-64 Linux: writes encoder_edgetpu.tflite
    python -m captionlite.export.edge_tpu_bundle BUNDLE encoder_edgetpu.tflite --out COMPILED
    captionlite caption --bundle COMPILED --delegate libedgetpu.so.1 PHOTO

The new bundle is the old one (recipe full-int8) with that encoder; golden vectors stay, so what the accelerator
computes is held to what the CPU did. The compiler may leave out the signature by which tensors are bound; it is put
back.
"""

from __future__ import annotations

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import click

from captionlite.export.errors import ExportError
from captionlite.export.flat_model import pack_model, unpack_model
from captionlite.export.tflite_file import op_names
from captionlite.runtime.bundle import Bundle, write_bundle
from captionlite.runtime.errors import CaptionliteError

CUSTOM_OP = "edgetpu-custom-op"


def install_compiled(bundle: Bundle, compiled: bytes, out: Path, *, where: str, force: bool = False) -> list[str]:
    """Write ``bundle`` with the compiled encoder at ``out``; returns the ops that the compiler left to the CPU.

    ``where`` names the compiled file in errors. Raises ExportError when it is no compiled file, or of another encoder;
    BundleError when ``out`` exists.
    """
    manifest = bundle.manifest
    spec = manifest.graphs["encoder"]
    original = bundle.read(spec.file)
    try:
        ops = op_names(compiled)
    except Exception as error:  # flatbuffers raises by what the bytes happen to be
        raise ExportError(f"{where}: not readable as a TFLite file ({type(error).__name__})") from error
    if f"CUSTOM:{CUSTOM_OP}" not in ops:
        raise ExportError(
            f"{where}: has no op {CUSTOM_OP}, so nothing of it is for the Edge TPU; give what edgetpu_compiler wrote"
        )
    content = _with_signature(compiled, original, where)
    files = {name: bundle.read(name) for name in manifest.files}
    files[spec.file] = content
    on_cpu = [op for op in ops if "CUSTOM" not in op]
    origin = {"of_sha256": hashlib.sha256(original).hexdigest(), "on_cpu": on_cpu}
    written = dataclasses.replace(
        manifest,
        graphs={**manifest.graphs, "encoder": dataclasses.replace(spec, recipe=f"{spec.recipe}, Edge TPU")},
        proven=(),  # no interpreter computes this by itself
        provenance={**manifest.provenance, "edge_tpu": origin},
    )
    write_bundle(out, written, files, force=force)
    return on_cpu


def _with_signature(compiled: bytes, original: bytes, where: str) -> bytes:
    """The compiled file with the original's signature, its tensors found by their names in the graph."""
    model, old = unpack_model(compiled), unpack_model(original)
    graph, old_graph = model.subgraphs[0], old.subgraphs[0]
    signature = old.signatureDefs[0]
    for side, indices in (("inputs", graph.inputs), ("outputs", graph.outputs)):
        there = {_name(graph, i): int(i) for i in indices}
        for row in getattr(signature, side):
            name = _name(old_graph, row.tensorIndex)
            if name not in there:
                raise ExportError(
                    f"{where}: its {side} are {sorted(there)}, expected {name!r} among them; compile the "
                    "encoder.tflite of this very bundle"
                )
            found, expected = graph.tensors[there[name]], old_graph.tensors[row.tensorIndex]
            if (found.type, list(found.shape)) != (expected.type, list(expected.shape)):
                raise ExportError(f"{where}: {name} has another type or shape than in the bundle; compile its encoder")
            row.tensorIndex = there[name]
    if model.signatureDefs:
        return compiled
    model.signatureDefs = [signature]
    return pack_model(model)


def _name(graph: Any, index: int) -> str:
    name: str = graph.tensors[index].name.decode()
    return name


@click.command()
@click.argument("bundle")
@click.argument("compiled", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The new bundle's directory.")
@click.option("--force", is_flag=True, help="Replace --out if it exists.")
def main(bundle: str, compiled: Path, out: Path, force: bool) -> None:
    """Put COMPILED, which edgetpu_compiler made of BUNDLE's encoder.tflite, into a copy of BUNDLE."""
    try:
        left = install_compiled(Bundle.open(bundle), compiled.read_bytes(), out, where=str(compiled), force=force)
    except CaptionliteError as error:
        raise click.ClickException(str(error)) from error
    click.echo(f"wrote {out}; on the CPU stay: {', '.join(left) or 'none'}")


if __name__ == "__main__":
    main()
