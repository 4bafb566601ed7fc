"""The GPU job from packing to an exported bundle, on the CPU with drawings and a tiny encoder, without TensorFlow."""

import json
import os
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from drawings import TINY_PRESET, draw, write_drawings
from safetensors.numpy import load_file

from captionlite.benchmarks.gpu_job import MAX_FILES, NOT_FINISHED, main
from captionlite.benchmarks.gpu_pack import pack, read_pack, unpack
from captionlite.benchmarks.gpu_weights import import_weights, write_weights
from captionlite.benchmarks.model_identity import describe_run
from captionlite.benchmarks.results import read_result
from captionlite.export.exporter import export_run
from captionlite.export.recipes import recipe
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.errors import CaptionliteError
from captionlite.training.config import DataConfig, parse_data
from captionlite.training.run import load_run

pytest.importorskip("jax", reason="the GPU job runs on JAX")

EPOCHS = 8
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile, not to run
CALL_MIB = 0.014


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawings(tmp_path_factory.mktemp("drawings") / "drawn")


@pytest.fixture(scope="module")
def folders(drawings: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    out = tmp_path_factory.mktemp("pack") / "in"
    return pack([(f"jsonl:{drawings}", 2.0)], out, call_mib=CALL_MIB, packages=["namex"])


def environment(folder: Path) -> dict[str, str]:
    """Of processes that have an encoder named "tiny" and in which importing TensorFlow fails and leaves a file."""
    path = folder / "path"
    if not path.exists():
        (path / "tensorflow").mkdir(parents=True)
        (path / "sitecustomize.py").write_text("import drawings\n")
        (path / "tensorflow" / "__init__.py").write_text(
            f"open({str(folder / 'tensorflow-was-imported')!r}, 'w').close()\nraise ImportError('not here')\n"
        )
    pythonpath = os.pathsep.join([str(path), str(Path(__file__).parents[1])])
    return {**os.environ, "PYTHONPATH": pythonpath, "JAX_PLATFORMS": "cpu", "KERAS_BACKEND": "jax", "XLA_FLAGS": QUICK}


def job(folder: Path, *arguments: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "captionlite.benchmarks.gpu_job", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, env=environment(folder), cwd=folder)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture(scope="module")
def finished(folders: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The work folder of a whole job, in three calls, its training stopped in between."""
    root = tmp_path_factory.mktemp("gpu")
    (root / "tiny.json").write_text(json.dumps({**TINY_PRESET, "epochs": EPOCHS, "patience": EPOCHS}))
    options = (
        "--work",
        "work",
        "--job",
        "tiny.json",
        "--batch",
        "1",
        "--batch",
        "3",
        "--repeats",
        "4",
        "--tokens",
        "5",
        "--photos",
        "photos",
        "--bench-captions",
        "5",
        "--bench-seconds",
        "0",
    )
    (root / "photos").mkdir()
    for number, place in enumerate(("left", "right")):
        draw("red", "circle", place).save(root / "photos" / f"{number}.png")
    first = job(root, "run", "--incoming", str(folders[0]), "--out", "out1", *options)
    assert first["open"] == ["features", "train-tiny", "bench-tiny"]  # not all photographs are there
    rest = [argument for folder in folders[1:] for argument in ("--incoming", str(folder))]
    second = job(root, "run", *rest, "--out", "out2", "--budget-s", "0", *options)
    assert second["open"] == ["features", "train-tiny", "bench-tiny"]  # no time

    settings = {"work": str(root / "work"), "jobs": ["tiny.json"], "overrides": [], "encoder_weights": {}}
    settings |= {"albert": None, "batches": [1], "repeats": 1, "seconds": 1, "tokens": 5}
    settings |= {"photos": [], "bench_captions": 1, "bench_seconds": 0}
    stage = [sys.executable, "-m", "captionlite.benchmarks.gpu_job", "stage", "train-tiny", json.dumps(settings)]
    process = subprocess.Popen(stage, env=environment(root), cwd=root, stdout=subprocess.DEVNULL)
    try:
        while not (root / "work/runs/tiny/history.json").exists():
            assert process.poll() is None
            time.sleep(0.01)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == NOT_FINISHED
    finally:
        process.kill()
    stopped_after = len(json.loads((root / "work/runs/tiny/history.json").read_text()))
    assert stopped_after < EPOCHS
    third = job(root, "run", "--out", "out3", *options)
    assert third["open"] == []
    return root


def test_folders_keep_to_their_size_and_unpack_to_the_same_data_set(
    drawings: Path, folders: list[Path], tmp_path: Path
) -> None:
    assert len(folders) >= 2
    for folder in folders:
        assert sum(file.stat().st_size for file in folder.iterdir()) <= CALL_MIB * 2**20
    unpack(folders[0], tmp_path)
    packed, missing = read_pack(tmp_path)
    assert [(each.name, each.weight, each.photographs) for each in packed] == [("drawn", 2.0, 24)]
    assert "of 24 photographs are there" in missing[0]
    for folder in (*folders, folders[0]):
        unpack(folder, tmp_path)
    assert read_pack(tmp_path)[1] == []
    for photo in (drawings.parent / "images").iterdir():
        assert (tmp_path / "data/drawn/images" / photo.name).read_bytes() == photo.read_bytes()
    assert (tmp_path / "site/namex/__init__.py").is_file()


def test_packing_refuses_what_cannot_travel(drawings: Path, folders: list[Path], tmp_path: Path) -> None:
    spec = f"jsonl:{drawings}"
    with pytest.raises(CaptionliteError, match="not empty"):
        pack([(spec, 1.0)], folders[0].parent)
    with pytest.raises(CaptionliteError, match="no_such_package: not installed here"):
        pack([(spec, 1.0)], tmp_path / "a", packages=["no_such_package"])
    with pytest.raises(CaptionliteError, match="without a photograph; raise --call-mib"):
        pack([(spec, 1.0)], tmp_path / "b", packages=[], call_mib=0.0001)
    with pytest.raises(CaptionliteError, match="named drawn is packed already"):
        pack([(spec, 1.0), (spec, 1.0)], tmp_path / "c", packages=[])
    (tmp_path / "photos.zip").write_bytes(b"PK")
    with pytest.raises(CaptionliteError, match=r"photos\.zip: not a whole zip"):
        unpack(tmp_path, tmp_path / "work")


def test_only_python_and_weights_of_packages_travel(folders: list[Path]) -> None:
    with zipfile.ZipFile(folders[0] / "site.zip") as archive:
        assert {Path(name).suffix for name in archive.namelist()} == {".py"}


def test_a_job_in_three_calls_measures_trains_and_never_imports_tensorflow(finished: Path) -> None:
    results = json.loads((finished / "out3/results.json").read_text())
    assert results["stages"].keys() == {"environment", "time-tiny", "features", "train-tiny", "bench-tiny"}
    assert results["unfinished"] == {}
    assert not any(stage["tensorflow_imported"] for stage in results["stages"].values())
    assert not (finished / "tensorflow-was-imported").exists()
    machine = results["stages"]["environment"]
    assert machine["devices"][0].startswith("cpu")
    assert {"jax", "keras", "numpy"} <= machine["versions"].keys()

    timing = results["stages"]["time-tiny"]
    assert [record["batch"] for record in timing["captions"]] == [1, 3]
    for record in (*timing["captions"], *timing["training_step"]):
        assert 3 <= len(record["samples_ms"]) <= 4
        assert 0 < min(record["samples_ms"]) <= record["median_ms"] <= record["p90_ms"]
    assert [record["precision"] for record in timing["training_step"]] == ["float32", "mixed_bfloat16"]

    assert results["stages"]["features"]["extracted"] == [
        {"encoder": "tiny", "photographs": 48, "seconds": results["stages"]["features"]["extracted"][0]["seconds"]}
    ]
    trained = results["stages"]["train-tiny"]
    assert [record["epoch"] for record in trained["history"]] == list(range(1, EPOCHS + 1))
    assert trained["history"][-1]["train"]["loss"] < trained["history"][0]["train"]["loss"]
    assert len(list((finished / "out3").iterdir())) <= MAX_FILES


def test_what_was_trained_is_measured_and_comes_home_as_a_result(
    finished: Path, drawings: Path, tmp_path: Path
) -> None:
    """Whose model is the one that the imported weights are, so that its bundle's result may be compared."""
    folder = tmp_path / "results"
    folder.mkdir()
    done = CliRunner().invoke(main, ["import-results", str(finished / "out3/results.json"), "--out", str(folder)])
    assert done.exit_code == 0, done.output
    result = read_result(folder / "gpu-tiny.json")
    assert (result.target, result.complete, result.photographs.count) == ("gpu", True, 2)
    assert result.protocol.captions == len(result.samples.whole_ms) == 5
    assert result.batch is not None
    assert [record["batch"] for record in result.batch["batches"]] == [1, 3]
    assert result.machine["accelerator"]["backend"] == "jax"
    assert "measured on the cpu because of --allow-cpu" in result.notes[0]
    import_weights([finished / "out3/tiny.safetensors"], tmp_path / "run", [DataConfig(f"jsonl:{drawings}")])
    assert describe_run(load_run(tmp_path / "run")).id == result.model.id


def test_results_without_a_benchmark_are_refused(tmp_path: Path) -> None:
    (tmp_path / "results.json").write_text('{"version": 1, "stages": {"environment": {}}}')
    done = CliRunner().invoke(main, ["import-results", str(tmp_path / "results.json"), "--out", str(tmp_path)])
    assert done.exit_code == 1
    assert "no benchmark has been finished; it has environment" in done.output


def test_weights_come_home_as_a_run_that_exports(finished: Path, drawings: Path, tmp_path: Path) -> None:
    data = [DataConfig(f"jsonl:{drawings}")]
    import_weights([finished / "out3/tiny.safetensors"], tmp_path / "run", data)
    found, expected = (load_file(d / "best.safetensors") for d in (tmp_path / "run", finished / "work/runs/tiny"))
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_allclose(found[name], value, rtol=1e-3, atol=1e-7)
    run = load_run(tmp_path / "run")
    assert run.config.data == tuple(data)
    assert run.best["datasets"][0]["licence"] == "as stated by whoever supplied the data"
    assert (tmp_path / "run/curves.png").read_bytes().startswith(b"\x89PNG")
    photograph = next((drawings.parent / "images").glob("*.png"))
    export_run(run, recipe("float32"), tmp_path / "bundle", photographs=run.training_photographs(4))
    assert Captioner.from_bundle(tmp_path / "bundle").caption(photograph).text == run.caption(photograph)


def test_weights_in_parts_and_what_is_wrong_with_parts(finished: Path, tmp_path: Path) -> None:
    run = finished / "work/runs/tiny"
    parts = write_weights(run, tmp_path, "tiny", 16_000, {"drawn": "CC0"})
    assert len(parts) >= 2
    assert max(part.stat().st_size for part in parts) <= 16_000
    import_weights(parts[::-1], tmp_path / "run")
    assert load_run(tmp_path / "run").best["datasets"][0]["licence"] == "CC0"
    for files, message in ((parts[1:], "give every part"), ([parts[0], *parts], "give every part")):
        with pytest.raises(CaptionliteError, match=message):
            import_weights(files, tmp_path / "other")
    other = write_weights(run, tmp_path, "other", 16_000, {"drawn": "CC BY"})
    with pytest.raises(CaptionliteError, match="of another run than"):
        import_weights([parts[0], *other[1:]], tmp_path / "other")
    parts[0].write_bytes(parts[0].read_bytes()[:-5])
    with pytest.raises(CaptionliteError, match="cannot be read"):
        import_weights(parts, tmp_path / "other")
    with pytest.raises(CaptionliteError, match="not written by the GPU job"):
        import_weights([run / "best.safetensors"], tmp_path / "other")
    with pytest.raises(CaptionliteError, match="exists already"):
        import_weights(parts, tmp_path / "run")
    with pytest.raises(CaptionliteError, match="the limit is 100"):
        write_weights(run, tmp_path, "tiny", 100, {})


def test_one_program_captions_as_the_step_by_step_loop_does(tmp_path: Path) -> None:
    """For each family, on JAX: the same tokens as KerasGenerator's."""
    done = subprocess.run([sys.executable, "-c", _SAME], capture_output=True, text=True, env=environment(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["transformer", "lstm", "gru_attention", "masked_lm"]


_SAME = """
import numpy as np
from captionlite.benchmarks.gpu_timing import caption_program
from captionlite.training.encoders import build_encoder
from captionlite.training.families import build_family
from captionlite.training.generate import KerasGenerator
families = [
    {"name": "transformer", "layers": 1, "units": 16, "heads": 2, "key_dim": 8, "feed_forward": 16, "max_length": 7},
    {"name": "lstm", "units": 12, "max_length": 6},
    {"name": "gru_attention", "units": 12, "embedding": 8, "attention": 8, "max_length": 6},
    {"name": "masked_lm", "text": "transformer", "layers": 1, "units": 16, "heads": 2, "feed_forward": 16,
     "embedding": 16, "max_length": 6, "prefix_attention": "causal", "memory_layers": 1, "image_grid": 1},
]
ids = {"start_id": 2, "end_id": 3, "suppressed_ids": (0, 1, 2)}
encoder = build_encoder("tiny", None)
rng = np.random.default_rng(0)
pixels = rng.integers(0, 256, (4, 32, 32, 3), np.uint8)
for family in families:
    model = build_family(family, (4, 4, 24), 11)
    for variable in model.trainable_variables:  # words differ, and some captions end before others
        variable.assign(rng.normal(0, 0.9, variable.shape))
    generated = KerasGenerator(model, **ids).generate(np.asarray(encoder(pixels.astype("float32"), training=False)))
    rows = caption_program(encoder, model, **ids)(pixels)
    found = [list(row[: list(row).index(3)] if 3 in row else row) for row in rows]
    assert found == generated, (family, found, generated)
    whole = caption_program(encoder, model, **ids, length=5)(pixels)
    assert whole.shape == (4, 5) and 3 not in whole
    print(family["name"])
"""


def test_outside_its_stages_the_job_needs_no_keras(tmp_path: Path) -> None:
    """It is carried to the GPU's machine in site.zip, which only the stages have on their path."""
    code = "import sys, captionlite.benchmarks.gpu_job, captionlite.benchmarks.gpu_weights; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert not set(done.stdout.split()) & {"keras", "jax", "tensorflow", "tokenizers", "matplotlib"}


def test_data_with_a_weight() -> None:
    assert parse_data("flickr8k:/a@2") == DataConfig("flickr8k:/a", 2.0)
    assert parse_data("jsonl:/a@b/c.jsonl") == DataConfig("jsonl:/a@b/c.jsonl", 1.0)
    assert parse_data("coco2014:/a?captions=30000&dev=0.2@0.5") == DataConfig("coco2014:/a?captions=30000&dev=0.2", 0.5)
