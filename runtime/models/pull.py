"""A bundle of an index into the cache: fetched, checked as any bundle is, and put in place in one stroke."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from captionlite.runtime.bundle import Bundle
from captionlite.runtime.errors import BundleError, ModelError
from captionlite.runtime.files import fsync_directory
from captionlite.runtime.manifest import MANIFEST_FILE
from captionlite.runtime.models import cache
from captionlite.runtime.models.cache import ENTRY_FILE, Cached
from captionlite.runtime.models.index import Entry, Index, Remote, local_index

ROOM = 1.05
"""So much more than its size has to be free on the disk."""


def is_url(index: str) -> bool:
    """Whether an index is to be fetched; anything else is a folder or a file."""
    return "://" in index


def open_index(index: str, *, offline: bool = False, allow_http: bool = False) -> Index:
    """The index at a URL or in a folder. Raises ModelError."""
    if not is_url(index):
        return local_index(Path(index))
    if offline:
        raise ModelError(f"{index}: not fetched, because of --offline. A folder can be an index as well.")
    from captionlite.runtime.models.fetch import Web

    return Web(allow_http).index(index)


@dataclass(frozen=True)
class Teller:
    """What is called while a bundle is pulled."""

    say: Callable[[str], None] = lambda line: None
    """Something that a user should know, in a line."""
    advance: Callable[[int], None] = lambda size_bytes: None
    """So many bytes more are there; less than none where some have to come again."""


def pull(index: Index, entry: Entry, *, allow_http: bool = False, tell: Teller | None = None) -> Cached:
    """Have this bundle in the cache; at once where it is there already. Raises ModelError, BundleError."""
    tell = tell or Teller()
    target = cache.models_directory() / entry.label
    with cache.locked(entry.label, lambda: tell.say(f"waiting for another process that pulls {entry.label}")):
        there = cache.find(entry.label)
        if there is not None:
            _require_same(there, entry)
            problems = check(there)
            if not problems:
                tell.advance(entry.size_bytes)
                return there
            tell.say(f"{problems[0]} Pulling it again.")
        work = cache.pull_directory(entry.label)
        try:
            work.mkdir(exist_ok=True)
            shutil.rmtree(work / "damaged", ignore_errors=True)
            _require_room(work, entry)
            for remote in entry.remotes:
                _fetch(index, remote, work, allow_http, tell)
            made = _assemble(entry, work)
            if there is not None:  # the damaged one
                os.rename(target, work / "damaged")
            os.rename(made, target)
            fsync_directory(target.parent)
            shutil.rmtree(work, ignore_errors=True)
        except OSError as error:
            raise ModelError(f"{error.filename or work}: {error.strerror}. Make room there, then pull again.") from None
    found = cache.find(entry.label)
    assert found is not None
    return found


def check(one: Cached) -> list[str]:
    """What is wrong with a cached bundle: files that are not those that the index promised. Raises nothing."""
    problems = []
    try:
        manifest = Bundle.open(one.path).manifest
    except BundleError as error:
        return [str(error)]
    if one.entry is None:
        return [f"{one.path / ENTRY_FILE}: missing or damaged, so nobody can tell what was pulled. Pull it again."]
    if one.entry.zip is None:
        from captionlite.runtime.models.fetch import file_sha256

        found = file_sha256(one.path / MANIFEST_FILE)  # which holds the checksums of all the others
        expected = one.entry.files[MANIFEST_FILE].sha256
        if found != expected:
            problems.append(f"{one.path / MANIFEST_FILE}: sha256 is {found}, expected {expected} as in the index.")
        for name, spec in manifest.files.items():
            if name in one.entry.files and one.entry.files[name].sha256 != spec.sha256:
                problems.append(
                    f"{one.path / name}: not the file that the index promised. Remove the bundle, pull again."
                )
    return problems


def _require_same(there: Cached, entry: Entry) -> None:
    if there.entry is None or there.entry.digest != entry.digest:
        found = "unknown" if there.entry is None else there.entry.digest[:16]
        raise ModelError(
            f"{there.path}: there already, with other contents ({found}) than the index has now ({entry.digest[:16]}). "
            f"A version should never change; if you want the new one, run `captionlite models remove {entry.label}` "
            f"and pull again."
        )


def _require_room(work: Path, entry: Entry) -> None:
    have = sum(file.stat().st_size for file in work.iterdir() if file.is_file())
    # A zip is unpacked, so it needs the room twice.
    needed = int((entry.size_bytes * (2 if entry.zip else 1) - have) * ROOM)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise ModelError(
            f"{work}: {free / 1e6:.0f} MB free, but {entry.label} needs {needed / 1e6:.0f}. Make room there."
        )


def _fetch(index: Index, remote: Remote, work: Path, allow_http: bool, tell: Teller) -> None:
    """One file under its checksum's name, which is how a later pull knows it again."""
    target, partial = work / remote.sha256, work / f"{remote.sha256}.partial"
    if target.exists() and target.stat().st_size == remote.size_bytes:
        tell.advance(remote.size_bytes)
        return
    from captionlite.runtime.models.fetch import Web, put_in_place

    if is_url(index.base):
        web = Web(allow_http, say=tell.say)
        web.download(index.base, remote, partial, tell.advance)
    else:
        _copy(Path(index.base) / remote.path, remote, partial, tell)
    put_in_place(partial, target)


def _copy(source: Path, remote: Remote, partial: Path, tell: Teller) -> None:
    """From a folder's index: no more than was promised, and right."""
    import hashlib

    digest, size = hashlib.sha256(), 0
    try:
        stream = open(source, "rb")  # noqa: SIM115  # closed below; what cannot be opened has an error of its own
    except OSError as error:
        raise ModelError(f"{source}: cannot be read ({error.strerror}), but the index lists it.") from None
    with stream, open(partial, "wb") as file:
        while block := stream.read(1 << 20):
            size += len(block)
            if size > remote.size_bytes:
                break
            digest.update(block)
            file.write(block)
            tell.advance(len(block))
        file.flush()
        os.fsync(file.fileno())
    if size != remote.size_bytes or digest.hexdigest() != remote.sha256:
        partial.unlink()
        told = f"{remote.size_bytes} bytes, sha256 {remote.sha256}"
        found = f"sha256 {digest.hexdigest()}" if size == remote.size_bytes else f"{source.stat().st_size} bytes"
        raise ModelError(f"{source}: found {found}, expected {told} as in the index. Make the index anew.")


def _assemble(entry: Entry, work: Path) -> Path:
    """The bundle's directory, beside what it is made of, after every check that a bundle goes through.

    Raises BundleError for files that are right by the index and no bundle.
    """
    made = work / "bundle"
    shutil.rmtree(made, ignore_errors=True)
    made.mkdir(mode=0o755)
    if entry.zip is not None:
        packed = Bundle.open(work / entry.zip.sha256)
        _write(made / MANIFEST_FILE, packed.manifest_bytes())
        for name in packed.manifest.files:
            _write(made / name, packed.read(name))
    else:
        for name, remote in entry.files.items():
            _link(work / remote.sha256, made / name)
    manifest = Bundle.open(made).manifest
    if manifest.family != entry.family:
        raise BundleError(
            f"{entry.label}: of the family {manifest.family!r}, but the index says {entry.family!r}. Ask who publishes "
            f"it."
        )
    _write(made / ENTRY_FILE, cache.entry_json(entry))
    fsync_directory(made)
    return made


def _link(source: Path, target: Path) -> None:
    """The same file under another name; what was fetched stays until the bundle is in place."""
    try:
        os.link(source, target)
    except OSError:  # a file system without links
        _write(target, source.read_bytes())


def _write(path: Path, data: bytes) -> None:
    with open(path, "xb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
