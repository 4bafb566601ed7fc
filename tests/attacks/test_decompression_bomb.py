"""Photographs of a few kilobytes that would fill the memory: refused from their header, before a pixel is decoded."""

import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import pytest
from PIL import Image

from captionlite.runtime import load_image
from captionlite.runtime.errors import ImageError
from captionlite.runtime.image import MAX_PIXELS
from captionlite.runtime.manifest import ImageSpec

SPEC = ImageSpec(224, 224)


def png_header(width: int, height: int) -> bytes:
    """A PNG that promises this size, with a few rows of data behind it."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def bmp_header(width: int, height: int) -> bytes:
    info = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + info + bytes(100)


SIZES = [(12_000, 10_001), (13_500, 13_000), (2**30, 1), (60_000, 60_000), (2**31 - 1, 2**31 - 1)]
HEADERS = [make(*size) for make in (png_header, bmp_header) for size in SIZES]


@pytest.mark.parametrize("data", HEADERS, ids=[f"{name} {size}" for name in ("PNG", "BMP") for size in SIZES])
def test_a_header_that_promises_too_much(data: bytes) -> None:
    with pytest.raises(ImageError):
        load_image(data, SPEC)


# Peak memory only ever grows, so it is measured in a process that has done nothing else.
MEASURE = """
import resource, sys
from captionlite.runtime import load_image
from captionlite.runtime.errors import ImageError
from captionlite.runtime.manifest import ImageSpec
from PIL import Image
Image.init()
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
for path in sys.argv[1:]:
    try:
        print(load_image(path, ImageSpec(224, 224))[0, 0].tolist())
    except ImageError:
        print("refused")
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def load_apart(folder: Path, files: list[bytes]) -> tuple[list[str], int]:
    """What loading each file says, and by how many KB the peak memory grew."""
    paths = [folder / f"{i}.image" for i in range(len(files))]
    for path, data in zip(paths, files, strict=True):
        path.write_bytes(data)
    command = [sys.executable, "-c", MEASURE, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=True)
    *lines, grown = done.stdout.splitlines()
    return lines, int(grown)


def test_no_memory_is_taken_for_a_promise(tmp_path: Path) -> None:
    lines, grown = load_apart(tmp_path, HEADERS)
    assert lines == ["refused"] * len(HEADERS)
    assert grown < 20_000


def test_the_limit_is_named() -> None:
    with pytest.raises(ImageError, match=rf"12000 x 10001 pixels, expected at most {MAX_PIXELS:,}"):
        load_image(png_header(12_000, 10_001), SPEC)


def test_a_pillow_image_is_held_to_the_same_limit() -> None:
    with pytest.warns(Image.DecompressionBombWarning):  # Pillow's own, on opening
        image = Image.open(io.BytesIO(png_header(9_000, 14_000)))
    with image, pytest.raises(ImageError, match="expected at most"):
        load_image(image, SPEC)


def test_compressed_text_does_not_grow() -> None:
    # 60 MB of text in a 60 KB chunk, beside a picture of 4 pixels.
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 2, 2, 8, 2, 0, 0, 0)
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(bytes(60_000_000), 9))
    pixels = chunk(b"IDAT", zlib.compress(bytes(14)))
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + text + pixels + chunk(b"IEND", b"")
    with pytest.raises(ImageError, match="image bytes"):
        load_image(data, SPEC)


def test_an_icon_is_not_opened_because_pillow_would_decode_it_first(tmp_path: Path) -> None:
    # An icon of 16 x 16 with a PNG of 81 megapixels inside: Pillow decodes that while it opens the file.
    rows = zlib.compressobj(9)
    pixels = b"".join(rows.compress(bytes(1 + 9000 * 4)) for _ in range(9000)) + rows.flush()

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 9000, 9000, 8, 6, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    icon = struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(png), 22) + png
    lines, grown = load_apart(tmp_path, [icon])
    assert lines == ["refused"]
    assert grown < 60_000


def test_a_large_jpeg_within_the_limit_is_taken_at_an_eighth(tmp_path: Path) -> None:
    # 100 megapixels: decoded in full they would take 300 MB, as red-green-blue.
    buffer = io.BytesIO()
    Image.new("L", (10_000, 10_000), 90).convert("RGB").save(buffer, "JPEG")
    lines, grown = load_apart(tmp_path, [buffer.getvalue()])
    assert lines == ["[90, 90, 90]"]
    assert grown < 60_000
