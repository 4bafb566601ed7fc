"""open_upright: the photograph for people, with the same care for bytes as load_image."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from captionlite.runtime.errors import ImageError
from captionlite.runtime.image import MAX_PIXELS, load_image, open_upright
from captionlite.runtime.manifest import ImageSpec


def quarters(width: int, height: int) -> Image.Image:
    """Red, green / blue, white: whichever way it is turned, its corners tell."""
    image = Image.new("RGB", (width, height), "red")
    image.paste("lime", (width // 2, 0, width, height // 2))
    image.paste("blue", (0, height // 2, width // 2, height))
    image.paste("white", (width // 2, height // 2, width, height))
    return image


def corners(image: Image.Image) -> list[str]:
    """The colours of the corners by rows: r, g, b or w."""
    names = {(True, False, False): "r", (False, True, False): "g", (False, False, True): "b", (True, True, True): "w"}
    pixels = np.asarray(image)[[2, 2, -3, -3], [2, -3, 2, -3]] > 128
    return [names[tuple(bool(channel) for channel in pixel)] for pixel in pixels]


def encoded(image: Image.Image, format_name: str, orientation: int = 1) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    buffer = io.BytesIO()
    image.save(buffer, format_name, exif=exif)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((120, 80), 60, (60, 40)),
        ((80, 120), 60, (40, 60)),
        ((120, 80), 120, (120, 80)),
        ((120, 80), 500, (120, 80)),
        ((3000, 20), 100, (100, 1)),
        ((20, 3000), 100, (1, 100)),
        ((1, 1), 100, (1, 1)),
    ],
)
def test_it_keeps_its_proportions_and_is_never_enlarged(
    size: tuple[int, int], longest: int, expected: tuple[int, int]
) -> None:
    shown = open_upright(encoded(Image.new("RGB", size), "PNG"), longest)
    assert (shown.size, shown.mode) == (expected, "RGB")


@pytest.mark.parametrize("format_name", ["JPEG", "PNG"])
@pytest.mark.parametrize(
    ("orientation", "size", "seen"),
    [(1, (64, 32), "rgbw"), (3, (64, 32), "wbgr"), (6, (32, 64), "brwg"), (8, (32, 64), "gwrb"), (2, (64, 32), "grwb")],
)
def test_it_stands_upright(format_name: str, orientation: int, size: tuple[int, int], seen: str) -> None:
    data = encoded(quarters(640, 320), format_name, orientation)  # large enough for a JPEG to be drafted
    shown = open_upright(data, 64)
    assert (shown.size, corners(shown)) == (size, list(seen))
    # Nothing is left in it that would have the next reader turn it again.
    again = load_image(shown, ImageSpec(shown.height, shown.width))
    np.testing.assert_array_equal(again, np.asarray(shown))


def test_every_source_and_mode(tmp_path: Path) -> None:
    image = quarters(64, 32)
    path = tmp_path / "photo.png"
    image.save(path)
    expected = np.asarray(image)
    for source in (path, str(path), path.read_bytes(), image, expected):
        np.testing.assert_array_equal(np.asarray(open_upright(source, 64)), expected)
    shown = open_upright(image, 64)
    shown.paste("black", (0, 0, 64, 32))
    np.testing.assert_array_equal(np.asarray(image), expected)  # the caller's image is its own
    transparent = Image.new("RGBA", (64, 32), (0, 0, 0, 0))
    assert open_upright(transparent, 64).getpixel((5, 5)) == (255, 255, 255)


def test_what_load_image_refuses_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(encoded(quarters(64, 32), "JPEG")[:200])
    with pytest.raises(ImageError, match=r"half\.jpg: cannot be read as a photograph"):
        open_upright(path, 64)
    with pytest.raises(ImageError, match="No such file"):
        open_upright(tmp_path / "nowhere.jpg", 64)
    wide = Image.new("1", (MAX_PIXELS // 1000 + 1, 1000))  # fifteen megabytes, which Pillow itself would open
    with pytest.raises(ImageError, match="expected at most"):
        open_upright(encoded(wide, "PNG"), 64)
