"""`captionlite camera` for minutes: a video at real speed, then a network camera that vanishes and returns.

    python -m captionlite.benchmarks.camera_soak --minutes 10

The real command in its own process, as a user starts it, with `--interval 0`, so that captioning never rests. Of the
video: frames and captions a second, the time from a frame to its caption, dropped frames, and the process's memory,
minute by minute. Of the camera, an MJPEG server that is killed and started again: when captions resumed. Exit code 3
when memory grew by more than the bound, or captions did not resume.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from itertools import count
from pathlib import Path
from statistics import median
from threading import Thread
from time import monotonic, sleep
from typing import Any

import click
import numpy as np
import numpy.typing as npt
from PIL import Image

from captionlite.benchmarks.mjpeg_server import MjpegServer
from captionlite.runtime.camera.synthetic import draw
from captionlite.runtime.errors import CaptionliteError

SIZE, FPS = (640, 480), 30.0
STREAM_FPS = 15.0
PHOTO_S = 3.0
RESUME_WITHIN_S = 30.0


@dataclass
class Run:
    """What one process of the command printed and needed."""

    lines: list[tuple[float, dict[str, Any]]] = field(default_factory=list)  # when it came, seconds after the start
    stderr: list[str] = field(default_factory=list)
    memory: list[tuple[float, int]] = field(default_factory=list)  # seconds, resident bytes
    cpu_s: float = 0.0
    returncode: int | None = None

    @property
    def captions(self) -> list[tuple[float, dict[str, Any]]]:
        return [(at_s, line) for at_s, line in self.lines if "caption" in line]

    @property
    def stats(self) -> dict[str, Any]:
        if self.returncode or not self.lines or "stats" not in self.lines[-1][1]:
            last = "".join(self.stderr[-5:]).strip()
            raise CaptionliteError(f"captionlite camera failed (exit {self.returncode}): {last}")
        found: dict[str, Any] = self.lines[-1][1]["stats"]
        return found


def watch(
    source: str,
    arguments: Sequence[str],
    enough: Callable[[Run, float], bool] = lambda run, seconds: False,
    memory_every_s: float = 1.0,
) -> Run:
    """Run the command to its end, measuring its memory, or until `enough(run, seconds)` says so."""
    import psutil

    script = Path(sys.executable).with_name("captionlite")
    start = [str(script)] if script.exists() else [sys.executable, "-m", "captionlite.runtime.cli"]
    process = subprocess.Popen(
        [*start, "camera", source, "--json", "--interval", "0", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    run, started_s = Run(), monotonic()
    assert process.stdout is not None
    assert process.stderr is not None
    stdout, stderr = process.stdout, process.stderr

    def read_lines() -> None:
        for line in stdout:
            run.lines.append((monotonic() - started_s, json.loads(line)))

    def read_errors() -> None:
        run.stderr.extend(stderr)

    readers = [Thread(target=read, daemon=True) for read in (read_lines, read_errors)]
    try:
        for reader in readers:
            reader.start()
        seen = psutil.Process(process.pid)
        while process.poll() is None:
            now_s = monotonic() - started_s
            try:
                if not run.memory or now_s - run.memory[-1][0] >= memory_every_s:
                    run.memory.append((now_s, seen.memory_info().rss))
                    times = seen.cpu_times()
                    run.cpu_s = times.user + times.system
            except psutil.Error:
                break  # it has ended between poll and here
            if enough(run, now_s):
                break
            sleep(0.02)
    finally:
        process.terminate()
        run.returncode = process.wait()
        for reader in readers:
            reader.join(5.0)
        stdout.close()
        stderr.close()
    return run


def minutes_of(run: Run, every_s: float = 60.0) -> list[dict[str, Any]]:
    """Row by row: frames and captions a second, latency percentiles, resident memory at the row's end."""
    rows: list[dict[str, Any]] = []
    captions = run.captions
    last_frame = 0
    for number in count():
        begin_s, end_s = number * every_s, (number + 1) * every_s
        inside = [line for at_s, line in captions if begin_s <= at_s < end_s]
        memory = [size for at_s, size in run.memory if begin_s <= at_s < end_s]
        if not inside or not memory or run.lines[-1][0] < begin_s + every_s / 2:
            return rows
        ages = np.array([line["age_ms"] for line in inside])
        row = {f"p{p}_ms": round(float(np.percentile(ages, p)), 2) for p in (50, 90, 99)}
        seconds = min(end_s, run.lines[-1][0]) - max(begin_s, captions[0][0])
        frames = inside[-1]["frame"] - last_frame
        last_frame = inside[-1]["frame"]
        rows.append(
            {
                "minute": number + 1,
                "fps": round(frames / seconds, 2),
                "captions_per_s": round(len(inside) / seconds, 2),
                **row,
                "resident_mb": round(memory[-1] / 1e6, 2),
            }
        )
    return rows


def growth_bytes(memory: Sequence[tuple[float, int]], settle_s: float) -> float:
    """Resident bytes at the end less those after `settle_s`: medians over a third of that time."""
    end_s = memory[-1][0]
    first = [size for at_s, size in memory if settle_s <= at_s < settle_s * 4 / 3]
    last = [size for at_s, size in memory if at_s > end_s - settle_s / 3]
    if not first or not last:
        raise CaptionliteError(f"ran for {end_s:.0f} s only: too short to tell growth after {settle_s:.0f} s.")
    return median(last) - median(first)


def write_video(path: Path, seconds: float, photos: Sequence[Path]) -> None:
    """A video: drawn scenes, or photographs for some seconds each, moving slowly as if a hand held the camera."""
    from captionlite.runtime.camera.opencv import import_opencv

    cv2 = import_opencv()
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), FPS, SIZE)
    if not writer.isOpened():
        raise CaptionliteError(f"{path}: this OpenCV cannot write videos. Give one with --video.")
    for index in range(round(seconds * FPS)):
        image = moving(photos, index) if photos else draw(index, FPS, SIZE)
        writer.write(cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
    writer.release()


def moving(photos: Sequence[Path], index: int) -> npt.NDArray[np.uint8]:
    """Frame `index` of the photographs' video."""
    number, into = divmod(index, round(PHOTO_S * FPS))
    with Image.open(photos[number % len(photos)]) as photo:
        margin = into / (PHOTO_S * FPS) / 10  # a tenth of the picture is passed over
        box = (photo.width * margin, photo.height * margin, photo.width * (margin + 0.9), photo.height * (margin + 0.9))
        return np.asarray(photo.convert("RGB").resize(SIZE, Image.Resampling.BILINEAR, box=box))


def stream_frames(photos: Sequence[Path], seconds: float = 12.0) -> list[bytes]:
    """JPEGs for the network camera."""
    step = round(FPS / STREAM_FPS)
    frames = []
    for index in range(0, round(seconds * FPS), step):
        buffer = BytesIO()
        pixels = moving(photos, index) if photos else draw(index, FPS, SIZE)
        Image.fromarray(pixels).save(buffer, "JPEG", quality=85)
        frames.append(buffer.getvalue())
    return frames


def vanish(frames: Sequence[bytes], arguments: Sequence[str], up_s: float, away_s: float) -> dict[str, Any]:
    """A stream for `up_s` after its first caption, then nothing for `away_s`, then the stream again for `up_s`."""
    server = MjpegServer(frames, STREAM_FPS)
    server.start()
    gone_s: list[float] = []
    back_s: list[float] = []

    def pull_the_cable(run: Run, now_s: float) -> bool:
        captions = run.captions
        if not gone_s and captions and now_s > captions[0][0] + up_s:
            server.stop()
            gone_s.append(now_s)
        elif gone_s and not back_s and now_s > gone_s[0] + away_s:
            server.start()
            back_s.append(now_s)
        if not back_s:
            return False
        after = [at_s for at_s, _ in captions if at_s > back_s[0]]
        return bool(after) and now_s > after[0] + up_s

    try:
        seconds = 2 * up_s + away_s + RESUME_WITHIN_S
        run = watch(server.url, [*arguments, "--seconds", f"{seconds:g}"], pull_the_cable)
    finally:
        server.stop()
    stats = run.stats
    if not back_s:
        raise CaptionliteError("the stream gave no caption before it was to vanish.")
    after = [at_s - back_s[0] for at_s, _ in run.captions if at_s > back_s[0]]
    return {
        "away_s": round(back_s[0] - gone_s[0], 2),
        "captions_before": sum(at_s <= gone_s[0] for at_s, _ in run.captions),
        "captions_after": len(after),
        "first_caption_after_return_s": round(after[0], 2) if after else None,
        "reconnects": stats["reconnects"],
        "messages": [line.strip() for line in run.stderr],
    }


@click.command()
@click.option("--minutes", type=click.FloatRange(min=0.05), default=10.0, show_default=True, help="How long it plays.")
@click.option("--video", type=click.Path(exists=True, dir_okay=False), help="A video of your own.")
@click.option("--photos", type=click.Path(exists=True, file_okay=False), help="Make it of these photographs.")
@click.option("--bundle", default="default", show_default=True, help="Bundle directory, zip or name.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the encoder.  [default: all cores]")
@click.option("--away", "away_s", type=float, default=15.0, show_default=True, help="Seconds without the camera.")
@click.option("--up", "up_s", type=float, default=8.0, show_default=True, help="Seconds with it, before and after.")
@click.option("--max-growth-mb", type=float, default=5.0, show_default=True, help="Exit 3 beyond that.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def main(
    minutes: float,
    video: str | None,
    photos: str | None,
    bundle: str,
    threads: int | None,
    away_s: float,
    up_s: float,
    max_growth_mb: float,
    as_json: bool,
) -> None:
    """Play a video through `captionlite camera` for minutes, then take its camera away and give it back."""
    arguments = ["--bundle", bundle, *(["--threads", str(threads)] if threads else [])]
    try:
        result = measure(minutes * 60, video, photos, arguments, up_s, away_s)
    except CaptionliteError as error:
        raise click.ClickException(str(error)) from error
    result["bundle"] = bundle
    grew = result["growth_mb"] > max_growth_mb
    resumed = result["vanished"]["first_caption_after_return_s"] is not None
    result["passed"] = resumed and not grew
    click.echo(json.dumps(result, allow_nan=False) if as_json else table(result))
    if grew:
        click.echo(f"memory grew by {result['growth_mb']:.1f} MB, expected at most {max_growth_mb:g}", err=True)
    if not resumed:
        click.echo("captions did not resume after the camera was back", err=True)
    if not result["passed"]:
        sys.exit(3)


def measure(
    seconds: float, video: str | None, photos: str | None, arguments: Sequence[str], up_s: float, away_s: float
) -> dict[str, Any]:
    """Both runs; raises CaptionliteError when the command itself fails."""
    from captionlite.runtime.environment import describe_environment

    pictures = sorted(Path(photos).glob("*.jpg")) if photos else []
    if photos and not pictures:
        raise CaptionliteError(f"{photos}: no .jpg in this folder.")
    load = [os.getloadavg()[0]]
    with tempfile.TemporaryDirectory() as folder:
        if video is None:
            video = str(Path(folder) / "video.mp4")
            length_s = min(seconds, PHOTO_S * len(pictures) if pictures else 60.0)
            click.echo(f"making a video of {length_s:.0f} s, {SIZE[0]} x {SIZE[1]}, {FPS:g} frames/s ...", err=True)
            write_video(Path(video), length_s, pictures)
        click.echo(f"playing it for {seconds / 60:g} minutes ...", err=True)
        run = watch(video, [*arguments, "--loop", "--seconds", f"{seconds:g}"], memory_every_s=min(1.0, seconds / 60))
    stats = run.stats
    load.append(os.getloadavg()[0])
    click.echo("a camera that vanishes ...", err=True)
    vanished = vanish(stream_frames(pictures), arguments, up_s, away_s)
    machine = describe_environment()
    settle_s = min(60.0, seconds / 3)
    return {
        "machine": {name: machine[name] for name in ("device", "cpu", "cores", "platform")},
        "load_before_and_after": [round(value, 2) for value in load],
        "stats": stats,
        "cpu_of_one_core": round(run.cpu_s / stats["seconds"], 3),
        "minutes": minutes_of(run, min(60.0, seconds / 2)),
        "growth_mb": round(growth_bytes(run.memory, settle_s) / 1e6, 3),
        "growth_after_s": settle_s,
        "vanished": vanished,
    }


def table(result: dict[str, Any]) -> str:
    """The result for people, as Markdown."""
    stats, vanished, latency = result["stats"], result["vanished"], result["stats"]["latency_ms"]
    head = ["minute", "frames/s", "captions/s", "p50 ms", "p90 ms", "p99 ms", "resident MB"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    lines += [f"| {' | '.join(str(value) for value in row.values())} |" for row in result["minutes"]]
    first = vanished["first_caption_after_return_s"]
    resumed = "no caption after it" if first is None else f"first caption {first} s after it was back"
    loads = " and ".join(str(value) for value in result["load_before_and_after"])
    lines += [
        "",
        f"{stats['source']} for {stats['seconds']:.0f} s: {stats['captured']} frames, {stats['fps']:.2f} a second,",
        f"    {stats['captions']} captions, {stats['unchanged']} unchanged, {stats['dropped']} dropped",
        f"from frame to caption told: p50 {latency['p50']} ms, p90 {latency['p90']} ms, p99 {latency['p99']} ms,",
        f"    greatest {latency['max']} ms; {100 * result['cpu_of_one_core']:.0f} % of a core; load {loads}",
        f"memory: {result['growth_mb']:+.2f} MB from {result['growth_after_s']:.0f} s on",
        f"camera away for {vanished['away_s']} s: {resumed};",
        f"    captions before {vanished['captions_before']}, after {vanished['captions_after']}",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
