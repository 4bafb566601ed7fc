"""Word vocabularies, built and run by `tokenizers`: a WordLevel model whose standardization is data.

`tokenizer.json` is an ordinary Hugging Face file; how often each word was seen stands in a file beside it.
"""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from string import ascii_uppercase
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors, trainers

from captionlite.training.errors import VocabularyError
from captionlite.training.files import write_text_atomically

PAD_ID, UNKNOWN_ID, START_ID, END_ID = range(4)
SPECIALS = ("[PAD]", "[UNK]", "[START]", "[END]")
MASK_ID, MASK = 4, "[MASK]"  # only where a masked language model asks for it; ALBERT's tokenizer has the same five ids


@dataclass(frozen=True)
class Standardization:
    """How a caption becomes words: lower case, then regular expressions replaced in order, then a split.

    The expressions are Oniguruma's, as `tokenizers` takes them. `lowercase` "ascii" leaves other letters alone;
    `compose` joins letters and their accents (NFC). `specials` are the pieces for padding, unknown, start and end, ids
    0 to 3.
    """

    name: str
    replacements: tuple[tuple[str, str], ...] = ()
    lowercase: Literal["unicode", "ascii"] = "unicode"
    compose: bool = True
    separator: str = r"\s+"
    specials: tuple[str, str, str, str] = SPECIALS


# Letters, marks and numbers. Not \w, which Oniguruma takes otherwise inside a class than outside.
_WORD = r"\p{L}\p{M}\p{N}"

# Punctuation goes, but not inside a word: "t-shirt" and "man's" are words, and Flickr8k's "man 's" is "man's".
PLAIN_WORDS = Standardization(
    "plain_words",
    replacements=(
        ("[\u2018\u2019\u00b4`]", "'"),
        ("[\u2010\u2011]", "-"),
        (rf"\s+'s(?![{_WORD}])", "'s"),
        (rf"(?<![{_WORD}])[^{_WORD}\s]+|[^{_WORD}\s]+(?![{_WORD}])|[^{_WORD}\s'-]", " "),
    ),
)

# The published ones, each held to its original in tests.

# Python's re.split(r"\W+", caption.lower()), as in the notebook "Show and Tell".
WORD_SPLIT = Standardization(
    "word_split",
    compose=False,
    separator=r"[^\p{L}\p{N}_]+",  # what Python's \W is; Oniguruma's takes accents that stand alone for letters
    specials=("#PAD#", "#UNK#", "#START#", "#END#"),
)

# The two of Keras let control characters and odd spaces into words. Here they part words, for bundles refuse pieces
# that could command the terminal they are shown on.
_UNPRINTABLE = (r"[\p{C}\p{Z}]", " ")

# keras.preprocessing.text.Tokenizer with the filters of TensorFlow's tutorial after "Show, Attend and Tell", which keep
# the apostrophe and < and >. A caption that spells <start> or <end> is not taken at its word.
TUTORIAL_TOP_K = Standardization(
    "tutorial_top_k",
    replacements=(("<(?:pad|unk|start|end)>", " "), _UNPRINTABLE),
    compose=False,
    separator=r"""[!"#$%&()*+.,\-/:;=?@\[\\\]^_`{|}~ ]+""",
    specials=("<pad>", "<unk>", "<start>", "<end>"),
)

# keras.layers.TextVectorization(standardize="lower_and_strip_punctuation"), which TensorFlow's tutorial "Image
# captioning with visual attention" spells out. tf.strings.lower knows the letters A to Z alone; "" is called [PAD].
KERAS_TEXT_VECTORIZATION = Standardization(
    "keras_text_vectorization",
    replacements=((r"""[!"#$%&()*+,\-./:;<=>?@\[\\\]^_`{|}~']""", ""), _UNPRINTABLE),
    lowercase="ascii",
    compose=False,
)

STANDARDIZATIONS: dict[str, Standardization] = {
    each.name: each for each in (PLAIN_WORDS, WORD_SPLIT, TUTORIAL_TOP_K, KERAS_TEXT_VECTORIZATION)
}


class WordVocabulary:
    """Words and their ids. `frequencies` (ids,) counts each id over the captions the vocabulary was built from.

    There the end token is counted once a caption, the start token and padding never; unknown counts the words that
    were left out.
    """

    def __init__(self, tokenizer: Tokenizer, frequencies: NDArray[np.int64], standardization: str) -> None:
        self.tokenizer = tokenizer
        self.frequencies = frequencies
        self.standardization = standardization
        # A caption that spells "[END]" is text, not an end. The setting is not stored in tokenizer.json.
        self.tokenizer.encode_special_tokens = True
        self.pieces: list[str] = [
            piece for piece, _ in sorted(tokenizer.get_vocab(with_added_tokens=True).items(), key=lambda item: item[1])
        ]
        self.special_ids = frozenset(i for i, added in tokenizer.get_added_tokens_decoder().items() if added.special)

    @property
    def suppressed_ids(self) -> tuple[int, ...]:
        """What no caption may contain: every special piece but the end token."""
        return tuple(sorted(self.special_ids - {END_ID}))

    def __len__(self) -> int:
        return len(self.pieces)

    def encode_batch(self, captions: Sequence[str]) -> list[list[int]]:
        """Ids of each caption between start and end; words outside the vocabulary become the unknown id."""
        return [encoding.ids for encoding in self.tokenizer.encode_batch(list(captions))]

    def decode(self, ids: Iterable[int]) -> str:
        """Text up to the first end token, without the special pieces."""
        words = []
        for token in ids:
            if token == END_ID:
                break
            if token not in self.special_ids:
                words.append(self.pieces[token])
        return " ".join(words)

    def runtime_vocabulary(self) -> dict[str, Any]:
        """The content of a bundle's vocabulary.json."""
        return {"kind": "words", "pieces": self.pieces, "join": " "}

    def shortened(self, ids: Sequence[int]) -> "WordVocabulary":
        """The pieces of these ids alone, numbered anew in ascending order; every other word becomes unknown.

        `frequencies` stay those of the same captions.

        Raises:
            VocabularyError: a special piece is not among them, or an id is not the vocabulary's.
        """
        kept = sorted(set(ids))
        if kept[: len(self.special_ids)] != sorted(self.special_ids) or kept[-1] >= len(self):
            raise VocabularyError(
                f"a shorter vocabulary: found ids {kept[:6]}... up to {max(kept, default=None)}, expected ids below "
                f"{len(self)} and the special pieces {sorted(self.special_ids)} among them."
            )
        content = json.loads(self.tokenizer.to_str())
        content["model"]["vocab"] = {self.pieces[old]: new for new, old in enumerate(kept)}
        frequencies = self.frequencies[kept]
        frequencies[UNKNOWN_ID] += self.frequencies.sum() - frequencies.sum()
        return WordVocabulary(Tokenizer.from_str(json.dumps(content)), frequencies, self.standardization)

    def save(self, path: Path) -> None:
        """Write tokenizer.json at `path` and the frequencies beside it, each atomically."""
        counts = {"standardization": self.standardization, "frequencies": self.frequencies.tolist()}
        write_text_atomically(_frequencies_path(path), json.dumps(counts) + "\n")
        write_text_atomically(path, self.tokenizer.to_str(pretty=True) + "\n")

    @classmethod
    def load(cls, path: Path) -> "WordVocabulary":
        """Read what `save` wrote.

        Raises:
            VocabularyError: a file is missing or is not such a vocabulary.
        """
        try:
            tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise VocabularyError(f"{path}: cannot be read: {error.strerror or error}.") from None
        except Exception as error:  # tokenizers raises bare Exception
            raise VocabularyError(f"{path}: not a tokenizer.json ({error}); train again or restore the file.") from None
        counts_path = _frequencies_path(path)
        try:
            counts = json.loads(counts_path.read_text(encoding="utf-8"))
            frequencies = np.asarray(counts["frequencies"], dtype=np.int64)
            standardization = str(counts["standardization"])
        except OSError as error:
            raise VocabularyError(f"{counts_path}: cannot be read: {error.strerror or error}.") from None
        except (ValueError, TypeError, KeyError) as error:
            raise VocabularyError(f"{counts_path}: not the frequencies of a vocabulary ({error!r}).") from None
        vocabulary = cls(tokenizer, frequencies, standardization)
        if frequencies.shape != (len(vocabulary),):
            raise VocabularyError(
                f"{counts_path}: {frequencies.size} frequencies for the {len(vocabulary)} pieces of {path.name}; "
                "the two files are not of the same vocabulary."
            )
        return vocabulary

    def to_transformers(self) -> Any:
        """The same tokenizer as a `transformers.PreTrainedTokenizerFast` (needs the package transformers)."""
        from transformers import PreTrainedTokenizerFast

        pad, unknown, start, end = self.pieces[: len(SPECIALS)]
        return PreTrainedTokenizerFast(
            tokenizer_object=Tokenizer.from_str(self.tokenizer.to_str()),
            pad_token=pad,
            unk_token=unknown,
            bos_token=start,
            eos_token=end,
        )


def build_word_vocabulary(
    captions: Iterable[str],
    *,
    min_count: int = 1,
    max_size: int | None = None,
    standardization: Standardization = PLAIN_WORDS,
    mask: bool = False,
) -> WordVocabulary:
    """Build a vocabulary of the words seen at least `min_count` times, most frequent first, ties in alphabetical order.

    `max_size` bounds the whole vocabulary, the special pieces included. `mask` adds a fifth of them, [MASK].

    Raises:
        VocabularyError: no word is left.
    """
    if min_count < 1:
        raise VocabularyError(f"min_count: expected at least 1, found {min_count}.")
    specials = [*standardization.specials, *((MASK,) if mask else ())]
    if max_size is not None and max_size <= len(specials):
        raise VocabularyError(
            f"max_size: expected more than {len(specials)}, the number of special pieces, found {max_size}."
        )
    texts = list(captions)
    tokenizer = _tokenizer(standardization)
    trainer = trainers.WordLevelTrainer(
        vocab_size=max_size if max_size is not None else 2**31 - 1,
        min_frequency=min_count,
        special_tokens=specials,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer, length=len(texts))
    _, _, start, end = standardization.specials
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A {end}", special_tokens=[(start, START_ID), (end, END_ID)]
    )
    vocabulary = WordVocabulary(
        tokenizer, np.zeros(tokenizer.get_vocab_size(with_added_tokens=True), np.int64), standardization.name
    )
    if len(vocabulary) <= len(specials):
        raise VocabularyError(
            f"no word is left for the vocabulary: {len(texts)} captions, words seen at least {min_count} times. Lower "
            "min_count or give more captions."
        )
    for ids in vocabulary.encode_batch(texts):
        np.add.at(vocabulary.frequencies, ids, 1)
    vocabulary.frequencies[START_ID] = 0
    return vocabulary


def _tokenizer(standardization: Standardization) -> Tokenizer:
    steps: list[Any] = [normalizers.Lowercase()]
    if standardization.lowercase == "ascii":
        steps = [normalizers.Replace(letter, letter.lower()) for letter in ascii_uppercase]
    if standardization.compose:
        steps.append(normalizers.NFC())  # last: lower case can turn what did not compose into what does
    steps += [normalizers.Replace(Regex(pattern), new) for pattern, new in standardization.replacements]
    tokenizer = Tokenizer(models.WordLevel(unk_token=standardization.specials[UNKNOWN_ID]))
    tokenizer.normalizer = normalizers.Sequence([*steps, normalizers.Strip()])
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(standardization.separator), "removed")
    return tokenizer


def _frequencies_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.frequencies.json")
