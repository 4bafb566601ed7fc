"""Writing files whole or not at all: the runtime's way for bytes, and text on top of it."""

from pathlib import Path

from captionlite.runtime.files import fsync_directory, write_bytes_atomically

__all__ = ["fsync_directory", "write_bytes_atomically", "write_text_atomically"]


def write_text_atomically(path: Path, text: str) -> None:
    """`write_bytes_atomically` for UTF-8 text."""
    write_bytes_atomically(path, text.encode("utf-8"))
