"""The photographs that a command's arguments mean, and their captions in that order."""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from captionlite.runtime.errors import ImageError

if TYPE_CHECKING:
    from captionlite.runtime.captioner import Captioner
    from captionlite.runtime.decoding import Caption, DecodingOptions

IMAGE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".ppm", ".mpo"))
STDIN = "-"


def expand(names: Iterable[str]) -> Iterator[str | ImageError]:
    """The photographs meant by the arguments, in their order; a folder that gives none is an error of its own."""
    for name in names:
        if name == STDIN or not os.path.isdir(name):
            yield name
            continue
        try:
            found = sorted(entry for entry in os.listdir(name) if Path(entry).suffix.lower() in IMAGE_SUFFIXES)
        except OSError as error:
            yield ImageError(f"{name}: cannot list this folder ({error.strerror}). Check its permissions.")
            continue
        if not found:
            suffixes = ", ".join(sorted(IMAGE_SUFFIXES))
            yield ImageError(f"{name}: no image in this folder. Expected files ending in one of {suffixes}.")
        yield from (os.path.join(name, entry) for entry in found)


def read(name: str) -> str | bytes:
    """What to hand to the captioner: the name itself, or the bytes on stdin."""
    return sys.stdin.buffer.read() if name == STDIN else name


Told = tuple[str, str | bytes, "Caption | ImageError"]
"""A photograph's name ("" for the error of a whole folder), what was handed to the captioner, and what came of it."""


def each(names: Iterable[str | ImageError], use: "Callable[[str | bytes], Caption]") -> Iterator[Told]:
    """What `use` makes of every photograph, one after another."""
    for name in names:
        if isinstance(name, ImageError):
            yield "", b"", name
            continue
        source = read(name)
        try:
            yield name, source, use(source)
        except ImageError as error:
            yield name, source, error


def together(names: Iterable[str | ImageError], captioner: "Captioner", options: "DecodingOptions") -> Iterator[Told]:
    """The captions of all photographs, several at once."""
    asked: deque[tuple[str, str | bytes, ImageError | None]] = deque()

    def sources() -> Iterator[str | bytes]:
        for name in names:
            if isinstance(name, ImageError):
                asked.append(("", b"", name))
            else:
                asked.append((name, read(name), None))
                yield asked[-1][1]

    def folders() -> Iterator[Told]:
        while asked and (error := asked[0][2]) is not None:
            asked.popleft()
            yield "", b"", error

    for result in captioner.caption_many(sources(), options):
        yield from folders()
        name, source, _ = asked.popleft()
        yield name, source, result
    yield from folders()
