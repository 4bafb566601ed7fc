"""From scores to probabilities, and how good those are: Platt scaling, reliability, Brier score, AUC.

Everything here is about numbers and whether something happened; what they are of, confidence.py knows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

BINS = 10
THRESHOLDS = (0.3, 0.5, 0.7)


def probability(slope: float, intercept: float, scores: Floats) -> Floats:
    """1 / (1 + exp(-(slope * score + intercept))), without overflow."""
    return np.exp(-np.logaddexp(0.0, -(slope * scores + intercept)))


def fit_platt(scores: Floats, events: Bools) -> tuple[float, float]:
    """Slope (at least 0) and intercept of the logistic regression of `events` on `scores`.

    As Platt, "Probabilistic outputs for support vector machines" (1999): the targets are (n+ + 1) / (n+ + 2) and
    1 / (n- + 2) instead of 1 and 0, so that few or separable samples give no certainty. Newton's method with the
    safeguards of Lin, Lin and Weng's note on it (2007). Where a higher score makes the event less likely the slope is
    0, and every probability the share of events. Raises ValueError without an event of either kind.
    """
    positive, negative = int(events.sum()), int((~events).sum())
    if not positive or not negative:
        raise ValueError(f"{positive} of {positive + negative} samples are positive, expected some of either kind")
    targets = np.where(events, (positive + 1) / (positive + 2), 1 / (negative + 2))
    centre, spread = float(scores.mean()), float(scores.std())
    if spread > 0:
        slope, intercept = _newton((scores - centre) / spread, targets)
        if slope > 0:
            return slope / spread, intercept - slope * centre / spread
    share = float(targets.mean())
    return 0.0, float(np.log(share / (1 - share)))


def _newton(scores: Floats, targets: Floats) -> tuple[float, float]:
    """The least cross-entropy over slope and intercept, for scores of mean 0 and spread 1."""
    design = np.stack([scores, np.ones_like(scores)], axis=1)  # (n, 2)

    def loss(point: Floats) -> float:
        logits = design @ point
        return float(np.sum(np.logaddexp(0.0, logits) - targets * logits))

    share = targets.mean()
    point = np.array([0.0, np.log(share / (1 - share))])
    current = loss(point)
    for _ in range(100):
        chances = probability(1.0, 0.0, design @ point)
        gradient = design.T @ (chances - targets)
        hessian = (design.T * (chances * (1 - chances))) @ design + 1e-12 * np.eye(2)
        step = np.linalg.solve(hessian, gradient)
        if gradient @ step < 1e-20 * len(scores):
            break
        length = 1.0
        while (following := loss(point - length * step)) > current - 1e-4 * length * float(gradient @ step):
            length /= 2
            if length < 1e-10:  # as far as floating point gets
                return float(point[0]), float(point[1])
        point, current = point - length * step, following
    return float(point[0]), float(point[1])


@dataclass(frozen=True)
class Bin:
    """Probabilities from `low` to below `high` (the last one to 1): how many, their mean, and how often it happened."""

    low: float
    high: float
    n: int
    mean: float | None  # None where the bin is empty
    share: float | None


@dataclass(frozen=True)
class Threshold:
    """Trusting only probabilities of at least `at_least`: the share that is left, and how often it happened then."""

    at_least: float
    coverage: float
    precision: float | None  # None where nothing is left


@dataclass(frozen=True)
class Quality:
    """How good probabilities are. `brier_base_rate` is the Brier score of always saying how often it happens."""

    n: int
    base_rate: float
    brier: float
    brier_base_rate: float
    ece: float
    auc: float
    bins: tuple[Bin, ...]
    thresholds: tuple[Threshold, ...]

    def to_json(self) -> dict[str, Any]:
        rounded: dict[str, Any] = _rounded(asdict(self))
        return rounded


def quality(probabilities: Floats, events: Bools, scores: Floats, base_rates: Floats | float | None = None) -> Quality:
    """The quality of `probabilities` for `events`; AUC is that of the `scores` which they were made of.

    `base_rates`: what is known of the base rate without having seen these events, by sample; their own by default.
    """
    bins = reliability(probabilities, events)
    return Quality(
        n=len(events),
        base_rate=float(events.mean()),
        brier=brier(probabilities, events),
        brier_base_rate=brier(np.full(len(events), events.mean()) if base_rates is None else base_rates, events),
        ece=expected_calibration_error(bins),
        auc=auc(scores, events),
        bins=bins,
        thresholds=tuple(_threshold(probabilities, events, at_least) for at_least in THRESHOLDS),
    )


def brier(probabilities: Floats | float, events: Bools) -> float:
    """Mean squared difference of probability and outcome (Brier 1950): 0 is perfect, 0.25 what saying 1/2 gets."""
    return float(np.mean((probabilities - events) ** 2))


def reliability(probabilities: Floats, events: Bools, bins: int = BINS) -> tuple[Bin, ...]:
    """What was said and what happened, in bins of equal width over 0 to 1."""
    places = np.minimum((probabilities * bins).astype(int), bins - 1)
    found = []
    for place in range(bins):
        inside = places == place
        said, happened = probabilities[inside], events[inside]
        mean, share = (float(said.mean()), float(happened.mean())) if len(said) else (None, None)
        found.append(Bin(place / bins, (place + 1) / bins, len(said), mean, share))
    return tuple(found)


def expected_calibration_error(bins: Sequence[Bin]) -> float:
    """Mean over samples of how far their bin's mean probability is from its share of events (Naeini et al. 2015)."""
    filled = [(b.n, abs(b.mean - b.share)) for b in bins if b.mean is not None and b.share is not None]
    return sum(n * gap for n, gap in filled) / sum(n for n, _ in filled)


def auc(scores: Floats, events: Bools) -> float:
    """The chance that a random event has a higher score than a random non-event; equal scores count half."""
    positive, negative = np.sort(scores[events]), np.sort(scores[~events])
    below = np.searchsorted(negative, positive, side="left").sum()
    equal = np.searchsorted(negative, positive, side="right").sum() - below
    return float((below + equal / 2) / (len(positive) * len(negative)))


def _threshold(probabilities: Floats, events: Bools, at_least: float) -> Threshold:
    trusted = events[probabilities >= at_least]
    return Threshold(at_least, len(trusted) / len(events), float(trusted.mean()) if len(trusted) else None)


def _rounded(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _rounded(entry) for name, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_rounded(entry) for entry in value]
    return round(value, 4) if isinstance(value, float) else value
