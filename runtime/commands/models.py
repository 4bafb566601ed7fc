"""`captionlite models ...`: named bundles from an index, kept in the cache, found by `--bundle NAME`."""

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from captionlite.runtime.errors import ModelError

if TYPE_CHECKING:
    from captionlite.runtime.models.cache import Cached
    from captionlite.runtime.models.index import Entry, Index
    from captionlite.runtime.progress import ProgressLine

INDEX_VARIABLE = "CAPTIONLITE_INDEX"


def _index_options(command: Callable[..., Any]) -> Callable[..., Any]:
    for option in reversed(_INDEX_OPTIONS):
        command = option(command)
    return command


_INDEX_OPTIONS = [
    click.option(
        "--index",
        "source",
        metavar="FOLDER|URL",
        help=f"A folder with an index.json, or an https URL of one.  [default: ${INDEX_VARIABLE}]",
    ),
    click.option("--offline", is_flag=True, help="Never use the network."),
    click.option("--allow-http", is_flag=True, help="Also plain http, and not from this machine alone."),
]
_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.group("models")
def command() -> None:
    """Fetch and keep named bundles; `--bundle NAME` then finds them.

    Bundles come from an index: a JSON file in a folder or at an https URL, with the size and SHA-256 of every file.
    There is no index of captionlite's own: name one by --index, or for good in the variable CAPTIONLITE_INDEX. Pulled
    bundles are kept in ~/.cache/captionlite/models ($XDG_CACHE_HOME and $CAPTIONLITE_CACHE are respected). Checksums
    tell that you got what the index says, not that its publisher means well.
    """


@command.command("list")
@_index_options
@_json_option
def list_command(source: str | None, offline: bool, allow_http: bool, as_json: bool) -> None:
    """List packaged, pulled and available bundles."""
    from captionlite.runtime.models import cache
    from captionlite.runtime.models.pull import is_url

    source = source or os.environ.get(INDEX_VARIABLE) or None
    index = None
    if source is None:
        click.echo(_no_index("only what is here is listed"), err=True)
    elif offline and is_url(source):
        click.echo(f"--offline: {source} is not asked, only what is here is listed", err=True)
    else:
        index = _open(source, offline, allow_http)
    rows = [_packaged()] + [_row(one.label, one.entry, "pulled", one.path) for one in cache.cached()]
    here = {row["label"] for row in rows}
    rows += (
        [_row(entry.label, entry, "available") for entry in index.entries if entry.label not in here] if index else []
    )
    if as_json:
        click.echo(json.dumps({"index": source, "bundles": rows, "begun": cache.begun()}))
        return
    width = max(len(row["label"]) for row in rows)
    for row in rows:
        size = f"{row['size_bytes'] / 1e6:7.2f} MB" if row["size_bytes"] is not None else f"{'?':>10}"
        what = ", ".join(row[key] for key in ("family", "recipe") if row[key]) or "its record is damaged"
        click.echo(f"{row['label']:<{width}}  {row['state']:<9} {size}  {what}")
    for label in cache.begun():
        click.echo(f"{label}: begun, not whole; `captionlite models pull {label}` goes on", err=True)


@command.command("show")
@click.argument("name", metavar="NAME[@VERSION]")
@_index_options
@_json_option
def show_command(name: str, source: str | None, offline: bool, allow_http: bool, as_json: bool) -> None:
    """Show what is known of a bundle.

    Of a pulled one from the cache, of another from the index.
    """
    from captionlite.runtime.models import cache
    from captionlite.runtime.models.index import split_label

    split_label(name)
    one = cache.find(name)
    entry = one.entry if one is not None else _required(source, offline, allow_http, [name]).find(name)
    if entry is None:
        assert one is not None
        raise ModelError(f"{one.path}: its record is damaged. `captionlite inspect {name}` shows the bundle itself.")
    found = {**entry.to_json(), "size_bytes": entry.size_bytes, "state": "pulled" if one else "available"}
    found["location"] = None if one is None else str(one.path)
    if as_json:
        click.echo(json.dumps(found))
        return
    click.echo(f"{entry.label}  ({found['location'] or 'not pulled'})")
    for key in ("description", "family", "recipe", "licence"):
        click.echo(f"  {key:<11} {found[key]}")
    click.echo(f"  {'size':<11} {entry.size_bytes / 1e6:.2f} MB in {len(entry.remotes)} files")
    for title, value in entry.scores.items():
        click.echo(f"  {json.dumps(title)}: {json.dumps(value)}")


@command.command("pull")
@click.argument("names", nargs=-1, required=True, metavar="NAME[@VERSION]...")
@_index_options
@_json_option
def pull_command(names: tuple[str, ...], source: str | None, offline: bool, allow_http: bool, as_json: bool) -> None:
    """Fetch bundles from the index into the cache.

    What a broken pull left is gone on with. A bundle that is there already is not fetched again, and needs neither
    index nor network.
    """
    from captionlite.runtime.models import cache
    from captionlite.runtime.models.index import split_label
    from captionlite.runtime.models.pull import Teller, check, is_url, pull
    from captionlite.runtime.progress import ProgressLine, describe_bytes

    for name in names:
        split_label(name)
    named = source or os.environ.get(INDEX_VARIABLE)
    may_ask = named is not None and named != "" and not (offline and is_url(named))
    pulled: list[Cached] = []
    index = None
    for name in names:
        there = cache.find(name)
        # Without a version the index may have a newer one.
        if there is not None and not check(there) and ("@" in name or not may_ask):
            pulled.append(there)
        else:
            index = index or _required(source, offline, allow_http, names)
            entry = index.find(name)
            with ProgressLine(entry.size_bytes, tell=describe_bytes) as progress:
                teller = Teller(partial(_say, progress), progress.advance)
                pulled.append(pull(index, entry, allow_http=allow_http, tell=teller))
        if not as_json:
            click.echo(f"{pulled[-1].label}  {pulled[-1].path}")
    if as_json:
        click.echo(json.dumps({"pulled": [{"label": one.label, "location": str(one.path)} for one in pulled]}))


@command.command("remove")
@click.argument("names", nargs=-1, required=True, metavar="NAME[@VERSION]...")
@_json_option
def remove_command(names: tuple[str, ...], as_json: bool) -> None:
    """Take bundles out of the cache.

    Without a version all versions of that name, and what broken pulls left of them.
    """
    from captionlite.runtime.models import cache
    from captionlite.runtime.models.index import split_label

    kept = [*(one.label for one in cache.cached()), *cache.begun()]
    labels: list[str] = []
    for name in names:
        split_label(name)
        found = [label for label in kept if name in (label, label.partition("@")[0])]
        if not found:
            raise ModelError(f"{name}: not in {cache.models_directory()}; there: {', '.join(kept) or 'nothing'}.")
        labels += [label for label in found if label not in labels]
    for label in labels:
        cache.remove(label)
        if not as_json:
            click.echo(f"removed {label}")
    if as_json:
        click.echo(json.dumps({"removed": labels}))


@command.command("verify")
@click.argument("names", nargs=-1, metavar="[NAME[@VERSION]...]")
@_json_option
def verify_command(names: tuple[str, ...], as_json: bool) -> None:
    """Check that pulled bundles are intact.

    All of them by default, every byte, against what the index promised. Whether they compute the right numbers on this
    machine is what `captionlite verify NAME` tells.
    """
    from captionlite.runtime.models import cache
    from captionlite.runtime.models.pull import check

    found = cache.cached()
    chosen = []
    for name in names:
        one = cache.find(name)
        if one is None:
            there = ", ".join(other.label for other in found) or "nothing"
            raise ModelError(f"{name}: not in {cache.models_directory()}; there: {there}.")
        chosen.append(one)
    verdicts = {one.label: check(one) for one in (chosen or found)}
    if as_json:
        click.echo(json.dumps({"passed": not any(verdicts.values()), "problems": verdicts}))
    else:
        for label, problems in verdicts.items():
            click.echo(f"{label}: {'; '.join(problems) or 'right'}")
    if any(verdicts.values()):
        sys.exit(1)


@command.command("index")
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--bundle-version", default="1.0", show_default=True, help="Of bundles whose names do not say it.")
@_json_option
def index_command(folder: Path, bundle_version: str, as_json: bool) -> None:
    """Write the index of a folder of bundles.

    FOLDER/index.json then lists the bundle directories and zips in FOLDER, for publishing all of it. NAME or
    NAME@VERSION (.zip) is what a bundle is listed as. Copy the folder to any https server, or give it as --index.
    """
    from captionlite.runtime.models.index import VERSION
    from captionlite.runtime.models.publish import make_index

    if not VERSION.fullmatch(bundle_version):
        raise click.UsageError(f"--bundle-version {bundle_version!r}: expected letters, digits, '.', '+', '_' and '-'.")
    path, entries = make_index(folder, bundle_version)
    if as_json:
        click.echo(json.dumps({"index": str(path), "bundles": [entry.to_json() for entry in entries]}))
        return
    for entry in entries:
        click.echo(f"{entry.label}  {entry.size_bytes / 1e6:.2f} MB, {entry.family}, {entry.recipe}, {entry.licence}")
    click.echo(f"wrote {path}: {len(entries)} bundle{'s' if len(entries) > 1 else ''}")


def _say(progress: "ProgressLine", line: str) -> None:
    progress.hide()
    click.echo(line, err=True)


def _required(source: str | None, offline: bool, allow_http: bool, names: "tuple[str, ...] | list[str]") -> "Index":
    """The index that was named. Raises ModelError where none is, or none may be asked."""
    from captionlite.runtime.models import cache
    from captionlite.runtime.models.pull import is_url

    source = source or os.environ.get(INDEX_VARIABLE) or None
    if source is None:
        raise ModelError(_no_index(f"{', '.join(names)} cannot be found"))
    if offline and is_url(source):
        missing = ", ".join(name for name in names if cache.find(name) is None) or ", ".join(names)
        there = ", ".join(one.label for one in cache.cached()) or "nothing"
        raise ModelError(
            f"--offline: {missing} would have to be fetched from {source}. Pulled before: {there}. Leave out "
            f"--offline, or give a folder as --index."
        )
    return _open(source, offline, allow_http)


def _open(source: str, offline: bool, allow_http: bool) -> "Index":
    from captionlite.runtime.models.pull import open_index

    return open_index(source, offline=offline, allow_http=allow_http)


def _no_index(what: str) -> str:
    return (
        f"no index of bundles is named, so {what}: give --index FOLDER or --index https://..., or set "
        f"{INDEX_VARIABLE}. captionlite has none of its own."
    )


def _row(label: str, entry: "Entry | None", state: str, path: Path | None = None) -> dict[str, Any]:
    described = ("description", "family", "recipe", "licence", "size_bytes")
    told = {key: None if entry is None else getattr(entry, key) for key in described}
    return {"label": label, "state": state, **told, "location": None if path is None else str(path)}


def _packaged() -> dict[str, Any]:
    from captionlite.runtime.bundle import Bundle
    from captionlite.runtime.errors import BundleError

    try:
        bundle = Bundle.open("default")
    except BundleError:
        return _row("default", None, "missing")
    recipes = ", ".join(dict.fromkeys(graph.recipe for graph in bundle.manifest.graphs.values()))
    return {
        "label": "default",
        "state": "packaged",
        "description": f"{bundle.manifest.name}, the bundle inside the package",
        "family": bundle.manifest.family,
        "recipe": recipes,
        "licence": None,
        "size_bytes": bundle.size_bytes,
        "location": str(bundle.location),
    }
