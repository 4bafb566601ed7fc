"""The published ways from a caption to words, held to the code that was published."""

import json
import re
import sys
import typing
import unicodedata
from collections.abc import Callable
from pathlib import Path

import keras
import pytest
from drawings import TINY_PRESET, write_drawings
from hypothesis import example, given, settings
from hypothesis import strategies as st

from captionlite.runtime.vocabulary import Vocabulary
from captionlite.training import trainer
from captionlite.training.config import DataConfig, RunConfig, VocabularyConfig, from_json, load_config
from captionlite.training.vocabulary import (
    END_ID,
    KERAS_TEXT_VECTORIZATION,
    STANDARDIZATIONS,
    START_ID,
    TUTORIAL_TOP_K,
    WORD_SPLIT,
    Standardization,
    _tokenizer,
    build_word_vocabulary,
)

HOSTILE = [
    "A man 's T-shirt, re-worn; isn't it?!",
    "  leading,trailing  ",
    "under_score and snake__case #hash #START# #END#",
    "<start> <END> <b>bold</b> a<b>c",
    "caf\u00e9 CAFE\u0301 na\u00efve \u00c9COLE stra\u00dfe \u0130stanbul",
    "\u65e5\u672c\u8a9e \u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0627\u0644\u0639\u0631\u0628\u064a\u0629",
    "3.5 1,000 \u00bd \u2460 \u00b2 50%",
    "dots... em\u2014dash \u2018quoted\u2019 \u201cdouble\u201d \u2026",
    "tab\tnew\nline\r\nform\x0cfeed",
    "back\\slash [brackets] {braces} |pipe| ~tilde~ ^caret^ `tick`",
    "emoji \U0001f415 dog \U0001f468\u200d\U0001f469\u200d\U0001f467",
    "",
    "!!!",
]


def ours(standardization: Standardization) -> Callable[[str], list[str]]:
    tokenizer = _tokenizer(standardization)
    return lambda text: [
        word for word, _ in tokenizer.pre_tokenizer.pre_tokenize_str(tokenizer.normalizer.normalize_str(text))
    ]


def python_split(text: str) -> list[str]:
    """The notebook's split_sentence."""
    return list(filter(lambda word: len(word) > 0, re.split(r"\W+", text.lower())))


def keras_tokenizer(text: str) -> list[str]:
    """keras.preprocessing.text.text_to_word_sequence, since removed from Keras, with the tutorial's filters."""
    filters = '!"#$%&()*+.,-/:;=?@[\\]^_`{|}~ '
    translated = text.lower().translate(str.maketrans(dict.fromkeys(filters, " ")))
    return [word for word in translated.split(" ") if word]


def is_printable(text: str) -> bool:
    return text.replace(" ", "").isprintable()


# A final sigma is written otherwise: Python looks at the letters around it, tokenizers at one letter at a time.
TEXTS = st.text(st.characters(exclude_categories=("Cs", "Cn"), exclude_characters="\u03a3"), max_size=40)


@settings(deadline=None, max_examples=300)
@given(TEXTS)
@example("\n".join(HOSTILE))
def test_word_split_is_pythons(text: str) -> None:
    assert ours(WORD_SPLIT)(text) == python_split(text)


def test_word_split_agrees_on_every_character() -> None:
    split = ours(WORD_SPLIT)
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        # Not every Python knows the same newest characters.
        if code % 7 == 0 and unicodedata.category(character) not in ("Cn", "Cs") and character != "\u03a3":
            assert split(f"ab{character}cd") == python_split(f"ab{character}cd"), hex(code)


@settings(deadline=None, max_examples=300)
@given(TEXTS.filter(is_printable))
@example('back\\slash [brackets] {braces} |pipe| ~tilde~ ^caret^ `tick` \'s <b> "q"')
def test_tutorial_top_k_is_the_keras_tokenizers(text: str) -> None:
    if not re.search("<(?:pad|unk|start|end)>", text.lower()):
        assert ours(TUTORIAL_TOP_K)(text) == keras_tokenizer(text)


def vectorize(text: str) -> list[str]:
    """The words that the Keras layer makes of a text: it learns them, numbers them, and they are looked up again."""
    layer = keras.layers.TextVectorization(standardize="lower_and_strip_punctuation", ragged=True)
    layer.adapt([text, "sentinel"])
    words = layer.get_vocabulary()
    return [words[int(i)] for i in layer([text])[0].numpy()]


@pytest.mark.parametrize("text", HOSTILE)
def test_keras_text_vectorization_on_hostile_captions(text: str) -> None:
    if "\u200d" not in text:  # it joins emoji; here it parts them, for it cannot be printed
        assert ours(KERAS_TEXT_VECTORIZATION)(text) == vectorize(text)


@settings(deadline=None, max_examples=60)
@given(TEXTS.filter(is_printable))
def test_keras_text_vectorization_is_keras(text: str) -> None:
    assert ours(KERAS_TEXT_VECTORIZATION)(text) == vectorize(text)


def test_keras_vocabulary_of_real_captions_has_the_same_words_in_the_same_order() -> None:
    """Where no two words are equally frequent; Keras and we settle ties differently."""
    captions = [" ".join(f"Word{i}!" for i in range(n)) for n in range(1, 30)]
    layer = keras.layers.TextVectorization(max_tokens=20, standardize="lower_and_strip_punctuation", ragged=True)
    layer.adapt([f"[START] {caption} [END]" for caption in captions])
    theirs = [word for word in layer.get_vocabulary() if word not in ("", "[UNK]", "start", "end")]
    vocabulary = build_word_vocabulary(captions, max_size=20, standardization=KERAS_TEXT_VECTORIZATION)
    assert vocabulary.pieces[4:] == theirs
    assert len(vocabulary) == 20


@pytest.mark.parametrize("standardization", STANDARDIZATIONS.values(), ids=STANDARDIZATIONS)
def test_pieces_can_be_shipped_and_specials_cannot_be_spelt(standardization: Standardization, tmp_path: Path) -> None:
    captions = [
        *HOSTILE,
        "\x1b[31mred\x07",
        "a\u202eb",
        "non\u00a0breaking",
        " ".join(standardization.specials),
        "[MASK]",
    ]
    vocabulary = build_word_vocabulary(captions, standardization=standardization)
    assert vocabulary.pieces[:4] == list(standardization.specials)
    assert all(piece.isprintable() and piece for piece in vocabulary.pieces)
    for ids in vocabulary.encode_batch(captions):
        assert ids.count(START_ID) == ids.count(END_ID) == 1
    content = vocabulary.runtime_vocabulary()
    runtime = Vocabulary(tuple(content["pieces"]), content["join"], frozenset(range(4)))
    ids = vocabulary.encode_batch(["A dog, bold"])[0]
    assert runtime.detokenize(ids) == vocabulary.decode(ids)


def test_presets_name_a_standardization_that_exists() -> None:
    names = typing.get_args(typing.get_type_hints(VocabularyConfig)["standardization"])
    assert set(names) == set(STANDARDIZATIONS)
    assert load_config("show_and_tell").vocabulary.standardization == "word_split"
    assert load_config("show_attend_tell").vocabulary.standardization == "tutorial_top_k"
    assert load_config("visual_transformer").vocabulary.standardization == "keras_text_vectorization"
    assert load_config("default").vocabulary.standardization == "plain_words"


def test_a_run_builds_the_vocabulary_its_preset_asks_for(tmp_path: Path) -> None:
    preset = {**TINY_PRESET, "epochs": 1, "flip": False, "vocabulary": {"standardization": "word_split"}}
    made: RunConfig = from_json(RunConfig, preset, "tiny")
    data = write_drawings(tmp_path)
    config = RunConfig(**{**vars(made), "data": (DataConfig(f"jsonl:{data}"),)})
    trainer.train(config, tmp_path / "run", tmp_path / "cache")
    pieces = json.loads((tmp_path / "run" / "tokenizer.json").read_text())["added_tokens"]
    assert [piece["content"] for piece in pieces] == list(WORD_SPLIT.specials)
