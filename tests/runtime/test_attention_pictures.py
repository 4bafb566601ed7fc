"""Pictures of attention: what glows where, and the sheet and the animation to the pixel where that is known."""

import io
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image, ImageFont

from captionlite.runtime import attention_pictures as pictures
from captionlite.runtime.attention_words import SeenCaption, SeenWord
from captionlite.runtime.errors import OutputError


def one_hot(row: int, column: int, grid: tuple[int, int]) -> npt.NDArray[np.float32]:
    cells = np.zeros(grid, np.float32)
    cells[row, column] = 1.0
    return cells


def seen(*words: str, grid: tuple[int, int] = (2, 3)) -> SeenCaption:
    """A caption whose words look at one cell after another, row by row."""
    cells = [divmod(number % (grid[0] * grid[1]), grid[1]) for number in range(len(words))]
    return SeenCaption(
        " ".join(words),
        grid,
        tuple(SeenWord(word, one_hot(*cell, grid)) for word, cell in zip(words, cells, strict=True)),
    )


def opened(data: bytes) -> Image.Image:
    return Image.open(io.BytesIO(data))


@pytest.mark.parametrize("size", [(93, 42), (51, 182)], ids=["landscape", "portrait"])
@pytest.mark.parametrize("cell", [(row, column) for row in range(2) for column in range(3)])
def test_a_single_cell_glows_where_it_lies_in_the_photograph(cell: tuple[int, int], size: tuple[int, int]) -> None:
    (row, column), (width, height) = cell, size
    wide, high = width // 3, height // 2  # odd, so that a pixel lies in the very centre of each cell
    centre = (row * high + high // 2, column * wide + wide // 2)
    warmth = pictures.heat(one_hot(row, column, (2, 3)), size)
    assert warmth.shape == (height, width)
    assert warmth[centre] == pytest.approx(1)
    inside = warmth[row * high : (row + 1) * high, column * wide : (column + 1) * wide]
    assert inside.min() > 0.2
    assert (warmth >= 0.999).sum() == (inside >= 0.999).sum() > 0
    others = [(r * high + high // 2, c * wide + wide // 2) for r in range(2) for c in range(3) if (r, c) != cell]
    assert [warmth[other] for other in others] == pytest.approx([0] * 5, abs=1e-6)

    shown = np.asarray(pictures.overlay(Image.new("RGB", size, (128, 128, 128)), one_hot(row, column, (2, 3))))
    assert shown.shape == (height, width, 3)
    brightest = np.unravel_index(shown.sum(axis=2).argmax(), (height, width))
    assert (brightest[0] // high, brightest[1] // wide) == cell
    # Half the photograph's grey and half the hottest colour; half its grey and a little, where nobody looked.
    np.testing.assert_allclose(shown[centre], np.mean([[128] * 3, [255, 245, 130]], axis=0), atol=0.51)
    assert {tuple(shown[other]) for other in others} == {(80, 80, 80)}


def test_heat_counts_from_the_even_share() -> None:
    even = np.full((7, 7), 1 / 49, np.float32)
    np.testing.assert_allclose(pictures.heat(even, (70, 70)), 0.2, atol=1e-6)  # (1 - 0.5) / (3 - 0.5): pale
    cells = even.copy()
    cells[3, 3] *= 2
    cells[0, 0] *= 0.5
    warmth = pictures.heat(cells, (77, 77))
    assert warmth[38, 38] == pytest.approx(0.6)
    assert warmth[5, 5] == pytest.approx(0)
    cells[3, 3] = 20 / 49
    warmth = pictures.heat(cells, (77, 77))
    assert warmth[38, 38] == pytest.approx(1)
    assert warmth[38, 71] == pytest.approx(0.5 / 19.5)
    assert pictures.heat(np.ones((1, 1), np.float32), (5, 4)).tolist() == [[1.0] * 5] * 4


def test_what_is_looked_at_keeps_its_colours() -> None:
    photograph = Image.new("RGB", (93, 42), (40, 90, 200))
    shown = np.asarray(pictures.overlay(photograph, one_hot(0, 0, (2, 3)))).astype(int)
    np.testing.assert_allclose(shown[10, 15], np.mean([[40, 90, 200], [255, 245, 130]], axis=0), atol=0.51)
    assert len(set(shown[31, 77])) == 1, "grey where nobody looked"


LANDSCAPE = Image.new("RGB", (120, 80), (10, 200, 30))
PORTRAIT = Image.new("RGB", (80, 120), (10, 200, 30))


@pytest.mark.parametrize(
    ("photograph", "count", "size", "places"),
    [
        # Three words and the photograph itself, 256 x 171 each below a title of 26: one row.
        (LANDSCAPE, 3, (1114, 295), [(24, 100), (294, 100), (564, 100), (834, 100)]),
        # 171 x 256: up to six fit beside one another.
        (PORTRAIT, 5, (1144, 380), [(24 + 185 * i, 100) for i in range(6)]),
        # Seven pictures are four and three, not six and one.
        (PORTRAIT, 6, (774, 676), [(24 + 185 * i, 100) for i in range(4)] + [(24 + 185 * i, 396) for i in range(3)]),
        (LANDSCAPE, 0, (304, 295), [(24, 100)]),
    ],
)
def test_the_sheet(photograph: Image.Image, count: int, size: tuple[int, int], places: list[tuple[int, int]]) -> None:
    caption = seen(*["dog", "runs", "on", "red", "grass", "fast"][:count])
    picture = opened(pictures.sheet(photograph, caption))
    assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", size)
    pixels = np.asarray(picture).astype(int)
    width, height = (256, 171) if photograph is LANDSCAPE else (171, 256)
    tiles = [pixels[y : y + height, x : x + width] for x, y in places]
    assert (tiles[0] == (10, 200, 30)).all()
    for number, tile in enumerate(tiles[1:]):
        y, x = np.unravel_index(tile.sum(axis=2).argmax(), tile.shape[:2])
        assert (y * 2 // height, x * 3 // width) == divmod(number, 3)
    for (x, y), word in zip(places, ["", *caption.text.split()], strict=True):
        title = pixels[y - 26 : y, x : x + width]
        assert ((title != pictures.PAPER).any()) == bool(word)
        frame = (pixels[y : y + height, x - 1], pixels[y : y + height, x + width], pixels[y + height, x : x + width])
        assert all((edge == pictures.PAPER).all() for edge in frame)


def test_a_long_caption_wraps_and_a_long_word_is_cut() -> None:
    words = [f"word{number}" for number in range(60)]
    font = ImageFont.load_default(size=28)
    lines = pictures._wrapped(words, font, 500)
    assert [word for line in lines for word in line] == words
    assert len(lines) > 5
    assert max(font.getlength(" ".join(line)) for line in lines) <= 500
    assert min(font.getlength(" ".join([*a, b[0]])) for a, b in pairwise(lines)) > 500
    (cut,), (dog,) = pictures._wrapped(["x" * 1000, "dog"], font, 100)
    assert (cut.rstrip("."), dog) == ("x" * (len(cut) - 3), "dog")
    assert font.getlength(cut) <= 100 < font.getlength("x" + cut)
    picture = opened(pictures.sheet(LANDSCAPE, seen(*words, "x" * 1000)))
    assert picture.width <= pictures.COLUMNS_WITHIN
    assert picture.height > 61 / 4 * 211


def test_odd_photographs_leave_room_for_text() -> None:
    for size in ((2000, 3), (3, 2000), (1, 1)):
        picture = opened(pictures.sheet(Image.new("RGB", size), seen("skateboarding", "dog")))
        assert pictures.THUMBNAIL <= picture.width <= pictures.COLUMNS_WITHIN
        assert opened(pictures.animation(Image.new("RGB", size), seen("dog"))).width >= pictures.THUMBNAIL


@pytest.mark.parametrize("words", [("dog",), ("a", "dog", "runs"), ("a", "a", "a", "a", "a", "a", "a"), ()])
def test_the_animation_has_a_frame_for_each_word(words: tuple[str, ...]) -> None:
    picture: Any = opened(pictures.animation(PORTRAIT, seen(*words, grid=(1, 1))))  # equal attention, but other frames
    assert picture.format == "GIF"
    assert picture.n_frames == max(len(words), 1)
    assert picture.size[0] == 267 + 48
    for number in range(picture.n_frames):
        picture.seek(number)
        assert picture.info["duration"] == (1600 if number == picture.n_frames - 1 else 700)
    if len(words) > 1:
        assert picture.info["loop"] == 0


def test_frames_show_their_own_word_and_attention() -> None:
    picture: Any = opened(pictures.animation(LANDSCAPE, seen("dog", "runs", "fast", "on")))
    below = set()
    for number in range(4):
        picture.seek(number)
        pixels = np.asarray(picture.convert("RGB")).astype(int)
        tile = pixels[24 : 24 + 267, 24 : 24 + 400]
        y, x = np.unravel_index(tile.sum(axis=2).argmax(), tile.shape[:2])
        assert (y * 2 // 267, x * 3 // 400) == divmod(number, 3)
        below.add(pixels[24 + 267 :].tobytes())
    assert len(below) == 4


def test_words_beyond_ascii_ask_for_another_font_and_do_without(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    original = ImageFont.truetype

    def without_files(font: Any, *args: Any, **options: Any) -> object:
        if not isinstance(font, str):
            return original(font, *args, **options)  # Pillow's own, which it carries in its code
        asked.append(font)
        raise OSError("cannot open resource")

    monkeypatch.setattr(ImageFont, "truetype", without_files)
    assert opened(pictures.sheet(LANDSCAPE, seen("a", "lion", "runs"))).width == 1114
    assert not asked
    assert opened(pictures.sheet(LANDSCAPE, seen("ein", "Löwe", "läuft"))).width == 1114
    assert set(asked) == {"DejaVuSans.ttf"}


def test_a_pillow_without_freetype_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(size: int) -> object:
        raise ImportError("The _imagingft C module is not installed")

    monkeypatch.setattr(ImageFont, "load_default", missing)
    with pytest.raises(OutputError, match=r"no FreeType.*\.json"):
        pictures.sheet(LANDSCAPE, seen("dog"))


def test_a_caption_without_end_is_no_picture() -> None:
    for draw in (pictures.sheet, pictures.animation):
        with pytest.raises(OutputError, match="A caption of 201 words"):
            draw(LANDSCAPE, seen(*["a"] * 201))
