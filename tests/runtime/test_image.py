"""load_image: pixels equal to plain Pillow's, every mode and orientation, nothing but ImageError for bad bytes."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from captionlite.runtime import load_image
from captionlite.runtime.errors import ImageError
from captionlite.runtime.manifest import ImageSpec

SPEC = ImageSpec(24, 32)  # height, width: not square, so that a swap shows
RANDOM = np.random.default_rng(5)
PIXELS = RANDOM.integers(0, 256, (60, 90, 3), dtype=np.uint8)


def encoded(image: Image.Image, format_name: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format_name, **options)
    return buffer.getvalue()


def plain(image: Image.Image) -> npt.NDArray[np.uint8]:
    """The resize that everything is held to."""
    resized = image.convert("RGB").resize((SPEC.width, SPEC.height), Image.Resampling.BILINEAR)
    return np.asarray(resized)


@pytest.mark.parametrize("size", [(60, 90), (7, 5), (24, 32), (1, 1), (300, 11)])
def test_resize_equals_plain_pillow(size: tuple[int, int]) -> None:
    image = Image.fromarray(RANDOM.integers(0, 256, (*size, 3), dtype=np.uint8))
    found = load_image(encoded(image, "PNG"), SPEC)
    assert found.dtype == np.uint8
    assert found.shape == (SPEC.height, SPEC.width, 3)
    np.testing.assert_array_equal(found, plain(image))


@pytest.mark.parametrize("format_name", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path, format_name: str) -> None:
    data = encoded(Image.fromarray(PIXELS), format_name)
    path = tmp_path / f"photo.{format_name.lower()}"
    path.write_bytes(data)
    opened = Image.open(io.BytesIO(data))
    expected = plain(opened)
    for source in (data, path, str(path), opened):
        np.testing.assert_array_equal(load_image(source, SPEC), expected)


def test_a_misnamed_file_is_read_by_its_content(tmp_path: Path) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(encoded(Image.fromarray(PIXELS), "PNG"))
    np.testing.assert_array_equal(load_image(path, SPEC), plain(Image.fromarray(PIXELS)))


def test_arrays() -> None:
    np.testing.assert_array_equal(load_image(PIXELS, SPEC), plain(Image.fromarray(PIXELS)))
    np.testing.assert_array_equal(load_image(PIXELS[:, ::-1], SPEC), plain(Image.fromarray(PIXELS[:, ::-1].copy())))
    grey = PIXELS[..., 0]
    np.testing.assert_array_equal(load_image(grey, SPEC), plain(Image.fromarray(grey)))


@pytest.mark.parametrize(
    "array", [PIXELS.astype(np.float32), PIXELS[..., :2], PIXELS[None], PIXELS[:0], np.zeros(5, np.uint8)]
)
def test_other_arrays_are_refused(array: npt.NDArray[Any]) -> None:
    with pytest.raises(ImageError, match=r"array: .*expected uint8"):
        load_image(array, SPEC)


def test_the_callers_image_is_left_alone() -> None:
    image = Image.fromarray(PIXELS)
    image.getexif()[0x0112] = 6
    load_image(image, SPEC)
    assert image.size == (90, 60)
    np.testing.assert_array_equal(np.asarray(image), PIXELS)


# What each EXIF orientation asks for, as the standard words it: where row 0 and column 0 of the stored image belong.
UPRIGHT = {
    1: lambda stored: stored,
    2: lambda stored: stored[:, ::-1],
    3: lambda stored: stored[::-1, ::-1],
    4: lambda stored: stored[::-1],
    5: lambda stored: stored.transpose(1, 0, 2),
    6: lambda stored: stored.transpose(1, 0, 2)[:, ::-1],
    7: lambda stored: stored[::-1, ::-1].transpose(1, 0, 2),
    8: lambda stored: stored.transpose(1, 0, 2)[::-1],
}


@pytest.mark.parametrize("format_name", ["PNG", "TIFF", "WEBP", "JPEG"])
@pytest.mark.parametrize("orientation", UPRIGHT)
def test_orientation(orientation: int, format_name: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    options: dict[str, Any] = {"lossless": True} if format_name == "WEBP" else {}
    data = encoded(Image.fromarray(PIXELS), format_name, exif=exif, **options)
    with Image.open(io.BytesIO(encoded(Image.fromarray(PIXELS), format_name, **options))) as unturned:
        stored = np.asarray(unturned.convert("RGB"))
    upright = np.ascontiguousarray(UPRIGHT[orientation](stored))
    np.testing.assert_array_equal(load_image(data, SPEC), plain(Image.fromarray(upright)))


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_senseless_orientation_is_ignored(orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(Image.fromarray(PIXELS), "PNG", exif=exif)
    np.testing.assert_array_equal(load_image(data, SPEC), plain(Image.fromarray(PIXELS)))


def test_damaged_exif_does_not_cost_the_photograph() -> None:
    data = encoded(Image.fromarray(PIXELS), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xffgarbage")
    with Image.open(io.BytesIO(encoded(Image.fromarray(PIXELS), "JPEG"))) as image:
        np.testing.assert_array_equal(load_image(data, SPEC), plain(image))


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(("scale", "drafted"), [(1.9, 1), (2, 1), (4, 2), (7.9, 2), (8, 4), (16, 8), (40, 8)])
def test_a_large_jpeg_is_decoded_at_no_less_than_twice_the_size(orientation: int, scale: float, drafted: int) -> None:
    # 1/1, 1/2, 1/4 or 1/8 by libjpeg, chosen by the smaller margin, then the plain resize.
    width, height = round(SPEC.width * scale), round(SPEC.height * scale * 1.3)
    if orientation == 6:
        width, height = height, width
    image = Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encoded(image, "JPEG", exif=exif, quality=95)
    with Image.open(io.BytesIO(data)) as opened:
        opened.draft(None, (width // drafted, height // drafted))  # type: ignore[arg-type]
        assert opened.size == (-(-width // drafted), -(-height // drafted))
        stored = np.asarray(opened)
    assert drafted == 1 or min(stored.shape[0] // 2, stored.shape[1] // 2) >= min(SPEC.height, SPEC.width)
    upright = np.ascontiguousarray(UPRIGHT[orientation](stored))
    np.testing.assert_array_equal(load_image(data, SPEC), plain(Image.fromarray(upright)))


# Every mode, filled with one colour of which the right red, green and blue are known.
MODES: dict[str, tuple[Any, tuple[int, int, int]]] = {
    "1": (255, (255, 255, 255)),
    "L": (77, (77, 77, 77)),
    "RGB": ((10, 200, 30), (10, 200, 30)),
    "RGBX": ((10, 200, 30, 0), (10, 200, 30)),
    "RGBA": ((10, 200, 30, 255), (10, 200, 30)),
    "RGBa": ((10, 200, 30, 255), (10, 200, 30)),
    "LA": ((77, 255), (77, 77, 77)),
    "La": ((77, 255), (77, 77, 77)),
    "CMYK": ((245, 55, 225, 0), (10, 200, 30)),
    "YCbCr": ((149, 128, 128), (149, 149, 149)),
    "HSV": ((0, 0, 90), (90, 90, 90)),
    "LAB": ((255, 128, 128), (255, 255, 255)),
    "I;16": (40 * 257, (40, 40, 40)),
    "I;16L": (40 * 257, (40, 40, 40)),
    "I;16B": (40 * 257, (40, 40, 40)),
    "I;16N": (40 * 257, (40, 40, 40)),
    "I": (40 * 257, (40, 40, 40)),
    "F": (0.25, (64, 64, 64)),
}


@pytest.mark.parametrize("mode", MODES)
def test_every_mode_gives_the_right_colour(mode: str) -> None:
    value, expected = MODES[mode]
    image = _filled(mode, value)
    found = load_image(image, SPEC)
    np.testing.assert_allclose(found.reshape(-1, 3), np.broadcast_to(expected, (24 * 32, 3)), atol=1)


def _filled(mode: str, value: Any) -> Image.Image:
    if mode.startswith("I;16"):  # Pillow cannot fill these
        order = ">u2" if mode == "I;16B" else "<u2" if mode in ("I;16", "I;16L") else "=u2"
        return Image.frombytes(mode, (40, 30), np.full((30, 40), value, order).tobytes())
    if mode in ("RGBa", "La"):
        return Image.new("RGBA" if mode == "RGBa" else "LA", (40, 30), value).convert(mode)
    return Image.new(mode, (40, 30), value)


def test_no_mode_of_pillow_is_forgotten() -> None:
    assert set(Image.MODES if hasattr(Image, "MODES") else MODES) <= MODES.keys() | {"P", "PA"}


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGBa", "La", "PA"])
def test_what_is_transparent_turns_white(mode: str) -> None:
    image = Image.new("RGBA", (40, 30), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (0, 0, 20, 30))
    if mode == "PA":
        alpha = image.getchannel("A")
        image = Image.merge("PA", [Image.new("L", image.size, 1), alpha])  # convert() would lose the alpha
        image.putpalette([255, 0, 0, 0, 0, 0])  # colour 1 is black
    elif mode != "RGBA":
        image = image.convert(mode) if mode == "RGBa" else image.convert("LA").convert(mode)
    found = load_image(image, SPEC)
    assert (found[:, :14] == 0).all()
    assert (found[:, 18:] == 255).all()


@pytest.mark.parametrize("mode", ["P", "L", "RGB", "1"])
def test_a_transparent_colour_turns_white(mode: str) -> None:
    # A PNG without alpha may name one colour as transparent (tRNS).
    image = Image.new("RGB", (40, 30), "black").convert(mode)
    transparent = (0, 0, 0) if mode == "RGB" else image.getpixel((0, 0))
    found = load_image(encoded(image, "PNG", transparency=transparent), SPEC)
    assert (found == 255).all()


def test_half_transparent_palette() -> None:
    image = Image.new("P", (40, 30), 0)
    image.putpalette([255, 0, 0, 0, 0, 255])
    data = encoded(image, "PNG", transparency=bytes([128, 255]))
    assert tuple(load_image(data, SPEC)[12, 16]) == pytest.approx((255, 127, 127), abs=1)


def _ramp(low: float, high: float, dtype: str) -> npt.NDArray[Any]:
    return np.linspace(low, high, 256).round(6).astype(dtype)[None].repeat(30, axis=0)


@pytest.mark.parametrize(
    ("ramp", "expected"),
    [
        (_ramp(0, 1, "f4"), (0, 255)),
        (_ramp(0, 255, "f4"), (0, 255)),
        (_ramp(0, 0.5, "f4"), (0, 128)),
        (_ramp(-3, 5, "f4"), (0, 255)),
        (_ramp(1000, 9000, "f4"), (0, 255)),
        (_ramp(0, 255, "i4"), (0, 255)),
        (_ramp(0, 65535, "i4"), (0, 255)),
        (_ramp(-40, 1 << 30, "i4"), (0, 255)),
        (_ramp(0, 65535, "u2"), (0, 255)),
        (_ramp(0, 255, "u2"), (0, 1)),
    ],
)
def test_deep_greyscale_is_scaled_not_clipped(ramp: npt.NDArray[Any], expected: tuple[int, int]) -> None:
    found = load_image(Image.fromarray(ramp), ImageSpec(30, 256))[15, :, 0].astype(int)
    assert (found[0], found[-1]) == expected
    assert (np.diff(found) >= 0).all()
    assert abs(found[128] - sum(expected) / 2) <= 1.5, "scaled in a straight line"


def test_a_16_bit_png_keeps_its_scale() -> None:
    ramp = _ramp(0, 200, "u2")  # nearly black in 16 bits: stays nearly black
    assert load_image(encoded(Image.fromarray(ramp), "PNG"), SPEC).max() <= 1


def test_floats_that_are_no_numbers() -> None:
    values = np.full((30, 40), 0.5, np.float32)
    values[0, 0], values[0, 1], values[1, 0] = np.nan, np.inf, -np.inf
    assert load_image(Image.fromarray(values), SPEC)[12, 16, 0] == 128


def test_of_an_animation_the_first_frame_is_taken() -> None:
    frames = [Image.new("RGB", (40, 30), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert tuple(load_image(data, SPEC)[12, 16]) == (255, 0, 0)


@pytest.mark.parametrize("kept", [0, 10, 100, 1000, -200])
def test_a_truncated_file_is_refused_by_name(tmp_path: Path, kept: int) -> None:
    path = tmp_path / "half.jpg"
    path.write_bytes(encoded(Image.fromarray(PIXELS), "JPEG")[:kept])
    with pytest.raises(ImageError, match=r"half\.jpg: "):
        load_image(path, SPEC)


def test_bad_paths_are_refused_by_name(tmp_path: Path) -> None:
    text = tmp_path / "notes.txt"
    text.write_text("not a photograph")
    for path, reason in ((tmp_path / "nowhere.jpg", "No such file"), (tmp_path, "not a regular"), (text, "no image")):
        with pytest.raises(ImageError, match=reason) as caught:
            load_image(path, SPEC)
        assert str(path) in str(caught.value)


def test_postscript_never_reaches_ghostscript() -> None:
    with pytest.raises(ImageError, match="no image format known here"):
        load_image(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n(hello) print\n", SPEC)


def _png(width: int, height: int, data: bytes) -> bytes:
    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


SEEDS = [
    encoded(
        Image.fromarray(PIXELS[:20, :20]), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06"
    ),
    encoded(Image.fromarray(PIXELS[:20, :20]), "PNG"),
    encoded(Image.fromarray(PIXELS[:20, :20]).convert("P"), "GIF"),
    encoded(Image.fromarray(PIXELS[:20, :20]), "WEBP"),
    encoded(Image.fromarray(PIXELS[:20, :20]), "TIFF"),
    encoded(Image.fromarray(PIXELS[:20, :20]), "BMP"),
    encoded(Image.fromarray(PIXELS[:20, :20]), "PPM"),
    _png(20, 20, zlib.compress(b"\0" * 1220)),
]


def _load_or_refuse(data: bytes) -> None:
    try:
        found = load_image(data, SPEC)
    except ImageError:
        return
    assert found.shape == (SPEC.height, SPEC.width, 3)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=400))
def test_any_bytes_load_or_are_refused(data: bytes) -> None:
    _load_or_refuse(data)


@settings(max_examples=400, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    st.sampled_from(SEEDS),
    st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=8),
    st.integers(0, 10_000),
)
def test_damaged_photographs_load_or_are_refused(data: bytes, changes: list[tuple[int, int]], cut: int) -> None:
    damaged = bytearray(data)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    _load_or_refuse(bytes(damaged[: len(damaged) - cut % len(damaged)]))
