"""ALBERT's SentencePiece vocabulary, read through `transformers`, with the interface of a word vocabulary.

`transformers` is needed once, when a run begins: what it loads is saved as an ordinary tokenizer.json in the run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from captionlite.runtime.vocabulary import join_sentencepiece
from captionlite.training.errors import VocabularyError
from captionlite.training.vocabulary import END_ID, MASK_ID, PAD_ID, START_ID, UNKNOWN_ID, WordVocabulary

SENTENCEPIECE = "sentencepiece"
ROLES = {"pad": PAD_ID, "unk": UNKNOWN_ID, "cls": START_ID, "sep": END_ID, "mask": MASK_ID}


class SentencePieceVocabulary(WordVocabulary):
    """SentencePiece pieces and their ids: [CLS] starts a caption and [SEP] ends it, words begin with U+2581."""

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first end token, without the special pieces: what the runtime makes of the same ids."""
        kept = []
        for token in ids:
            if token == END_ID:
                break
            if token not in self.special_ids:
                kept.append(self.pieces[token])
        return join_sentencepiece(kept)

    def runtime_vocabulary(self) -> dict[str, Any]:
        """The content of a bundle's vocabulary.json; the scores let a device split a text into pieces (Viterbi)."""
        model = json.loads(self.tokenizer.to_str())["model"]
        scores: dict[str, float] = dict(model["vocab"]) if model["type"] == "Unigram" else {}
        content: dict[str, Any] = {"kind": SENTENCEPIECE, "pieces": [_printable(p) for p in self.pieces], "join": ""}
        if scores:
            content["scores"] = [round(float(scores.get(piece, 0.0)), 6) for piece in self.pieces]
        return content


def _printable(piece: str) -> str:
    """Bundles hold nothing that could command a terminal: a control character in a piece is left out."""
    return "".join(c for c in piece if c.isprintable())


def build_sentencepiece_vocabulary(source: str, captions: Iterable[str]) -> SentencePieceVocabulary:
    """The tokenizer of ``source``, a Hugging Face directory or id, with the frequencies of its pieces in ``captions``.

    Raises VocabularyError when it cannot be loaded, or when its special tokens are not ALBERT's five with ids 0 to 4.
    """
    try:
        from transformers import AutoTokenizer
    except ImportError as error:
        raise VocabularyError(
            f"{source}: reading it needs transformers ({error}); install it with `pip install 'captionlite[albert]'`"
        ) from error
    try:
        loaded = AutoTokenizer.from_pretrained(source)
    except Exception as error:  # network, missing files, unknown ids: each an exception class of its own
        raise VocabularyError(
            f"{source}: no tokenizer could be loaded ({str(error).strip().splitlines()[0]}); give a directory with "
            "tokenizer.json or spiece.model, or a Hugging Face id"
        ) from error
    found = {role: getattr(loaded, f"{role}_token_id", None) for role in ROLES}
    if found != ROLES:
        raise VocabularyError(
            f"{source}: special tokens are {found}, expected ALBERT's {ROLES}; take its own tokenizer"
        )
    tokenizer = loaded.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    size = tokenizer.get_vocab_size(with_added_tokens=True)
    vocabulary = SentencePieceVocabulary(tokenizer, np.zeros(size, np.int64), SENTENCEPIECE)
    texts = list(captions)
    for ids in vocabulary.encode_batch(texts):
        if ids[:1] != [START_ID] or ids[-1:] != [END_ID]:
            raise VocabularyError(f"{source}: does not put [CLS] and [SEP] around a text; take ALBERT's own tokenizer")
        np.add.at(vocabulary.frequencies, ids, 1)
    vocabulary.frequencies[START_ID] = 0
    return vocabulary


def load_vocabulary(path: Path) -> WordVocabulary:
    """The vocabulary of a run, words or SentencePiece. Raises VocabularyError."""
    vocabulary = WordVocabulary.load(path)
    if vocabulary.standardization == SENTENCEPIECE:
        return SentencePieceVocabulary(vocabulary.tokenizer, vocabulary.frequencies, SENTENCEPIECE)
    return vocabulary
