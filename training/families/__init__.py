"""The table of families: a new family is a module here and a row in ``FAMILIES``."""

from __future__ import annotations

from typing import Any

from captionlite.training.errors import ConfigError
from captionlite.training.families.base import DecoderFamily, config_from_json
from captionlite.training.families.gru_attention import GruAttentionDecoder
from captionlite.training.families.lstm import LstmDecoder
from captionlite.training.families.masked_lm import MaskedLM
from captionlite.training.families.transformer import TransformerDecoder

FAMILIES: dict[str, type[DecoderFamily]] = {
    cls.family: cls for cls in (LstmDecoder, GruAttentionDecoder, TransformerDecoder, MaskedLM)
}


def build_family(
    config: dict[str, Any], feature_shape: tuple[int, ...], vocabulary_size: int, where: str = "family"
) -> DecoderFamily:
    """A decoder with its weights created, from a preset's ``family``: its name and the fields of its config."""
    cls = FAMILIES.get(config.get("name", ""))
    if cls is None:
        raise ConfigError(f"{where}: no family {config.get('name')!r}; there are {', '.join(sorted(FAMILIES))}")
    model = cls(config_from_json(cls.config_class, config, where), feature_shape, vocabulary_size, name="decoder")
    model.build_weights()
    return model
