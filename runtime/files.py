"""Writing files so that a reader, or a program that was killed, never meets half of one."""

import os
import tempfile
from pathlib import Path


def fsync_directory(directory: Path) -> None:
    """Make renames and new names in `directory` survive a power cut; a no-op where directories cannot be opened."""
    try:
        descriptor = os.open(directory, os.O_RDONLY)
    except OSError:  # Windows
        return
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def write_bytes_atomically(path: Path, data: bytes) -> None:
    """Write `data` beside `path` under a temporary name, flush it to the disk, then rename it into place.

    Raises OSError; nothing is left behind then, and what stood at `path` is untouched.
    """
    descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
    try:
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        # mkstemp makes files private; a data file should follow the user's umask like any other.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(temporary, 0o666 & ~mask)
        os.replace(temporary, path)
    except BaseException:
        Path(temporary).unlink(missing_ok=True)
        raise
    fsync_directory(path.parent)
