"""Drawing what a captioner looked at, with Pillow alone: a sheet of thumbnails, or an animation, a word each.

The photograph turns dark and grey, and where a word looked it gets its colours back and glows, from violet to yellow:
that reads on bright and dark photographs alike, and what was looked at can still be seen. The grid is stretched over
the whole photograph, as the photograph was squashed as a whole into the encoder.
"""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from captionlite.runtime.attention_words import SeenCaption
from captionlite.runtime.errors import OutputError
from captionlite.runtime.fonts import DEJAVU, default_font

THUMBNAIL = 256  # longer side of a photograph on the sheet, in pixels
FRAME = 400  # longer side of the photograph in the animation
COLUMNS_WITHIN = 1320  # the sheet's width, in pixels, unless a single thumbnail is wider
# In shares of the attention that each region would get from an even look: cold up to here, as hot as can be from there.
NO_HEAT, FULL_HEAT = 0.5, 3.0
MOST_WORDS = 200  # a caption is no novel: beyond it a picture would fill the memory
FRAME_MS, LAST_FRAME_MS = 700, 1600

PAPER, INK, FAINT = (250, 250, 247), (24, 24, 28), (150, 150, 150)
OPACITY = 0.5  # of the glow where it is hottest
HEAT = np.array([[60, 20, 110], [150, 30, 110], [230, 80, 50], [255, 170, 40], [255, 245, 130]], np.float64)
GREYS = np.array([0.299, 0.587, 0.114])  # red, green, blue to luminance, as television has it (ITU-R BT.601)
MARGIN, GAP, HEADING, TITLE, LINE = 24, 14, 28, 20, 1.3

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


def heat(attention: npt.NDArray[np.float32], size: tuple[int, int]) -> npt.NDArray[np.float64]:
    """Attention (rows, columns) as heat from 0 to 1 at each pixel (height, width) of a picture of that (width, height).

    Heat counts from NO_HEAT to FULL_HEAT times the even share of a region, or to the word's greatest share if that is
    more. So words can be compared, and one that looked everywhere stays pale instead of having its noise blown up.
    """
    shares = attention * attention.size
    full = max(float(shares.max()), min(FULL_HEAT, attention.size))
    cells = Image.fromarray(((shares - NO_HEAT) / (full - NO_HEAT)).clip(0, 1).astype(np.float32))
    # Bicubic is smooth between the cells' centres, and shoots a little over.
    return np.asarray(cells.resize(size, Image.Resampling.BICUBIC), np.float64).clip(0, 1)


def overlay(photograph: Image.Image, attention: npt.NDArray[np.float32]) -> Image.Image:
    """The RGB photograph with the attention on it."""
    warmth = heat(attention, photograph.size)[..., None]  # (height, width, 1)
    colours = np.asarray(photograph, np.float64)  # (height, width, 3)
    dark = (colours @ GREYS)[..., None] * 0.5 + 16
    glow = np.concatenate([np.interp(warmth, np.linspace(0, 1, len(HEAT)), channel) for channel in HEAT.T], axis=2)
    seen = dark * (1 - warmth) + colours * warmth
    weight = OPACITY * warmth
    return Image.fromarray((seen * (1 - weight) + glow * weight).round().astype(np.uint8))


def sheet(photograph: Image.Image, seen: SeenCaption) -> bytes:
    """A PNG: the caption as heading, then the photograph as it is and once for each word, row by row.

    Raises OutputError for more than MOST_WORDS words, and where Pillow cannot draw text.
    """
    _check_length(seen)
    photograph = _fitted(photograph, THUMBNAIL)
    heading_font, font = _font(HEADING, seen.text), _font(TITLE, seen.text)
    titles = ["", *(_cut(word.word, font, THUMBNAIL) for word in seen.words)]
    cell = max(photograph.width, *(round(font.getlength(title)) for title in titles))
    most = max((COLUMNS_WITHIN - 2 * MARGIN + GAP) // (cell + GAP), 1)
    rows = -(-len(titles) // most)
    columns = -(-len(titles) // rows)  # as many in the last row as can be
    width = 2 * MARGIN + max(columns * (cell + GAP) - GAP, THUMBNAIL)
    lines = _wrapped(seen.text.split(), heading_font, width - 2 * MARGIN)
    line, title_line = round(HEADING * LINE), round(TITLE * LINE)
    top = MARGIN + line * len(lines) + GAP
    row_height = title_line + photograph.height + GAP
    picture = Image.new("RGB", (width, top + rows * row_height - GAP + MARGIN), PAPER)
    pen = ImageDraw.Draw(picture)
    for number, words in enumerate(lines):
        pen.text((MARGIN, MARGIN + number * line), " ".join(words), INK, heading_font)
    for number, title in enumerate(titles):
        x, y = MARGIN + number % columns * (cell + GAP), top + number // columns * row_height
        pen.text((x, y), title, INK, font)
        shown = overlay(photograph, seen.words[number - 1].attention) if number else photograph
        picture.paste(shown, (x, y + title_line))
    return _encoded(picture, "PNG")


def animation(photograph: Image.Image, seen: SeenCaption) -> bytes:
    """An endless GIF: a frame for each word, the word below the photograph and the caption below the word.

    A caption without words gives one frame, the photograph as it is. Raises OutputError as `sheet` does.
    """
    _check_length(seen)
    photograph = _fitted(photograph, FRAME)
    large, small = _font(HEADING, seen.text), _font(TITLE, seen.text)
    width = max(photograph.width, THUMBNAIL) + 2 * MARGIN
    lines = _wrapped([word.word for word in seen.words], small, width - 2 * MARGIN)
    line, word_line = round(TITLE * LINE), round(HEADING * LINE)
    below = MARGIN + photograph.height + GAP
    blank = Image.new("RGB", (width, below + word_line + GAP + line * len(lines) + MARGIN), PAPER)
    place = ((width - photograph.width) // 2, MARGIN)
    frames = []
    for number, seen_word in enumerate(seen.words):
        frame = blank.copy()
        frame.paste(overlay(photograph, seen_word.attention), place)
        pen = ImageDraw.Draw(frame)
        pen.text((width / 2, below), _cut(seen_word.word, large, width - 2 * MARGIN), INK, large, anchor="ma")
        _draw_caption(pen, lines, number, small, below + word_line + GAP, width)
        frames.append(frame)
    if not frames:
        blank.paste(photograph, place)
        frames.append(blank)
    return _animated(frames)


def _check_length(seen: SeenCaption) -> None:
    if len(seen.words) > MOST_WORDS:
        raise OutputError(f"A caption of {len(seen.words)} words makes no picture, expected at most {MOST_WORDS}.")


def _draw_caption(
    pen: ImageDraw.ImageDraw, lines: list[list[str]], current: int, font: Font, top: int, width: int
) -> None:
    """Centred lines of words, faint but for the current one."""
    space, number = font.getlength(" "), 0
    for row, words in enumerate(lines):
        x = (width - font.getlength(" ".join(words))) / 2
        for word in words:
            pen.text((x, top + row * round(TITLE * LINE)), word, INK if number == current else FAINT, font)
            x += font.getlength(word) + space
            number += 1


def _animated(frames: list[Image.Image]) -> bytes:
    """Frames as a GIF, each with the 256 colours that fit it best; a palette for all would show steps in the glow."""
    first, *others = (
        frame.quantize(palette=frame.quantize(256), dither=Image.Dither.FLOYDSTEINBERG) for frame in frames
    )
    durations = [FRAME_MS] * len(others) + [LAST_FRAME_MS]
    return _encoded(first, "GIF", save_all=True, append_images=others, duration=durations, loop=0)


def _encoded(image: Image.Image, file_format: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def _fitted(photograph: Image.Image, longest: int) -> Image.Image:
    """The photograph with its longer side exactly `longest` pixels; small ones are enlarged, to have room for text."""
    scale = longest / max(photograph.size)
    size = (max(round(photograph.width * scale), 1), max(round(photograph.height * scale), 1))
    return photograph.resize(size, Image.Resampling.BICUBIC)


def _font(size: int, text: str) -> Font:
    """Pillow's own font, which knows ASCII alone; for other text DejaVu Sans, where the machine has it."""
    try:
        if not text.isascii():
            try:
                return ImageFont.truetype(DEJAVU, size)
            except OSError:
                pass
        return default_font(size)
    except OSError:
        raise OutputError(
            "This Pillow has no font of this size. Install DejaVu Sans (apt install fonts-dejavu-core) or a newer "
            "Pillow, or write .json instead."
        ) from None
    except ImportError:  # a Pillow that was built without FreeType
        raise OutputError("This Pillow cannot draw text (it has no FreeType). Write .json instead.") from None


def _cut(text: str, font: Font, width: int) -> str:
    """A text, cut short with dots if it is wider than that."""
    if font.getlength(text) <= width:
        return text
    fitting = sum(font.getlength(text[:length] + "...") <= width for length in range(width))  # no letter is 0 wide
    return text[: max(fitting - 1, 0)] + "..."


def _wrapped(words: list[str], font: Font, width: int) -> list[list[str]]:
    """Words in lines of at most that width; a word wider than a line is cut."""
    lines: list[list[str]] = [[]]
    for word in words:
        word = _cut(word, font, width)
        if lines[-1] and font.getlength(" ".join([*lines[-1], word])) > width:
            lines.append([])
        lines[-1].append(word)
    return lines
