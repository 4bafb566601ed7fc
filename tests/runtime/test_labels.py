"""What the encoder's classifier offers beside an unsure caption: when, what, and what it never costs."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_bundle
from click.testing import CliRunner, Result
from PIL import Image

from captionlite.runtime import Bundle, Captioner
from captionlite.runtime.captioner import FEW
from captionlite.runtime.cli import cli
from captionlite.runtime.decoding import DecodingOptions
from captionlite.runtime.errors import BundleError
from captionlite.runtime.frames import FrameCaptioner
from captionlite.runtime.labels import Label, Labels
from captionlite.runtime.manifest import LabelsSpec
from captionlite.runtime.records import record
from captionlite.runtime.verify import verify

SPEC = LabelsSpec("labels.json", "labels", 5, "the toy", 0.5, 0.8, 0.5)


def labels(least: float = 0.5, **changes: Any) -> Labels:
    spec = LabelsSpec("labels.json", "labels", 5, "the toy", least, 0.8, 0.5)
    return Labels(toy_bundle.labels_json(**changes), spec, "labels.json")


def logits(*probabilities: float) -> np.ndarray:
    return np.log(np.array([probabilities], np.float32))


@pytest.fixture(scope="module")
def labelled(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("labelled") / "toy"
    toy_bundle.write_labelled(directory)
    return directory


@pytest.fixture(scope="module")
def captioner(labelled: Path) -> Captioner:
    return Captioner.from_bundle(labelled)


def test_logits_of_equal_names_are_one_label() -> None:
    found = labels()
    assert found.told == ("grass", "red fox", "dog")
    np.testing.assert_allclose(found.probabilities(logits(0.1, 0.2, 0.3, 0.25, 0.15)), [0.1, 0.2, 0.55], atol=1e-6)
    (offered,) = found.offered(logits(0.1, 0.2, 0.3, 0.25, 0.15), "a cat sits")
    assert offered.name == "dog"
    assert offered.probability == pytest.approx(0.55)


def test_the_likeliest_first_and_only_what_is_sure_enough() -> None:
    found = labels(least=0.3).offered(logits(0.3001, 0.2, 0.3, 0.15, 0.0499), "a cat sits")
    assert [one.name for one in found] == ["dog", "grass"]
    assert labels(least=0.46).offered(logits(0.3001, 0.2, 0.3, 0.15, 0.0499), "a cat sits") == ()


@pytest.mark.parametrize("caption", ["a man sits", "Two MEN sit"])
def test_beside_people_it_must_be_surer(caption: str) -> None:
    assert labels().offered(logits(0.79, 0.06, 0.05, 0.05, 0.05), caption) == ()
    assert [one.name for one in labels().offered(logits(0.81, 0.04, 0.05, 0.05, 0.05), caption)] == ["grass"]
    assert [one.name for one in labels().offered(logits(0.79, 0.06, 0.05, 0.05, 0.05), "a manual")] == ["grass"]


def test_what_is_never_told_is_not_offered_and_keeps_its_share() -> None:
    assert labels(least=0.05).offered(logits(0.01, 0.01, 0.01, 0.01, 0.96), "a cat sits") == ()


@pytest.mark.parametrize(
    "caption",
    ["a dog runs", "two dogs run", "a puppy sleeps", "Puppies sleep"],
)
def test_what_the_caption_names_is_not_offered(caption: str) -> None:
    assert labels().offered(logits(0.1, 0.1, 0.4, 0.35, 0.05), caption) == ()


@pytest.mark.parametrize(("caption", "offered"), [("a fox", False), ("foxes run", False), ("a red car", True)])
def test_a_name_of_two_words_is_named_by_its_last(caption: str, offered: bool) -> None:
    assert bool(labels().offered(logits(0.1, 0.7, 0.1, 0.05, 0.05), caption)) == offered


@pytest.mark.parametrize(("said", "name"), [("ladies", "lady"), ("a bus", "buses"), ("sunglass", "sunglasses")])
def test_singular_and_plural(said: str, name: str) -> None:
    found = labels(names=[name, "b", "c", "d", "e"], words={})
    assert found.names_it(said.split(), name)
    assert not found.names_it(["man"], name)


@pytest.mark.parametrize("broken", [np.nan, np.inf, -np.inf])
def test_logits_that_are_no_numbers_offer_nothing(broken: float) -> None:
    values = np.full((1, 5), broken, np.float32)
    assert labels(least=0.0001).offered(values, "a cat sits") == ()


def test_an_unsure_caption_has_it_and_a_sure_one_does_not(captioner: Captioner) -> None:
    assert captioner.bundle.labels is not None
    unsure = 0
    for image in toy_bundle.photographs(16):
        caption = captioner.caption(image)
        assert caption.confidence is not None
        logits = toy_bundle.label_logits(image)
        weights = np.exp(logits[0].astype(np.float64))
        fox = float(weights[1] / weights.sum())
        if caption.confidence < 0.5:
            unsure += 1
            (label,) = caption.maybe
            assert label.name == "red fox"
            assert label.probability == pytest.approx(fox, abs=1e-4)
        else:
            assert caption.maybe == ()
    assert 0 < unsure < 16


def test_captions_and_state_are_those_without_labels(captioner: Captioner, toy_directory: Path) -> None:
    plain = Captioner.from_bundle(toy_directory)
    for image in toy_bundle.photographs(6):
        assert captioner.caption(image).tokens == plain.caption(image).tokens
        assert captioner.caption(image).logprobs == plain.caption(image).logprobs


def test_no_confidence_or_no_labels_no_maybe(tmp_path: Path, toy_directory: Path) -> None:
    toy_bundle.write_labelled(tmp_path / "toy")
    toy_bundle.forge(tmp_path / "toy", lambda m: m["decoding"].pop("confidence"))
    for directory in (tmp_path / "toy", toy_directory):
        captioner = Captioner.from_bundle(directory)
        assert all(captioner.caption(image).maybe == () for image in toy_bundle.photographs(16))


def test_every_way_to_a_caption_gives_the_same(captioner: Captioner) -> None:
    images = [np.clip(one.astype(int) + i, 0, 255).astype(np.uint8) for i, one in enumerate(toy_bundle.photographs(16))]
    images += toy_bundle.photographs(FEW, seed=9)
    alone = [captioner.caption(image).maybe for image in images]
    assert any(alone)
    assert not all(alone)
    assert [one.maybe for one in captioner.decode_many([captioner.encode(image) for image in images])] == alone
    assert [one.maybe for one in captioner.caption_many(images)] == alone  # type: ignore[union-attr]
    frames = FrameCaptioner(captioner, threshold=0.0)
    assert [frames.caption(image)[0].maybe for image in images] == alone


def test_beams_have_the_confidence_of_their_own_caption(captioner: Captioner) -> None:
    for image in toy_bundle.photographs(16):
        caption = captioner.caption(image, DecodingOptions(beams=3))
        assert caption.confidence is not None
        assert bool(caption.maybe) == (caption.confidence < 0.5)


def test_verify_holds_the_labels_to_the_golden_vectors(labelled: Path) -> None:
    report = verify(Bundle.open(labelled))
    assert report.passed
    assert "encoder/labels" in {check.name for check in report.tensors}


def test_the_json(captioner: Captioner) -> None:
    caption = captioner.caption(toy_bundle.photographs(8)[7])
    found = record(caption)["maybe"]
    assert found == [{"label": "red fox", "probability": round(caption.maybe[0].probability, 4)}]
    assert "maybe" not in record(captioner.caption(toy_bundle.photographs(1)[0]))


def run(*arguments: str | Path) -> Result:
    return CliRunner().invoke(cli, ["caption", *map(str, arguments)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photographs, of which the last has an unsure caption."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, image in enumerate(toy_bundle.photographs(8)):
        Image.fromarray(image).save(folder / f"{number}.png")
    return folder


def test_the_command_prints_a_second_line_when_asked(labelled: Path, folder: Path) -> None:
    plain = run(folder, "--bundle", labelled)
    assert plain.exit_code == 0, plain.output
    assert len(plain.stdout.splitlines()) == 8, "a caption a line, as scripts read them"
    assert run(folder, "--bundle", labelled, "--no-maybe").stdout == plain.stdout
    lines = run(folder, "--bundle", labelled, "--maybe").stdout.splitlines()
    assert lines == [*plain.stdout.splitlines(), "    maybe: red fox"]
    (one, two) = run(folder / "7.png", "--bundle", labelled, "--maybe").stdout.splitlines()
    assert (one, two) == ("dog dog the the runs", "    maybe: red fox")


def test_a_terminal_has_it_unasked(labelled: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import click.testing

    monkeypatch.setattr(click.testing._NamedTextIOWrapper, "isatty", lambda self: True, raising=False)
    assert run(folder / "7.png", "--bundle", labelled).stdout.splitlines()[1] == "    maybe: red fox"
    assert len(run(folder / "7.png", "--bundle", labelled, "--no-maybe").stdout.splitlines()) == 1


def test_not_sure_has_it_as_well(labelled: Path, folder: Path) -> None:
    lines = run(folder / "7.png", "--bundle", labelled, "--min-confidence", "0.5").stdout.splitlines()
    assert lines[0] == "not sure"
    assert lines[-1] == "    maybe: red fox"
    assert len(lines) == 5


def test_json_has_the_field(labelled: Path, folder: Path) -> None:
    objects = [json.loads(line) for line in run(folder, "--bundle", labelled, "--json").stdout.splitlines()]
    assert ["maybe" in one for one in objects] == [False] * 7 + [True]


@pytest.mark.parametrize("option", ["--json", "--stream", "--fill=a [MASK]"])
def test_lines_that_cannot_be(labelled: Path, folder: Path, option: str) -> None:
    result = run(folder / "7.png", "--bundle", labelled, "--maybe", option)
    assert result.exit_code == 2
    assert "--maybe" in result.stderr


def test_asked_of_a_bundle_without(labelled: Path, toy_directory: Path, folder: Path, tmp_path: Path) -> None:
    result = run(folder / "7.png", "--bundle", toy_directory, "--maybe")
    assert result.exit_code == 1
    assert "'toy' has no labels" in result.stderr
    toy_bundle.write_labelled(tmp_path / "toy")
    toy_bundle.forge(tmp_path / "toy", lambda m: m["decoding"].pop("confidence"))
    result = run(folder / "7.png", "--bundle", tmp_path / "toy", "--maybe")
    assert "no calibrated confidence that says when" in result.stderr


def test_inspect_tells(labelled: Path) -> None:
    lines = CliRunner().invoke(cli, ["inspect", str(labelled)]).stdout
    assert (
        "labels      3 of the toy, offered from 50% on (beside people 80%) where the confidence is below 50%" in lines
    )


def test_the_manifest_reads_back(labelled: Path) -> None:
    manifest = Bundle.open(labelled).manifest
    assert manifest.labels == SPEC
    assert manifest.to_json()["labels"]["size"] == 5
    assert type(manifest).from_json(manifest.to_json(), "x") == manifest


def test_a_label_is_a_value() -> None:
    assert Label("dog", 0.5) == Label("dog", 0.5)


def test_names_must_be_as_many_as_logits(tmp_path: Path) -> None:
    toy_bundle.write_labelled(tmp_path / "toy")
    toy_bundle.forge(tmp_path / "toy", changed={"labels.json": toy_bundle.labels_json(names=["a", "b"])})
    with pytest.raises(BundleError, match=r"labels\.json: 2 names, but the encoder has 5 labels"):
        Bundle.open(tmp_path / "toy")
