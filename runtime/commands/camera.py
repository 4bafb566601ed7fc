"""`captionlite camera SOURCE`: captions of what a camera sees now."""

import json
import os
import re
import signal
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import FrameType
from typing import TYPE_CHECKING, Any

import click

from captionlite.runtime.commands.options import decoding_options, delegate_option, read_options, tell_delegate
from captionlite.runtime.errors import CaptionliteError, OptionsError

if TYPE_CHECKING:
    from captionlite.runtime.camera.overlay import Overlay
    from captionlite.runtime.camera.watcher import Output, Watcher
    from captionlite.runtime.delegates import DelegateSpec

WINDOW = "window"
INTERVAL_S = 0.5


def _size(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[int, int] | None:
    """Width and height of WIDTHxHEIGHT."""
    if value is None:
        return None
    found = re.fullmatch(r"(\d{1,5})[x×](\d{1,5})", value)
    size = (int(found[1]), int(found[2])) if found else (0, 0)
    if not all(16 <= side <= 8192 for side in size):
        raise click.BadParameter(f"{value!r}, expected WIDTHxHEIGHT such as 640x480, each from 16 to 8192.")
    return size


@click.command("camera")
@click.argument("source", default="auto", metavar="[SOURCE]")
@click.option("--bundle", "bundle_name", default="default", show_default=True, help="Bundle directory, zip or name.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of the encoder.  [default: all cores]")
@delegate_option
@decoding_options
@click.option("--size", callback=_size, metavar="WxH", help="Pixels asked of a camera.  [default: 640x480]")
@click.option(
    "--fps",
    type=click.FloatRange(min=0, min_open=True),
    help="At most so many frames a second; the pace of a folder or snapshot [default: 1].",
)
@click.option("--loop", is_flag=True, help="Play a folder or video over and over.")
@click.option("--every-frame", is_flag=True, help="Drop no frame of a folder or video: it waits for the captions.")
@click.option("--wait", "wait_for_it", is_flag=True, help="Wait for a camera that is not there yet.")
@click.option(
    "--interval",
    type=click.FloatRange(min=0),
    help="Seconds from a caption to the next while the scene changes.  [default: 0.5; of a folder 0]",
)
@click.option(
    "--threshold",
    type=click.FloatRange(min=0),
    help="Grey levels from which a scene has changed; 0 captions every frame.  [default: 10]",
)
@click.option("--min-confidence", type=click.FloatRange(0, 1), help="Do not tell captions that are less sure.")
@click.option("--speak", is_flag=True, help="Speak the captions (apt install espeak-ng); the newest wins.")
@click.option("--voice", metavar="NAME", help="Voice of espeak-ng, such as en-gb.")
@click.option(
    "--overlay",
    metavar="WHERE",
    help="Show the picture with its caption: `window`, or http://HOST:PORT, an MJPEG stream for a browser.",
)
@click.option("--stats", "stats_s", type=click.FloatRange(min=0.1), metavar="SECONDS", help="Statistics so often.")
@click.option("--seconds", type=click.FloatRange(min=0, min_open=True), help="Stop after so long.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object a line, the statistics last.")
def command(
    source: str,
    bundle_name: str,
    threads: int | None,
    delegate: "DelegateSpec | None",
    size: tuple[int, int] | None,
    fps: float | None,
    loop: bool,
    every_frame: bool,
    wait_for_it: bool,
    interval: float | None,
    threshold: float | None,
    min_confidence: float | None,
    speak: bool,
    voice: str | None,
    overlay: str | None,
    stats_s: float | None,
    seconds: float | None,
    as_json: bool,
    **decoding: Any,
) -> None:
    """Caption what a camera sees: a line whenever the caption changes.

    \b
    SOURCE is one of
      auto                 the Raspberry Pi's camera where picamera2 is installed, else /dev/video0 (the default)
      picamera2[:N]        the Raspberry Pi's camera (apt install python3-picamera2)
      0, 1, /dev/video0    a USB or V4L2 camera (pip install 'captionlite[camera]')
      http://HOST/PATH     an MJPEG stream, or a snapshot fetched again and again; https too
      rtsp://HOST/PATH     a network camera (pip install 'captionlite[camera]')
      FILE.mp4             a video, at its own speed (pip install 'captionlite[camera]')
      FOLDER               its photographs by name
      synthetic            drawn scenes, to try without a camera

    picamera2 is the system's: make the environment with `python3 -m venv --system-site-packages`, and on Raspberry Pi
    OS 12 (bookworm) `pip install 'numpy<2'` in it.

    A camera that is unplugged is waited for. A folder or video ends by itself, everything else on Ctrl-C; the exit code
    is then 0, as it is on SIGTERM.
    """
    from captionlite.runtime.camera.choose import choose
    from captionlite.runtime.captioner import Captioner
    from captionlite.runtime.interpreter import without_chatter

    options = read_options(decoding)
    address = _overlay_address(overlay)
    if voice is not None and not speak:
        raise click.UsageError("--voice is for --speak; give --speak as well.")
    chosen = choose(source, size=size, fps=fps, loop=loop, every_frame=every_frame)
    if every_frame and chosen.live:
        raise click.UsageError(f"--every-frame: {chosen.description} does not wait; it is for folders and videos.")
    with without_chatter():
        captioner = Captioner.from_bundle(bundle_name, threads, delegate=delegate)
        captioner.check(options)
    tell_delegate(captioner)
    if min_confidence is not None and captioner.bundle.manifest.decoding.confidence is None:
        raise OptionsError(
            f"--min-confidence: {captioner.bundle.manifest.name!r} has no calibrated confidence. "
            f"Fit one with `captionlite confidence`."
        )

    from captionlite.runtime.camera.capture import Capture
    from captionlite.runtime.camera.outputs import JsonLines, TextLines
    from captionlite.runtime.camera.speech import Speaker
    from captionlite.runtime.camera.watcher import SILENT_S, Watcher
    from captionlite.runtime.frames import THRESHOLD, FrameCaptioner

    def fresh() -> FrameCaptioner:
        return FrameCaptioner(captioner, THRESHOLD if threshold is None else threshold, options)

    outputs: list[Output] = [JsonLines() if as_json else TextLines()]
    with ExitStack() as stack:
        stopped = stack.enter_context(_signals())
        ends: list[Callable[[], bool]] = [stopped]
        speaker = stack.enter_context(Speaker(_tell, voice)) if speak else None
        if speaker is not None:
            outputs.append(speaker)
        shown: Overlay | None = None
        if address is not None:
            shown, closed = _show(stack, address, chosen.description)
            outputs.append(shown)
            ends.append(closed)
        capture = Capture(
            chosen, _tell, every_frame=every_frame, wait_for_it=wait_for_it, also=[shown.show] if shown else []
        )
        watcher = Watcher(
            capture,
            fresh,
            outputs,
            _tell,
            interval_s=_interval_s(interval, stills=os.path.isdir(source), every_frame=every_frame),
            min_confidence=min_confidence,
            report_s=stats_s,
            silent_s=max(SILENT_S, 3 / fps if fps else 0.0),
        )
        try:
            with capture:
                watcher.watch(lambda: any(end() for end in ends), seconds)
            if speaker is not None:
                speaker.finish(stopped)
        except CaptionliteError:
            if capture.captured:
                _tell_stats(watcher, chosen.description, as_json)
            raise
        _tell_stats(watcher, chosen.description, as_json)


@contextmanager
def _signals() -> Iterator[Callable[[], bool]]:
    """Whether Ctrl-C or SIGTERM came. The second Ctrl-C interrupts at once, should something hang."""
    came = False

    def note(number: int, frame: FrameType | None) -> None:
        # A flag and nothing else: what this interrupts may hold any lock.
        nonlocal came
        came = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield lambda: came
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _overlay_address(value: str | None) -> tuple[str, int] | str | None:
    """What --overlay means: WINDOW, or host and port. Raises click.BadParameter."""
    from captionlite.runtime.camera.address import parse_address

    if value is None or value == WINDOW:
        return value
    try:
        return parse_address(value)
    except ValueError as error:
        raise click.BadParameter(f"{error}; or `window`.", param_hint="--overlay") from None


def _interval_s(given: float | None, *, stills: bool, every_frame: bool) -> float:
    """Twice a second is as much as people can read, but of photographs each is meant to have its caption."""
    if every_frame:
        return 0.0
    return given if given is not None else 0.0 if stills else INTERVAL_S


def _show(stack: ExitStack, where: tuple[str, int] | str, title: str) -> "tuple[Overlay, Callable[[], bool]]":
    """The overlay, and whether somebody closed its window."""
    from captionlite.runtime.camera.address import is_loopback
    from captionlite.runtime.camera.overlay import Overlay

    shown = Overlay()
    if isinstance(where, str):
        from captionlite.runtime.camera.overlay_window import OverlayWindow

        window = stack.enter_context(OverlayWindow(shown, f"captionlite: {title}"))
        stack.enter_context(shown)
        return shown, lambda: window.closed
    from captionlite.runtime.camera.overlay_http import OverlayServer

    server = stack.enter_context(OverlayServer(shown, *where))
    stack.enter_context(shown)  # ends before the server, whose clients wait for its pictures
    _tell(f"The picture with its caption is at {server.url}")
    if not is_loopback(server.host):
        _tell("Anybody who reaches this address sees what the camera sees: there is no password and no encryption.")
    return shown, lambda: False


def _tell(line: str) -> None:
    click.echo(line, err=True)


def _tell_stats(watcher: "Watcher", description: str, as_json: bool) -> None:
    stats = watcher.finish()
    if as_json:
        click.echo(json.dumps({"stats": {"source": description, **stats.to_json(watcher.ended_s)}}, allow_nan=False))
    else:
        _tell(stats.summary(watcher.ended_s))
