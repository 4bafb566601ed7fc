"""Errors of the training package; like every captionlite error their message is complete for the user."""

from captionlite.runtime.errors import CaptionliteError


class DatasetError(CaptionliteError):
    """A data set that is missing, incomplete or malformed; names the file and line and what to do."""


class VocabularyError(CaptionliteError):
    """A vocabulary that cannot be built from these captions, or a tokenizer file that is not one of ours."""


class WeightsError(CaptionliteError):
    """Weights that cannot be fetched, read, or do not fit the network they are meant for."""


class FeatureError(CaptionliteError):
    """A feature cache that is damaged, or an extraction that cannot go on."""


class ConfigError(CaptionliteError):
    """A preset, or a setting given on the command line, that is not what it should be."""


class RunError(CaptionliteError):
    """A run directory that is missing, damaged or in use."""
