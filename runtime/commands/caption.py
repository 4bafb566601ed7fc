"""`captionlite caption IMAGE...`: one caption a line."""

import json
import os
import sys
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from captionlite.runtime.commands.options import decoding_options, delegate_option, read_options, tell_delegate
from captionlite.runtime.commands.photographs import each, expand, read, together
from captionlite.runtime.errors import ImageError, OptionsError
from captionlite.runtime.progress import ProgressLine
from captionlite.runtime.records import might_be, record

if TYPE_CHECKING:
    from captionlite.runtime.captioner import Captioner
    from captionlite.runtime.decoding import Alternative, Caption, DecodingOptions
    from captionlite.runtime.delegates import DelegateSpec


@click.command("caption")
@click.argument("images", nargs=-1, required=True, metavar="IMAGE...")
@click.option("--bundle", "bundle_name", default="default", show_default=True, help="Bundle directory, zip or name.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the encoder.  [default: all cores]")
@delegate_option
@decoding_options
@click.option("--n-best", type=click.IntRange(min=1), help="Show so many hypotheses; needs --beams or --best-of.")
@click.option(
    "--min-confidence", type=click.FloatRange(0, 1), help='Below this, say "not sure" and show what it might be.'
)
@click.option(
    "--maybe/--no-maybe",
    default=None,
    help='Below an unsure caption a line of what the classifier sees, "    maybe: espresso".  [default: on a terminal]',
)
@click.option("--stream", is_flag=True, help="Print each word as soon as it is chosen.")
@click.option("--fill", "template", metavar="TEXT", help='Fill in the [MASK]s of TEXT instead, e.g. "a [MASK] runs".')
@click.option(
    "--attention",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Show what each word looked at: a picture (.png), an animation (.gif) or the numbers (.json).",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line.")
def command(
    images: tuple[str, ...],
    bundle_name: str,
    threads: int | None,
    delegate: "DelegateSpec | None",
    min_confidence: float | None,
    maybe: bool | None,
    stream: bool,
    template: str | None,
    attention: Path | None,
    as_json: bool,
    **decoding: Any,
) -> None:
    """Caption photographs: files, folders (their images sorted by name), or - for image bytes on stdin.

    A photograph that cannot be read is reported by name and the rest go on; the exit code is then 1. Lines that begin
    with four spaces belong to the caption above them; written to a file or a pipe there are none unless asked for.
    """
    from captionlite.runtime.captioner import Captioner
    from captionlite.runtime.interpreter import without_chatter

    options = read_options(decoding)
    _check_together(options, min_confidence, stream, template, as_json)
    if maybe is not None and (stream or as_json or template is not None):
        raise click.UsageError("--maybe: there is no line to add with --stream, --json (always a field) and --fill.")
    if attention is not None:
        _check_attention(images, stream)
    with without_chatter():
        captioner = Captioner.from_bundle(bundle_name, threads, delegate=delegate)
        captioner.check(options)
        if template is not None:
            captioner.refiner("--fill")
    tell_delegate(captioner)
    if min_confidence is not None and captioner.bundle.manifest.decoding.confidence is None:
        raise OptionsError(
            f"--min-confidence: {captioner.bundle.manifest.name!r} has no calibrated confidence. "
            f"Fit one with `captionlite confidence`."
        )
    if maybe:
        _check_labels(captioner)
    if attention is not None:
        from captionlite.runtime.attention import check_attention_file, write_attention

        check_attention_file(attention, captioner.bundle)
    names = list(expand(images))
    bare = len(images) == 1 and not os.path.isdir(images[0])

    def label(name: str) -> str:
        return "" if bare else f"{click.format_filename(name)}: "

    def tell(name: str, source: str | bytes, result: "Caption") -> None:
        sure = min_confidence is None or result.confidence is None or result.confidence >= min_confidence
        hypotheses: list[Caption | Alternative] = [result, *result.alternatives]
        if not sure and options.passes is None:
            hypotheses = might_be(captioner, source, options)
        if as_json:
            others = hypotheses[1:] if sure else [h for h in hypotheses if h.tokens != result.tokens]
            _print_json({"image": name, **record(result, others, sure)})
        else:
            click.echo(label(name) + (result.text if sure else "not sure"))
            for other in hypotheses if not sure or options.n_best > 1 else ():
                click.echo(f"    {other.logprob:.3f}  {other.text}")
            if result.maybe and hinting:
                click.echo(f"    maybe: {', '.join(one.name for one in result.maybe)}")
        if attention is not None:
            write_attention(attention, source, result, captioner.bundle, name=name)

    # Scripts that read a caption a line know nothing of a second line, unless they ask for such lines.
    hinting = maybe if maybe is not None else min_confidence is not None or sys.stdout.isatty()

    failed = False
    if stream:
        failed = _stream(names, captioner, options, label)
    else:
        if template is None:
            results = together(names, captioner, options)
        else:
            results = each(names, partial(captioner.fill, template=template))
        with ProgressLine(len(names)) as progress:
            for name, source, result in results:
                if isinstance(result, ImageError) or sys.stdout.isatty():
                    progress.hide()
                if isinstance(result, ImageError):
                    failed = True
                    _print_error(name, result, as_json)
                else:
                    tell(name, source, result)
                progress.advance()
    if failed:
        raise SystemExit(1)


def _check_together(
    options: "DecodingOptions", min_confidence: float | None, stream: bool, template: str | None, as_json: bool
) -> None:
    """Options that this command cannot follow together are wrong usage."""
    from captionlite.runtime.decoding import DecodingOptions

    if template is not None and (options != DecodingOptions() or min_confidence is not None):
        raise click.UsageError("--fill takes no decoding options: the masks are filled in one after another.")
    if stream and (as_json or template is not None or min_confidence is not None):
        raise click.UsageError("--stream prints words as they come; leave out --json, --fill and --min-confidence.")
    if stream and (options.hypotheses > 1 or options.passes is not None):
        raise click.UsageError("--stream: --beams, --best-of and --passes choose between whole captions.")


def _check_labels(captioner: "Captioner") -> None:
    manifest = captioner.bundle.manifest
    if manifest.labels is None:
        raise OptionsError(
            f"--maybe: {manifest.name!r} has no labels. Export it again: `captionlite export RUN --labels imagenet`."
        )
    if manifest.decoding.confidence is None:
        raise OptionsError(
            f"--maybe: {manifest.name!r} has labels, but no calibrated confidence that says when to show them. Fit one "
            f"with `captionlite confidence`."
        )


def _check_attention(images: tuple[str, ...], stream: bool) -> None:
    if len(images) > 1 or os.path.isdir(images[0]):
        found = f"{len(images)} arguments" if len(images) > 1 else "a folder"
        raise click.UsageError(f"--attention shows one photograph, found {found}. Name a single one.")
    if stream:
        raise click.UsageError("--attention shows a whole caption; leave out --stream.")


def _stream(
    names: Iterable[str | ImageError], captioner: "Captioner", options: "DecodingOptions", label: Callable[[str], str]
) -> bool:
    """Print each photograph's words as they come. True when one could not be read."""
    failed = False
    for name in names:
        try:
            if isinstance(name, ImageError):
                raise name
            words = captioner.stream(read(name), options)
            first = next(words, "")  # what cannot be captioned fails here, before a half line is out
        except ImageError as error:
            failed = True
            _print_error("", error, as_json=False)
            continue
        click.echo(label(name) + first, nl=False)
        for word in words:
            click.echo(word, nl=False)
            sys.stdout.flush()
        click.echo()
    return failed


def _print_error(name: str, error: ImageError, as_json: bool) -> None:
    """An error of a whole folder, which has no name, is no photograph's and goes to stderr even with --json."""
    if as_json and name:
        _print_json({"image": name, "error": str(error)})
    else:
        click.echo(f"Error: {error}", err=True)


def _print_json(record: dict[str, Any]) -> None:
    click.echo(json.dumps(record, allow_nan=False))  # ASCII, because a file name may be no valid Unicode
