"""What export and quantize print of a bundle that they have written."""

from __future__ import annotations

import dataclasses
import json
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from captionlite.export.bundle_quantizer import QuantizeResult
    from captionlite.export.exporter import ExportResult


def print_result(result: ExportResult | QuantizeResult, as_json: bool) -> None:
    """Sizes and ops of each graph, how far each tensor is from the reference, and how many captions are equal."""
    if as_json:
        click.echo(json.dumps({**dataclasses.asdict(result), "bundle": str(result.bundle)}))
        return
    before: dict[str, int] = getattr(result, "float32_sizes_bytes", {})
    for graph, ops in result.ops.items():
        file = f"{graph}.tflite"
        was = f"{before[file]:,} -> " if file in before else ""
        click.echo(f"{file}  {was}{result.sizes_bytes[file]:,} bytes  {len(ops)} kinds of ops: {', '.join(ops)}")
    parity = result.parity
    for tensor in parity.tensors:
        click.echo(f"{tensor.name:28} max abs {tensor.max_abs:.2e}  relative RMS {tensor.relative_rms:.2e}")
    click.echo(
        f"{parity.equal_captions} of {parity.photographs} captions equal those of {parity.reference}; "
        f"wrote {result.bundle}"
    )
