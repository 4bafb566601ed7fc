"""Token ids to text and back. `vocabulary.json` holds `kind`, `pieces` (the index is the id) and `join`.

Kinds: "words", joined by a space, and "sentencepiece", whose pieces mark the beginning of a word with U+2581 and may
spell single bytes as `<0xE2>`; its `scores` (log-probabilities of a unigram model) are there when text can be split.
"""

import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import isfinite

from captionlite.runtime.errors import BundleError, OptionsError
from captionlite.runtime.jsonreader import Node, parse_json
from captionlite.runtime.manifest import MAX_DIMENSION, Manifest

SPACE = "\u2581"  # how SentencePiece writes the space before a word
MASK = "[MASK]"
_BYTE = re.compile(r"<0x([0-9A-F]{2})>", re.ASCII)


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of text that token ids stand for, and how they join; special ids never reach the text."""

    pieces: tuple[str, ...]
    join: str
    special_ids: frozenset[int]
    kind: str = "words"
    scores: tuple[float, ...] | None = None

    @classmethod
    def from_json(cls, data: bytes, manifest: Manifest, where: str) -> "Vocabulary":
        """Read `vocabulary.json`, which must have exactly as many pieces as the decoder has logits.

        Raises BundleError naming the file and the field.
        """
        top = Node(parse_json(data, where), "", where)
        fields = top.fields("kind", "pieces", "join", optional=("scores",), allow_extra=True)
        kind = fields["kind"].choice(manifest.vocabulary.kind)
        size = manifest.vocabulary.size
        pieces = fields["pieces"].list_of(_piece, longest=size)
        scores = None
        if "scores" in fields:
            scores = fields["scores"].list_of(_score, longest=size)
        for name, found in (("pieces", pieces), ("scores", scores)):
            if found is not None and len(found) != size:
                raise BundleError(
                    f"{where}: {len(found)} {name}, but the decoder has {size} logits. Export the bundle again."
                )
        join = fields["join"].value
        if not isinstance(join, str) or len(join) > 10 or not join.isprintable():
            raise fields["join"].fail("a short printable string")
        decoding = manifest.decoding
        special = {decoding.start_id, decoding.end_id, decoding.pad_id, decoding.unknown_id}
        if decoding.mask_id is not None:
            special.add(decoding.mask_id)
        return cls(pieces, join, frozenset(special), kind, scores)

    def detokenize(self, ids: Iterable[int]) -> str:
        """The text of a caption; start, end, padding, unknown and masks are dropped by id, whatever they are called."""
        kept = [self.pieces[i] for i in ids if i not in self.special_ids]
        return join_sentencepiece(kept) if self.kind == "sentencepiece" else self.join.join(kept)

    def tokenize(self, text: str, mask_id: int | None = None) -> list[int]:
        """The ids of a text without start and end; `[MASK]` in it becomes `mask_id` where that is given.

        Raises OptionsError naming a word that the vocabulary does not have.
        """
        if mask_id is None:
            return self._tokenize(text)
        ids: list[int] = []
        for number, part in enumerate(text.split(MASK)):
            ids += [mask_id] * (number > 0)
            ids += self._tokenize(part)
        return ids

    def _tokenize(self, text: str) -> list[int]:
        if self.kind == "words":
            known = {piece: i for i, piece in enumerate(self.pieces) if i not in self.special_ids}
            ids: list[int] = []
            for word in plain_words(text):
                # Some vocabularies split words at ' and - as well.
                parts = [word] if word in known else [part for part in re.split(r"\W+", word) if part]
                if not all(part in known for part in parts):
                    raise OptionsError(f"{word!r} is not among the {len(known)} words of this bundle's vocabulary.")
                ids += [known[part] for part in parts]
            return ids
        if self.scores is None:
            raise OptionsError("this bundle's vocabulary.json has no scores, so text cannot be split into its pieces.")
        usable = {piece: i for i, piece in enumerate(self.pieces) if piece and i not in self.special_ids}
        return split_unigram(plain_text(text), usable, self.scores)

    def __len__(self) -> int:
        return len(self.pieces)


def plain_words(text: str) -> list[str]:
    """A text's words as training's `plain_words` standardization makes them: lower case, no punctuation at their ends.

    Inside a word ' and - stay: "t-shirt", "man's"; and "man 's" is "man's".
    """
    text = unicodedata.normalize("NFC", text.lower())
    text = re.sub("[\u2018\u2019\u00b4`]", "'", text)
    text = re.sub("[\u2010\u2011]", "-", text)
    # Letters, marks and numbers: what \w lacks is the marks, and it has the underscore.
    word = "".join(re.escape(c) for c in sorted(set(text)) if unicodedata.category(c)[0] in "LMN") or "a"
    text = re.sub(rf"\s+'s(?![{word}])", "'s", text)
    return re.sub(rf"(?<![{word}])[^{word}\s]+|[^{word}\s]+(?![{word}])|[^{word}\s'-]", " ", text).split()


def plain_text(text: str) -> str:
    """ALBERT's normalisation: lower case, no accents, straight double quotes, single spaces."""
    text = text.replace("``", '"').replace("''", '"')
    text = "".join(c for c in unicodedata.normalize("NFKD", text) if not unicodedata.combining(c))
    return " ".join(text.lower().split())


def split_unigram(text: str, pieces: dict[str, int], scores: Sequence[float]) -> list[int]:
    """The likeliest split of a text into pieces (Viterbi), as SentencePiece's unigram model makes it.

    Raises OptionsError naming a character that no piece covers.
    """
    ids: list[int] = []
    longest = max(map(len, pieces), default=0)
    for word in text.split():
        marked = SPACE + word
        best: list[tuple[float, int, int]] = [(0.0, 0, -1)]  # to each end: score, start, id
        for end in range(1, len(marked) + 1):
            reached = (float("-inf"), 0, -1)
            for start in range(max(0, end - longest), end):
                token = pieces.get(marked[start:end])
                if token is not None and best[start][0] + scores[token] > reached[0]:
                    reached = best[start][0] + scores[token], start, token
            best.append(reached)
        if not isfinite(best[-1][0]):
            missing = sorted({c for c in word if not any(c in piece for piece in pieces)})
            raise OptionsError(f"{word!r} cannot be written in this bundle's pieces (no {' '.join(missing) or SPACE}).")
        found, end = [], len(marked)
        while end:
            _, start, token = best[end]
            found.append(token)
            end = start
        ids += reversed(found)
    return ids


def join_sentencepiece(pieces: Sequence[str]) -> str:
    """Pieces to text: U+2581 becomes a space, runs of byte pieces become the characters that they spell in UTF-8.

    A run that spells none gives U+FFFD for each byte, as in `tokenizers`; what could command a terminal is left out.
    """
    parts: list[str] = []
    run = bytearray()

    def end_run() -> None:
        if run:
            try:
                parts.append("".join(c for c in run.decode("utf-8") if c.isprintable()))
            except UnicodeDecodeError:
                parts.append("\ufffd" * len(run))
            run.clear()

    for piece in pieces:
        byte = _BYTE.fullmatch(piece)
        if byte:
            run.append(int(byte[1], 16))
            continue
        end_run()
        parts.append(piece.replace(SPACE, " "))
    end_run()
    return "".join(parts).strip(" ")


def _piece(node: Node) -> str:
    # Captions are printed to terminals, and a control character in a piece could command one.
    if not isinstance(node.value, str) or len(node.value) > 1000 or not node.value.isprintable():
        raise node.fail("a printable string of at most 1000 characters")
    return node.value


def _score(node: Node) -> float:
    return node.number(-MAX_DIMENSION, MAX_DIMENSION)
