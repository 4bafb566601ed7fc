"""`captionlite inspect BUNDLE`: what a bundle holds, after all its checks, without an interpreter."""

import json
from typing import Any

import click


@click.command("inspect")
@click.argument("bundle_name", metavar="[BUNDLE]", default="default")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(bundle_name: str, as_json: bool) -> None:
    """Show what a bundle holds: a directory, a zip, or `default`."""
    from captionlite.runtime.bundle import Bundle

    bundle = Bundle.open(bundle_name)
    manifest = bundle.manifest
    if as_json:
        summary = {"bundle": str(bundle.location), "size_bytes": bundle.size_bytes, "manifest": manifest.to_json()}
        click.echo(json.dumps(summary))
        return
    click.echo(f"{manifest.name}  ({bundle.location})")
    click.echo(f"  family      {manifest.family}, bundle format {manifest.format[0]}.{manifest.format[1]}")
    for name, graph in manifest.graphs.items():
        size_mb = manifest.files[graph.file].size_bytes / 1e6
        click.echo(f"  {name:<11} {graph.file}, {graph.recipe}, {size_mb:.2f} MB")
    click.echo(f"  image       {manifest.image.height} x {manifest.image.width} pixels, {manifest.image.resize}")
    click.echo(f"  vocabulary  {manifest.vocabulary.size} {manifest.vocabulary.kind}")
    penalty = manifest.decoding.length_penalty
    beams = "" if penalty is None else f", beams ranked with a length penalty of {penalty:g}"
    click.echo(f"  decoding    at most {manifest.decoding.max_length} tokens{beams}")
    if bundle.labels is not None:
        spec = bundle.labels.spec
        click.echo(
            f"  labels      {len(bundle.labels.told)} of {spec.source}, offered from {spec.least_probability:.0%} on "
            f"(beside people {spec.least_beside_people:.0%}) where the confidence is below {spec.below_confidence:.0%}"
        )
    click.echo(f"  size        {bundle.size_bytes / 1e6:.2f} MB in {len(manifest.files)} files, checksums right")
    proven = [*map(str, manifest.proven)] or ["no interpreter yet: it checks itself where it is first opened"]
    click.echo(f"  proven on   {', '.join(proven)}")
    click.echo("  state")
    for row in manifest.state:
        shape = " x ".join("batch" if size is None else str(size) for size in row.shape)
        where = f" along axis {row.axis}" if row.axis is not None else ""
        click.echo(f"    {row.name}: {row.kind}{where}, {row.dtype}, {shape}")
    for title, values in (("provenance", manifest.provenance), ("scores", manifest.scores)):
        if values:
            click.echo(f"  {title}")
        for name, value in values.items():
            click.echo(f"    {_printable(name)}: {_printable(value)}")


def _printable(value: Any) -> str:
    """As it is, or as JSON, which escapes the control characters that a stranger's bundle might send a terminal."""
    return value if isinstance(value, str) and value.isprintable() else json.dumps(value)
