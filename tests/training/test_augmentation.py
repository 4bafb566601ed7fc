"""Copies of a photograph: plain, mirrored, and views that differ from each other and are the same every time."""

from pathlib import Path

import numpy as np
import pytest
from drawings import TINY_PRESET, write_drawings
from PIL import Image

from captionlite.runtime.errors import ImageError
from captionlite.runtime.image import load_image
from captionlite.runtime.manifest import ImageSpec
from captionlite.training.augmentation import FIRST_VIEW, MIRRORED, PLAIN, SMALLEST_AREA, load_copy
from captionlite.training.batches import BatchPlan, Source
from captionlite.training.config import DataConfig, RunConfig, from_json
from captionlite.training.data import load_data

SPEC = ImageSpec(32, 32)


def gradient(path: Path, width: int = 240, height: int = 160) -> Path:
    """Red grows to the right and green downwards, so a crop's place can be read off its colours."""
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    Image.fromarray(np.stack([x, y, np.full_like(x, 128)], axis=-1).astype(np.uint8)).save(path)
    return path


def test_the_first_two_copies_are_the_devices_own_pixels(tmp_path: Path) -> None:
    photo = gradient(tmp_path / "a.png")
    plain = load_image(photo, SPEC)
    np.testing.assert_array_equal(load_copy(photo, SPEC, PLAIN), plain)
    np.testing.assert_array_equal(load_copy(photo, SPEC, MIRRORED), plain[:, ::-1])


def test_views_are_repeatable_and_differ(tmp_path: Path) -> None:
    photo, other = gradient(tmp_path / "a.png"), gradient(tmp_path / "b.png", 300, 200)
    views = [load_copy(photo, SPEC, FIRST_VIEW + i) for i in range(6)]
    for i, view in enumerate(views):
        assert view.shape == (32, 32, 3)
        assert view.dtype == np.uint8
        np.testing.assert_array_equal(view, load_copy(photo, SPEC, FIRST_VIEW + i))
    assert len({view.tobytes() for view in views}) == 6
    assert load_copy(other, SPEC, FIRST_VIEW).tobytes() != views[0].tobytes()


def test_a_view_shows_at_least_half_of_the_photograph_and_some_are_mirrored(tmp_path: Path) -> None:
    photo = gradient(tmp_path / "a.png")
    mirrored = 0
    for copy in range(FIRST_VIEW, FIRST_VIEW + 40):
        view = load_copy(photo, SPEC, copy).astype(float)
        # How far the colours reach says how much is shown; light changes bend it a little, hence the margin.
        across = abs(view[16, -1, 0] - view[16, 0, 0]) / 255
        down = abs(view[-1, 16, 1] - view[0, 16, 1]) / 255
        assert across * down > SMALLEST_AREA * 0.3
        mirrored += view[16, 0, 0] > view[16, -1, 0]
    assert 8 < mirrored < 32


def test_what_does_not_decode_is_an_image_error(tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_bytes(b"no photograph")
    for copy in (PLAIN, MIRRORED, FIRST_VIEW):
        with pytest.raises(ImageError):
            load_copy(tmp_path / "a.jpg", SPEC, copy)


def test_each_copy_is_drawn_as_often_as_the_others() -> None:
    source = Source("s", tuple(map(str, range(600))), {str(i): [[2, 5, 3]] for i in range(600)})
    for flip, expected in ((True, {0, 1, 2, 3}), (False, {0, 2, 3})):
        plan = BatchPlan(
            [source], batch_size=4, captions_per_photo=1, max_length=4, pad_id=0, seed=1, flip=flip, views=2
        )
        drawn = [copy for batch in plan.epoch(0) for _, _, copy in batch.rows]
        assert set(drawn) == expected
        for copy in expected:
            assert abs(drawn.count(copy) / len(drawn) - 1 / len(expected)) < 0.06


def test_a_run_has_features_of_every_copy_and_of_dev_photographs_only_two(tmp_path: Path) -> None:
    drawings = write_drawings(tmp_path / "drawings")
    made: RunConfig = from_json(RunConfig, {**TINY_PRESET, "views": 2}, "tiny")
    config = RunConfig(**{**vars(made), "data": (DataConfig(f"jsonl:{drawings}"),)})
    data = load_data(config, tmp_path / "cache")
    (copies,) = data.copies
    assert sorted(copies) == [0, 1, 2, 3]
    train = {example.id for example in data.examples(0, "train")}
    dev = {example.id for example in data.examples(0, "dev")}
    assert set(copies[0].ids) == set(copies[1].ids) == train | dev
    assert set(copies[2].ids) == set(copies[3].ids) == train
    assert len({store.folder.name for store in copies.values()}) == 4
