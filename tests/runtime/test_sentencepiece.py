"""SentencePiece without the package: against transformers on a tokenizer trained here, and on bytes by hand."""

import dataclasses
import json
import unicodedata
from typing import Any

import pytest
import toy_bundle
from hypothesis import given
from hypothesis import strategies as st

from captionlite.runtime.errors import BundleError, OptionsError
from captionlite.runtime.manifest import Manifest
from captionlite.runtime.vocabulary import Vocabulary, join_sentencepiece, plain_words, split_unigram

SPECIALS = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]
CAPTIONS = [
    "a brown dog runs across the green grass",
    "two children are playing in the water near a café",
    "a man in a red t-shirt climbs a rock",
    "the dog jumps over the fence and runs away",
    "a girl's bicycle",
] * 3


def trained() -> Any:
    """A Unigram tokenizer with Metaspace and byte pieces, as transformers wraps it."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    trainer = trainers.UnigramTrainer(vocab_size=130, special_tokens=SPECIALS, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    tokenizer.add_tokens([AddedToken(f"<0x{byte:02X}>", normalized=False) for byte in range(256)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", unk_token="<unk>", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]",
    )  # fmt: skip


@pytest.fixture(scope="module")
def theirs() -> Any:
    pytest.importorskip("transformers")
    return trained()


def manifest(size: int) -> Manifest:
    """A manifest of which the vocabulary reads the kind, the size and the special ids."""
    toy = toy_bundle.manifest()
    decoding = dataclasses.replace(toy.decoding, mask_id=4, suppressed_ids=(0, 1, 2, 4))
    vocabulary = dataclasses.replace(toy.vocabulary, kind="sentencepiece", size=size)
    return dataclasses.replace(toy, decoding=decoding, vocabulary=vocabulary)


@pytest.fixture(scope="module")
def ours(theirs: Any) -> Vocabulary:
    model = json.loads(theirs.backend_tokenizer.to_str())["model"]
    scores = dict(model["vocab"])
    pieces = theirs.convert_ids_to_tokens(range(len(theirs)))
    content = {
        "kind": "sentencepiece",
        "pieces": pieces,
        "join": "",
        "scores": [scores.get(piece, -100.0) for piece in pieces],
    }
    return Vocabulary.from_json(json.dumps(content).encode(), manifest(len(pieces)), "vocabulary.json")


@given(data=st.data())
def test_any_ids_read_as_transformers_reads_them(data: st.DataObject, theirs: Any, ours: Vocabulary) -> None:
    ids = data.draw(st.lists(st.integers(0, len(ours) - 1), max_size=12))
    expected = theirs.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    printable = "".join(c for c in expected if c.isprintable())  # bytes may spell what commands a terminal
    assert ours.detokenize(ids).strip() == printable.strip()


def test_captions_survive_the_way_there_and_back(theirs: Any, ours: Vocabulary) -> None:
    for caption in CAPTIONS:
        ids = theirs(caption, add_special_tokens=False)["input_ids"]
        plain = "".join(c for c in unicodedata.normalize("NFKD", caption) if not unicodedata.combining(c))
        assert ours.detokenize([2, *ids, 3, 0, 0]) == plain
        assert ours.tokenize(caption) == ids


@pytest.mark.parametrize("text", ["A  BROWN dog", "the café", "grass water grass", "a red rock near the rock", ""])
def test_text_is_split_as_transformers_splits_it(text: str, theirs: Any, ours: Vocabulary) -> None:
    assert ours.tokenize(text) == theirs(text.strip(), add_special_tokens=False)["input_ids"]


def test_masks_keep_their_places(ours: Vocabulary) -> None:
    dog, runs = ours.tokenize("a dog"), ours.tokenize("runs")
    assert ours.tokenize("a dog [MASK] runs [MASK]", 4) == [*dog, 4, *runs, 4]
    assert ours.tokenize("[MASK][MASK]", 4) == [4, 4]


def test_what_no_piece_covers_is_named(ours: Vocabulary) -> None:
    with pytest.raises(OptionsError, match=r"'犬' cannot be written in this bundle's pieces \(no 犬\)"):
        ours.tokenize("a 犬")


def test_the_split_is_the_likeliest_one() -> None:
    pieces = {"\u2581": 0, "\u2581a": 1, "b": 2, "ab": 3, "\u2581ab": 4, "a": 5}
    assert split_unigram("ab", pieces, [-3.0, -1.0, -1.0, -1.0, -2.5, -1.0]) == [1, 2]
    assert split_unigram("ab", pieces, [-3.0, -1.0, -1.0, -1.0, -1.5, -1.0]) == [4]
    assert split_unigram("ab ab", pieces, [-0.1, -9.0, -9.0, -0.1, -9.0, -9.0]) == [0, 3, 0, 3]


@pytest.mark.parametrize(
    ("pieces", "text"),
    [
        (["\u2581a", "\u2581caf", "<0xC3>", "<0xA9>"], "a café"),
        (["\u2581a", "<0xC3>", "b"], "a\ufffdb"),
        (["<0xF0>", "<0x9F>", "<0x90>", "<0x95>", "\u2581dog"], "\U0001f415 dog"),
        (["<0xF0>", "<0x9F>", "\u2581dog"], "\ufffd\ufffd dog"),
        (["\u2581a", "<0x1B>", "<0x5B>", "b"], "a[b"),  # an escape character would command the terminal
        (["<0xc3>", "<0xA>"], "<0xc3><0xA>"),  # no byte pieces: two upper-case digits make one
        (["\u2581", "\u2581dog"], "dog"),
        ([], ""),
    ],
)
def test_bytes_and_spaces(pieces: list[str], text: str) -> None:
    assert join_sentencepiece(pieces) == text


def test_words_are_those_of_training() -> None:
    tokenizers = pytest.importorskip("tokenizers")
    del tokenizers
    from captionlite.training.vocabulary import PLAIN_WORDS, _tokenizer

    theirs = _tokenizer(PLAIN_WORDS)

    @given(
        st.text(
            alphabet=st.one_of(
                st.characters(max_codepoint=0xFFFF, exclude_categories=("Cs", "Cn")),
                st.sampled_from(" '-.,!s\u2019\u2011\u0301Aé"),
            ),
            max_size=20,
        )
    )
    def same(text: str) -> None:
        normal = theirs.normalizer.normalize_str(text)
        expected = [word for word, _ in theirs.pre_tokenizer.pre_tokenize_str(normal)]
        assert plain_words(text) == expected

    same()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"kind": "words"}, "kind is 'words', expected 'sentencepiece'"),
        ({"scores": [0.0]}, "1 scores, but the decoder has 6 logits"),
        ({"scores": [0.0] * 5 + ["high"]}, r"scores\[5\] is 'high'"),
        ({"pieces": [*SPECIALS, "\x1b[2J"]}, r"pieces\[5\] is"),
        ({"pieces": SPECIALS}, "5 pieces, but the decoder has 6 logits"),
    ],
)
def test_hostile_vocabularies_are_refused(change: dict[str, Any], message: str) -> None:
    content = {"kind": "sentencepiece", "pieces": [*SPECIALS, "\u2581a"], "join": "", "scores": [0.0] * 6, **change}
    with pytest.raises(BundleError, match=message):
        Vocabulary.from_json(json.dumps(content).encode(), manifest(6), "vocabulary.json")


def test_without_scores_text_cannot_be_split() -> None:
    content = {"kind": "sentencepiece", "pieces": [*SPECIALS, "\u2581a"], "join": ""}
    vocabulary = Vocabulary.from_json(json.dumps(content).encode(), manifest(6), "vocabulary.json")
    assert vocabulary.detokenize([5]) == "a"
    with pytest.raises(OptionsError, match="has no scores"):
        vocabulary.tokenize("a")


def test_words_are_looked_up_whole_and_then_in_parts() -> None:
    toy = toy_bundle.manifest()
    vocabulary = Vocabulary.from_json(toy_bundle.vocabulary_json(), toy, "vocabulary.json")
    assert [vocabulary.pieces[i] for i in vocabulary.tokenize("A Dog, on the red-grass!")] == [
        "a", "dog", "on", "the", "red", "grass",
    ]  # fmt: skip
    with pytest.raises(OptionsError, match="'t-shirt' is not among the 8 words"):
        vocabulary.tokenize("a t-shirt")
    with pytest.raises(OptionsError, match="'end' is not among"):
        vocabulary.tokenize("[END]")
