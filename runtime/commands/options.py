"""The decoding options of the command line, the same for every command that captions."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from captionlite.runtime.captioner import Captioner
    from captionlite.runtime.decoding import DecodingOptions
    from captionlite.runtime.delegates import DelegateSpec


def decoding_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options below to a click command, which takes them as `**decoding` for `read_options`."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def read_options(decoding: dict[str, Any]) -> "DecodingOptions":
    """What `decoding_options` collected. Raises click.UsageError for options that contradict each other."""
    from captionlite.runtime.decoding import DecodingOptions
    from captionlite.runtime.errors import OptionsError

    try:
        return DecodingOptions(**{name: value for name, value in decoding.items() if value is not None})
    except OptionsError as error:
        raise click.UsageError(str(error)) from error


def describe_options(options: "DecodingOptions") -> str:
    """Options in words: "greedy", "beam 3", "temperature 1, top_k 10", ... followed by what else differs."""
    from dataclasses import fields

    if options.passes is not None:
        kind = f"mask-predict, {options.passes} passes"
    elif options.beams > 1:
        kind = f"beam {options.beams}"
    else:
        kind = f"temperature {options.temperature:g}" if options.temperature else "greedy"
    told = ("passes", "beams", "temperature", "n_best")
    others = [f for f in fields(options) if f.name not in told and getattr(options, f.name) != f.default]
    return ", ".join([kind, *(f"{f.name} {_plain(getattr(options, f.name))}" for f in others)])


def delegate_option(command: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--delegate` and `--delegate-required`; the command takes both as `delegate: DelegateSpec | None`."""
    for option in reversed(_DELEGATE_OPTIONS):
        command = option(command)
    return command


def tell_delegate(captioner: "Captioner") -> None:
    """Say on stderr which ops the delegate took; that it is not used, it has said itself."""
    if captioner.delegation is not None and captioner.delegation.active:
        click.echo(str(captioner.delegation), err=True)


_REQUIRED = "captionlite.delegate_required"


def _require_delegate(ctx: click.Context, param: click.Parameter, value: bool) -> None:
    ctx.meta[_REQUIRED] = value


def _read_delegate(ctx: click.Context, param: click.Parameter, value: str | None) -> "DelegateSpec | None":
    required = bool(ctx.meta.get(_REQUIRED))
    if value is None:
        if required:
            raise click.UsageError("--delegate-required: there is no --delegate to require.")
        return None
    from captionlite.runtime.delegates import parse_delegate
    from captionlite.runtime.errors import OptionsError

    try:
        return parse_delegate(value, required=required)
    except OptionsError as error:
        raise click.UsageError(str(error)) from error


_DELEGATE_OPTIONS = [
    click.option(
        "--delegate",
        metavar="LIB[:KEY=VALUE,...]",
        callback=_read_delegate,
        help="Run the encoder on an accelerator through its external delegate library, such as libedgetpu.so.1; on the "
        "CPU, saying why, where that does not work.",
    ),
    click.option(
        "--delegate-required",
        is_flag=True,
        is_eager=True,
        expose_value=False,
        callback=_require_delegate,
        help="Fail (exit code 1) where the delegate does not work, instead of going on on the CPU.",
    ),
]


def _plain(value: Any) -> str:
    return "+".join(value) if isinstance(value, tuple) else f"{value:g}" if isinstance(value, float) else str(value)


_OPTIONS = [
    click.option("--beams", type=click.IntRange(min=1), help="Follow so many hypotheses side by side.  [default: 1]"),
    click.option(
        "--length-penalty",
        type=float,
        help="Rank by sum / length ** this: 0 sum, 1 mean.  [default: the bundle's]",
    ),
    click.option("--patience", type=float, help="End when beams * this captions are finished.  [default: 1]"),
    click.option("--temperature", type=float, help="Draw words at random; 1 as the model says, less is surer."),
    click.option("--top-k", type=click.IntRange(min=1), help="Draw among the so many likeliest words only."),
    click.option("--top-p", type=float, help="Draw among the words that hold this share of probability only."),
    click.option("--best-of", type=click.IntRange(min=1), help="Draw so many captions, take the likeliest."),
    click.option("--seed", type=click.IntRange(min=0), help="Of the drawing.  [default: 0]"),
    click.option("--no-repeat-ngram", type=click.IntRange(min=0), help="No sequence of so many words twice."),
    click.option("--min-length", type=click.IntRange(min=0), help="At least so many words."),
    click.option("--max-length", type=click.IntRange(min=1), help="At most so many tokens, the end token included."),
    click.option("--suppress", multiple=True, metavar="WORD", help="Never say WORD; may be repeated."),
    click.option("--prefix", metavar="TEXT", help="How the caption begins."),
    click.option("--passes", type=click.IntRange(min=1), help="So many parallel passes (masked_lm only)."),
]
