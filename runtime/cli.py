"""The `captionlite` command. Its commands are a table; a command's module is imported only when it is called."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import click

from captionlite.runtime.errors import CaptionliteError


@dataclass(frozen=True)
class LazyCommand:
    """Where a command stands, its help in one line, and the extra that installs what it imports."""

    module: str  # has `command: click.Command`
    help: str
    extra: str | None = None


COMMANDS = {
    "caption": LazyCommand("captionlite.runtime.commands.caption", "Caption photographs."),
    "camera": LazyCommand("captionlite.runtime.commands.camera", "Caption what a camera sees now."),
    "serve": LazyCommand("captionlite.runtime.commands.serve", "Caption photographs over HTTP.", "serve"),
    "service": LazyCommand("captionlite.runtime.commands.service", "Have systemd run the service.", "serve"),
    "score": LazyCommand("captionlite.runtime.commands.score", "Say how well a caption fits a photograph."),
    "inspect": LazyCommand("captionlite.runtime.commands.inspect", "Show what a bundle holds."),
    "verify": LazyCommand("captionlite.runtime.commands.verify", "Check a bundle's golden vectors on this machine."),
    "env": LazyCommand("captionlite.runtime.commands.env", "Show this machine, its interpreter and versions."),
    "models": LazyCommand("captionlite.runtime.commands.models", "Fetch and keep named bundles."),
    "presets": LazyCommand("captionlite.training.commands.presets", "List what can be trained.", "train"),
    "train": LazyCommand("captionlite.training.commands.train", "Train a captioning model.", "train"),
    "average": LazyCommand("captionlite.training.commands.average", "Average the weights of runs.", "train"),
    "ensemble": LazyCommand("captionlite.training.commands.ensemble", "Make one captioner of several runs.", "train"),
    "export": LazyCommand("captionlite.export.commands.export", "Turn a trained model into a bundle.", "export"),
    "quantize": LazyCommand("captionlite.export.commands.quantize", "Quantize a float32 bundle.", "export"),
    "evaluate": LazyCommand("captionlite.benchmarks.commands.evaluate", "Score a bundle's captions.", "bench"),
    "gate": LazyCommand("captionlite.benchmarks.commands.gate", "Hold a bundle's captions to float32's.", "bench"),
    "bench": LazyCommand("captionlite.benchmarks.commands.bench", "Measure what a caption costs.", "bench"),
    "confidence": LazyCommand("captionlite.benchmarks.commands.confidence", "Fit a bundle's confidence.", "bench"),
}


class LazyGroup(click.Group):
    """Commands of the table, with captionlite's errors turned into exit code 1 and one line on stderr."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command; what it imports in vain is named with the extra that brings it."""
        entry = COMMANDS.get(cmd_name)
        if entry is None:
            return None
        try:
            command: click.Command = import_module(entry.module).command
        except ImportError as error:
            raise _missing(error, cmd_name) from error
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands from the table alone, so that --help imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.help) for name, entry in COMMANDS.items()])

    def invoke(self, ctx: click.Context) -> Any:
        """Run a command; a CaptionliteError prints its message and exits 1, without a traceback unless asked for."""
        try:
            return super().invoke(ctx)
        except (CaptionliteError, ImportError) as error:
            if os.environ.get("CAPTIONLITE_TRACEBACK") == "1":
                raise
            if isinstance(error, ImportError):
                raise _missing(error, ctx.invoked_subcommand or "") from error
            raise click.ClickException(str(error)) from error


def _missing(error: ImportError, command: str) -> Exception:
    """What to raise for an ImportError: the pip install to run, or the error itself when it is captionlite's own."""
    missing = error.name or ""
    if not missing or missing.partition(".")[0] == "captionlite":
        return error
    extra = COMMANDS[command].extra
    package = f"captionlite[{extra}]" if extra else "captionlite"
    return click.ClickException(
        f"`captionlite {command}` needs the module {missing!r} ({error}). Install it with `pip install '{package}'`."
    )


@click.group(cls=LazyGroup, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="captionlite")
def cli() -> None:
    """Image captioning on small machines: caption photographs, look into bundles, train, export and measure."""


def main(args: Sequence[str] | None = None) -> None:
    """Entry point of the console script. Exit codes: 0, 1 failed, 2 wrong usage, 3 a quality gate failed."""
    cli.main(args=args, prog_name="captionlite")


if __name__ == "__main__":  # `python -m captionlite.runtime.cli`, where there is no console script
    main()
