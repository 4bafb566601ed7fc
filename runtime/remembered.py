"""Self-checks that passed, remembered in the user's cache: an empty promise is worse than a check that runs again.

One small file a pass, `$XDG_CACHE_HOME/captionlite/selfcheck/KEY` (or below `~/.cache`, or in `$CAPTIONLITE_CACHE`),
KEY a hash of all that the numbers depend on. Nothing is believed but that a file of this user with exactly the right
content is there, and nothing about the cache ever raises: where it cannot be used, the check runs at every start.
"""

import os
import stat
from pathlib import Path

from captionlite.runtime.files import write_bytes_atomically


def passed_before(key: str) -> bool:
    """Whether `remember_pass` was called with this key by this user on this machine."""
    directory = cache_directory()
    if directory is None or not _private(directory):
        return False
    # No links, and no waiting for a pipe. Of whatever else stands there no more is read than was written.
    flags = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0)
    expected = _content(key)
    try:
        descriptor = os.open(directory / key, flags)
        try:
            found = os.fstat(descriptor)
            regular = stat.S_ISREG(found.st_mode) and _ours(found)
            return regular and os.read(descriptor, len(expected) + 1) == expected
        finally:
            os.close(descriptor)
    except OSError:
        return False


def remember_pass(key: str) -> None:
    """Remember it, if that can be done."""
    directory = cache_directory()
    if directory is None:
        return
    try:
        existing = next((parent for parent in directory.parents if parent.exists()), directory)
        if _effective_user() == 0 and not _ours(existing.stat()):
            return  # under sudo, with the user's HOME: the folders made here would be closed to their owner
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        if _private(directory):
            write_bytes_atomically(directory / key, _content(key))
    except OSError:
        pass


def cache_directory() -> Path | None:
    """Where passes are remembered; None for a user without a home."""
    root = cache_root()
    return None if root is None else root / "selfcheck"


def cache_root() -> Path | None:
    """captionlite's own folder in the user's cache, or `CAPTIONLITE_CACHE`; None for a user without a home."""
    own = os.environ.get("CAPTIONLITE_CACHE", "")
    if os.path.isabs(own):
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME", "")
    if not os.path.isabs(base):  # the specification of base directories has relative ones ignored
        home = os.path.expanduser("~") if os.environ.get("HOME") != "" else ""
        if not os.path.isabs(home) or not os.path.isdir(home):
            return None
        base = os.path.join(home, ".cache")
    return Path(base, "captionlite")


def _content(key: str) -> bytes:
    # The key again, so that a file under another name is no pass.
    return f"captionlite's self-check {key} passed.\n".encode()


def _private(directory: Path) -> bool:
    """Whether it is a directory itself, no link to one, that nobody else can write to."""
    try:
        found = os.lstat(directory)
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and _ours(found) and (os.name != "posix" or not found.st_mode & 0o022)


def _ours(found: os.stat_result) -> bool:
    return found.st_uid == _effective_user() if os.name == "posix" else True


def _effective_user() -> int | None:
    return os.geteuid() if hasattr(os, "geteuid") else None
