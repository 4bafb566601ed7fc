"""Errors that a user can act on. Their message is complete: it names what, where, found, expected and the next step."""


class CaptionliteError(Exception):
    """Base of every error that captionlite raises on purpose; the command line prints its message and exits 1."""


class BundleError(CaptionliteError):
    """A bundle that is missing, damaged, too new or not what its manifest says."""


class ImageError(CaptionliteError):
    """A photograph that cannot be read, or that is refused (empty, truncated, too large)."""


class InterpreterError(CaptionliteError):
    """No TensorFlow Lite interpreter here, or one that refuses a graph."""


class WrongNumbersError(InterpreterError):
    """An interpreter that loads a bundle and computes something else than the bundle's golden vectors."""


class DelegateError(InterpreterError):
    """An accelerator's library that does not load, refuses a graph, fails, or computes wrong numbers."""


class OptionsError(CaptionliteError):
    """Decoding options that make no sense, or that this bundle cannot follow."""


class ModelError(CaptionliteError):
    """A named bundle that cannot be found, downloaded or kept, or an index that is not what it should be."""


class OutputError(CaptionliteError):
    """A file that cannot be written where it was asked for."""
