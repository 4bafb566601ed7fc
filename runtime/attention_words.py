"""What a captioner looked at, in numbers: for each word of a caption, how its attention lay over the photograph."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from captionlite.runtime.decoding import Caption
from captionlite.runtime.errors import InterpreterError, OptionsError
from captionlite.runtime.manifest import Manifest
from captionlite.runtime.vocabulary import SPACE, Vocabulary, join_sentencepiece

DECIMALS = 6  # in JSON: what float32 holds of such shares
_NO_ATTENTION = {
    "lstm": "sees the photograph as one vector before the first word, so no word looks at a part of it",
    "masked_lm": "reads the photograph beside all the words at once, and returns no attention",
}


@dataclass(frozen=True)
class SeenWord:
    """A word and the attention (rows, columns) over the photograph with which it was said; its sum is 1."""

    word: str
    attention: npt.NDArray[np.float32]


@dataclass(frozen=True)
class SeenCaption:
    """A caption, the grid (rows, columns) over its photograph, and its words in their order."""

    text: str
    grid: tuple[int, int]
    words: tuple[SeenWord, ...]

    @classmethod
    def of(cls, caption: Caption, vocabulary: Vocabulary, grid: tuple[int, int]) -> "SeenCaption":
        """A caption word by word; the end token and unknown words are left out, as in its text.

        SentencePiece spells a word in several pieces: each of them looked for itself, and the word gets their mean.
        Raises OptionsError for a caption without attention, InterpreterError where it is no finite number.
        """
        if caption.attention is None:
            raise OptionsError("attention: this caption was decoded in a way that has none.")
        if not np.isfinite(caption.attention).all():
            raise InterpreterError("The decoder returned attention that is no finite number. Run `captionlite verify`.")
        groups: list[tuple[list[str], list[npt.NDArray[np.float32]]]] = []
        whole = vocabulary.kind == "words"
        for token, attention in zip(caption.tokens, caption.attention, strict=True):
            if token in vocabulary.special_ids:
                continue
            piece = vocabulary.pieces[token]
            if whole or piece.startswith(SPACE) or not groups:
                groups.append(([], []))
            groups[-1][0].append(piece)
            groups[-1][1].append(attention)
        words = (
            SeenWord(pieces[0] if whole else join_sentencepiece(pieces), np.mean(rows, axis=0).reshape(grid))
            for pieces, rows in groups
        )
        return cls(caption.text, grid, tuple(seen for seen in words if seen.word))

    def to_json(self, image: str) -> dict[str, object]:
        """The object of the .json file; shares are rounded to DECIMALS."""
        return {
            "image": image,
            "caption": self.text,
            "grid": list(self.grid),
            "words": [
                {"word": seen.word, "attention": [[round(x, DECIMALS) for x in row] for row in seen.attention.tolist()]}
                for seen in self.words
            ],
        }


def attention_grid(manifest: Manifest) -> tuple[int, int]:
    """Rows and columns of the grid over the photograph that the bundle's decoder attends to.

    Raises OptionsError, with the reason, for a bundle that has none.
    """
    if manifest.attention is not None:
        return manifest.attention.grid
    if manifest.graphs["decoder"].output("attention") is not None:
        version = ".".join(map(str, manifest.format))
        raise OptionsError(
            f"attention: the manifest of {manifest.name!r} (format {version}) does not say how the decoder's regions "
            f"lie in the photograph. Export the bundle again."
        )
    reason = _NO_ATTENTION.get(manifest.family, "returns no attention")
    raise OptionsError(
        f"attention: {manifest.name!r} is of the family {manifest.family}, which {reason}. Use a bundle of a family "
        f"that attends: transformer or gru_attention."
    )
