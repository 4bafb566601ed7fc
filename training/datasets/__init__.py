"""Data sets: one module per on-disk layout, each with `detect(path)` and `load(path)`.

`load_dataset` is the way in. Nothing here imports Keras or reads a pixel: photographs that do not decode are found
where they are read, in `captionlite.training.features`.
"""

from pathlib import Path
from types import ModuleType

from captionlite.training.datasets import flickr8k, jsonl
from captionlite.training.datasets.base import Dataset, DatasetReport, Example
from captionlite.training.errors import DatasetError

__all__ = ["KINDS", "Dataset", "DatasetReport", "Example", "load_dataset"]

# In order of detection: the most particular layout first.
KINDS: dict[str, ModuleType] = {"flickr8k": flickr8k, "jsonl": jsonl}


def load_dataset(spec: str | Path) -> Dataset:
    """Load a data set from a path, or from "kind:path" such as "flickr8k:~/data/flickr8k".

    Raises:
        DatasetError: nothing is there, the layout is not known, or the data is malformed.
    """
    kind, path = _parse(str(spec))
    if not path.exists():
        raise DatasetError(f"{path}: there is no such file or folder.")
    if kind is None:
        kind = next((name for name, module in KINDS.items() if module.detect(path)), None)
    if kind is None:
        raise DatasetError(
            f"{path}: not a known data set layout. Expected Flickr8k ({flickr8k.PHOTO_FOLDERS[0]}/ and "
            f"{flickr8k.CAPTION_FILES[0]} with its split files) or a .jsonl file of image and captions; name the kind "
            f"to see what is missing, e.g. flickr8k:{path} (kinds: {', '.join(KINDS)})."
        )
    dataset = KINDS[kind].load(path)
    assert isinstance(dataset, Dataset)
    return dataset


def _parse(spec: str) -> tuple[str | None, Path]:
    kind, colon, rest = spec.partition(":")
    if colon and kind in KINDS:
        return kind, Path(rest).expanduser()
    # A single letter is a Windows drive; a path with a colon in it exists.
    if colon and kind.isidentifier() and len(kind) > 1 and not Path(spec).expanduser().exists():
        raise DatasetError(f"{spec}: {kind!r} is not a kind of data set; the kinds are: {', '.join(KINDS)}.")
    return None, Path(spec).expanduser()
