"""An ImageNet classifier for a bundle's encoder: found in the encoder's weights, made thin, named and measured."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import numpy as np

from captionlite.export.errors import ExportError
from captionlite.export.imagenet_names import CLASSES, SOURCE, class_names, labels_json
from captionlite.runtime.errors import ImageError
from captionlite.runtime.image import load_image
from captionlite.runtime.labels import Labels
from captionlite.runtime.manifest import ImageSpec, LabelsSpec
from captionlite.training.encoders import build_encoder, encoder_spec
from captionlite.training.errors import WeightsError
from captionlite.training.imagenet_head import (
    Classifier,
    LowRankHead,
    has_classifier,
    imagenet_classifier,
    low_rank,
    pooled_features,
    sharpened,
)

if TYPE_CHECKING:
    from captionlite.runtime.captioner import Captioner
    from captionlite.training.datasets.photos import Photo
    from captionlite.training.run import Run

LABELS, FILE = "labels", "labels.json"
FIT_PHOTOGRAPHS, HELD_OUT_PHOTOGRAPHS = 1000, 200  # of these, half to sharpen by, half to judge the outcome on
LEAST_PHOTOGRAPHS = 50

LEAST_PROBABILITY, LEAST_BESIDE_PEOPLE = 0.5, 0.7
BELOW_CONFIDENCE = 0.65
"""Chosen by eye on 1,160 dev photographs (Flickr8k and `everyday`) with the greedy captions of the default bundle
before it was fine-tuned. Below this confidence were 773 captions, of which 49 in 100 fit what people said. Beside
72 of them there was a label to offer: 50 were right, 9 half right (a snowboard is no ski) and 13 wrong. Why not
one threshold: the labels' exact words people said of 1,602 photographs, by probability from 0.4, 0.5, 0.6, 0.7
and 0.8 on, 43, 60, 68, 61 and 86 times in 100 where most of them spoke of nobody, and 29, 35, 50, 67 and 84 times
where they spoke of people.
"""


@dataclasses.dataclass(frozen=True)
class Labelling:
    """What makes a bundle's encoder a classifier as well; `judged` are photographs, mean features and all logits."""

    head: LowRankHead
    content: bytes
    spec: LabelsSpec
    fitted_on: int
    judged: tuple[Sequence[np.ndarray], np.ndarray]

    def provenance(self, captioner: Captioner) -> dict[str, Any]:
        """How often this bundle's likeliest label is the whole classifier's, on photographs that nothing was fitted
        on; `sure` are those where the classifier gives its own at least the probability from which it may be offered.
        """
        names = Labels(self.content, self.spec, FILE)
        photographs, logits = self.judged
        agreed, sure = [], []
        for pixels, whole in zip(photographs, logits, strict=True):
            expected = names.probabilities(whole)
            found = names.probabilities(captioner.encode(pixels)[self.spec.output])
            agreed.append(expected.argmax() == found.argmax())
            sure.append(expected.max() >= self.spec.least_probability)
        return {
            "classes": self.spec.size,
            "names": len(names.told),
            "rank": self.head.rank,
            "recipe": captioner.bundle.manifest.graphs["encoder"].recipe,
            "fitted_on": self.fitted_on,
            "photographs": len(agreed),
            "agreed": int(np.sum(agreed)),
            "sure": int(np.sum(sure)),
            "sure_agreed": int(np.sum(np.array(agreed) & np.array(sure))),
        }


def labels_of_run(
    run: Run, choice: str, photographs: Sequence[Photo], report: Callable[[str], None] = lambda line: None
) -> Labelling | None:
    """What ``--labels`` asks for: of "auto" nothing, said in one line, where something for it is missing.

    The head is fitted to a sample of the run's training photographs, where these still stand, or to ``photographs``.
    Raises ExportError and WeightsError for "imagenet" where it cannot be.
    """
    if choice == "none":
        return None
    try:
        return _labelling(run, photographs, report)
    except (ExportError, WeightsError) as error:
        if choice == "imagenet":
            raise
        report(f"no labels: {error}")
        return None


def _labelling(run: Run, photographs: Sequence[Photo], report: Callable[[str], None]) -> Labelling:
    encoder = run.config.encoder
    shape = encoder_spec(encoder.name).feature_shape
    if not has_classifier(encoder.name, encoder.weights, shape):
        raise ExportError(
            f"--labels imagenet: {encoder.name} with weights {encoder.weights!r} gives features {shape}, and only a "
            "whole EfficientNet-Lite with the weights of its ImageNet training comes with its classifier; export with "
            "--labels none"
        )
    names = class_names()
    classifier = imagenet_classifier(encoder.name, encoder.weights)
    if len(classifier.bias) != CLASSES:
        raise ExportError(f"--labels imagenet: the classifier has {len(classifier.bias)} classes, expected {CLASSES}")
    wanted = FIT_PHOTOGRAPHS + HELD_OUT_PHOTOGRAPHS
    photos = run.training_photographs(wanted) or list(photographs)[:wanted]
    if len(photos) < LEAST_PHOTOGRAPHS:
        raise ExportError(
            f"--labels imagenet: {len(photos)} photographs to fit its classifier to, expected {LEAST_PHOTOGRAPHS} or "
            "more; give --calibration FOLDER, or export with --labels none"
        )
    report(f"fitting the labels' classifier to {len(photos):,} photographs")
    half = min(len(photos) // 10, HELD_OUT_PHOTOGRAPHS // 2)
    judged = list(_loaded(photos[:half], run.image_spec))
    pooled = pooled_features(run.grids, chain(judged, _loaded(photos[half:], run.image_spec)))
    logits = classifier.logits(pooled_features(_untouched(run), judged))
    return labelling(classifier, names, pooled[len(judged) + half :], pooled[len(judged) :][:half], (judged, logits))


def _untouched(run: Run) -> Callable[[np.ndarray], np.ndarray]:
    """The encoder as ImageNet left it: what its classifier was trained on, whatever blocks were trained since."""
    if not run.config.trained_blocks:
        return run.features
    encoder = build_encoder(run.config.encoder.name, run.config.encoder.weights)
    return lambda pixels: np.asarray(encoder(pixels.astype(np.float32), training=False))


def labelling(
    classifier: Classifier,
    names: Sequence[str],
    pooled: np.ndarray,
    others: np.ndarray,
    judged: tuple[Sequence[np.ndarray], np.ndarray],
) -> Labelling:
    """For a classifier whose classes have these names, fitted to mean features (N, C) and sharpened by others."""
    thresholds = LEAST_PROBABILITY, LEAST_BESIDE_PEOPLE, BELOW_CONFIDENCE
    spec = LabelsSpec(FILE, LABELS, len(classifier.bias), SOURCE, *thresholds)
    head = sharpened(low_rank(classifier, pooled), classifier, others)
    return Labelling(head, labels_json(names), spec, len(pooled), judged)


def _loaded(photos: Sequence[Photo], image: ImageSpec) -> Iterator[np.ndarray]:
    for photo in photos:
        try:
            yield load_image(photo, image)
        except ImageError:  # training left it out as well
            continue
