"""Token ids to text. `vocabulary.json` is `{"kind": "words", "pieces": [...], "join": " "}`; the index is the id."""

from collections.abc import Iterable
from dataclasses import dataclass

from captionlite.runtime.errors import BundleError
from captionlite.runtime.jsonreader import Node, parse_json
from captionlite.runtime.manifest import Manifest


@dataclass(frozen=True)
class Vocabulary:
    """The pieces of text that token ids stand for, and how they join; special ids never reach the text."""

    pieces: tuple[str, ...]
    join: str
    special_ids: frozenset[int]

    @classmethod
    def from_json(cls, data: bytes, manifest: Manifest, where: str) -> "Vocabulary":
        """Read `vocabulary.json`, which must have exactly as many pieces as the decoder has logits.

        Raises BundleError naming the file and the field.
        """
        top = Node(parse_json(data, where), "", where)
        fields = top.fields("kind", "pieces", "join", allow_extra=True)
        fields["kind"].choice(manifest.vocabulary.kind)
        pieces = fields["pieces"].list_of(_piece, longest=manifest.vocabulary.size)
        if len(pieces) != manifest.vocabulary.size:
            raise BundleError(
                f"{where}: {len(pieces)} pieces, but the decoder has {manifest.vocabulary.size} logits. "
                f"Export the bundle again."
            )
        join = fields["join"].value
        if not isinstance(join, str) or len(join) > 10 or not join.isprintable():
            raise fields["join"].fail("a short printable string")
        decoding = manifest.decoding
        special = frozenset((decoding.start_id, decoding.end_id, decoding.pad_id, decoding.unknown_id))
        return cls(pieces, join, special)

    def detokenize(self, ids: Iterable[int]) -> str:
        """The text of a caption; start, end, padding and unknown are dropped by id, whatever they are called."""
        return self.join.join(self.pieces[i] for i in ids if i not in self.special_ids)

    def __len__(self) -> int:
        return len(self.pieces)


def _piece(node: Node) -> str:
    # Captions are printed to terminals, and a control character in a piece could command one.
    if not isinstance(node.value, str) or len(node.value) > 1000 or not node.value.isprintable():
        raise node.fail("a printable string of at most 1000 characters")
    return node.value
