"""`captionlite bench`: what a caption costs. Its commands are a table, and each is imported only when it is called."""

from importlib import import_module
from importlib.util import find_spec

import click

from captionlite.runtime.cli import LazyCommand

COMMANDS = {
    "run": LazyCommand("captionlite.benchmarks.commands.bench_run", "Measure captions on this machine.", "bench"),
    "compare": LazyCommand("captionlite.benchmarks.commands.bench_compare", "Set results side by side.", "bench"),
    "peers": LazyCommand("captionlite.benchmarks.commands.bench_peers", "Against what people use instead.", "bench"),
    "roofline": LazyCommand("captionlite.benchmarks.commands.bench_roofline", "Against what is possible.", "bench"),
    "scaling": LazyCommand("captionlite.benchmarks.commands.bench_scaling", "Time by size of the model.", "bench"),
    "profile": LazyCommand("captionlite.benchmarks.commands.bench_profile", "Time by operation of a graph.", "bench"),
}


class LazyBench(click.Group):
    """The commands of the table that are there. What one imports in vain is told by the group above this one."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names in the order of the table."""
        return [name for name, entry in COMMANDS.items() if find_spec(entry.module)]

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import one command."""
        if cmd_name not in self.list_commands(ctx):
            return None
        command: click.Command = import_module(COMMANDS[cmd_name].module).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list of commands from the table alone, so that --help imports none of them."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, COMMANDS[name].help) for name in self.list_commands(ctx)])


@click.group("bench", cls=LazyBench)
def command() -> None:
    """Measure what a caption costs here, and compare: machines, models, and what people use instead."""
