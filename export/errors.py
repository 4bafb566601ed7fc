"""Errors of export that a user can act on."""

from captionlite.runtime.errors import CaptionliteError


class ExportError(CaptionliteError):
    """A model that cannot be converted, or a converted file that is not what was promised."""
