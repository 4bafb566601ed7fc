"""The work behind the feature cache: photographs decoded in threads, encoded in batches, each batch journalled."""

import hashlib
import io
import json
import os
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captionlite.runtime.errors import ImageError
from captionlite.runtime.manifest import ImageSpec
from captionlite.training.augmentation import load_copy
from captionlite.training.datasets.photos import Photo
from captionlite.training.encoders import build_encoder
from captionlite.training.errors import FeatureError
from captionlite.training.files import write_text_atomically

# Photographs at once. The last batch is filled up, so that there is one shape: one compilation, and the same bits.
BATCH = 32
WORKERS = min(4, os.cpu_count() or 1)

_BATCHES_AHEAD = 3
_JOURNAL = "journal.jsonl"

Encode = Callable[[NDArray[np.uint8]], NDArray[np.float16]]


class Extraction:
    """An extraction in the folder `partial`: what an earlier process finished there is found and kept.

    `shape` is that of the features, (N, h, w, C); `undecodable` maps a photograph's number to why it was skipped.
    """

    def __init__(self, partial: Path, file_name: str, shape: tuple[int, ...]) -> None:
        self._partial = partial
        self._path = partial / file_name
        self._header = _npy_header(shape)
        self._shape = shape
        self._row_bytes = int(np.prod(shape[1:])) * np.dtype(np.float16).itemsize
        self._done: set[int] = set()
        self.undecodable: dict[int, str] = {}
        if not self._is_resumable():
            self._begin()
        self._read_journal()

    @property
    def photos_done(self) -> int:
        return sum(len(self._photos_of(batch)) for batch in self._done)

    def run(
        self,
        encoder: str,
        weights: str | Path | None,
        photos: Sequence[Photo],
        image: ImageSpec,
        copy: int,
        advance: Callable[[int], None],
    ) -> None:
        """Do every batch that is not done, then flush the features to the disk."""
        with self._path.open("r+b") as features, (self._partial / _JOURNAL).open("a", encoding="utf-8") as journal:
            todo = [batch for batch in range(-(-len(photos) // BATCH)) if batch not in self._done]
            if todo:
                encode = _compile(build_encoder(encoder, weights), image)
                groups = [[photos[row] for row in self._photos_of(batch)] for batch in todo]
                for batch, (pixels, failures) in zip(todo, _decoded(groups, image, copy), strict=True):
                    rows = self._photos_of(batch)
                    values = encode(pixels)[: len(rows)]
                    values[list(failures)] = 0
                    if not np.isfinite(values).all():
                        bad = photos[rows[int(np.argmin(np.isfinite(values).reshape(len(rows), -1).all(axis=1)))]]
                        raise FeatureError(
                            f"{bad}: {encoder} gives features that are not finite, or beyond float16's 65504; are its "
                            f"weights ({weights}) whole?"
                        )
                    data = values.tobytes()
                    features.seek(len(self._header) + rows[0] * self._row_bytes)
                    features.write(data)
                    features.flush()
                    skipped = {rows[place]: reason for place, reason in failures.items()}
                    journal.write(_journal_line(batch, _digest(data), skipped))
                    journal.flush()
                    self.undecodable |= skipped
                    advance(len(rows))
            os.fsync(features.fileno())
        self.undecodable = dict(sorted(self.undecodable.items()))

    @staticmethod
    def discard_journal(folder: Path) -> None:
        """Drop the journal of a finished extraction, wherever its folder now is."""
        (folder / _JOURNAL).unlink(missing_ok=True)

    def _photos_of(self, batch: int) -> range:
        return range(batch * BATCH, min((batch + 1) * BATCH, self._shape[0]))

    def _is_resumable(self) -> bool:
        try:
            with self._path.open("rb") as stream:
                header = stream.read(len(self._header))
        except OSError:
            return False
        return header == self._header and self._path.stat().st_size == self._size_bytes

    @property
    def _size_bytes(self) -> int:
        return len(self._header) + self._shape[0] * self._row_bytes

    def _begin(self) -> None:
        if self._partial.exists():
            shutil.rmtree(self._partial)
        self._partial.mkdir()
        with self._path.open("wb") as stream:
            stream.write(self._header)
            stream.truncate(self._size_bytes)

    def _read_journal(self) -> None:
        """Keep the batches whose bytes are what their line says, and rewrite the journal without any other line.

        Nothing is believed for its order on disk: a line that was cut short, or that reached the disk before its
        features did, is dropped.
        """
        try:
            lines = (self._partial / _JOURNAL).read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            return
        kept = []
        with self._path.open("rb") as features:
            for line in lines:
                entry = _parse_journal_line(line)
                if entry is None or entry[0] < 0 or entry[0] in self._done or not (rows := self._photos_of(entry[0])):
                    continue
                batch, digest, skipped = entry
                features.seek(len(self._header) + rows[0] * self._row_bytes)
                if _digest(features.read(len(rows) * self._row_bytes)) == digest:
                    self._done.add(batch)
                    self.undecodable |= skipped
                    kept.append(_journal_line(batch, digest, skipped))
        write_text_atomically(self._partial / _JOURNAL, "".join(kept))


def _npy_header(shape: tuple[int, ...]) -> bytes:
    stream = io.BytesIO()
    description = {"descr": "<f2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(stream, description)
    return stream.getvalue()


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def _journal_line(batch: int, digest: str, undecodable: dict[int, str]) -> str:
    return json.dumps([batch, digest, list(undecodable.items())]) + "\n"


def _parse_journal_line(line: str) -> tuple[int, str, dict[int, str]] | None:
    try:
        batch, digest, undecodable = json.loads(line)
        return int(batch), str(digest), {int(row): str(reason) for row, reason in undecodable}
    except (ValueError, TypeError):
        return None


def _decoded(
    groups: Sequence[Sequence[Photo]], image: ImageSpec, copy: int
) -> Iterator[tuple[NDArray[np.uint8], dict[int, str]]]:
    """Each group's pixels, uint8 (BATCH, H, W, 3), and by place in the group why a photograph could not be read.

    A few groups are decoded ahead while the encoder works; a place without a photograph is black.
    """
    with ThreadPoolExecutor(WORKERS) as pool:
        ahead: deque[list[Future[NDArray[np.uint8]]]] = deque()
        waiting = iter(groups)
        try:
            while True:
                while len(ahead) < _BATCHES_AHEAD and (group := next(waiting, None)) is not None:
                    ahead.append([pool.submit(load_copy, path, image, copy) for path in group])
                if not ahead:
                    return
                pixels = np.zeros((BATCH, image.height, image.width, 3), np.uint8)
                failures = {}
                for place, future in enumerate(ahead.popleft()):
                    try:
                        pixels[place] = future.result()
                    except ImageError as error:
                        failures[place] = str(error)
                yield pixels, failures
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _compile(model: Any, image: ImageSpec) -> Encode:
    """The frozen encoder as one compiled function, uint8 (BATCH, H, W, 3) -> float16 (BATCH, h, w, C)."""
    import keras

    weights = [keras.ops.convert_to_numpy(variable) for variable in model.non_trainable_variables]

    def forward(values: list[Any], pixels: Any) -> Any:
        features, _ = model.stateless_call([], values, keras.ops.cast(pixels, "float32"), training=False)
        return keras.ops.cast(features, "float16")

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        # As constants, the weights let TensorFlow fold batch normalisation into the convolutions: 1.4 times as fast.
        # No XLA: on a CPU it is far slower here.
        signature = [tf.TensorSpec((BATCH, image.height, image.width, 3), tf.uint8)]
        encode = tf.function(lambda pixels: forward([tf.constant(w) for w in weights], pixels), signature)
        return lambda pixels: np.array(encode(pixels))
    if backend == "jax":
        import jax

        encode = jax.jit(forward)
        on_device = jax.device_put(weights)
        return lambda pixels: np.array(encode(on_device, pixels))
    raise FeatureError(f"KERAS_BACKEND={backend}: features are extracted on tensorflow or jax; set one of them.")
