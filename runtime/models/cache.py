"""Bundles that were pulled: `$XDG_CACHE_HOME/captionlite/models/NAME@VERSION` (or below `~/.cache`, or in
`$CAPTIONLITE_CACHE`), each a bundle directory with the entry of the index that it came from.

A bundle is put there whole, in one stroke, by its name; what is on its way lies in `.pulls`.
"""

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from captionlite.runtime.errors import BundleError, ModelError
from captionlite.runtime.jsonreader import Node, strict_json
from captionlite.runtime.models.index import Entry, read_entry, split_label, version_key
from captionlite.runtime.remembered import cache_root

ENTRY_FILE = ".entry.json"  # beside the bundle's own files, none of which begins with a dot
PULLS = ".pulls"
MAX_ENTRY_BYTES = 1 << 20


@dataclass(frozen=True)
class Cached:
    """A bundle in the cache: its directory, and what the index said of it; None where that file is damaged."""

    name: str
    version: str
    path: Path
    entry: Entry | None

    @property
    def label(self) -> str:
        """NAME@VERSION."""
        return f"{self.name}@{self.version}"


def models_directory() -> Path:
    """Where pulled bundles are kept. Raises ModelError for a user without a home."""
    root = cache_root()
    if root is None:
        raise ModelError(
            "this user has no home to keep bundles in. Set CAPTIONLITE_CACHE to a folder, as an absolute path."
        )
    return root / "models"


def cached() -> list[Cached]:
    """Every bundle in the cache, by name, the newest version first. Empty where the cache is not to be trusted."""
    try:
        directory = models_directory()
    except ModelError:
        return []
    if not trusted(directory):
        return []
    try:
        paths = list(directory.iterdir())
    except OSError:
        return []
    found = []
    for path in paths:
        name, at, version = path.name.partition("@")
        if at and not path.name.startswith(".") and path.is_dir() and not path.is_symlink():
            try:
                split_label(path.name)
            except ModelError:
                continue
            found.append(Cached(name, version, path, _entry(path)))
    found.sort(key=lambda one: version_key(one.version), reverse=True)
    return sorted(found, key=lambda one: one.name)


def find(label: str) -> Cached | None:
    """The cached bundle of NAME (its newest version) or NAME@VERSION; None where there is none."""
    try:
        name, version = split_label(label)
    except ModelError:
        return None
    return next((one for one in cached() if one.name == name and version in (None, one.version)), None)


def remove(label: str) -> None:
    """Take NAME@VERSION out of the cache, and what a pull of it left. Raises ModelError."""
    with locked(label):
        path, pulls = models_directory() / label, pull_directory(label)
        try:
            if path.exists():  # out of sight in one stroke: nobody may find half of a bundle
                pulls.mkdir(exist_ok=True)
                shutil.rmtree(pulls / "removed", ignore_errors=True)
                os.rename(path, pulls / "removed")
            if pulls.exists():
                shutil.rmtree(pulls)
        except OSError as error:
            raise ModelError(f"{path}: cannot be removed ({error.strerror}). Check its owner.") from None


def begun() -> list[str]:
    """NAME@VERSION of what was begun to be pulled and is not whole yet."""
    try:
        return sorted(path.name for path in (models_directory() / PULLS).iterdir() if path.is_dir())
    except (ModelError, OSError):
        return []


def pull_directory(label: str) -> Path:
    """Where what is fetched of a bundle stands until it is whole."""
    return models_directory() / PULLS / label


@contextmanager
def locked(label: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
    """One process at a time for a bundle; `waiting` is called where another has to be waited for. Raises ModelError."""
    file = pull_directory(label).with_name(f"{label}.lock")
    try:
        models = models_directory()
        models.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not trusted(models):
            raise ModelError(
                f"{models}: others may write there, or it is not this user's. Make it private with `chmod go-w`, or "
                f"set CAPTIONLITE_CACHE to a folder of your own."
            )
        file.parent.mkdir(exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0), 0o600)
    except OSError as error:
        raise ModelError(
            f"{file}: cannot be written ({error.strerror}). Set CAPTIONLITE_CACHE to a folder that can."
        ) from None
    try:
        _lock(descriptor, waiting)
        yield
    finally:
        os.close(descriptor)  # which unlocks; the file stays, or another process would lock one that is gone


def _lock(descriptor: int, waiting: Callable[[], None]) -> None:
    try:
        import fcntl
    except ImportError:  # no POSIX: two pulls at once end with the same bundle, by renames
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def trusted(directory: Path) -> bool:
    """Whether it is a directory of this user or of root, no link, that nobody else can write to."""
    try:
        found = os.lstat(directory)
    except OSError:
        return False
    if os.name != "posix":
        return stat.S_ISDIR(found.st_mode)
    return stat.S_ISDIR(found.st_mode) and found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022


def entry_json(entry: Entry) -> bytes:
    """What `ENTRY_FILE` holds."""
    return (json.dumps(entry.to_json(), indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _entry(path: Path) -> Entry | None:
    try:
        with open(path / ENTRY_FILE, "rb") as file:
            found = strict_json(file.read(MAX_ENTRY_BYTES))
        return read_entry(Node(found, "", str(path / ENTRY_FILE)), extra=True)
    except (OSError, ValueError, BundleError):
        return None
