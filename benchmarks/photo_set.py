"""The photographs of a benchmark: their files' bytes in memory, in a fixed order, with a hash that tells them apart."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from captionlite.benchmarks.results import Photographs
from captionlite.runtime.commands.photographs import expand
from captionlite.runtime.errors import ImageError
from captionlite.runtime.image import load_image
from captionlite.runtime.manifest import ImageSpec


@dataclass(frozen=True)
class PhotoSet:
    """Paths and contents in the same order, and what a result says of them."""

    paths: tuple[str, ...]
    contents: tuple[bytes, ...]
    described: Photographs


def read_photographs(names: Sequence[str], spec: ImageSpec) -> PhotoSet:
    """Folders (sorted by name) and files, in the order given.

    Each is decoded once, so that no measurement ends on the last one. Raises ImageError with the name of the first that
    cannot be read.
    """
    paths, contents = [], []
    for name in expand(names):
        if isinstance(name, ImageError):
            raise name
        load_image(name, spec)
        paths.append(name)
        contents.append(Path(name).read_bytes())
    digest = hashlib.sha256(b"".join(hashlib.sha256(content).digest() for content in contents)).hexdigest()
    return PhotoSet(tuple(paths), tuple(contents), Photographs(len(paths), digest, ", ".join(names)))
