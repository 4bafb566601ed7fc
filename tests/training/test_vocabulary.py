"""Word vocabularies: which words, which ids, and that the files they leave are ordinary tokenizers."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from captionlite.training.errors import VocabularyError
from captionlite.training.vocabulary import (
    END_ID,
    PAD_ID,
    START_ID,
    UNKNOWN_ID,
    Standardization,
    WordVocabulary,
    build_word_vocabulary,
)

CAPTIONS = ["A dog runs .", "a Dog, a ball", "The man 's t-shirt!", "b dog"]


def words(caption: str) -> list[str]:
    """How the default standardization splits one caption."""
    vocabulary = build_word_vocabulary([caption])
    return [vocabulary.pieces[token] for token in vocabulary.encode_batch([caption])[0][1:-1]]


def test_ids_are_by_count_then_alphabet_after_the_specials() -> None:
    vocabulary = build_word_vocabulary(CAPTIONS)
    assert vocabulary.pieces[:6] == ["[PAD]", "[UNK]", "[START]", "[END]", "a", "dog"]
    assert vocabulary.pieces[6:] == ["b", "ball", "man's", "runs", "t-shirt", "the"]
    assert (PAD_ID, UNKNOWN_ID, START_ID, END_ID) == (0, 1, 2, 3)
    assert len(vocabulary) == len(vocabulary.pieces) == 12


def test_frequencies_count_what_training_will_see() -> None:
    vocabulary = build_word_vocabulary(CAPTIONS, min_count=2)
    assert vocabulary.pieces[4:] == ["a", "dog"]
    counts = dict(zip(vocabulary.pieces, vocabulary.frequencies.tolist(), strict=True))
    assert counts == {"[PAD]": 0, "[UNK]": 6, "[START]": 0, "[END]": 4, "a": 3, "dog": 3}


def test_max_size_bounds_the_whole_vocabulary() -> None:
    assert build_word_vocabulary(CAPTIONS, max_size=5).pieces[4:] == ["a"]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("A man 's T-shirt .", ["a", "man's", "t-shirt"]),
        ("A man's t-shirt's", ["a", "man's", "t-shirt's"]),
        ('"Stop!" (he said): go; now?', ["stop", "he", "said", "go", "now"]),
        ("dogs' toys - and -- 'bones' snow-", ["dogs", "toys", "and", "bones", "snow"]),
        ("snake_case a/b c&d", ["snake", "case", "a", "b", "c", "d"]),
        ("man\u2019s caf\u00e9 2 dogs", ["man's", "caf\u00e9", "2", "dogs"]),
        ("cafe\u0301", ["caf\u00e9"]),
        ("  spaced\tout\nlines ", ["spaced", "out", "lines"]),
    ],
)
def test_default_standardization(caption: str, expected: list[str]) -> None:
    assert sorted(words(caption)) == sorted(expected)
    vocabulary = build_word_vocabulary([caption])
    assert vocabulary.decode(vocabulary.encode_batch([caption])[0]) == " ".join(expected)


def test_encoding_puts_captions_between_start_and_end() -> None:
    vocabulary = build_word_vocabulary(CAPTIONS)
    dog = vocabulary.pieces.index("dog")
    assert vocabulary.encode_batch(["dog zebra", ""]) == [[START_ID, dog, UNKNOWN_ID, END_ID], [START_ID, END_ID]]


def test_a_caption_that_spells_special_pieces_is_text(tmp_path: Path) -> None:
    vocabulary = build_word_vocabulary([*CAPTIONS, "end start pad"])
    vocabulary.save(tmp_path / "tokenizer.json")
    for each in (vocabulary, WordVocabulary.load(tmp_path / "tokenizer.json")):
        ids = each.encode_batch(["[END] dog [START] [PAD]"])[0]
        assert each.decode(ids) == "end dog start pad"
        assert ids.count(END_ID) == ids.count(START_ID) == 1


def test_decoding_stops_at_the_end_and_drops_specials() -> None:
    vocabulary = build_word_vocabulary(CAPTIONS)
    a, dog = vocabulary.pieces.index("a"), vocabulary.pieces.index("dog")
    assert vocabulary.decode([START_ID, a, UNKNOWN_ID, dog, END_ID, a, a, PAD_ID]) == "a dog"
    assert vocabulary.decode(np.array([END_ID])) == ""


@settings(deadline=None, max_examples=50)
@given(st.lists(st.text(max_size=40), min_size=1, max_size=5))
def test_any_text_encodes_and_its_decoding_encodes_to_the_same(captions: list[str]) -> None:
    vocabulary = build_word_vocabulary([*captions, "word"])
    for ids in vocabulary.encode_batch(captions):
        assert ids[0] == START_ID
        assert ids[-1] == END_ID
        assert UNKNOWN_ID not in ids
        assert vocabulary.encode_batch([vocabulary.decode(ids)])[0] == ids


def test_saved_files_load_again_and_are_a_plain_tokenizer(tmp_path: Path) -> None:
    vocabulary = build_word_vocabulary(CAPTIONS, min_count=2)
    path = tmp_path / "tokenizer.json"
    vocabulary.save(path)
    loaded = WordVocabulary.load(path)
    assert loaded.pieces == vocabulary.pieces
    assert loaded.frequencies.tolist() == vocabulary.frequencies.tolist()
    assert loaded.standardization == "plain_words"
    assert loaded.encode_batch(CAPTIONS) == vocabulary.encode_batch(CAPTIONS)
    assert Tokenizer.from_file(str(path)).encode("A dog").ids == vocabulary.encode_batch(["A dog"])[0]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["tokenizer.frequencies.json", "tokenizer.json"]


def test_transformers_reads_the_same_ids() -> None:
    vocabulary = build_word_vocabulary(CAPTIONS)
    tokenizer = vocabulary.to_transformers()
    batch = tokenizer(CAPTIONS, padding=True)
    for ids, expected in zip(batch["input_ids"], vocabulary.encode_batch(CAPTIONS), strict=True):
        assert ids == expected + [PAD_ID] * (len(ids) - len(expected))
    assert (tokenizer.pad_token_id, tokenizer.unk_token_id) == (PAD_ID, UNKNOWN_ID)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (START_ID, END_ID)
    assert tokenizer.decode(batch["input_ids"][0], skip_special_tokens=True) == "a dog runs"


def test_runtime_vocabulary_is_json_of_pieces() -> None:
    vocabulary = build_word_vocabulary(CAPTIONS)
    assert json.loads(json.dumps(vocabulary.runtime_vocabulary())) == {
        "kind": "words",
        "pieces": vocabulary.pieces,
        "join": " ",
    }


def test_another_standardization_is_data() -> None:
    published = Standardization(
        "show_and_tell", replacements=((r"\W+", " "),), specials=("#PAD#", "#UNK#", "#START#", "#END#")
    )
    vocabulary = build_word_vocabulary(["The man 's t-shirt!"], standardization=published)
    assert vocabulary.pieces[:4] == ["#PAD#", "#UNK#", "#START#", "#END#"]
    assert vocabulary.decode(vocabulary.encode_batch(["A T-shirt"])[0]) == "t shirt"
    assert vocabulary.standardization == "show_and_tell"


@pytest.mark.parametrize(
    ("captions", "options", "message"),
    [
        ([], {}, "no word is left"),
        (["...", ""], {}, "no word is left"),
        (CAPTIONS, {"min_count": 50}, "Lower min_count"),
        (CAPTIONS, {"min_count": 0}, "min_count: expected at least 1"),
        (CAPTIONS, {"max_size": 4}, "max_size: expected more than 4"),
    ],
)
def test_impossible_vocabularies(captions: list[str], options: dict[str, int], message: str) -> None:
    with pytest.raises(VocabularyError, match=message):
        build_word_vocabulary(captions, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer.json", None, "tokenizer.json: cannot be read"),
        ("tokenizer.json", "{", "not a tokenizer.json"),
        ("tokenizer.frequencies.json", None, "frequencies.json: cannot be read"),
        ("tokenizer.frequencies.json", "{}", "not the frequencies"),
        (
            "tokenizer.frequencies.json",
            '{"standardization": "x", "frequencies": [1]}',
            "1 frequencies for the 12 pieces",
        ),
    ],
)
def test_damaged_files_are_named(tmp_path: Path, name: str, text: str | None, message: str) -> None:
    build_word_vocabulary(CAPTIONS).save(tmp_path / "tokenizer.json")
    (tmp_path / name).unlink()
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(VocabularyError, match=message):
        WordVocabulary.load(tmp_path / "tokenizer.json")
