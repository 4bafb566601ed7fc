"""What a peer is: another way to run the same trained model on the same photographs, greedily, and what it is given."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt

from captionlite.runtime.captioner import Captioner
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.manifest import Manifest, StateSpec
from captionlite.training.run import Run

Pixels = npt.NDArray[np.uint8]
Weights = Literal["float32", "quantized"]


class PeerError(CaptionliteError):
    """What was asked of the comparison cannot be done."""


class PeerUnavailable(CaptionliteError):  # noqa: N818 - no error: this peer is left out, and the message says why
    """This peer cannot run here, or has no meaning for this family; the others go on."""


@dataclass(frozen=True)
class Task:
    """One model in all its forms, and what it is to caption.

    `photographs` are uint8 (H, W, 3) of the encoder's own size. `calibration` are others, for peers that quantize by
    themselves. `scratch` is a folder of the peers' own.
    """

    run: Run
    float32: Captioner
    quantized: Captioner | None
    photographs: tuple[Pixels, ...]
    calibration: tuple[Pixels, ...]
    scratch: Path
    report: Callable[[str], None] = lambda line: None

    def captioner(self, weights: Weights) -> Captioner:
        """captionlite's own, of the bundle with these weights. Raises PeerUnavailable where none was given."""
        if weights == "float32":
            return self.float32
        if self.quantized is None:
            raise PeerUnavailable("there is no quantized bundle; give one with a second --bundle")
        return self.quantized

    @property
    def manifest(self) -> Manifest:
        """The float32 bundle's: decoding, state table and image are those of all forms."""
        return self.float32.bundle.manifest


@dataclass(frozen=True)
class Turn:
    """One peer's share of one round. `tokens` of all captions, end tokens included."""

    encode_seconds: float
    decode_seconds: float
    photographs: int
    tokens: int

    @property
    def encode_ms(self) -> float:
        """Milliseconds a photograph."""
        return 1e3 * self.encode_seconds / self.photographs

    @property
    def step_us(self) -> float:
        """Microseconds a token: everything of decoding, the encoder excluded."""
        return 1e6 * self.decode_seconds / self.tokens


@dataclass
class Facts:
    """What is said of a peer beside its times."""

    threads: dict[str, int | None] = field(default_factory=dict)  # None: the library's own choice
    note: str = ""
    choices: dict[str, Any] = field(default_factory=dict)  # what was tried for it and taken


class Peer(ABC):
    """One way to caption. Made by `prepare`, which converts and loads whatever it needs; nothing of that is timed."""

    title: ClassVar[str]
    own_numerics: ClassVar[frozenset[Weights]] = frozenset()
    """Weights that this peer quantizes by itself: its captions then are counted, not required to be the reference's."""
    timed_photographs: ClassVar[int | None] = None  # None: all of them; some peers take seconds a caption
    packages: ClassVar[tuple[str, ...]] = ()  # distributions whose versions matter

    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.facts = Facts()

    @abstractmethod
    def encode(self, pixels: Pixels) -> Any:
        """What `decode` takes, from uint8 (H, W, 3)."""

    @abstractmethod
    def decode(self, encoded: Any) -> list[int]:
        """Greedy tokens, the end token included where it was reached."""

    def captions(self, photographs: Sequence[Pixels]) -> list[list[int]]:
        """Tokens of each."""
        return [self.decode(self.encode(pixels)) for pixels in photographs]

    def turn(self, photographs: Sequence[Pixels]) -> Turn:
        """Encode all, then decode all, timed apart; one photograph before that to warm up."""
        self.decode(self.encode(photographs[0]))
        started = perf_counter()
        encoded = [self.encode(pixels) for pixels in photographs]
        between = perf_counter()
        tokens = [self.decode(one) for one in encoded]
        ended = perf_counter()
        return Turn(between - started, ended - between, len(photographs), sum(map(len, tokens)))

    def close(self) -> None:  # noqa: B027 - most peers have nothing to end
        """Ends what `prepare` started."""


def require(module: str, distribution: str) -> None:
    """Raises PeerUnavailable when a package of the extra `peers` is missing."""
    if importlib.util.find_spec(module) is None:
        raise PeerUnavailable(f"{distribution} is not installed; `pip install 'captionlite[peers]'`")


def suppression(manifest: Manifest) -> npt.NDArray[np.float32]:
    """What is added to logits (1, V) so that suppressed tokens are never the likeliest."""
    added = np.zeros((1, manifest.vocabulary.size), np.float32)
    added[0, list(manifest.decoding.suppressed_ids)] = -np.inf
    return added


def first_state(rows: Sequence[StateSpec], encoded: Mapping[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
    """The state before the first step, each (1, ...): the encoder's outputs, and zeros for every other row."""
    state = {}
    for row in rows:
        if row.name in encoded:
            state[row.name] = encoded[row.name] if row.kind == "constant" else encoded[row.name].copy()
        else:
            state[row.name] = np.zeros([size or 1 for size in row.shape], row.dtype)
    return state
