"""Data sets: one module per on-disk layout, each with `detect(path)` and `load(path)`.

`load_dataset` is the way in. Nothing here imports Keras or reads a pixel: photographs that do not decode are found
where they are read, in `captionlite.training.features`.
"""

from pathlib import Path
from typing import Protocol

from captionlite.training.datasets import conceptual, drawn, flickr8k, jsonl, table
from captionlite.training.datasets.base import Dataset, DatasetReport, Example
from captionlite.training.datasets.coco import COCO_2014, COCO_2017
from captionlite.training.datasets.options import parse_options
from captionlite.training.errors import DatasetError

__all__ = ["KINDS", "Dataset", "DatasetReport", "Example", "load_dataset"]


class Kind(Protocol):
    """A layout on disk: a module, or an object where several layouts differ by a number only."""

    def detect(self, path: Path, /) -> bool:
        """Whether `path` looks like it."""

    def load(self, path: Path, /) -> Dataset:
        """Read it. Raises DatasetError."""


# In order of detection: the most particular layout first.
KINDS: dict[str, Kind] = {
    "flickr8k": flickr8k,
    COCO_2014.name: COCO_2014,
    COCO_2017.name: COCO_2017,
    "conceptual": conceptual,
    "jsonl": jsonl,
    "table": table,
    "drawn": drawn,
}
WITHOUT_FILES = ("drawn",)  # what follows the colon is no path


def load_dataset(spec: str | Path) -> Dataset:
    """Load a data set from a path, or from "kind:path" such as "flickr8k:~/data/flickr8k".

    Behind a question mark may stand options, as `captionlite.training.datasets.options` explains them:
    "coco2014:~/data/coco?captions=30000&dev=0.2".

    Raises:
        DatasetError: nothing is there, the layout is not known, or the data is malformed.
    """
    kind, path, options = _parse(str(spec))
    if kind not in WITHOUT_FILES and not path.exists():
        raise DatasetError(f"{path}: there is no such file or folder.")
    if kind is None:
        kind = next((name for name, module in KINDS.items() if module.detect(path)), None)
    if kind is None:
        raise DatasetError(
            f"{path}: not a known data set layout. Expected Flickr8k ({flickr8k.PHOTO_FOLDERS[0]}/ and "
            f"{flickr8k.CAPTION_FILES[0]} with its split files), COCO (annotations/ and train2014/ or train2017/), "
            "Conceptual Captions (Train_GCC-training.tsv), a .jsonl file of image and captions, or a .csv or .tsv file "
            f"with such columns; name the kind to see what is missing, e.g. flickr8k:{path} (kinds: "
            f"{', '.join(KINDS)})."
        )
    return parse_options(options, str(spec)).apply(KINDS[kind].load(path))


def _parse(spec: str) -> tuple[str | None, Path, str]:
    """-> kind, path, options; what exists as it is written is a path, whatever is in it."""
    if Path(spec).expanduser().exists():
        return None, Path(spec).expanduser(), ""
    kind, colon, rest = spec.partition(":")
    if not colon or kind not in KINDS:
        # A single letter is a Windows drive.
        if colon and kind.isidentifier() and len(kind) > 1:
            raise DatasetError(f"{spec}: {kind!r} is not a kind of data set; the kinds are: {', '.join(KINDS)}.")
        kind, rest = "", spec
    path = Path(rest).expanduser()
    options = ""
    if not path.exists():
        before, mark, after = rest.rpartition("?")
        if mark:
            path, options = Path(before).expanduser(), after
    return kind or None, path, options
