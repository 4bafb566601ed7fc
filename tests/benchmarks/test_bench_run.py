"""`captionlite bench run` on a toy bundle and a tiny Keras model: counts, fields, refusals, Ctrl-C."""

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import keras
import pytest
import toy_bundle as toy
from click.testing import CliRunner, Result
from drawings import write_drawings
from machines import lay_out
from PIL import Image
from untrained import untrained

from captionlite.benchmarks import keras_target, targets
from captionlite.benchmarks.commands import bench as bench_group
from captionlite.benchmarks.commands import bench_run
from captionlite.benchmarks.edge_target import WatchedCaptioner, edge_subject
from captionlite.benchmarks.keras_target import KerasPrograms, describe_device
from captionlite.benchmarks.latency import FULL, Limits, Timed
from captionlite.benchmarks.results import read_result
from captionlite.benchmarks.session import Plan, measure
from captionlite.benchmarks.targets import edge_target, gpu_target
from captionlite.runtime import captioner as captioner_module
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.cli import LazyCommand, cli
from captionlite.training import run as run_module
from captionlite.training.run import Run

COUNT = 3


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "toy"
    toy.write(path)
    return path


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    for number, pixels in enumerate(toy.photographs(COUNT)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
    return folder


@pytest.fixture
def bench(bundle: Path, photos: Path) -> Callable[..., Result]:
    def invoke(*arguments: str) -> Result:
        always = ["bench", "run", "--bundle", str(bundle), "--photos", str(photos)]
        return CliRunner().invoke(cli, [*always, *arguments])

    return invoke


FEW = ("--captions", "7", "--seconds", "0", "--cold-starts", "0")


def test_the_group_lists_commands_without_importing_them_and_only_those_that_are_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    code = "from captionlite.runtime.cli import cli; cli.main(['bench', '--help'], standalone_mode=False)"
    code += "; import sys; print('loaded:', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    told, loaded = done.stdout.split("loaded:")
    assert "Measure captions on this machine." in told
    assert not {"captionlite.benchmarks.commands.bench_run", "numpy", "rich"} & set(loaded.split())
    nowhere = LazyCommand("captionlite.benchmarks.commands.bench_nowhere", "Never.", "bench")
    monkeypatch.setitem(bench_group.COMMANDS, "nowhere", nowhere)
    assert "Never." not in CliRunner().invoke(cli, ["bench", "--help"]).stdout
    refused = CliRunner().invoke(cli, ["bench", "nowhere"])
    assert (refused.exit_code, "No such command" in refused.stderr) == (2, True)


def test_a_result_has_what_was_asked_for_and_says_of_what(
    bench: Callable[..., Result], bundle: Path, photos: Path, tmp_path: Path
) -> None:
    out = tmp_path / "a.json"
    done = bench(*FEW, "--threads", "1", "--out", str(out), "--json")
    assert done.exit_code == 0, done.output
    result = read_result(out)
    assert json.loads(done.stdout) == result.to_json()
    assert (result.target, result.complete, result.kind) == ("edge", True, "latency")
    protocol = result.protocol
    assert (protocol.captions, protocol.min_captions, protocol.min_seconds, protocol.sampled_every) == (7, 7, 0.0, 1)
    assert (protocol.name, protocol.quick, protocol.decoding) == ("single-stream", False, "greedy")
    assert (protocol.encoder_threads, protocol.decoder_threads, protocol.warm_up) == (1, 1, FULL.warm_up)
    said = [len(toy.decode(pixels).tokens) for pixels in toy.photographs(COUNT)]
    assert result.samples.tokens == tuple((said * 3)[:7])
    assert result.batch is not None
    assert (result.batch["way"], result.batch["captions"]) == ("caption_many", 7)
    assert (result.cold_start, result.peak_memory_bytes, result.soak) == (None, None, None)
    assert result.energy == {"unavailable": "not asked for; give --energy"}
    assert (result.model.family, result.model.recipe) == ("toy", "float32")
    assert result.model.graphs_bytes["decoder"] == (bundle / "decoder.tflite").stat().st_size
    digests = (hashlib.sha256(path.read_bytes()).digest() for path in sorted(photos.iterdir()))
    assert result.photographs.sha256 == hashlib.sha256(b"".join(digests)).hexdigest()
    assert (result.photographs.count, result.photographs.source) == (COUNT, str(photos))
    assert result.machine["cores"] >= 1
    assert result.machine["load_average"].keys() == {"before", "after"}


def test_photographs_may_be_files_after_the_option(bundle: Path, photos: Path, tmp_path: Path) -> None:
    files = [str(path) for path in sorted(photos.iterdir(), reverse=True)]
    arguments = ["bench", "run", "--bundle", str(bundle), "--photos", *files, *FEW, "--json"]
    done = CliRunner().invoke(cli, arguments)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    said = [len(toy.decode(pixels).tokens) for pixels in reversed(toy.photographs(COUNT))]
    assert found["samples"]["tokens"][:COUNT] == said  # in the order given


def test_the_stages_add_up_to_the_whole_and_the_caption_is_the_captioners(bundle: Path, photos: Path) -> None:
    captioner = WatchedCaptioner.from_bundle(bundle)
    assert isinstance(captioner, WatchedCaptioner)
    subject = edge_subject(captioner)
    for path in photos.iterdir():
        timed = subject(path.read_bytes())
        assert timed.text == Captioner.from_bundle(bundle).caption(path).text
        parts = (timed.image_ms, timed.encode_ms, timed.decode_ms, timed.post_ms)
        assert sum(parts) == pytest.approx(timed.whole_ms)
        assert min(parts) > 0


def test_stages_are_what_passed_between_their_ends(bundle: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a clock that ticks once whenever it is asked."""
    captioner = WatchedCaptioner.from_bundle(bundle)
    assert isinstance(captioner, WatchedCaptioner)
    ticks = iter(range(1000))
    monkeypatch.setattr(captioner_module, "perf_counter", lambda: next(ticks))
    monkeypatch.setattr("captionlite.benchmarks.edge_target.perf_counter", lambda: next(ticks))
    timed = edge_subject(captioner)(next(photos.iterdir()).read_bytes())
    # asked: whole begins, image begins, image ends, encode ends, decode begins, decoded, caption made, whole ends
    assert (timed.image_ms, timed.encode_ms, timed.post_ms, timed.whole_ms) == (1000.0, 1000.0, 2000.0, 7000.0)
    assert timed.decode_ms == 3000.0


def test_a_cold_start_is_a_fresh_process(bench: Callable[..., Result], photos: Path) -> None:
    done = bench("--captions", "1", "--seconds", "0", "--cold-starts", "1", "--json")
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["cold_start"]["caption"]
    assert len(found["cold_start"]["turns_seconds"]) == 1
    assert found["peak_memory_bytes"] > 10_000_000


def test_the_table_has_every_stage(bench: Callable[..., Result]) -> None:
    done = bench(*FEW, "--energy")
    assert done.exit_code == 0, done.output
    rows = ("read photograph", "encoder", "one step", "all steps", "to text", "whole caption", "p50", "p90", "p99")
    for row in (*rows, "captions a second one at a time", "7 captions in", "MB of model"):
        assert row in done.stdout, row
    assert "measuring, at least 7 captions and 0 s" in done.stderr


def test_quick_is_128_captions_and_10_seconds(bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Plan] = []

    def note(target: object, plan: Plan) -> None:
        asked.append(plan)
        raise KeyboardInterrupt

    monkeypatch.setattr(bench_run, "measure", note)
    bench("--quick")
    bench()
    bench("--quick", "--seconds", "2.5")
    found = [(plan.quick, plan.limits.min_captions, plan.limits.min_seconds, plan.cold_starts) for plan in asked]
    assert found == [(True, 128, 10.0, 3), (False, 1024, 60.0, 5), (True, 128, 2.5, 3)]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (["--bundle", "default"], 2, "--photos FOLDER is missing"),
        (["--target", "keras", "--photos", "."], 2, "--target keras needs --run DIRECTORY"),
        (["--target", "gpu", "--run", ".", "--bundle", "x", "--photos", "."], 2, "--bundle is for --target edge"),
        (["--target", "gpu", "--run", ".", "--threads", "1", "--photos", "."], 2, "--threads is for"),
        (["--run", ".", "--photos", "."], 2, "--run is for --target keras or gpu"),
        (["--allow-cpu", "--photos", "."], 2, "are for --target gpu"),
        (["--soak", "1", "--photos", "."], 2, "give --out FILE as well"),
        (["--photos", ".", "--out", "none/a.json"], 1, "there is no folder"),
        (["--photos", "none.jpg"], 1, "none.jpg"),
        (["--photos", "."], 1, "no image in this folder"),
        (["--bundle", "none", "--photos", "."], 1, "none"),
    ],
)
def test_what_cannot_be_measured_is_refused(
    arguments: list[str], status: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(cli, ["bench", "run", *arguments])
    assert done.exit_code == status, done.output
    assert message in done.stderr.replace("\n", " ")


def test_a_photograph_that_cannot_be_read_is_named_before_anything_is_measured(
    bench: Callable[..., Result], tmp_path: Path
) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8\xff")
    done = bench("--photos", str(tmp_path / "broken.jpg"), "--out", str(tmp_path / "a.json"))
    assert done.exit_code == 1
    assert "broken.jpg" in done.stderr
    assert "measuring" not in done.stderr
    assert not (tmp_path / "a.json").exists()


def test_energy_comes_from_the_meter_over_the_counted_captions(bundle: Path, photos: Path, tmp_path: Path) -> None:
    counter = "sys/class/powercap/intel-rapl:0/"
    root = lay_out(tmp_path, {f"{counter}name": "package-0", f"{counter}energy_uj": "0"})
    lay_out(root, {f"{counter}max_energy_range_uj": "9000000000"})
    clock = [0.0]

    def spend(seconds: float, joules: float) -> None:
        clock[0] += seconds
        used_uj = int((root / counter / "energy_uj").read_text()) + int(1e6 * joules)
        lay_out(root, {f"{counter}energy_uj": str(used_uj)})

    def subject(photograph: bytes) -> Timed:
        spend(2.0, 30.0)
        return Timed(1, 1, 1, 1, 2000.0, 4, "a dog")

    target = edge_target(str(bundle), [str(photos)], FULL, 1)
    target = replace(target, subject=subject, batch=None, cold_command=None)
    plan = Plan(Limits(5, 4, 0.0), quick=True, cold_starts=0, energy=True, idle_seconds=1.0)
    result = measure(target, plan, root=root, clock=lambda: clock[0], sleep=lambda seconds: spend(seconds, 5 * seconds))
    assert result.energy["meter"] == "powercap/RAPL (package-0)"
    assert result.energy["joules_per_caption"] == 30.0
    assert result.energy["joules_per_caption_above_idle"] == 20.0
    assert result.energy["idle_watts"] == 5.0


def test_a_meter_that_falls_silent_spoils_the_energy_alone(bundle: Path, photos: Path, tmp_path: Path) -> None:
    chip = "sys/class/hwmon/hwmon0/"
    root = lay_out(tmp_path, {f"{chip}name": "ina219", f"{chip}power1_input": "1000000"})
    target = edge_target(str(bundle), [str(photos)], FULL, 1)
    captions = [0]

    def subject(photograph: bytes) -> Timed:
        captions[0] += 1
        if captions[0] == 3:
            (root / chip / "power1_input").unlink()
        return Timed(1, 1, 1, 1, 4, 4, "a dog")

    target = replace(target, subject=subject, batch=None, cold_command=None)
    plan = Plan(Limits(1, 4, 0.0), quick=True, cold_starts=0, energy=True, idle_seconds=0.0)
    result = measure(target, plan, root=root)
    assert result.complete
    assert "ina219 (hwmon0) stopped answering" in result.energy["unavailable"]


def test_without_a_meter_it_says_so(bundle: Path, photos: Path, tmp_path: Path) -> None:
    target = replace(edge_target(str(bundle), [str(photos)], FULL, 1), batch=None, cold_command=None)
    result = measure(target, Plan(Limits(1, 1, 0.0), quick=True, cold_starts=0, energy=True), root=tmp_path)
    assert result.energy["unavailable"].startswith("no meter found; looked for powercap/RAPL")


def test_a_soak_goes_on_and_leaves_a_picture(bench: Callable[..., Result], tmp_path: Path) -> None:
    out = tmp_path / "a.json"
    done = bench(*FEW, "--soak", "0.02", "--out", str(out))
    assert done.exit_code == 0, done.output
    result = read_result(out)
    assert result.soak is not None
    assert len(result.soak["seconds"]) == 1
    assert result.soak["captions"][0] >= 1
    assert (tmp_path / "a.soak.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("when", ["latency", "batch"])
def test_ctrl_c_leaves_what_was_measured_marked_as_not_complete(
    when: str, bench: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(*args: object) -> None:
        raise KeyboardInterrupt

    def until(number: int, real: Callable[..., Callable[[bytes], Timed]]) -> Callable[..., Callable[[bytes], Timed]]:
        def wrapped(captioner: WatchedCaptioner) -> Callable[[bytes], Timed]:
            subject, asked = real(captioner), iter(range(number))
            return lambda photograph: subject(photograph) if next(asked, None) is not None else interrupt()  # type: ignore[func-returns-value,return-value]

        return wrapped

    if when == "latency":
        monkeypatch.setattr(targets, "edge_subject", until(FULL.warm_up + 5, edge_subject))
    else:
        monkeypatch.setattr(targets, "time_batch", interrupt)
    out = tmp_path / "a.json"
    done = bench(*FEW, "--out", str(out), "--json")
    assert done.exit_code == 1
    result = read_result(out)
    assert not result.complete
    assert result.protocol.captions == len(result.samples.tokens) == (5 if when == "latency" else 7)
    assert result.batch is None
    assert json.loads(done.stdout)["complete"] is False
    assert "this result is not complete" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_ctrl_c_before_the_first_caption_leaves_nothing(bundle: Path, photos: Path, tmp_path: Path) -> None:
    """And a real signal to a real process, in the middle of the captions, leaves a whole file."""
    out = tmp_path / "a.json"
    command = [sys.executable, "-m", "captionlite.runtime.cli", "bench", "run", "--bundle", str(bundle), "--photos"]
    command += [str(photos), "--seconds", "100", "--out", str(out)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "PYTHONUNBUFFERED": "1"})
    assert process.stderr is not None
    try:
        for line in process.stderr:
            if line.startswith("measuring"):
                break
        time.sleep(0.3)  # some captions of a millisecond
        process.send_signal(signal.SIGINT)
        _, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 1
    assert "Traceback" not in stderr
    assert not read_result(out).complete


def test_nothing_is_written_when_nothing_was_measured(
    bench: Callable[..., Result], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(photograph: bytes) -> Timed:
        raise KeyboardInterrupt

    monkeypatch.setattr(targets, "edge_subject", lambda captioner: interrupt)
    done = bench(*FEW, "--out", str(tmp_path / "a.json"))
    assert done.exit_code == 1
    assert list(tmp_path.iterdir()) == []


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    drawings = write_drawings(tmp_path_factory.mktemp("drawings") / "drawn")
    return untrained("transformer", drawings, tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def programs(run: Run) -> KerasPrograms:
    return KerasPrograms(run)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="JAX goes through tests/benchmarks/test_gpu_job.py")
def test_the_keras_target_says_what_the_run_says_at_any_batch_size(
    run: Run, programs: KerasPrograms, photos: Path
) -> None:
    subject = programs.subject()
    contents = [path.read_bytes() for path in sorted(photos.iterdir())]
    for content in contents:
        timed = subject(content)
        assert timed.text == run.caption(content)
        assert timed.tokens == min(len(timed.text.split()) + 1, run.model.max_length)
        parts = (timed.image_ms, timed.encode_ms, timed.decode_ms, timed.post_ms)
        assert sum(parts) == pytest.approx(timed.whole_ms)
    found = programs.time_batches(contents, [1, 4], repeats=3, seconds=0.0)
    assert [(record["batch"], len(record["samples_ms"])) for record in found["batches"]] == [(1, 3), (4, 3)]
    assert found["captions_per_second"] == pytest.approx(
        max(record["photographs_per_s"] for record in found["batches"]), rel=1e-3
    )


def test_the_keras_and_gpu_targets_write_results(
    run: Run, programs: KerasPrograms, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "load_run", lambda directory: run)
    monkeypatch.setattr(keras_target, "KerasPrograms", lambda loaded: programs)
    monkeypatch.setattr(keras_target, "keep_to_the_cpu", lambda: None)  # of this process's children as well
    few = ["--photos", str(photos), "--captions", "4", "--seconds", "0", "--cold-starts", "0", "--run", "anywhere"]
    done = CliRunner().invoke(cli, ["bench", "run", "--target", "keras", *few, "--out", str(tmp_path / "k.json")])
    assert done.exit_code == 0, done.output
    result = read_result(tmp_path / "k.json")
    assert (result.target, result.protocol.captions, result.batch) == ("keras", 4, None)
    assert result.machine["accelerator"]["backend"] == keras.backend.backend()
    assert result.model.size_bytes == 4 * (run.encoder.count_params() + run.model.count_params())

    gpu = ["bench", "run", "--target", "gpu", *few]
    refused = CliRunner().invoke(cli, gpu)
    assert refused.exit_code == 1
    assert "finds no GPU here, only cpu" in refused.stderr
    assert "--allow-cpu" in refused.stderr
    done = CliRunner().invoke(cli, [*gpu, "--allow-cpu", "--batch", "2", "--energy", "--out", str(tmp_path / "g.json")])
    assert done.exit_code == 0, done.output
    found = read_result(tmp_path / "g.json")
    assert found.target == "gpu"
    assert found.model == result.model
    assert found.photographs == result.photographs
    assert found.batch is not None
    assert [record["batch"] for record in found.batch["batches"]] == [2]
    assert found.notes[0].startswith("no GPU: measured on the cpu")
    assert "do not see a GPU" in found.energy["unavailable"]


def test_the_extra_that_a_target_needs_is_named(photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras", None)
    monkeypatch.setattr(keras_target, "keep_to_the_cpu", lambda: None)
    done = CliRunner().invoke(cli, ["bench", "run", "--target", "keras", "--run", "x", "--photos", str(photos)])
    assert done.exit_code == 1
    assert "needs the module 'keras'" in done.stderr
    assert "captionlite[bench,train]" in done.stderr


def test_the_edge_target_needs_nothing_of_training() -> None:
    code = "import sys, captionlite.benchmarks.commands.bench_run, captionlite.benchmarks.targets; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    heavy = {"keras", "tensorflow", "jax", "tokenizers", "safetensors", "matplotlib", "transformers"}
    assert not {name.partition(".")[0] for name in done.stdout.split()} & heavy


def test_a_gpu_that_is_there_needs_no_permission(
    run: Run, programs: KerasPrograms, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "load_run", lambda directory: run)
    monkeypatch.setattr(keras_target, "KerasPrograms", lambda loaded: programs)
    device = {**describe_device(), "kind": "gpu", "device": "NVIDIA H200"}
    monkeypatch.setattr(keras_target, "describe_device", lambda: device)
    target = gpu_target("anywhere", [str(photos)], [1], FULL, allow_cpu=False)
    assert (target.notes[0], target.device) == ("no cold start of a GPU; peak memory is the device's", device)
