"""Frames drawn for the purpose: what counts as the same scene, what is kept, and what is computed again."""

import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import toy_bundle
from click.testing import CliRunner
from PIL import Image, ImageDraw

from captionlite.benchmarks.frame_margins import main
from captionlite.runtime import Captioner, DecodingOptions
from captionlite.runtime.errors import ImageError, OptionsError
from captionlite.runtime.frames import CELLS, COLUMNS, ROWS, THRESHOLD, FrameCaptioner, distance, signature

HEIGHT, WIDTH = 480, 640
Frame = npt.NDArray[np.uint8]


@pytest.fixture
def captioner(toy_directory: Path) -> Captioner:
    """Notes in `encoded` and `decoded` how often it was asked."""
    counting: Any = Captioner.from_bundle(toy_directory, threads=1)
    counting.encoded = counting.decoded = 0
    encode, decode = counting.encode_pixels, counting.decode

    def encode_counted(pixels: Any) -> Any:
        counting.encoded += 1
        return encode(pixels)

    def decode_counted(encoded: Any, options: Any) -> Any:
        counting.decoded += 1
        return decode(encoded, options)

    counting.encode_pixels, counting.decode = encode_counted, decode_counted
    return counting  # type: ignore[no-any-return]


def room(seed: int = 0) -> Frame:
    """A room with things in it: a gradient for the wall, a floor, a window and boxes."""
    random = np.random.default_rng(seed)
    wall = np.linspace(90, 170, WIDTH)[None, :, None] + np.array([0, -8, -20])
    image = Image.fromarray(np.broadcast_to(wall, (HEIGHT, WIDTH, 3)).astype(np.uint8))
    pen = ImageDraw.Draw(image)
    pen.rectangle((0, 360, WIDTH, HEIGHT), fill=(95, 70, 50))
    pen.rectangle((420, 60, 560, 200), fill=(235, 240, 245))
    for _ in range(6):
        x, y = (int(v) for v in random.integers(20, 400, 2))
        colour = (int(random.integers(30, 220)), int(random.integers(30, 220)), int(random.integers(30, 220)))
        pen.rectangle((x, y, x + 60, y + 70), fill=colour)
    return np.asarray(image)


def noisy(frame: npt.NDArray[Any], sigma: float, seed: int) -> Frame:
    noise = np.random.default_rng(seed).normal(0, sigma, frame.shape)
    return np.clip(np.rint(frame + noise), 0, 255).astype(np.uint8)


def with_person(frame: Frame, x: int, height: int = 180, colour: tuple[int, int, int] = (40, 45, 60)) -> Frame:
    image = Image.fromarray(frame)
    pen, width = ImageDraw.Draw(image), height * 2 // 5
    pen.ellipse((x + width // 4, 250, x + 3 * width // 4, 250 + height // 5), fill=(200, 160, 140))
    pen.rectangle((x, 250 + height // 5, x + width, 250 + height), fill=colour)
    return np.asarray(image)


def as_jpeg(frame: Frame, quality: int = 60) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(frame).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def test_distance_worked_out_by_hand() -> None:
    # One grid cell of 20 x 20 pixels brighter by 96, five others by 48; the mean rises by (96 + 5 * 48) / 768 = 0.4375.
    dark = np.full((HEIGHT, WIDTH, 3), 100, np.uint8)
    lit = dark.copy()
    lit[40:60, 60:80] += 96
    for cell in range(5):
        lit[100:120, 40 * cell : 40 * cell + 20] += 48
    assert signature(dark).shape == (ROWS * COLUMNS,)
    assert distance(signature(dark), signature(lit)) == pytest.approx((96 + 3 * 48) / CELLS - 0.4375, abs=0.01)
    assert distance(signature(lit), signature(lit)) == 0


def test_even_light_does_not_count() -> None:
    frame = room() // 2
    assert distance(signature(frame), signature(frame + 40)) < 0.5


def test_the_size_and_the_form_of_a_frame_do_not_count(tmp_path: Path) -> None:
    frame = room()
    path = tmp_path / "frame.png"
    Image.fromarray(frame).save(path)
    half = np.asarray(Image.fromarray(frame).resize((WIDTH // 2, HEIGHT // 2), Image.Resampling.BOX))
    for other in (path, str(path), path.read_bytes(), Image.fromarray(frame), half, as_jpeg(frame, 95)):
        assert distance(signature(frame), signature(other)) < 2


DISTURBED = {
    "noise": lambda frame, seed: noisy(frame, 8, seed),
    "compressed": lambda frame, seed: as_jpeg(noisy(frame, 4, seed), 50 + seed),
    "brighter": lambda frame, seed: noisy(frame * 1.03, 5, seed),
    "darker": lambda frame, seed: noisy(frame * 0.97, 5, seed),
}


@pytest.mark.parametrize("name", DISTURBED)
def test_a_disturbed_scene_is_the_same(captioner: Any, name: str) -> None:
    frames = FrameCaptioner(captioner)
    first, changed = frames.caption(noisy(room(), 5, 99))
    assert changed
    for seed in range(10):
        again, changed = frames.caption(DISTURBED[name](room(), seed))
        assert again is first
        assert not changed
    assert (captioner.encoded, captioner.decoded) == (1, 1)


@pytest.mark.parametrize("x", [0, 150, 300, 560])
def test_somebody_who_comes_in_is_noticed(captioner: Any, x: int) -> None:
    frames = FrameCaptioner(captioner)
    frames.caption(noisy(room(), 5, 1))
    _, changed = frames.caption(noisy(with_person(room(), x), 5, 2))
    assert changed
    _, changed = frames.caption(noisy(with_person(room(), x), 5, 3))
    assert not changed
    _, changed = frames.caption(noisy(room(), 5, 4))  # and who goes
    assert changed
    assert captioner.encoded == 3


def test_the_caption_is_the_captioners(captioner: Captioner) -> None:
    frames = FrameCaptioner(captioner)
    for frame in (room(), with_person(room(), 150), as_jpeg(room(3))):
        caption, changed = frames.caption(frame)
        expected = captioner.caption(frame)
        assert changed
        assert (caption.text, caption.logprobs) == (expected.text, expected.logprobs)
        assert set(caption.timings_ms) == set(expected.timings_ms)


def test_slow_change_is_noticed_in_the_end(captioner: Any) -> None:
    # Somebody fades in, by less than the threshold a frame: each differs little from the one before it.
    frames = FrameCaptioner(captioner)
    empty, full = room().astype(np.float32), with_person(room(), 150).astype(np.float32)
    steps = [np.rint(empty + (full - empty) * share).astype(np.uint8) for share in np.linspace(0, 1, 60)]
    assert max(distance(signature(a), signature(b)) for a, b in pairwise(steps)) < THRESHOLD / 3
    changes = [frames.caption(step)[1] for step in steps]
    assert changes[0]
    assert 2 <= sum(changes) < 30
    far = distance(signature(steps[0]), signature(steps[-1]))
    assert sum(changes) - 1 == pytest.approx(far / THRESHOLD, rel=0.35)


def test_the_threshold_is_the_callers(captioner: Captioner) -> None:
    here, there = room(), with_person(room(), 150)
    apart = distance(signature(here), signature(there))
    for threshold, expected in ((apart * 1.01, False), (apart * 0.99, True)):
        frames = FrameCaptioner(captioner, threshold)
        frames.caption(here)
        assert frames.caption(there)[1] is expected


def test_other_options_decode_without_encoding(captioner: Any) -> None:
    frames = FrameCaptioner(captioner, options=DecodingOptions(max_length=4))
    own, _ = frames.caption(room())
    beams, changed = frames.caption(noisy(room(), 3, 1), DecodingOptions(beams=3))
    assert not changed
    assert len(own.tokens) <= 4
    assert beams == captioner.caption(room(), DecodingOptions(beams=3)) or beams.tokens != own.tokens
    assert (captioner.encoded, captioner.decoded) == (2, 3)  # the line above counts for one of each
    assert frames.caption(room())[0] is own
    assert frames.caption(room(), DecodingOptions(beams=3))[0] is beams
    assert (captioner.encoded, captioner.decoded) == (2, 3)


def test_the_very_same_frame_is_remembered(captioner: Any) -> None:
    frames = FrameCaptioner(captioner, remembered=2)
    slides = [room(), with_person(room(), 150), with_person(room(), 400)]
    first, _ = frames.caption(slides[0])
    frames.caption(slides[1])
    again, changed = frames.caption(slides[0])
    assert changed, "the scene did change; what was remembered is the caption"
    assert again is first
    assert captioner.encoded == 2
    frames.caption(slides[2])  # the one longest unused, slides[1], is forgotten
    frames.caption(slides[0])
    assert captioner.encoded == 3
    frames.caption(slides[1])
    assert captioner.encoded == 4


def test_memory_stays_bounded(captioner: Captioner) -> None:
    frames = FrameCaptioner(captioner, remembered=3)
    for number in range(12):
        frames.caption(with_person(room(), 50 * number))
        for seed in range(5):
            frames.caption(with_person(room(), 50 * number), DecodingOptions(temperature=1, seed=seed))
    assert len(frames._scenes) == 3
    assert max(len(scene.captions) for scene in frames._scenes.values()) <= 3


def test_after_an_error_the_scene_is_the_one_before(captioner: Any) -> None:
    frames = FrameCaptioner(captioner)
    first, _ = frames.caption(room())
    with pytest.raises(ImageError, match="cannot be read"):
        frames.caption(as_jpeg(with_person(room(), 150))[:2000])
    with pytest.raises(OptionsError, match="at most"):
        frames.caption(with_person(room(), 150), DecodingOptions(max_length=toy_bundle.LENGTH + 1))
    again, changed = frames.caption(room())
    assert again is first
    assert not changed


# The benchmark that the threshold rests on


def test_frame_margins(tmp_path: Path) -> None:
    paths = []
    for seed in range(2):
        paths.append(str(tmp_path / f"{seed}.png"))
        Image.fromarray(room(seed)).save(paths[-1])
    result = CliRunner().invoke(main, [*paths, "--figures", "2", "--json"])
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["photographs"] == 2
    rows = found["distances"]
    assert rows["noise of sigma 3"]["greatest"] < rows["noise of sigma 8"]["greatest"] < THRESHOLD
    assert rows["noise of sigma 3"]["noticed"] == 0
    assert rows["a figure of 4.0%"]["frames"] == 4
    assert rows["a figure of 4.0%"]["median"] > rows["noise of sigma 8"]["greatest"]
    assert "noticed" in CliRunner().invoke(main, [*paths, "--figures", "1"]).stdout
