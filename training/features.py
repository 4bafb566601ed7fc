"""The feature cache: every photograph goes through the frozen encoder once, and training reads the result from disk.

A finished cache is a folder `ENCODER-KEY`, `ENCODER-KEY-flipped` for mirrored photographs or `ENCODER-KEY-viewN` for
the Nth view of each (`augmentation`), with

    features.npy   float16 (N, h, w, C), memory-mapped when read; a photograph that does not decode leaves zeros
    index.json     the photographs' ids in order, which of them do not decode and why, and what made the features

The key covers encoder, weights, preprocessing, backend, how views are drawn, and every photograph's id and content.
While it is made the folder is called `ENCODER-KEY.partial` and has a journal beside the features: a line per finished
batch with the digest of its bytes. After a kill, a batch whose bytes match its line is kept and every other one is made
again. Batches are cut at the same photographs and have one shape, so the features come out the same, bit for bit,
however often the work was interrupted. Finishing is one rename of the folder.
"""

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import filelock
import numpy as np
from numpy.typing import NDArray

from captionlite.runtime.manifest import ImageSpec
from captionlite.training import augmentation
from captionlite.training.datasets.base import Example
from captionlite.training.encoders import EncoderSpec, encoder_spec, weights_fingerprint
from captionlite.training.errors import FeatureError
from captionlite.training.extraction import BATCH, WORKERS, Extraction
from captionlite.training.files import fsync_directory, write_text_atomically
from captionlite.training.progress import Progress
from captionlite.training.progress import progress as show_progress

# Part of every key: raise it when the same photographs and weights would give other features than before.
CACHE_VERSION = 1

FEATURES, INDEX = "features.npy", "index.json"
_PARTIAL = ".partial"
_KEY_LENGTH = 16
_SHOWN = 5

_log = logging.getLogger(__name__)


class FeatureStore:
    """Features of photographs by id, read from disk when asked for. One store has one copy of each.

    `shape` is (N, h, w, C), `ids` the photographs there are, `undecodable` the reason by id for those there are not.
    """

    def __init__(
        self, folder: Path, array: NDArray[np.float16], ids: Sequence[str], undecodable: dict[str, str]
    ) -> None:
        self.folder = folder
        self.array = array
        self.undecodable = undecodable
        self._rows = {photo: row for row, photo in enumerate(ids) if photo not in undecodable}

    @classmethod
    def open(cls, folder: Path) -> "FeatureStore":
        """Open a finished cache.

        Raises:
            FeatureError: the folder is not one, or was damaged after it was finished.
        """
        path = folder / FEATURES
        try:
            index = json.loads((folder / INDEX).read_text(encoding="utf-8"))
            ids, undecodable = index["ids"], index["undecodable"]
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, KeyError, TypeError, EOFError) as error:
            raise FeatureError(f"{folder}: a damaged feature cache ({error!r:.200}); delete that folder.") from None
        if array.dtype != np.float16 or array.ndim != 4 or len(array) != len(ids):
            raise FeatureError(
                f"{path}: found {array.dtype} {array.shape}, expected float16 ({len(ids)}, h, w, C) as {INDEX} beside "
                "it says; delete that folder."
            )
        return cls(folder, array, ids, undecodable)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.array.shape

    @property
    def ids(self) -> tuple[str, ...]:
        return tuple(self._rows)

    def __len__(self) -> int:
        return len(self._rows)

    def __contains__(self, photo: object) -> bool:
        return photo in self._rows

    def rows(self, ids: Sequence[str]) -> NDArray[np.float16]:
        """Features of the photographs, in the order asked for: float16 (len(ids), h, w, C).

        Raises:
            FeatureError: a photograph is not in the store.
        """
        try:
            rows = [self._rows[photo] for photo in ids]
        except KeyError as error:
            photo = str(error.args[0])
            why = (
                f"it does not decode ({self.undecodable[photo]})" if photo in self.undecodable else "not extracted here"
            )
            raise FeatureError(f"{self.folder}: no features of {photo}: {why}.") from None
        return np.asarray(self.array[rows])


@dataclass(frozen=True)
class _Job:
    """What is to be extracted; its name is the cache's."""

    spec: EncoderSpec
    weights: str | Path | None
    fingerprint: str
    examples: tuple[Example, ...]
    digests: tuple[str, ...]
    copy: int
    backend: str

    @property
    def image(self) -> ImageSpec:
        return ImageSpec(*self.spec.image_size)

    @property
    def made_from(self) -> dict[str, Any]:
        image = self.image
        return {
            "version": CACHE_VERSION,
            "encoder": self.spec.name,
            "weights": self.fingerprint,
            "preprocessing": self.spec.preprocessing,
            "image": [image.height, image.width, image.resize, image.resample],
            "backend": self.backend,
            "batch": BATCH,
            **({"views": augmentation.VERSION} if self.copy >= augmentation.FIRST_VIEW else {}),
        }

    @property
    def name(self) -> str:
        photos = [[example.id, digest] for example, digest in zip(self.examples, self.digests, strict=True)]
        key = hashlib.sha256(json.dumps([self.made_from, photos], sort_keys=True).encode()).hexdigest()
        return f"{self.spec.name}-{key[:_KEY_LENGTH]}{self.suffix}"

    @property
    def suffix(self) -> str:
        if self.copy == augmentation.PLAIN:
            return ""
        return "-flipped" if self.copy == augmentation.MIRRORED else f"-view{self.copy - augmentation.FIRST_VIEW + 1}"


def extract_features(
    encoder_name: str,
    weights: str | Path | None,
    examples: Sequence[Example],
    cache_dir: Path,
    *,
    copy: int = augmentation.PLAIN,
    progress: Progress = show_progress,
) -> FeatureStore:
    """The features of `examples`, from the cache if they are there, else extracted into it.

    An extraction that was killed is continued. When another process works on the same one, this waits for it. A
    photograph that does not decode is skipped, logged as a warning, and listed in the store's `undecodable`.

    Args:
        encoder_name: one of `ENCODERS`.
        weights: as for `build_encoder`.
        examples: the photographs; the same one may stand in the list more than once.
        cache_dir: holds all caches; made when it is not there.
        copy: which copy of each photograph, by `augmentation`'s numbers.
        progress: how to tell how far it is.

    Raises:
        FeatureError: the cache cannot be written or is damaged, or the encoder's output is not finite.
        WeightsError: as `build_encoder`.
    """
    import keras

    spec = encoder_spec(encoder_name)
    unique = _unique(examples)
    job = _Job(
        spec,
        weights,
        weights_fingerprint(encoder_name, weights),
        unique,
        _digests(unique),
        copy,
        keras.backend.backend(),
    )
    folder = cache_dir.expanduser() / job.name
    if not folder.is_dir():
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            with _locked(folder):
                if not folder.is_dir():  # unless the process that held the lock has made it
                    _extract(job, folder, progress)
        except OSError as error:
            size_mib = len(unique) * 2 * int(np.prod(spec.feature_shape)) / 2**20
            raise FeatureError(
                f"{folder}: the features cannot be written: {error.strerror or error}. They need {size_mib:.0f} MiB; "
                "free the space or choose another cache folder, then run again: what is there already is kept."
            ) from error
    store = FeatureStore.open(folder)
    for photo, reason in list(store.undecodable.items())[:_SHOWN]:
        _log.warning("skipped %s: %s", photo, reason)
    if len(store.undecodable) > _SHOWN:
        _log.warning(
            "skipped %d more photographs; all are listed in %s", len(store.undecodable) - _SHOWN, folder / INDEX
        )
    return store


def _unique(examples: Sequence[Example]) -> tuple[Example, ...]:
    by_id: dict[str, Example] = {}
    for example in examples:
        if by_id.setdefault(example.id, example).image != example.image:
            raise FeatureError(f"{example.image}: its id {example.id!r} is also that of {by_id[example.id].image}.")
    if not by_id:
        raise FeatureError("no photographs to extract features of; the list of examples is empty.")
    return tuple(by_id.values())


def _digests(examples: Sequence[Example]) -> tuple[str, ...]:
    """A hash of each file's content: a photograph that was replaced is extracted anew, one that was copied is not."""

    def digest(example: Example) -> str:
        try:
            return hashlib.blake2b(example.image.read_bytes(), digest_size=16).hexdigest()
        except OSError:
            return "unreadable"

    with ThreadPoolExecutor(WORKERS) as pool:
        return tuple(pool.map(digest, examples))


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Hold the lock of one cache; the system lets go of it when the process dies, however it dies."""
    lock = filelock.FileLock(folder.parent / f".{folder.name}.lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        _log.warning("another process extracts these features; waiting for it (%s)", folder)
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _extract(job: _Job, folder: Path, progress: Progress) -> None:
    partial = folder.with_name(folder.name + _PARTIAL)
    shape = (len(job.examples), *job.spec.feature_shape)
    extraction = Extraction(partial, FEATURES, shape)
    photos = tuple(example.image for example in job.examples)
    label = f"{job.spec.name} features{job.suffix.replace('-', ', ')}"
    with progress(len(photos), label, done=extraction.photos_done) as advance:
        extraction.run(job.spec.name, job.weights, photos, job.image, job.copy, advance)
    index = {
        "made_from": job.made_from,
        "copy": job.copy,
        "undecodable": {job.examples[row].id: reason for row, reason in extraction.undecodable.items()},
        "ids": [example.id for example in job.examples],
    }
    write_text_atomically(partial / INDEX, json.dumps(index, indent=1, ensure_ascii=False) + "\n")
    os.replace(partial, folder)
    fsync_directory(folder.parent)
    extraction.discard_journal(folder)
