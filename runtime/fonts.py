"""A font to write captions with, on every Pillow that captionlite accepts."""

from PIL import ImageFont

DEJAVU = "DejaVuSans.ttf"


def default_font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    """Pillow's own font at this size in pixels; before Pillow 10.1, whose own has one size, DejaVu Sans.

    Raises OSError where neither is there, ImportError where Pillow was built without FreeType.
    """
    try:
        return ImageFont.load_default(size)
    except TypeError:  # Pillow 9.4, of Debian bookworm
        return ImageFont.truetype(DEJAVU, size)
