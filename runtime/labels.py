"""What the encoder's classifier sees of a photograph: a word beside a caption that is not sure.

The logits come out of the encoder with everything else, and nothing is done with them until a caption is unsure.
`labels.json` is `{"names": [...], "words": {...}, "people": [...]}`: a name for each logit, or null for one that is
never told; words by which a caption names a label in another way; and words by which it names people. Logits of equal
names are one label: its probability is theirs together (118 breeds are "dog").
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from captionlite.runtime.errors import BundleError
from captionlite.runtime.jsonreader import Node, parse_json
from captionlite.runtime.specs import LabelsSpec

if TYPE_CHECKING:
    import numpy.typing as npt

MAX_NAME = 60
MAX_WORDS = 20
MAX_PEOPLE = 200


@dataclass(frozen=True)
class Label:
    """A thing that the photograph may show, and the classifier's probability that it does."""

    name: str
    probability: float


class Labels:
    """A bundle's labels, read without trusting the file. Raises BundleError."""

    def __init__(self, data: bytes, spec: LabelsSpec, where: str) -> None:
        fields = Node(parse_json(data, where), "", where).fields("names", "words", "people")
        self.spec = spec
        self.names: tuple[str | None, ...] = fields["names"].list_of(_name, spec.size)
        if len(self.names) != spec.size:
            raise BundleError(
                f"{where}: {len(self.names)} names, but the encoder has {spec.size} labels. Export the bundle again."
            )
        told = list(dict.fromkeys(name for name in self.names if name is not None))
        if not told:
            raise BundleError(f"{where}: names has no name, only null. Export the bundle again.")
        people = fields["people"].list_of(lambda one: one.text(MAX_NAME), MAX_PEOPLE)
        self._people = frozenset(word.lower() for word in people)
        self._words = {
            name: node.list_of(lambda one: one.text(MAX_NAME), MAX_WORDS)
            for name, node in fields["words"].items().items()
        }
        for name in self._words:
            if name not in told:
                raise BundleError(f"{where}: words has {name[:MAX_NAME]!a}, which is no name. Export it again.")
        self.told = tuple(told)
        place = {name: i for i, name in enumerate(told)}
        self._places = [place[name] if name is not None else len(told) for name in self.names]

    def probabilities(self, logits: "npt.NDArray[Any]") -> "npt.NDArray[Any]":
        """Of logits (1, size) the probability of each of `told`; what is missing to 1 is never told."""
        import numpy as np

        values = logits.reshape(-1).astype(np.float64)
        with np.errstate(invalid="ignore"):  # what is infinite becomes no number
            weights = np.exp(values - values.max())
            return np.bincount(self._places, weights / weights.sum(), len(self.told) + 1)[:-1]

    def offered(self, logits: "npt.NDArray[Any]", caption: str) -> tuple[Label, ...]:
        """The labels that are sure enough, the likeliest first, without those that the caption names already.

        Nothing for logits that are no numbers.
        """
        found = self.probabilities(logits)
        said = caption.lower().split()
        beside_people = not self._people.isdisjoint(said)
        least = self.spec.least_beside_people if beside_people else self.spec.least_probability
        sure = sorted((found >= least).nonzero()[0].tolist(), key=lambda i: -found[i])
        return tuple(
            Label(self.told[i], min(float(found[i]), 1.0)) for i in sure if not self.names_it(said, self.told[i])
        )

    def names_it(self, said: Sequence[str], name: str) -> bool:
        """Whether words, in lower case, have the label's last one ("golf ball": ball), in singular or plural."""
        own = (name.lower().split()[-1], *(word.lower() for word in self._words.get(name, ())))
        known: set[str] = set().union(*map(_singulars, own))
        return any(not known.isdisjoint(_singulars(word)) for word in said)


def _singulars(word: str) -> set[str]:
    """A word, and what it may be the plural of."""
    return {word, word.removesuffix("s"), word.removesuffix("es"), re.sub("ies$", "y", word)}


def _name(node: Node) -> str | None:
    # Names are printed to terminals, and a control character in one could command it.
    if node.value is not None and not node.text(MAX_NAME).strip():
        raise node.fail("a name or null")
    return node.value  # type: ignore[no-any-return]
