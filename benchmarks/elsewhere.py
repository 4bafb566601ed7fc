"""The same bundles under other Pythons, CPUs and interpreters: are the numbers and the captions those of this machine?

    python -m captionlite.benchmarks.elsewhere BUNDLE... --python a72="qemu-aarch64 -cpu cortex-a72 -L ROOT PYTHON" \\
        --python old="env PYTHONPATH=FOLDER PYTHON3.11" --photos FOLDER --golden 16 --limit 100

A runner is a command line that starts a Python which can import captionlite.runtime; this Python is the runner `here`.
Each verifies every bundle and captions the photographs, through the command line that a user has. What cannot be run or
refuses a bundle is a row with the reason. From the errors a tolerance is learned for each recipe: the largest over the
runners that have this machine's interpreter (another interpreter is judged by a tolerance, it does not make it), times
a margin, rounded up. Exit codes: 3 where numbers or captions are not within what the bundle or its recipe states, else
1 where a runner gave no answer.
"""

from __future__ import annotations

import json
import shlex
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from captionlite.benchmarks.elsewhere_report import Report, markdown
from captionlite.benchmarks.elsewhere_runs import HERE, compare, learn, run, start
from captionlite.benchmarks.evaluation import describe_recipe
from captionlite.runtime.bundle import Bundle, write_bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.commands.photographs import expand
from captionlite.runtime.errors import CaptionliteError, ImageError
from captionlite.runtime.files import write_bytes_atomically
from captionlite.runtime.image import load_image
from captionlite.runtime.interpreter import without_chatter


def measure(
    bundles: Sequence[str],
    commands: Sequence[tuple[str, Sequence[str]]],
    photos: list[str],
    golden: int | None,
    timeout_s: float,
) -> Report:
    """Every bundle under every runner. Raises CaptionliteError when a bundle cannot be opened, or recorded here."""
    opened = [Bundle.open(name) for name in bundles]
    names = [bundle.location.name for bundle in opened]
    if len(set(names)) < len(names):
        names = list(bundles)
    runners = []
    for name, command in commands:
        click.echo(f"starting {name}", err=True)
        runners.append(start(name, command, timeout_s))
    rows = []
    with tempfile.TemporaryDirectory(prefix="captionlite-elsewhere-") as scratch:
        for number, (name, bundle) in enumerate(zip(names, opened, strict=True)):
            verified = bundle.location
            if golden is not None:
                with without_chatter():
                    verified = record_golden(bundle, photos[:golden], Path(scratch) / str(number))
            for runner in runners:
                click.echo(f"{name} under {runner.name}", err=True)
                recipe = describe_recipe(bundle.manifest)
                rows.append(run(runner, name, recipe, (verified, bundle.location), photos, timeout_s))
    interpreters = {runner.name: runner.interpreter for runner in runners}
    stated: dict[str, float] = {}
    for bundle in opened:
        recipe = describe_recipe(bundle.manifest)
        stated[recipe] = min(stated.get(recipe, 1.0), stated_tolerance(bundle))
    learned = learn(rows, interpreters, stated)
    return Report(tuple(runners), tuple(compare(rows)), tuple(learned), len(photos), golden)


def stated_tolerance(bundle: Bundle) -> float:
    """What the bundle's recipe says now, where captionlite has it by name; else what the bundle was made with."""
    name = describe_recipe(bundle.manifest)
    try:
        from captionlite.export.recipes import recipe, recipe_names

        return recipe(name).tolerance if name in recipe_names() else bundle.manifest.golden.tolerance
    except ImportError:  # without the extra `export`
        return bundle.manifest.golden.tolerance


def record_golden(bundle: Bundle, photos: Sequence[str], out: Path) -> Path:
    """A copy of the bundle whose golden vectors are this machine's, of these photographs. Raises CaptionliteError."""
    from captionlite.export.golden import golden_vectors

    pixels = [load_image(photo, bundle.manifest.image) for photo in photos]
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    files[bundle.manifest.golden.file] = golden_vectors(Captioner(bundle), pixels)
    write_bundle(out, bundle.manifest, files)
    return out


class _Named(click.ParamType[tuple[str, tuple[str, ...]]]):
    """NAME=COMMAND, the command split as a shell would."""

    name = "NAME=COMMAND"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        name, equals, command = value.partition("=")
        try:
            words = tuple(shlex.split(command))
        except ValueError as error:
            self.fail(f"{value!r}: {error}", param, ctx)
        if not (name and equals and words):
            self.fail(f'{value!r}, expected a name and a command line, such as pi="qemu-aarch64 -L ROOT PYTHON"')
        return name, words


@click.command()
@click.argument("bundles", nargs=-1, required=True, metavar="BUNDLE...")
@click.option("--python", "others", type=_Named(), multiple=True, metavar="NAME=COMMAND", help="Repeatable.")
@click.option("--photos", type=click.Path(exists=True, file_okay=False), help="Folder of photographs to caption.")
@click.option("--limit", type=click.IntRange(min=1), help="So many of the photographs, the first by name.")
@click.option("--golden", type=click.IntRange(min=1), metavar="N", help="Verify on golden vectors of the first N photographs, recorded here, not on the bundle's own.")  # fmt: skip # noqa: E501
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=1), default=3600.0, show_default=True, help="Seconds for one bundle.")  # fmt: skip # noqa: E501
@click.option("--json", "json_file", type=click.Path(dir_okay=False, path_type=Path), metavar="OUT")
@click.option("--markdown", "markdown_file", type=click.Path(dir_okay=False, path_type=Path), metavar="OUT")
def main(
    bundles: tuple[str, ...],
    others: tuple[tuple[str, tuple[str, ...]], ...],
    photos: str | None,
    limit: int | None,
    golden: int | None,
    timeout_s: float,
    json_file: Path | None,
    markdown_file: Path | None,
) -> None:
    """Numbers and captions of bundles under other Pythons, beside this machine's, and the tolerances they call for."""
    names = [HERE, *(name for name, _ in others)]
    if len(set(names)) < len(names):
        raise click.UsageError(f"--python: every runner needs a name of its own, and {HERE!r} is this Python's.")
    if golden is not None and photos is None:
        raise click.UsageError("--golden records photographs: name their folder with --photos.")
    try:
        pictures = [photo for photo in expand([photos] if photos else []) if not isinstance(photo, ImageError)][:limit]
        if photos and not pictures:
            raise CaptionliteError(f"{photos}: no image in this folder.")
        report = measure(bundles, [(HERE, (sys.executable,)), *others], pictures, golden, timeout_s)
    except CaptionliteError as error:
        raise click.ClickException(str(error)) from error
    text = markdown(report)
    click.echo(text)
    for file, content in ((json_file, json.dumps(report.to_json(), indent=1)), (markdown_file, text)):
        if file is not None:
            write_bytes_atomically(file, f"{content.rstrip()}\n".encode())
    if any(row.passed is False for row in report.rows) or any(one.exceeded for one in report.learned):
        sys.exit(3)
    if any(row.reasons for row in report.rows):
        sys.exit(1)


if __name__ == "__main__":
    main()
