"""The index of a folder of bundles: what somebody needs who publishes some."""

from pathlib import Path
from typing import Any

from captionlite.runtime.bundle import Bundle
from captionlite.runtime.errors import BundleError, ModelError
from captionlite.runtime.files import write_bytes_atomically
from captionlite.runtime.manifest import MANIFEST_FILE, Manifest
from captionlite.runtime.models.fetch import file_sha256
from captionlite.runtime.models.index import INDEX_FILE, Entry, Remote, index_json, parse_index

VERSION = "1.0"


def make_index(folder: Path, version: str = VERSION) -> tuple[Path, list[Entry]]:
    """Write `index.json` into a folder of bundle directories and zips, each listed by its file name.

    NAME@VERSION and NAME@VERSION.zip say their version; others are of `version`. Every bundle is opened, with all its
    checks. Raises ModelError, BundleError.
    """
    if not folder.is_dir():
        raise ModelError(f"{folder}: no folder. Expected one with bundle directories or zips in it.")
    entries = []
    for path in sorted(folder.iterdir()):
        if (path / MANIFEST_FILE).is_file() or (path.suffix == ".zip" and path.is_file()):
            entries.append(_entry(path, version))
    if not entries:
        raise ModelError(
            f"{folder}: no bundle in it. Expected bundle directories (with {MANIFEST_FILE}) or bundle zips."
        )
    data = index_json(entries)
    target = folder / INDEX_FILE
    parse_index(data, str(target), str(folder))  # what nobody could read is not written
    try:
        write_bytes_atomically(target, data)
    except OSError as error:
        raise ModelError(f"{target}: cannot be written ({error.strerror}).") from None
    return target, entries


def _entry(path: Path, version: str) -> Entry:
    bundle = Bundle.open(path)
    manifest = bundle.manifest
    name, at, told = path.name.removesuffix(".zip").partition("@")
    recipes = dict.fromkeys(graph.recipe for graph in manifest.graphs.values())
    described: dict[str, Any] = {
        "name": name,
        "version": told if at else version,
        "description": _description(manifest),
        "family": manifest.family,
        "recipe": ", ".join(recipes),
        "licence": _licence(manifest),
        "scores": manifest.scores,
    }
    if path.is_dir():
        names = (MANIFEST_FILE, *sorted(manifest.files))
        return Entry(**described, files={file: _remote(path / file, f"{path.name}/{file}") for file in names})
    return Entry(**described, zip=_remote(path, path.name))


def _remote(path: Path, name: str) -> Remote:
    try:
        return Remote(name, file_sha256(path), path.stat().st_size)
    except OSError as error:
        raise BundleError(f"{path}: cannot be read ({error.strerror}).") from None


def _description(manifest: Manifest) -> str:
    image = manifest.image
    return f"{manifest.name}: {manifest.vocabulary.size} words, photographs of {image.height} x {image.width} pixels"


def _licence(manifest: Manifest) -> str:
    """Those of the data that it was trained on, as its provenance has them."""
    training = manifest.provenance.get("training")
    datasets = training.get("datasets") if isinstance(training, dict) else None
    rows = [row for row in datasets or () if isinstance(row, dict)] if isinstance(datasets, list) else []
    told = dict.fromkeys(str(row["licence"]) for row in rows if row.get("licence"))
    text = "; ".join(told)
    return text[:200] if text.isprintable() and text else "see README.md of the bundle"
