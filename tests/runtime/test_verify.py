"""Golden vectors: a whole bundle verifies, a changed graph or a changed golden does not, and near ties are excused."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_bundle

from captionlite.runtime import Bundle
from captionlite.runtime.errors import BundleError
from captionlite.runtime.verify import read_golden, verify


@pytest.fixture
def copy(toy_directory: Path, tmp_path: Path) -> Path:
    directory = tmp_path / "copy"
    shutil.copytree(toy_directory, directory)
    return directory


def forged(directory: Path, arrays: dict[str, Any], **options: Any) -> Bundle:
    return Bundle.open(toy_bundle.forge(directory, changed={"golden.npz": toy_bundle.npz(arrays)}, **options))


def test_the_numpy_reference_verifies(toy_directory: Path, toy_zip: Path) -> None:
    for path in (toy_directory, toy_zip):
        report = verify(Bundle.open(path))
        assert report.passed
        assert report.photographs == report.tokens_equal == 4
        assert {check.name for check in report.tensors} == {"encoder/projected", "encoder/hidden", "logits"}
        assert all(check.error < 1e-5 for check in report.tensors)


@pytest.mark.parametrize(("name", "check"), [("encoder/hidden", "encoder/hidden"), ("logits", "logits")])
def test_one_tensor_that_is_off_fails_alone(copy: Path, name: str, check: str) -> None:
    arrays = toy_bundle.golden_arrays()
    arrays[name] = arrays[name] * np.float32(1.01)
    report = verify(forged(copy, arrays))
    assert not report.passed
    assert [found.name for found in report.tensors if not found.passed] == [check]
    off = next(found for found in report.tensors if found.name == check)
    assert off.error == pytest.approx(0.01 / 1.01, rel=0.01)


def test_compressed_golden_vectors_are_read(copy: Path) -> None:
    data = toy_bundle.npz(toy_bundle.golden_arrays(), compressed=True)
    assert verify(Bundle.open(toy_bundle.forge(copy, changed={"golden.npz": data}))).passed


def test_numbers_that_are_none_fail(copy: Path) -> None:
    arrays = toy_bundle.golden_arrays()
    arrays["logits"][0, 0, 5] = np.nan  # type: ignore[index]
    assert not verify(forged(copy, arrays)).passed


def test_other_tokens_fail(copy: Path) -> None:
    arrays = toy_bundle.golden_arrays()
    tokens = arrays["tokens"]
    tokens[2, 1] = next(token for token in range(4, toy_bundle.V) if token != tokens[2, 1])  # type: ignore[index]
    report = verify(forged(copy, arrays))
    assert not report.passed
    assert report.tokens_equal == 3
    assert len(report.token_problems) == 1
    assert report.token_problems[0].startswith("photograph 2: tokens [")


def test_a_near_tie_is_excused(copy: Path) -> None:
    # The golden machine chose the runner-up: its two best logits were equal. The caption differs, the machine is right.
    arrays: dict[str, Any] = toy_bundle.golden_arrays()
    logits, tokens = arrays["logits"], arrays["tokens"]
    last = int((tokens[0] >= 0).sum()) - 1
    allowed = logits[0, last].copy()
    allowed[list(toy_bundle.SUPPRESSED)] = -np.inf
    runner_up, best = np.argsort(allowed)[-2:]
    tokens[0, last] = runner_up
    logits[0, last, runner_up] = logits[0, last, best]
    loose = forged(copy, arrays, edit=lambda manifest: manifest["golden"].update(tolerance=0.9))
    report = verify(loose)
    assert report.passed
    assert report.tokens_equal == 3


def with_bans(arrays: dict[str, Any]) -> dict[str, Any]:
    """Golden logits of a decoder that bans words inside its graph, which swamps every other number in the sum."""
    arrays["logits"][..., list(toy_bundle.SUPPRESSED)] = -1e4
    return arrays


def test_banned_words_are_not_compared(copy: Path) -> None:
    assert verify(forged(copy, with_bans(toy_bundle.golden_arrays()))).passed


def test_banned_words_hide_no_error(copy: Path) -> None:
    arrays: dict[str, Any] = toy_bundle.golden_arrays()
    arrays["logits"] = arrays["logits"] * np.float32(1.01)
    report = verify(forged(copy, with_bans(arrays)))
    assert [check.name for check in report.tensors if not check.passed] == ["logits"]


def test_banned_words_excuse_no_other_tokens(copy: Path) -> None:
    arrays = with_bans(toy_bundle.golden_arrays())
    tokens = arrays["tokens"]
    tokens[2, 1] = next(token for token in range(4, toy_bundle.V) if token != tokens[2, 1])
    report = verify(forged(copy, arrays))
    assert len(report.token_problems) == 1


def test_a_caption_that_stops_early_is_not_excused(copy: Path) -> None:
    arrays: dict[str, Any] = toy_bundle.golden_arrays()
    row = next(i for i, tokens in enumerate(arrays["tokens"]) if (tokens >= 0).all())
    arrays["tokens"][row, -2:] = -1
    report = verify(forged(copy, arrays, edit=lambda manifest: manifest["golden"].update(tolerance=0.9)))
    assert not report.passed
    assert report.token_problems


WRONG: dict[str, tuple[str, Any]] = {
    "images of another size": ("images", np.zeros((4, 9, 12, 3), np.uint8)),
    "images of another type": ("images", np.zeros((4, 8, 12, 3), np.float32)),
    "no image": ("images", np.zeros((0, 8, 12, 3), np.uint8)),
    "fewer tokens than images": ("tokens", np.zeros((3, 7), np.int32)),
    "tokens of another type": ("tokens", np.zeros((4, 7), np.int64)),
    "logits of another vocabulary": ("logits", np.zeros((4, 7, 13), np.float32)),
    "big-endian logits": ("logits", np.zeros((4, 7, 12), ">f4")),
    "columns first": ("logits", np.asfortranarray(np.zeros((4, 7, 12), np.float32))),
    "encoder output of another shape": ("encoder/hidden", np.zeros((4, 1, 5), np.float32)),
    "token beyond the vocabulary": ("tokens", np.full((4, 7), 12, np.int32)),
    "tokens after the end": ("tokens", np.array([[4, -1, 4, 4, 4, 4, 4]] * 4, np.int32)),
    "tokens below -1": ("tokens", np.full((4, 7), -2, np.int32)),
}


@pytest.mark.parametrize("name", WRONG)
def test_golden_vectors_that_do_not_fit_are_refused(copy: Path, name: str) -> None:
    array, value = WRONG[name]
    bundle = forged(copy, {**toy_bundle.golden_arrays(), array: value})
    with pytest.raises(BundleError, match=rf"golden\.npz: .*{array}"):
        read_golden(bundle)


@pytest.mark.parametrize("array", sorted(toy_bundle.golden_arrays()))
def test_a_missing_array_is_named(copy: Path, array: str) -> None:
    arrays = toy_bundle.golden_arrays()
    del arrays[array]
    with pytest.raises(BundleError, match=f"the array '{array}' is missing"):
        read_golden(forged(copy, arrays))


def test_report_as_json(toy_directory: Path) -> None:
    report = verify(Bundle.open(toy_directory))
    found = report.to_json()
    assert found["passed"] is True
    assert found["tensors"]["logits"]["passed"] is True
    assert dataclasses.replace(report, token_problems=("one",)).to_json()["passed"] is False
