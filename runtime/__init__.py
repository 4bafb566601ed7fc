"""Caption photographs from a bundle: `Captioner.from_bundle().caption("photo.jpg").text`.

Names are loaded when they are asked for, so that importing this package costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captionlite.runtime.bundle import Bundle
    from captionlite.runtime.captioner import Captioner
    from captionlite.runtime.decoding import Caption, DecodingOptions
    from captionlite.runtime.errors import CaptionliteError, ImageError
    from captionlite.runtime.frames import FrameCaptioner
    from captionlite.runtime.image import load_image

    __version__: str

__all__ = [
    "Bundle",
    "Caption",
    "Captioner",
    "CaptionliteError",
    "DecodingOptions",
    "FrameCaptioner",
    "ImageError",
    "__version__",
    "load_image",
]

_HOMES = {
    "Bundle": "bundle",
    "Caption": "decoding",
    "Captioner": "captioner",
    "CaptionliteError": "errors",
    "DecodingOptions": "decoding",
    "FrameCaptioner": "frames",
    "ImageError": "errors",
    "load_image": "image",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("captionlite")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
