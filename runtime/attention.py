"""Writing what a captioner looked at: `write_attention("out.png", "photo.jpg", caption, bundle)`.

The suffix chooses: .png shows the photograph once a word with the attention over it, .gif animates that, .json has the
numbers. The pictures are those of "Show, Attend and Tell" (Xu et al. 2015) and of TensorFlow's captioning tutorial.
"""

import json
import os
from collections.abc import Callable
from pathlib import Path

from captionlite.runtime.attention_pictures import FRAME, THUMBNAIL, animation, sheet
from captionlite.runtime.attention_words import SeenCaption, attention_grid
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.decoding import Caption
from captionlite.runtime.errors import OptionsError, OutputError
from captionlite.runtime.files import write_bytes_atomically
from captionlite.runtime.image import ImageSource, open_upright


def check_attention_file(path: str | os.PathLike[str], bundle: Bundle) -> None:
    """Refuse, before anything is captioned, what `write_attention` could not write.

    Raises OptionsError for a suffix that stands for no format and for a bundle without attention, OutputError where
    there is no folder to write to.
    """
    path = Path(path)
    if path.suffix.lower() not in _WRITERS:
        found = f"the suffix {path.suffix!r}" if path.suffix else "no suffix"
        raise OptionsError(
            f"{path}: {found} says nothing of the format, expected .png (a picture), .gif (an animation) or .json "
            f"(the numbers)."
        )
    attention_grid(bundle.manifest)
    if not path.parent.is_dir():
        raise OutputError(f"{path}: there is no folder {path.parent}. Make it first.")


def write_attention(
    path: str | os.PathLike[str], image: ImageSource, caption: Caption, bundle: Bundle, *, name: str | None = None
) -> None:
    """Write what `caption` looked at in its photograph, in the format that the suffix of `path` asks for.

    `image` is the photograph that was captioned, `bundle` the bundle that did it; `name` is what JSON calls the
    photograph. The file appears whole or not at all. Raises ImageError, OptionsError, OutputError.
    """
    path = Path(path)
    check_attention_file(path, bundle)
    if isinstance(image, (str, os.PathLike)):
        name = name or os.fspath(image)
        if path.exists() and os.path.exists(image) and os.path.samefile(path, image):
            raise OutputError(f"{path}: that is the photograph itself. Choose another name.")
    seen = SeenCaption.of(caption, bundle.vocabulary, attention_grid(bundle.manifest))
    content = _WRITERS[path.suffix.lower()](seen, image, name or "image")
    try:
        write_bytes_atomically(path, content)
    except OSError as error:
        raise OutputError(f"{path}: cannot be written ({error.strerror}).") from None


def _json(seen: SeenCaption, image: ImageSource, name: str) -> bytes:
    return json.dumps(seen.to_json(name), allow_nan=False).encode() + b"\n"  # ASCII: a name may be no valid Unicode


def _png(seen: SeenCaption, image: ImageSource, name: str) -> bytes:
    return sheet(open_upright(image, THUMBNAIL), seen)


def _gif(seen: SeenCaption, image: ImageSource, name: str) -> bytes:
    return animation(open_upright(image, FRAME), seen)


_WRITERS: dict[str, Callable[[SeenCaption, ImageSource, str], bytes]] = {".png": _png, ".gif": _gif, ".json": _json}
