"""A photograph as the encoder wants it. Training calls this very function, so device and training see equal pixels.

Whatever Pillow opens safely is taken: any mode, EXIF orientation applied, transparency laid over white, 16-bit and
float greyscale brought to 8 bits. Colour profiles are ignored, as they were in training.
"""

import os
import re
import warnings
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from threading import Lock
from typing import Any, Protocol, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from captionlite.runtime.errors import ImageError
from captionlite.runtime.manifest import ImageSpec

T = TypeVar("T")


class HasBytes(Protocol):
    """A file that is not on disk, such as a `zipfile.Path`: a photograph inside an archive."""

    def read_bytes(self) -> bytes:
        """The whole file."""


ImageSource: TypeAlias = "str | os.PathLike[str] | bytes | HasBytes | Image.Image | npt.NDArray[Any]"

MAX_PIXELS = 120_000_000
"""Largest photograph taken, in pixels (a 108-megapixel phone passes): beyond it a small file could fill the memory."""

# Pillow opens more than this, but some of it runs other programs (EPS starts Ghostscript) and none of it is a
# photograph. The first group is cheap; naming the second makes Pillow import every plugin (40 ms), so it comes after.
# ICO is not among them: Pillow decodes what is inside while it opens the file, before anybody can look at its size.
_COMMON_FORMATS = ("JPEG", "PNG", "GIF", "BMP", "PPM")
_OTHER_FORMATS = ("MPO", "WEBP", "TIFF", "AVIF", "JPEG2000", "TGA")
_EXIF_ORIENTATION = 0x0112
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # not ImageOps.exif_transpose: it also rewrites the EXIF block, and fails on a damaged one
_WHITE = (255, 255, 255, 255)


class _NoWarnings:
    """Nothing of what Pillow warns of, such as odd metadata: the pixels are what counts.

    Filters are the whole process's, and `warnings.catch_warnings` in two threads at once leaves the wrong ones behind.
    So of the threads that are inside, the first adds a filter for Pillow's modules alone, and the last takes it away.
    """

    def __init__(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._added: Any = None

    def __enter__(self) -> None:
        with self._lock:
            if self._inside == 0:
                warnings.filterwarnings("ignore", module=rf"PIL\b|{re.escape(__name__)}$")
                self._added = warnings.filters[0]
            self._inside += 1

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if self._inside == 0 and self._added in warnings.filters:
                warnings.filters.remove(self._added)  # type: ignore[attr-defined]  # a list, whatever typeshed says


_NO_WARNINGS = _NoWarnings()


def load_image(source: ImageSource, spec: ImageSpec) -> npt.NDArray[np.uint8]:
    """The photograph as uint8 (height, width, 3), red-green-blue, the whole frame squashed to the spec's size.

    `source` is a path, the bytes of an image file or something whose `read_bytes()` gives them, a Pillow image, or a
    uint8 array (rows, columns), (rows, columns, 3) or (rows, columns, 4). The resize is Pillow's antialiased BILINEAR.
    Of an animation the first frame is taken.

    Raises ImageError for anything that is missing, empty, truncated, no image, or larger than MAX_PIXELS.
    """

    def squash(image: Image.Image) -> npt.NDArray[np.uint8]:
        small = image.resize((spec.width, spec.height), Image.Resampling.BILINEAR)
        return np.array(small, dtype=np.uint8)  # (height, width, 3)

    return _read(source, (spec.height, spec.width), squash)


def image_size(source: ImageSource) -> tuple[int, int]:
    """(width, height) as the header says, before a pixel is decoded. Raises ImageError, not for a large one."""
    if isinstance(source, Image.Image):
        return source.size
    name = _describe(source)
    try:
        with _NO_WARNINGS, _open(source, name) as image:
            return image.size
    except ImageError:
        raise
    except Exception as error:
        raise _unreadable(name, error) from None


def open_upright(source: ImageSource, longest: int) -> Image.Image:
    """The photograph as people look at it: RGB, upright, in its own proportions, to be shown.

    Its longer side has `longest` pixels, or as many as the photograph has if those are fewer. Sources, checks and
    errors are those of `load_image`.
    """

    def shrink(image: Image.Image) -> Image.Image:
        scale = min(longest / max(image.size), 1.0)
        size = (max(round(image.width * scale), 1), max(round(image.height * scale), 1))
        shown = image.resize(size, Image.Resampling.LANCZOS)
        shown.info = {}  # its EXIF block would have the next reader turn it once more
        return shown

    return _read(source, (longest, longest), shrink)


def thumbnail(source: ImageSource, height: int, width: int) -> npt.NDArray[np.uint8]:
    """The photograph's mean colours on a grid: uint8 (height, width, 3). Quick, to tell photographs apart by.

    Averages are those of boxes, exact to about one grey level. Sources, checks and errors are those of `load_image`.
    """

    def average(image: Image.Image) -> npt.NDArray[np.uint8]:
        return np.array(image.resize((width, height), Image.Resampling.BOX, reducing_gap=4.0), dtype=np.uint8)

    return _read(source, (2 * height, 2 * width), average)


def _read(source: ImageSource, wanted: tuple[int, int], use: Callable[[Image.Image], T]) -> T:
    """What `use` makes of the photograph, RGB and upright, decoded to at least twice the `wanted` (height, width)."""
    name = _describe(source)
    try:
        with _NO_WARNINGS:
            if isinstance(source, Image.Image):
                return use(_upright(source, name))
            with _open(source, name) as image:
                _draft(image, wanted)
                return use(_upright(image, name))
    except ImageError:
        raise
    except MemoryError:
        raise ImageError(f"{name}: too large for this machine's memory. Make the photograph smaller.") from None
    except OSError as error:
        if error.errno is not None:
            raise ImageError(
                f"{name}: cannot be read ({error.strerror}). Check the path and its permissions."
            ) from None
        raise _unreadable(name, error) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged data (struct.error, KeyError, ...)
        raise _unreadable(name, error) from None


def _upright(image: Image.Image, name: str) -> Image.Image:
    _check_size(image, name)
    image.load()
    # Asked after load(), where some of Pillow's formats turn themselves. TIFF does, and Pillow 9.4 forgets that.
    turn = None if image.format == "TIFF" else _TURNS.get(_orientation(image))
    return _to_rgb(image if turn is None else image.transpose(turn), image.format)


def _check_size(image: Image.Image, name: str) -> None:
    """Before anything is decoded: the size stands in the header."""
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise ImageError(
            f"{name}: {width} x {height} pixels, expected at most {MAX_PIXELS:,} in all. Make the photograph smaller."
        )
    if width * height == 0:
        raise ImageError(f"{name}: {width} x {height} pixels, expected at least one.")


def _draft(image: Image.Image, wanted: tuple[int, int]) -> None:
    """Have a large JPEG decoded at 1/2, 1/4 or 1/8, as long as twice the wanted (height, width) remains.

    So the antialiased resize still averages real pixels. It does nothing to other formats.
    """
    _check_size(image, _describe(image))
    if image.format in ("JPEG", "MPO"):
        height, width = wanted[::-1] if _orientation(image) in (5, 6, 7, 8) else wanted
        image.draft(None, (2 * width, 2 * height))


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 to 8; 1 where there is none or the metadata is damaged, which spoils no pixel."""
    try:
        value = image.getexif().get(_EXIF_ORIENTATION, 1)
    except Exception:  # whatever a damaged EXIF block makes the parser raise
        return 1
    return value if isinstance(value, int) else 1


def _open(source: "str | os.PathLike[str] | bytes | HasBytes | npt.NDArray[Any]", name: str) -> Image.Image:
    if isinstance(source, np.ndarray):
        return _from_array(source)
    file: Path | BytesIO
    if not isinstance(source, (str, bytes, os.PathLike)):
        source = source.read_bytes()
    if isinstance(source, bytes):
        if not source:
            raise ImageError(f"{name}: empty, expected the bytes of an image file.")
        file = BytesIO(source)
    else:
        file = Path(source)
        if file.is_file() and file.stat().st_size == 0:
            raise ImageError(f"{name}: the file is empty. Copy the photograph again.")
        if file.exists() and not file.is_file():
            raise ImageError(f"{name}: not a regular file, expected a photograph.")
    Image.preinit()
    try:
        return Image.open(file, formats=_COMMON_FORMATS)
    except UnidentifiedImageError:
        Image.init()
        return Image.open(file, formats=[name for name in _OTHER_FORMATS if name in Image.OPEN])


def _from_array(array: npt.NDArray[Any]) -> Image.Image:
    fits = array.ndim == 2 or (array.ndim == 3 and array.shape[2] in (3, 4))
    if array.dtype != np.uint8 or not fits or array.size == 0:
        raise ImageError(
            f"array: {array.dtype} of shape {array.shape}, expected uint8 (rows, columns), (rows, columns, 3) or "
            f"(rows, columns, 4). Scale other types to 0..255 first."
        )
    return Image.fromarray(np.ascontiguousarray(array))


def _to_rgb(image: Image.Image, file_format: str | None) -> Image.Image:
    mode = image.mode
    if mode == "RGB" and "transparency" not in image.info:
        return image
    if mode == "F" or mode.startswith("I"):
        return Image.fromarray(_to_8_bits(image, file_format)).convert("RGB")
    if mode == "La":
        image = image.convert("LA")
    if mode in ("RGBA", "LA", "La", "PA", "RGBa") or "transparency" in image.info:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, _WHITE), rgba).convert("RGB")
    return image.convert("RGB")


def _to_8_bits(image: Image.Image, file_format: str | None) -> npt.NDArray[np.uint8]:
    """Greyscale of 16 or 32 bits or floats as uint8 (rows, columns); `convert` would clip it to white.

    16 bits are scaled by 65535. For the others nothing says what white is, so the values tell: integers up to 255 and
    65535, and floats up to 1 and 255, are taken on that scale, and anything else is stretched from least to greatest.
    """
    values = np.asarray(image).astype(np.float64)
    np.nan_to_num(values, copy=False, nan=0.0, posinf=0.0, neginf=0.0)  # in place: 8 bytes a pixel
    low, high = float(values.min()), float(values.max())
    is_float = image.mode == "F"
    if image.mode.startswith("I;16") or (image.mode == "I" and file_format == "PNG"):  # older Pillow: PNG's 16 as "I"
        low, high = 0.0, 65535.0
    elif low >= 0 and is_float and high <= 1:
        low, high = 0.0, 1.0
    elif low >= 0 and high <= 255:
        low, high = 0.0, 255.0
    elif low >= 0 and not is_float and high <= 65535:
        low, high = 0.0, 65535.0
    values -= low
    values *= 255.0 / (high - low or 1.0)
    np.rint(values, out=values)
    return values.clip(0, 255, out=values).astype(np.uint8)


def _describe(source: ImageSource) -> str:
    if isinstance(source, Image.Image):
        return getattr(source, "filename", "") or "image"
    if isinstance(source, bytes):
        return "image bytes"
    return "array" if isinstance(source, np.ndarray) else str(source)


def _unreadable(name: str, error: Exception) -> ImageError:
    reason = "it is no image format known here" if isinstance(error, UnidentifiedImageError) else str(error)
    return ImageError(
        f"{name}: cannot be read as a photograph ({reason or type(error).__name__}). Expected a whole JPEG, PNG, WebP, "
        f"GIF, BMP, TIFF or AVIF file."
    )
