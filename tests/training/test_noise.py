"""Noise on features: as strong as asked for, other at every call, from a seed that is saved."""

import random

import keras
import numpy as np

from captionlite.training.noise import FeatureNoise


def test_noise_is_a_share_of_each_photographs_features() -> None:
    random.seed(3)
    layer = FeatureNoise(0.2)
    features = np.random.default_rng(1).normal(size=(2, 7, 7, 640)).astype("float32")
    features[1] *= 50.0
    first, second = (keras.ops.convert_to_numpy(layer(features)) - features for _ in range(2))
    for added in (first, second):
        rms = np.sqrt(np.square(added).mean(axis=(1, 2, 3))) / np.sqrt(np.square(features).mean(axis=(1, 2, 3)))
        np.testing.assert_allclose(rms, 0.2, rtol=0.03)
        assert abs(added[0].mean()) < 0.01
    assert np.abs(first - second).max() > 0.1


def test_the_seed_is_a_variable_and_brings_the_same_noise_back() -> None:
    random.seed(3)
    layer = FeatureNoise(0.5)
    (seed,) = layer.variables
    before = keras.ops.convert_to_numpy(seed).copy()
    features = np.ones((1, 4), "float32")
    first = keras.ops.convert_to_numpy(layer(features))
    seed.assign(before)
    np.testing.assert_array_equal(keras.ops.convert_to_numpy(layer(features)), first)
