"""Are a peer's captions the reference's? Asked of every peer before it is timed.

Equal means token by token. Two ways to compute the same float32 sums round differently, so a caption may also part from
the reference where the reference itself was about to: at a step whose two likeliest tokens are within TIE. Peers that
quantize by themselves have other numbers, and are only counted.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np

from captionlite.benchmarks.peers.base import Pixels
from captionlite.runtime.captioner import Captioner

TIE = 1e-3
"""Difference of two logits below which the order of additions decides between them."""

Tokens = Sequence[int]


@dataclass(frozen=True)
class Check:
    """Captions equal to the reference's, those that part from it at a tie, and the first other one, told in words."""

    photographs: int
    equal: int
    near_ties: int
    first_difference: str | None

    @property
    def different(self) -> int:
        return self.photographs - self.equal - self.near_ties


def check(
    captioner: Captioner, photographs: Sequence[Pixels], reference: Sequence[Tokens], found: Sequence[Tokens]
) -> Check:
    """Compare tokens; `captioner` is the reference, asked for its logits where a caption parts from its own."""
    equal = near_ties = 0
    first = None
    for number, (pixels, expected, tokens) in enumerate(zip(photographs, reference, found, strict=True)):
        if list(tokens) == list(expected):
            equal += 1
            continue
        step = next(i for i, (a, b) in enumerate(zip_longest(tokens, expected)) if a != b)
        gap = margin(captioner, pixels, expected, step)
        if gap < TIE:
            near_ties += 1
        elif first is None:
            told = captioner.bundle.vocabulary.detokenize
            first = (
                f"photograph {number + 1}: {told(tokens)!r}, expected {told(expected)!r}; they part at token "
                f"{step + 1}, where the reference's two likeliest are {gap:.3g} apart"
            )
    return Check(len(found), equal, near_ties, first)


def margin(captioner: Captioner, pixels: Pixels, tokens: Tokens, step: int) -> float:
    """How far apart the two greatest logits of a step are, after these tokens."""
    decoding, loop = captioner.bundle.manifest.decoding, captioner.decoder
    loop.begin(captioner.encode_pixels(pixels))
    fed = decoding.start_id
    for position in range(min(step, len(tokens) - 1) + 1):
        loop.step(fed, position)
        if position < step:
            loop.advance(position)
            fed = tokens[position]
    logits = loop.logits[0].copy()
    logits[list(decoding.suppressed_ids)] = -np.inf
    second, greatest = np.partition(logits, -2)[-2:]
    return float(greatest - second)
