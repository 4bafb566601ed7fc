"""Everything that wants a GPU, in JAX without TensorFlow, in a few calls that each keep to a time budget.

On the machine with the data (docs/gpu.md says more):

    python -m captionlite.benchmarks.gpu_job pack --data flickr8k:DIR --data jsonl:FILE@2 --out .gpu/in

On the machine with the GPU, once a folder, then again until nothing is left to do:

    python -m captionlite.benchmarks.gpu_job run --incoming .gpu/in/call-1 --work .gpu/work --out OUT --budget-s 540

Back on the first one, for each run:

    python -m captionlite.benchmarks.gpu_job import-weights OUT/default.safetensors --out runs/default
    captionlite export runs/default --out bundles/default
    python -m captionlite.benchmarks.gpu_job import-results OUT/results.json --out benchmarks/results

`run` times every family, extracts features, trains every preset at its full length, and measures what was trained as
`captionlite bench run --target gpu` does. Each of these is a stage: a process of its own, so that one that fails spoils
no other. A stage that is done is not done again; one that ran out of time goes on in the next call. Every call ends
with results.json and the float16 weights that this call made.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

from captionlite.benchmarks.gpu_pack import PURE_PACKAGES, pack, read_pack, unpack
from captionlite.runtime.errors import CaptionliteError

PRESETS = (
    *("default", "visual_transformer", "show_attend_tell", "show_and_tell", "bimodal_small", "bimodal_albert"),
    "tiny",
)
NOT_FINISHED = 75  # a stage's exit status when its time was up and its state is saved
GRACE_S = 25.0  # from asking a stage to stop to stopping it
LEAST_S = 20.0  # with less time left no stage is begun
TRIES = 2  # of a stage that fails
REPOSITORY_PHOTOS = Path(__file__).resolve().parents[1] / "tests" / "photos"
MAX_FILES = 8  # in the output folder, results.json included


@dataclasses.dataclass(frozen=True)
class Settings:
    """What `run` was asked for, as its stages are told."""

    work: str
    jobs: tuple[str, ...]
    overrides: tuple[str, ...]
    encoder_weights: dict[str, str]
    albert: str | None
    batches: tuple[int, ...]
    repeats: int
    seconds: float
    tokens: int
    photos: tuple[str, ...]
    bench_captions: int
    bench_seconds: float


@click.group()
def main() -> None:
    """Train and time every preset on a GPU."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")


@main.command("pack")
@click.option("--data", multiple=True, required=True, metavar="KIND:PATH[@WEIGHT]")
@click.option("--out", type=click.Path(path_type=Path), required=True)
@click.option("--call-mib", type=float, default=50, show_default=True, help="Largest folder, in MiB.")
@click.option("--python", default="3.12", show_default=True, help="Python of the other machine, for --wheel.")
@click.option("--wheel", "wheels", multiple=True, default=("optree",), show_default=True, help="Compiled packages.")
@click.option("--package", "packages", multiple=True, default=PURE_PACKAGES, show_default=True, help="Of pure Python.")
@click.option("--split", "splits", multiple=True, default=("train", "dev"), show_default=True)
def pack_command(data: tuple[str, ...], out: Path, call_mib: float, wheels: tuple[str, ...], **options: Any) -> None:
    """Write what travels into folders of a limited size."""
    from captionlite.training.config import parse_data

    datasets = [(parsed.spec, parsed.weight) for parsed in map(parse_data, data)]
    wheels = tuple(wheel for wheel in wheels if wheel)
    for folder in pack(datasets, out, call_mib=call_mib, wheels=wheels, **options):
        size = sum(file.stat().st_size for file in folder.iterdir())
        click.echo(f"{folder}: {size / 2**20:.1f} MiB")


@main.command("run")
@click.option("--incoming", multiple=True, type=click.Path(path_type=Path, exists=True), help="A folder made by pack.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Kept between calls.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="What goes home.")
@click.option("--budget-s", type=float, default=540, show_default=True)
@click.option(
    "--job", "jobs", multiple=True, default=PRESETS, help="A preset or its JSON file; all presets by default."
)
@click.option("--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Laid over every preset.")
@click.option("--encoder-weights", multiple=True, metavar="ENCODER=FILE", help="ImageNet weights that are at hand.")
@click.option(
    "--albert", type=click.Path(exists=True), help="A Hugging Face directory, without which no ALBERT trains."
)
@click.option("--batch", "batches", multiple=True, type=int, default=(1, 16, 256), show_default=True)
@click.option("--repeats", default=50, show_default=True, help="Samples a timing, at most.")
@click.option("--seconds", type=float, default=3, show_default=True, help="A timing, at most.")
@click.option("--tokens", default=12, show_default=True, help="Length of the captions that are timed.")
@click.option("--photos", multiple=True, help="Of the benchmarks; by default tests/photos of this checkout.")
@click.option("--bench-captions", type=int, default=1024, show_default=True, help="A benchmark, at least.")
@click.option("--bench-seconds", type=float, default=60, show_default=True, help="A benchmark, at least.")
@click.option("--max-file-mib", type=float, default=15.9, show_default=True, help="Largest file of weights.")
@click.option("--again", is_flag=True, help="Write the weights of earlier calls once more.")
def run_command(
    incoming: tuple[Path, ...], work: Path, out: Path, budget_s: float, max_file_mib: float, again: bool, **options: Any
) -> None:
    """Do what the time allows and write results and weights into --out."""
    deadline = time.monotonic() + budget_s
    weights = dict(item.partition("=")[::2] for item in options.pop("encoder_weights"))
    options["photos"] = options["photos"] or (os.path.relpath(REPOSITORY_PHOTOS),)
    settings = Settings(work=str(work.resolve()), encoder_weights=weights, **options)
    for folder in incoming:
        unpack(folder, work)
    (work / "results").mkdir(parents=True, exist_ok=True)
    out.mkdir(parents=True, exist_ok=True)
    _, missing = read_pack(work)
    for line in missing:
        click.echo(f"not trained yet: {line}", err=True)
    for stage in _stages(settings, is_data_complete=not missing):
        left = deadline - time.monotonic()
        if _is_done(stage, work) or not _is_ready(stage, work):
            continue
        if _failures(stage, work) >= TRIES:
            click.echo(f"{stage}: failed {TRIES} times, not tried again; see results.json", err=True)
            continue
        if left < LEAST_S + GRACE_S:
            click.echo(f"{stage}: left for the next call ({left:.0f} s)", err=True)
            continue
        _run_stage(stage, settings, work, left - GRACE_S)
    left_out = _send(work, out, int(max_file_mib * 2**20), again)
    open_stages = [stage for stage in _stages(settings, True) if not _is_done(stage, work)] + left_out
    click.echo(json.dumps({"out": str(out), "open": open_stages}))


def _stages(settings: Settings, is_data_complete: bool) -> list[str]:
    """Their names in order: what needs no photographs, then what does."""
    names = [Path(job).stem for job in settings.jobs]
    stages = ["environment", *(f"time-{name}" for name in names)]
    if is_data_complete:
        stages += ["features", *(f"train-{name}" for name in names), *(f"bench-{name}" for name in names)]
    return stages


def _is_ready(stage: str, work: Path) -> bool:
    """What is measured must have been trained to its end."""
    kind, _, name = stage.partition("-")
    return kind != "bench" or _is_done(f"train-{name}", work)


def _run_stage(stage: str, settings: Settings, work: Path, seconds: float) -> None:
    """Runs a stage until it ends or its time is up; why it failed, if it did, goes into its log and results.json."""
    path = [str(work.resolve() / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]
    environment = {
        **os.environ,
        "KERAS_BACKEND": "jax",
        "PYTHONPATH": os.pathsep.join(path),
        "PYTHONUNBUFFERED": "1",
        "TF_CPP_MIN_LOG_LEVEL": "2",
        "JAX_COMPILATION_CACHE_DIR": str(work.resolve() / "jax-cache"),
        "XLA_PYTHON_CLIENT_PREALLOCATE": "false",
    }
    if stage == "features":  # on a GPU JAX would multiply in TF32 otherwise, and other machines could not follow
        environment["JAX_DEFAULT_MATMUL_PRECISION"] = "float32"
    command = [sys.executable, "-m", "captionlite.benchmarks.gpu_job", "stage", stage, json.dumps(vars(settings))]
    began = time.monotonic()
    log = work / "results" / f"{stage}.log"
    with log.open("a") as stream:
        process = subprocess.Popen(command, env=environment, stdout=stream, stderr=subprocess.STDOUT)
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGTERM)
            try:
                process.wait(timeout=GRACE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    took = time.monotonic() - began
    ended = {0: "done", NOT_FINISHED: "out of time, state saved", -signal.SIGTERM: "out of time"}
    said = ended.get(process.returncode, f"failed with status {process.returncode}, see {log.name}")
    if process.returncode not in ended:
        (work / "results" / f"{stage}.failures").write_text(str(_failures(stage, work) + 1))
    click.echo(f"{stage}: {said} after {took:.0f} s", err=True)


def _is_done(stage: str, work: Path) -> bool:
    return (work / "results" / f"{stage}.json").exists()


def _failures(stage: str, work: Path) -> int:
    path = work / "results" / f"{stage}.failures"
    return int(path.read_text()) if path.exists() else 0


@main.command("stage", hidden=True)
@click.argument("name")
@click.argument("settings", type=json.loads)
def stage_command(name: str, settings: dict[str, Any]) -> None:
    from captionlite.benchmarks import gpu_stages
    from captionlite.training.trainer import Interrupted

    kind, _, job = name.partition("-")
    as_tuples: Any = {key: tuple(value) if isinstance(value, list) else value for key, value in settings.items()}
    told = Settings(**as_tuples)
    stages: dict[str, Callable[[Settings, str], dict[str, Any]]] = {
        "environment": gpu_stages.environment,
        "time": gpu_stages.time_job,
        "features": gpu_stages.features,
        "train": gpu_stages.train_job,
        "bench": gpu_stages.bench_job,
    }
    began = time.monotonic()
    try:
        result = stages[kind](told, job)
    except Interrupted as stop:
        click.echo(str(stop))
        sys.exit(NOT_FINISHED)
    except CaptionliteError as error:
        raise click.ClickException(str(error)) from error
    # Only a process's last second can tell whether anything imported it.
    record = {"seconds": round(time.monotonic() - began, 1), "tensorflow_imported": "tensorflow" in sys.modules}
    gpu_stages.write_result(told, name, {**record, **result})


def _send(work: Path, out: Path, limit_bytes: int, again: bool) -> list[str]:
    """Writes results.json and the weights that changed since they were last sent; returns what had no room."""
    from captionlite.benchmarks.gpu_weights import write_weights

    sent_path = work / "sent.json"
    sent: dict[str, float] = json.loads(sent_path.read_text()) if sent_path.exists() and not again else {}
    packed, _ = read_pack(work)
    licences = {each.name: each.licence for each in packed}
    left_out = []
    for best in sorted((work / "runs").glob("*/best.safetensors")):
        run = best.parent
        if sent.get(run.name) == best.stat().st_mtime:
            continue
        files = write_weights(run, out, run.name, limit_bytes, licences)
        if sum(1 for _ in out.iterdir()) >= MAX_FILES:
            for file in files:
                file.unlink()
            left_out.append(f"weights of {run.name}")
        else:
            sent[run.name] = best.stat().st_mtime
    stages = {path.stem: json.loads(path.read_text()) for path in sorted((work / "results").glob("*.json"))}
    logs = {path.stem: path.read_text(errors="replace")[-3000:] for path in sorted((work / "results").glob("*.log"))}
    failed = {stage: log for stage, log in logs.items() if stage not in stages}
    results = {"version": 1, "stages": stages, "unfinished": failed}
    (out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    sent_path.write_text(json.dumps(sent))
    return left_out


@main.command("import-weights")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The run directory to make.")
@click.option("--data", multiple=True, metavar="KIND:PATH[@WEIGHT]", help="The training data on this machine.")
def import_command(files: Sequence[Path], out: Path, data: tuple[str, ...]) -> None:
    """Make a run directory, as `captionlite export` takes it, of all parts of one run's weights."""
    from captionlite.benchmarks.gpu_weights import import_weights
    from captionlite.training.config import parse_data

    config = import_weights(files, out, [parse_data(item) for item in data])
    click.echo(f"{out}: {config.name}; export it with: captionlite export {out} --out BUNDLE")


@main.command("import-results")
@click.argument("results", type=click.Path(path_type=Path, exists=True, dir_okay=False))
@click.option("--out", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True, help="A folder.")
def import_results_command(results: Path, out: Path) -> None:
    """Write each benchmark in a results.json as a file of its own, as `captionlite bench compare` takes it."""
    from captionlite.benchmarks.results import read_result, write_document

    stages = json.loads(results.read_text())["stages"]
    found = {name.partition("-")[2]: stage["result"] for name, stage in stages.items() if "result" in stage}
    if not found:
        raise click.ClickException(
            f"{results}: no benchmark has been finished; it has {', '.join(stages) or 'nothing'}"
        )
    for name, result in found.items():
        path = out / f"gpu-{name}.json"
        write_document(path, result)
        read_result(path)
        click.echo(str(path))


if __name__ == "__main__":
    try:
        main()
    except CaptionliteError as error:
        raise SystemExit(f"Error: {error}") from None
