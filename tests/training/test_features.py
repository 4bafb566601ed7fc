"""The feature cache: right, the same bit for bit after any kill, shared by processes, honest about bad photographs."""

import hashlib
import importlib.util
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from PIL import Image

from captionlite.runtime.image import load_image
from captionlite.runtime.manifest import ImageSpec
from captionlite.training import extraction, features
from captionlite.training.datasets.base import Example
from captionlite.training.encoder_weights import save_encoder_weights
from captionlite.training.encoders import ENCODERS, EncoderSpec, build_encoder
from captionlite.training.errors import FeatureError, WeightsError
from captionlite.training.extraction import BATCH
from captionlite.training.features import FEATURES, INDEX, FeatureStore, extract_features
from captionlite.training.progress import progress, silent

TINY = "tiny"


def build_tiny(weights: str | None) -> Any:
    assert weights is None
    image = keras.Input((32, 32, 3), name="image")
    x = keras.layers.Rescaling(1 / 128, offset=-1.0)(image)
    x = keras.layers.Conv2D(8, 3, strides=4, padding="same", use_bias=False, name="conv")(x)
    x = keras.layers.BatchNormalization(name="bn")(x)
    return keras.Model(image, keras.layers.ReLU(name="relu")(x))


@pytest.fixture(autouse=True)
def tiny(monkeypatch: pytest.MonkeyPatch) -> EncoderSpec:
    spec = EncoderSpec(TINY, (32, 32), (8, 8, 8), "pixel / 128 - 1", build_tiny)
    monkeypatch.setitem(ENCODERS, TINY, spec)
    return spec


def draw_photos(folder: Path, count: int) -> list[Example]:
    folder.mkdir(exist_ok=True)
    generator = np.random.default_rng(7)
    examples = []
    for number in range(count):
        path = folder / f"{number:04d}.png"
        Image.fromarray(generator.integers(0, 256, (8, 12, 3), np.uint8)).save(path)
        examples.append(Example(path, ("a drawing",), path.name))
    return examples


def extract(examples: list[Example], cache: Path, **options: Any) -> FeatureStore:
    return extract_features(TINY, options.pop("weights", None), examples, cache, **{"progress": silent, **options})


def tree_hash(folder: Path) -> str:
    digest = hashlib.sha256()
    for path in sorted(folder.iterdir()):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def leftovers(cache: Path) -> list[str]:
    return [path.name for path in cache.rglob("*") if ".partial" in path.name or path.suffix in (".tmp", ".jsonl")]


class Counted:
    """A progress that counts extractions, and stops one after some photographs."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.starts: list[tuple[int, int]] = []
        self.advanced = 0
        self._stop_after = stop_after

    @contextmanager
    def __call__(self, total: int, label: str, done: int = 0) -> Iterator[Callable[[int], None]]:
        self.starts.append((total, done))
        yield self._advance

    def _advance(self, count: int) -> None:
        self.advanced += count
        if self._stop_after is not None and self.advanced >= self._stop_after:
            raise KeyboardInterrupt


def test_features_are_the_encoders_on_the_runtimes_pixels(tmp_path: Path) -> None:
    examples = draw_photos(tmp_path / "photos", BATCH + 5)
    encoder = build_encoder(TINY, None)
    pixels = np.stack([load_image(example.image, ImageSpec(32, 32)) for example in examples])
    for flipped in (False, True):
        store = extract(examples, tmp_path / "cache", copy=int(flipped))
        assert store.shape == (BATCH + 5, 8, 8, 8)
        assert store.ids == tuple(example.id for example in examples)
        seen = pixels[:, :, ::-1] if flipped else pixels
        expected = keras.ops.convert_to_numpy(encoder(seen.astype(np.float32), training=False))
        rows = store.rows(store.ids)
        assert rows.dtype == np.float16
        np.testing.assert_allclose(rows.astype(np.float32), expected, atol=2e-3, rtol=2e-3)
    assert leftovers(tmp_path / "cache") == []


def test_a_finished_cache_is_read_without_building_an_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = draw_photos(tmp_path / "photos", 3)
    first = extract(examples, tmp_path / "cache")
    monkeypatch.setattr(extraction, "build_encoder", lambda *_: pytest.fail("encoder built again"))
    counted = Counted()
    again = extract(examples, tmp_path / "cache", progress=counted)
    assert counted.starts == []
    assert again.folder == first.folder
    assert isinstance(again.array, np.memmap)


def test_rows_come_in_the_order_asked_for(tmp_path: Path) -> None:
    examples = draw_photos(tmp_path / "photos", 5)
    store = extract(examples, tmp_path / "cache")
    ids = [examples[i].id for i in (3, 0, 3)]
    np.testing.assert_array_equal(store.rows(ids), store.array[[3, 0, 3]])
    assert examples[0].id in store
    assert "other.png" not in store
    assert len(store) == 5
    with pytest.raises(FeatureError, match=r"no features of other\.png: not extracted here"):
        store.rows(["other.png"])


def test_everything_that_changes_features_changes_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = draw_photos(tmp_path / "photos", 3)
    cache = tmp_path / "cache"
    names = [extract(examples, cache).folder.name, extract(examples, cache, copy=1).folder.name]
    names.append(extract(examples[:2], cache).folder.name)
    names.append(extract(examples[::-1], cache).folder.name)
    save_encoder_weights(build_encoder(TINY, None), tmp_path / "w.npz")
    names.append(extract(examples, cache, weights=tmp_path / "w.npz").folder.name)
    other = EncoderSpec(TINY, (32, 32), (8, 8, 8), "something else", build_tiny)
    with monkeypatch.context() as patched:
        patched.setitem(ENCODERS, TINY, other)
        names.append(extract(examples, cache).folder.name)
    # The same size and time, another photograph.
    time_ns = examples[1].image.stat().st_mtime_ns
    content = examples[1].image.read_bytes()
    examples[1].image.write_bytes(content[:-1] + b"!")
    os.utime(examples[1].image, ns=(time_ns, time_ns))
    names.append(extract(examples, cache).folder.name)
    assert len(set(names)) == len(names)
    examples[1].image.write_bytes(content)
    assert extract(examples, cache).folder.name == names[0]


def test_a_copy_of_the_photographs_elsewhere_uses_the_same_cache(tmp_path: Path) -> None:
    one = extract(draw_photos(tmp_path / "one", 3), tmp_path / "cache")
    two = extract(draw_photos(tmp_path / "two", 3), tmp_path / "cache")
    assert one.folder == two.folder


def test_bad_photographs_are_skipped_listed_and_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    examples = draw_photos(tmp_path / "photos", BATCH + 3)
    clean = extract(examples, tmp_path / "cache")
    examples[2].image.write_bytes(b"no photograph")
    examples[BATCH].image.unlink()
    examples[BATCH + 2].image.write_bytes(examples[BATCH + 2].image.read_bytes()[:60])
    store = extract(examples, tmp_path / "cache")
    bad = [examples[i].id for i in (2, BATCH, BATCH + 2)]
    assert list(store.undecodable) == bad
    assert not any(photo in store for photo in bad)
    assert len(store) == BATCH
    assert all(str(examples[i].image) in store.undecodable[examples[i].id] for i in (2, BATCH))
    assert sum("skipped" in record.message for record in caplog.records) == 3
    assert not store.array[2].any()
    good = [example.id for example in examples if example.id not in bad]
    np.testing.assert_array_equal(store.rows(good), clean.rows(good))
    with pytest.raises(FeatureError, match=f"no features of {bad[0]}: it does not decode"):
        store.rows([bad[0]])


def test_interrupted_work_is_kept_and_comes_out_the_same(tmp_path: Path) -> None:
    examples = draw_photos(tmp_path / "photos", 4 * BATCH + 7)
    examples[BATCH + 1].image.write_bytes(b"no photograph")
    whole = extract(examples, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        extract(examples, tmp_path / "cut", progress=Counted(stop_after=2 * BATCH))
    assert leftovers(tmp_path / "cut")
    counted = Counted()
    resumed = extract(examples, tmp_path / "cut", progress=counted)
    assert counted.starts == [(4 * BATCH + 7, 2 * BATCH)]
    assert counted.advanced == 2 * BATCH + 7
    assert resumed.undecodable == whole.undecodable
    assert tree_hash(resumed.folder) == tree_hash(whole.folder)
    assert leftovers(tmp_path / "cut") == []


def tear_last_line(partial: Path) -> None:
    journal = partial / "journal.jsonl"
    journal.write_bytes(journal.read_bytes()[:-9])


def add_nonsense(partial: Path) -> None:
    lines = ["\n", "{}\n", '[99, "00", []]\n', '[-1, "00", []]\n', '[0, "00", []]\n', "\xff\0\n", "[[], 1, 2]\n"]
    with (partial / "journal.jsonl").open("a", encoding="latin-1") as stream:
        stream.writelines(lines)


def lose_features(partial: Path) -> None:
    """What a power cut does: the journal reached the disk, the features of a batch did not."""
    with (partial / FEATURES).open("r+b") as stream:
        stream.seek(128 + BATCH * 8 * 8 * 8 * 2)
        stream.write(bytes(100))


def truncate_features(partial: Path) -> None:
    os.truncate(partial / FEATURES, 1000)


def lose_file(partial: Path) -> None:
    (partial / FEATURES).unlink()


def lose_journal(partial: Path) -> None:
    (partial / "journal.jsonl").unlink()


def other_header(partial: Path) -> None:
    with (partial / FEATURES).open("r+b") as stream:
        stream.write(b"\x00")


@pytest.mark.parametrize(
    ("damage", "batches_kept"),
    [
        (tear_last_line, 2),
        (add_nonsense, 3),
        (lose_features, 2),
        (truncate_features, 0),
        (lose_file, 0),
        (lose_journal, 0),
        (other_header, 0),
    ],
)
def test_damage_to_unfinished_work_is_made_good(
    tmp_path: Path, damage: Callable[[Path], None], batches_kept: int
) -> None:
    examples = draw_photos(tmp_path / "photos", 4 * BATCH)
    whole = extract(examples, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        extract(examples, tmp_path / "cut", progress=Counted(stop_after=3 * BATCH))
    (partial,) = (tmp_path / "cut").glob("*.partial")
    damage(partial)
    counted = Counted()
    resumed = extract(examples, tmp_path / "cut", progress=counted)
    assert counted.starts == [(4 * BATCH, batches_kept * BATCH)]
    assert tree_hash(resumed.folder) == tree_hash(whole.folder)


def test_a_kill_between_the_index_and_the_rename_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = draw_photos(tmp_path / "photos", BATCH)

    def killed(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(features.os, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            extract(examples, tmp_path / "cache")
    counted = Counted()
    extract(examples, tmp_path / "cache", progress=counted)
    assert counted.starts == [(BATCH, BATCH)]
    assert leftovers(tmp_path / "cache") == []


@pytest.mark.parametrize("file_name", [FEATURES, INDEX])
@pytest.mark.parametrize("content", [None, b"", b"\x93NUMPY\x01\x00v\x00{'descr'", b"[1]", b"{}"])
def test_a_damaged_finished_cache_is_named(tmp_path: Path, file_name: str, content: bytes | None) -> None:
    examples = draw_photos(tmp_path / "photos", 2)
    folder = extract(examples, tmp_path / "cache").folder
    (folder / file_name).unlink()
    if content is not None:
        (folder / file_name).write_bytes(content)
    with pytest.raises(FeatureError, match="delete that folder") as error:
        extract(examples, tmp_path / "cache")
    assert str(folder) in str(error.value)


def test_an_index_of_other_photographs_is_refused(tmp_path: Path) -> None:
    folder = extract(draw_photos(tmp_path / "photos", 2), tmp_path / "cache").folder
    index = json.loads((folder / INDEX).read_text())
    (folder / INDEX).write_text(json.dumps({**index, "ids": ["0000.png"]}))
    with pytest.raises(FeatureError, match=r"float16 \(2, 8, 8, 8\), expected float16 \(1, h, w, C\)"):
        FeatureStore.open(folder)


def test_features_beyond_float16_are_refused(tmp_path: Path) -> None:
    encoder = build_encoder(TINY, None)
    encoder.get_layer("bn").set_weights([np.full(8, value, np.float32) for value in (1e6, 1e6, 0, 1)])
    save_encoder_weights(encoder, tmp_path / "large.npz")
    with pytest.raises(FeatureError, match=r"0000\.png: tiny gives features .* beyond float16.*large\.npz"):
        extract(draw_photos(tmp_path / "photos", 2), tmp_path / "cache", weights=tmp_path / "large.npz")


def test_what_cannot_be_extracted_says_why(tmp_path: Path) -> None:
    photos = draw_photos(tmp_path / "photos", 2)
    with pytest.raises(FeatureError, match="the list of examples is empty"):
        extract([], tmp_path / "cache")
    with pytest.raises(FeatureError, match=r"its id '0000\.png' is also that of"):
        extract([photos[0], Example(photos[1].image, ("x",), "0000.png")], tmp_path / "cache")
    with pytest.raises(WeightsError, match="resnet: not an encoder"):
        extract_features("resnet", None, photos, tmp_path / "cache")
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(FeatureError, match="choose another cache folder"):
        extract(photos, tmp_path / "file")


def test_a_full_disk_is_reported_and_the_work_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    examples = draw_photos(tmp_path / "photos", 3 * BATCH)
    calls = []

    def digest(data: bytes) -> str:
        calls.append(len(data))
        if len(calls) == 2:
            raise OSError(28, "No space left on device")
        return hashlib.blake2b(data, digest_size=16).hexdigest()

    with monkeypatch.context() as patched:
        patched.setattr(extraction, "_digest", digest)
        with pytest.raises(FeatureError, match=r"No space left on device. They need \d+ MiB"):
            extract(examples, tmp_path / "cache")
    counted = Counted()
    extract(examples, tmp_path / "cache", progress=counted)
    assert counted.starts == [(3 * BATCH, BATCH)]


def test_progress_prints_a_line_now_and_then_when_it_is_no_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now_s = [0.0]
    monkeypatch.setattr("captionlite.training.progress.time.monotonic", lambda: now_s[0])
    with progress(8000, "features", done=1000) as advance:
        for _ in range(25):
            now_s[0] += 1.0
            advance(100)
    output = capsys.readouterr()
    assert output.out == ""
    assert output.err.splitlines() == [
        "features: 2000/8000, 25 %, 100/s, 1 min 0 s left",
        "features: 3000/8000, 37 %, 100/s, 50 s left",
    ]


# What a separate process runs: the tiny encoder, extraction, and a line before and after.
SCRIPT = """
import sys, json
from pathlib import Path
import importlib.util
spec = importlib.util.spec_from_file_location("test_features", sys.argv[1])
tests = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tests)
tests.ENCODERS["tiny"] = tests.EncoderSpec("tiny", (32, 32), (8, 8, 8), "pixel / 128 - 1", tests.build_tiny)
examples = [tests.Example(path, ("x",), path.name) for path in sorted(Path(sys.argv[2]).iterdir())]
counted = tests.Counted()
print("ready", flush=True)
store = tests.extract(examples, Path(sys.argv[3]), progress=counted)
loaded = sorted({"tensorflow", "jax", "torch"} & set(sys.modules))
print(json.dumps({"folder": str(store.folder), "starts": counted.starts, "loaded": loaded}), flush=True)
"""


def start(photos: Path, cache: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", SCRIPT, __file__, str(photos), str(cache)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "CUDA_VISIBLE_DEVICES": "", **environment},
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    result: dict[str, Any] = json.loads(output.splitlines()[-1])
    return result


def test_kill_9_at_random_moments_then_the_same_bytes(tmp_path: Path) -> None:
    photos, cache = tmp_path / "photos", tmp_path / "cache"
    examples = draw_photos(photos, 40 * BATCH + 3)
    seed = random.randrange(1 << 32)
    chance = random.Random(seed)
    for attempt in range(3):
        process = start(photos, cache)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        if attempt == 0:  # one kill surely amid the work, the others anywhere
            wait_for_journal(cache, lines=3)
        else:
            time.sleep(chance.uniform(0.0, 1.5))
        process.send_signal(signal.SIGKILL)
        process.communicate()
    result = finish(start(photos, cache))
    (_, done), *_ = result["starts"] or [(0, len(examples))]
    assert done >= 2 * BATCH, f"nothing was kept (seed {seed})"
    whole = extract(examples, tmp_path / "whole")
    assert tree_hash(Path(result["folder"])) == tree_hash(whole.folder), f"seed {seed}"
    assert leftovers(cache) == []


def wait_for_journal(cache: Path, lines: int) -> None:
    for _ in range(6000):
        for journal in cache.glob("*/journal.jsonl"):
            if journal.read_bytes().count(b"\n") >= lines:
                return
        time.sleep(0.005)
    pytest.fail("the extraction never wrote its journal")


def test_two_processes_at_once_extract_once(tmp_path: Path) -> None:
    photos, cache = tmp_path / "photos", tmp_path / "cache"
    draw_photos(photos, 20 * BATCH)
    processes = [start(photos, cache) for _ in range(2)]
    results = [finish(process) for process in processes]
    assert results[0]["folder"] == results[1]["folder"]
    assert sorted(len(result["starts"]) for result in results) == [0, 1]
    assert leftovers(cache) == []


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_jax_extracts_without_importing_tensorflow(tmp_path: Path) -> None:
    photos = tmp_path / "photos"
    examples = draw_photos(photos, 5)
    result = finish(start(photos, tmp_path / "jax", KERAS_BACKEND="jax"))
    assert result["loaded"] == ["jax"]
    store, here = FeatureStore.open(Path(result["folder"])), extract(examples, tmp_path / "here")
    np.testing.assert_allclose(store.rows(store.ids), here.rows(here.ids), atol=4e-3, rtol=4e-3)
    if keras.backend.backend() != "jax":
        assert store.folder.name != here.folder.name, "the backends round differently and must not share a cache"
