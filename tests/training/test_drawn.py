"""The drawn data set: captions that are exact, splits that share no combination, pictures that do not change."""

import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter

from captionlite.training.datasets import drawn, load_dataset
from captionlite.training.datasets.drawn import COLOURS, COUNTS, PLACES, SHAPES, SIZE
from captionlite.training.errors import DatasetError


@pytest.fixture(autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path_factory.getbasetemp() / "xdg"
    monkeypatch.setenv("XDG_CACHE_HOME", str(folder))
    return folder


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def test_a_spec_without_a_path_is_drawn_and_found_again(cache: Path) -> None:
    first = load_dataset("drawn:40")
    assert {name: len(examples) for name, examples in first.splits.items()} == {"train": 32, "dev": 4, "test": 4}
    assert first.licence == "CC0-1.0"
    example = first.split("test")[0]
    assert example.image.is_relative_to(cache)
    assert pixels(example.image).shape == (SIZE, SIZE, 3)
    before = {e.id: e.image.stat().st_mtime_ns for e in first.examples}
    again = load_dataset("drawn:40")
    assert again == first
    assert {e.id: e.image.stat().st_mtime_ns for e in again.examples} == before


def test_the_seed_decides_everything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = load_dataset("drawn:20,7")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "elsewhere"))
    there, other = load_dataset("drawn:20,7"), load_dataset("drawn:20,8")
    assert [e.captions for e in here.examples] == [e.captions for e in there.examples]
    for a, b in zip(here.examples, there.examples, strict=True):
        assert a.image != b.image
        np.testing.assert_array_equal(pixels(a.image), pixels(b.image))
    assert [e.captions for e in here.examples] != [e.captions for e in other.examples]


def test_splits_share_no_combination_and_training_has_every_word() -> None:
    splits = drawn.split_scenes(0)
    assert sum(map(len, splits.values())) == len(drawn.scenes()) == len(set(drawn.scenes())) == 576
    assert {name: len(scenes) for name, scenes in splits.items()} == {"train": 462, "dev": 57, "test": 57}
    captions = {name: {scene.caption for scene in scenes} for name, scenes in splits.items()}
    assert not captions["train"] & captions["dev"]
    assert not captions["train"] & captions["test"]
    assert not captions["dev"] & captions["test"]
    words = Counter(word for caption in captions["train"] for word in caption.split())
    held_out = {word for name in ("dev", "test") for caption in captions[name] for word in caption.split()}
    assert held_out <= set(words)
    assert min(words.values()) > 50


def test_one_drawing_has_one_right_caption() -> None:
    """The two things are told apart by colour and shape, and only one of them is several, so no other caption fits."""
    for scene in drawn.scenes():
        assert scene.things[0] != scene.other[0]
        assert scene.things[1] != scene.other[1]
        assert scene.count in ("two", "three")
    assert len({scene.caption for scene in drawn.scenes()}) == len(drawn.scenes())


def test_no_two_drawings_are_alike() -> None:
    examples = load_dataset("drawn:40").examples
    assert len({pixels(example.image).tobytes() for example in examples}) == len(examples) == 40


@pytest.mark.parametrize("example_number", range(0, 32, 3))
def test_the_picture_shows_what_its_caption_says(example_number: int) -> None:
    """Colours, counts and places, measured in the pixels without the code that drew them."""
    example = load_dataset("drawn:40").split("train")[example_number]
    pattern = rf"({'|'.join(COUNTS)}) (\w+) ({'|'.join(SHAPES)})s ({'|'.join(PLACES)}) a (\w+) ({'|'.join(SHAPES)})"
    match = re.fullmatch(pattern, example.captions[0])
    assert match is not None
    count, colour, _, place, other_colour, _ = match.groups()
    with Image.open(example.image) as image:
        picture = np.asarray(image.convert("RGB").filter(ImageFilter.MedianFilter(5))).astype(int)  # no grain
    palette = np.array(list(COLOURS.values()))
    distance = np.abs(picture[:, :, None] - palette).max(axis=-1)  # (H, W, colours)
    name = np.where(distance.min(axis=-1) <= 40, distance.argmin(axis=-1), -1)
    masks = {c: name == i for i, c in enumerate(COLOURS)}
    assert {c for c, mask in masks.items() if mask.sum() > 300} == {colour, other_colour}
    (y1, x1), (y2, x2) = (np.argwhere(masks[c]).mean(axis=0) for c in (colour, other_colour))
    found = ("above" if y1 < y2 else "below") if abs(y1 - y2) > abs(x1 - x2) else "left of" if x1 < x2 else "right of"
    assert found == place
    across = masks[colour].any(axis=0) if place in ("above", "below") else masks[colour].any(axis=1)
    runs = np.count_nonzero(np.diff(np.r_[0, across.astype(int)]) == 1)
    assert runs == COUNTS.index(count) + 2


@pytest.mark.parametrize("spec", ["drawn:many", "drawn:9", "drawn:40,x", "drawn:../40", "drawn:-40"])
def test_a_spec_that_does_not_read_so_is_refused(spec: str) -> None:
    with pytest.raises(DatasetError, match=re.escape(spec)):
        load_dataset(spec)


def test_an_interrupted_drawing_leaves_no_half_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = 0
    original = drawn.draw_scene

    def interrupted(*arguments: object) -> Image.Image:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return original(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(drawn, "draw_scene", interrupted)
    with pytest.raises(KeyboardInterrupt):
        load_dataset("drawn:30")
    assert not [path for path in (cache / "captionlite/drawings").iterdir() if "-30-" in path.name]
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    assert all(example.image.is_file() for example in load_dataset("drawn:30").examples)
