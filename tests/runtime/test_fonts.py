"""Captions are drawn on the Pillow of Debian bookworm too, whose own font has one size."""

from typing import Any

import pytest
from PIL import ImageFont

from captionlite.runtime import fonts
from captionlite.runtime.attention_pictures import _font as attention_font
from captionlite.runtime.camera.overlay import _font as overlay_font
from captionlite.runtime.errors import OutputError


def test_the_font_has_the_size_asked_for() -> None:
    assert fonts.default_font(40).getlength("caption") > fonts.default_font(10).getlength("caption") * 2


def old_pillow(monkeypatch: pytest.MonkeyPatch, dejavu: bool) -> list[tuple[Any, ...]]:
    """Pillow 9.4's load_default, on a machine with or without DejaVu Sans; what truetype was asked for."""
    own, sans = ImageFont.load_default(), ImageFont.load_default(30)
    asked: list[tuple[Any, ...]] = []

    def load_default() -> Any:
        return own

    def truetype(*arguments: Any) -> Any:
        asked.append(arguments)
        if not dejavu:
            raise OSError("cannot open resource")
        return sans

    monkeypatch.setattr(ImageFont, "load_default", load_default)
    monkeypatch.setattr(ImageFont, "truetype", truetype)
    return asked


def test_an_old_pillow_takes_dejavu(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = old_pillow(monkeypatch, dejavu=True)
    assert attention_font(30, "a cat").getlength("cat") == overlay_font(30).getlength("cat")
    assert asked == [(fonts.DEJAVU, 30)] * 2


def test_an_old_pillow_without_dejavu(monkeypatch: pytest.MonkeyPatch) -> None:
    old_pillow(monkeypatch, dejavu=False)
    assert overlay_font(30).getlength("cat") > 0
    with pytest.raises(OutputError, match="fonts-dejavu-core"):
        attention_font(30, "a cat")
