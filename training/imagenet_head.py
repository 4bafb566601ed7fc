"""The classifier that EfficientNet-Lite was trained with, in a quarter of its bytes: two thin layers in place of one.

On a captioner's frozen encoder it costs nothing but its weights: what it looks at, the mean of the feature grid, is
there anyway. 1280 x 1000 weights are 1.3 MB as int8. The two layers (1280 x rank and rank x 1000) are the product of
that rank whose logits differ least from the classifier's on given photographs, which need no labels for it: a reduced-
rank regression (Izenman, "Reduced-rank regression for the multivariate linear model", 1975) of the logits, less each
photograph's mean logit, which no probability depends on.

`captionlite export` measures what it costs on photographs that nothing was fitted on, and the bundle's card says it.
What is cut off makes the classifier less sure of everything, above all of what the photographs did not show:
`sharpened` makes that good.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captionlite.training.encoder_weights import IMAGENET, packaged_weights
from captionlite.training.encoders import encoder_spec
from captionlite.training.errors import WeightsError
from captionlite.training.torch_weights import read_torch_weights

HEAD_FEATURES = 1280  # of every EfficientNet-Lite that is not cut
RANK = 256
RIDGE = 0.5  # of the features' mean variance: what few photographs say nothing of counts as well
SEED = 0
SHARPENINGS = np.linspace(1.0, 2.0, 101)

Floats = NDArray[np.float32]


@dataclass(frozen=True)
class Classifier:
    """Logits of mean features: kernel (C, classes), bias (classes,)."""

    kernel: Floats
    bias: Floats

    def logits(self, pooled: Floats) -> Floats:
        """(N, C) -> (N, classes)."""
        return pooled @ self.kernel + self.bias


@dataclass(frozen=True)
class LowRankHead:
    """A classifier as two layers: (C, rank) and (rank, classes), each with a bias."""

    inner: Floats
    inner_bias: Floats
    outer: Floats
    outer_bias: Floats

    @property
    def rank(self) -> int:
        return int(self.inner.shape[1])

    def logits(self, pooled: Floats) -> Floats:
        """(N, C) -> (N, classes), each row's mean about 0."""
        return np.asarray((pooled @ self.inner + self.inner_bias) @ self.outer + self.outer_bias, np.float32)


def has_classifier(encoder: str, weights: str | None, feature_shape: tuple[int, ...]) -> bool:
    """Whether the weights hold a classifier of the features that the captioner's encoder gives."""
    spec = encoder_spec(encoder)
    packaged = weights == IMAGENET or (weights is not None and Path(weights).suffix.lower() == ".pth")
    return spec.torch_package is not None and packaged and feature_shape[-1] == HEAD_FEATURES


def imagenet_classifier(encoder: str, weights: str | None) -> Classifier:
    """The classifier in the weights' file.

    Raises:
        WeightsError: the file is missing or damaged, or holds none.
    """
    path = packaged_weights(encoder_spec(encoder)) if weights == IMAGENET else Path(str(weights)).expanduser()
    tensors = read_torch_weights(path)
    try:
        kernel, bias = (np.asarray(tensors[f"_fc.{part}"], np.float32) for part in ("weight", "bias"))
    except KeyError as error:
        raise WeightsError(f"{path}: has no tensor {error}, the classifier's; give the weights of {encoder}.") from None
    if kernel.ndim != 2 or kernel.shape != (len(bias), HEAD_FEATURES) or not np.isfinite(kernel).all():
        raise WeightsError(f"{path}: '_fc.weight' is {kernel.shape}, expected ({len(bias)}, {HEAD_FEATURES}), finite.")
    return Classifier(np.ascontiguousarray(kernel.T), bias)


def pooled_features(
    features: Callable[[NDArray[np.uint8]], Floats], photographs: Iterable[NDArray[np.uint8]], batch: int = 16
) -> Floats:
    """What the classifier looks at: the mean of each photograph's grid, (N, C); `features` (B, h, w, C) of pixels."""
    found: list[Floats] = []
    held: list[NDArray[np.uint8]] = []
    for pixels in photographs:
        held.append(pixels)
        if len(held) == batch:
            found.append(features(np.stack(held)).mean(axis=(1, 2)))
            held = []
    if held:
        found.append(features(np.stack(held)).mean(axis=(1, 2)))
    return np.concatenate(found)


def sharpened(head: LowRankHead, classifier: Classifier, pooled: Floats) -> LowRankHead:
    """The head, its logits times one number: that which makes it, over these mean features (N, C), as sure of its
    likeliest classes as the classifier is. They should be of other photographs than those the head was fitted to.
    """
    truth = _top_probability(classifier.logits(pooled))
    logits = head.logits(pooled)
    nearest = min(SHARPENINGS, key=lambda times: abs(_top_probability(logits * times) - truth))
    times = np.float32(nearest)
    return replace(head, outer=head.outer * times, outer_bias=head.outer_bias * times)


def _top_probability(logits: Floats) -> float:
    """The likeliest class's, (N, classes) -> its mean."""
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return float((1.0 / weights.sum(axis=1)).mean())


def low_rank(classifier: Classifier, pooled: Floats, rank: int = RANK) -> LowRankHead:
    """The two layers for photographs like these, mean features (N, C)."""
    kernel = classifier.kernel.astype(np.float64)
    kernel = kernel - kernel.mean(axis=1, keepdims=True)
    bias = classifier.bias.astype(np.float64) - classifier.bias.mean(dtype=np.float64)
    mean = pooled.mean(axis=0, dtype=np.float64)
    apart = pooled.astype(np.float64) - mean
    responses = apart @ kernel
    ridge = RIDGE * np.square(apart).mean()
    spread = responses.T @ responses / len(apart) + ridge * (kernel.T @ kernel)
    _, directions = np.linalg.eigh(spread)  # of the logits, the widest last
    rank = min(rank, *kernel.shape)
    widest = directions[:, ::-1][:, :rank]
    # Turned at random: else the first of the inner values are a hundred times the last, and integers, which share one
    # scale, would leave nothing of these.
    turn = np.linalg.qr(np.random.default_rng(SEED).normal(size=(rank, rank)))[0]
    inner, outer = kernel @ widest @ turn, turn.T @ widest.T
    arrays: list[Any] = [inner, -mean @ inner, outer, bias + mean @ kernel]
    return LowRankHead(*(np.ascontiguousarray(array, np.float32) for array in arrays))
