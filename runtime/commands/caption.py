"""`captionlite caption IMAGE...`: one caption a line."""

import json
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from captionlite.runtime.errors import ImageError

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".mpo"))
STDIN = "-"


@click.command("caption")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--bundle", "bundle_name", default="default", show_default=True, help="Bundle directory, zip or name.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the encoder.  [default: all cores]")
@click.option(
    "--passes", type=click.IntRange(min=1), help="So many parallel passes instead of a word a step (masked_lm only)."
)
@click.option("--fill", "template", metavar="TEXT", help='Fill in the [MASK]s of TEXT instead, e.g. "a [MASK] runs".')
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def command(
    images: tuple[str, ...],
    bundle_name: str,
    threads: int | None,
    passes: int | None,
    template: str | None,
    as_json: bool,
) -> None:
    """Caption photographs: files, folders (their images sorted by name), or - for image bytes on stdin.

    A photograph that cannot be read is reported by name and the rest go on; the exit code is then 1.
    """
    from captionlite.runtime.captioner import Captioner
    from captionlite.runtime.decoding import DecodingOptions
    from captionlite.runtime.interpreter import without_chatter

    if passes is not None and template is not None:
        raise click.UsageError("--fill and --passes exclude each other: masks are filled in one after another.")
    with without_chatter():
        captioner = Captioner.from_bundle(bundle_name, threads)
        if passes is not None or template is not None:
            captioner.refiner("--fill" if passes is None else "--passes")
    options = DecodingOptions(passes=passes)
    bare = len(images) == 1 and not os.path.isdir(images[0])
    failed = False
    for name in _expand(images):
        if isinstance(name, ImageError):
            failed = True
            click.echo(f"Error: {name}", err=True)
            continue
        try:
            source = sys.stdin.buffer.read() if name == STDIN else name
            result = captioner.caption(source, options) if template is None else captioner.fill(source, template)
        except ImageError as error:
            failed = True
            if as_json:
                _print_json({"image": name, "error": str(error)})
            else:
                click.echo(f"Error: {error}", err=True)
            continue
        if as_json:
            _print_json(
                {
                    "image": name,
                    "caption": result.text,
                    "tokens": list(result.tokens),
                    "logprob": result.logprob,
                    "timings_ms": {stage: round(value, 3) for stage, value in result.timings_ms.items()},
                }
            )
        else:
            click.echo(result.text if bare else f"{click.format_filename(name)}: {result.text}")
    if failed:
        raise SystemExit(1)


def _expand(names: tuple[str, ...]) -> Iterator[str | ImageError]:
    """The photographs meant by the arguments, in their order; a folder that gives none is an error of its own."""
    for name in names:
        if name == STDIN or not os.path.isdir(name):
            yield name
            continue
        try:
            found = sorted(entry for entry in os.listdir(name) if Path(entry).suffix.lower() in IMAGE_SUFFIXES)
        except OSError as error:
            yield ImageError(f"{name}: cannot list this folder ({error.strerror}). Check its permissions.")
            continue
        if not found:
            yield ImageError(f"{name}: no image in this folder. Expected files ending in one of {_suffixes()}.")
        yield from (os.path.join(name, entry) for entry in found)


def _suffixes() -> str:
    return ", ".join(sorted(IMAGE_SUFFIXES))


def _print_json(record: dict[str, Any]) -> None:
    click.echo(json.dumps(record, allow_nan=False))  # ASCII, because a file name may be no valid Unicode
