"""The live picture with the caption on it, drawn only while somebody looks, and for all who look but once."""

from collections.abc import Callable
from io import BytesIO
from threading import Condition, Thread
from time import monotonic

from PIL import ImageDraw, ImageFont

from captionlite.runtime.camera.source import Frame, FrameImage
from captionlite.runtime.camera.watcher import Told
from captionlite.runtime.errors import ImageError
from captionlite.runtime.fonts import default_font
from captionlite.runtime.image import open_upright

LONGEST = 960
"""Pixels of the longer side; a larger frame is shown smaller."""
MOST_FPS = 15.0
QUALITY = 80


class Overlay:
    """Takes frames and captions from other threads, and gives whoever asks the newest picture as a JPEG."""

    def __init__(self) -> None:
        self._changed = Condition()
        self._latest: Frame | None = None
        self._frame: Frame | None = None  # the latest as long as it is not drawn
        self._caption = ""
        self._drawn = 0  # pictures so far
        self._jpeg = b""
        self._lookers = 0
        self._ended = False
        self._thread = Thread(target=self._run, name="captionlite-overlay", daemon=True)

    def __enter__(self) -> "Overlay":
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._thread.join(5.0)

    def show(self, frame: Frame) -> None:
        """The newest frame; it is drawn on when it is its time and somebody looks."""
        with self._changed:
            self._latest = self._frame = frame
            self._changed.notify_all()

    def tell(self, told: Told) -> None:
        """The caption of this and the next frames, or none when it is not sure."""
        caption = told.caption.text if told.sure else ""
        with self._changed:
            if caption != self._caption:
                self._caption, self._frame = caption, self._latest
                self._changed.notify_all()

    def look(self, step: int) -> None:
        """Somebody looks (1), or does no longer (-1)."""
        with self._changed:
            self._lookers += step
            self._frame = self._latest  # for one who comes between the photographs of a slow folder
            self._changed.notify_all()

    def next_picture(self, after: int, timeout_s: float) -> tuple[int, bytes] | None:
        """The newest JPEG and its number, once that is more than `after`. None when the time is over, or all is."""
        with self._changed:
            self._changed.wait_for(lambda: self._drawn > after or self._ended, timeout_s)
            return (self._drawn, self._jpeg) if self._drawn > after and not self._ended else None

    @property
    def drawn(self) -> int:
        """The number of the newest picture."""
        with self._changed:
            return self._drawn

    @property
    def ended(self) -> bool:
        """Whether there will be no more pictures."""
        with self._changed:
            return self._ended

    def _run(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._ended or (self._frame is not None and self._lookers > 0))
                if self._ended or self._frame is None:
                    return
                frame, self._frame, caption = self._frame, None, self._caption
            started_s = monotonic()
            try:
                jpeg = draw(frame.image, caption)
            except ImageError:
                continue  # the watcher tells of it
            with self._changed:
                self._drawn, self._jpeg = self._drawn + 1, jpeg
                self._changed.notify_all()
                self._changed.wait_for(lambda: self._ended, max(0.0, started_s + 1 / MOST_FPS - monotonic()))


def draw(source: FrameImage, caption: str) -> bytes:
    """The frame as a JPEG, the caption white on a dark band at its foot. Raises ImageError."""
    image = open_upright(source, LONGEST)
    if caption:
        size = max(image.height // 20, 10)
        font = _font(size)
        pen = ImageDraw.Draw(image, "RGBA")
        lines = _wrapped(caption, image.width - size, lambda text: pen.textlength(text, font=font))
        line_height = round(1.35 * size)
        top = image.height - len(lines) * line_height - size // 2
        pen.rectangle((0, top, image.width, image.height), fill=(0, 0, 0, 150))
        for number, line in enumerate(lines):
            place = (size // 2, top + size // 4 + number * line_height)
            pen.text(place, line, font=font, fill=(255, 255, 255, 255))
    buffer = BytesIO()
    image.save(buffer, "JPEG", quality=QUALITY)
    return buffer.getvalue()


def _font(size: int) -> "ImageFont.FreeTypeFont | ImageFont.ImageFont":
    try:
        return default_font(size)  # small where Pillow was built without FreeType
    except OSError:
        return ImageFont.load_default()


def _wrapped(text: str, width: float, length: Callable[[str], float]) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and length(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
