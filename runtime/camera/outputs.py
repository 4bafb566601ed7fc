"""Captions as lines on stdout: text when the words change, or a JSON object for every new scene."""

import json
from datetime import UTC, datetime
from typing import Any

import click

from captionlite.runtime.camera.watcher import Told
from captionlite.runtime.records import labels


class TextLines:
    """One line a caption, when it is sure enough and not the words of the line before."""

    def tell(self, told: Told) -> None:
        """Print it."""
        if told.changed:
            click.echo(told.caption.text)


class JsonLines:
    """One object a new scene, the unsure ones (`sure` false) and repeated words (`changed` false) included."""

    def tell(self, told: Told) -> None:
        """Print it."""
        click.echo(json.dumps(record(told), allow_nan=False))


def record(told: Told) -> dict[str, Any]:
    """A caption as JSON: `time` is UTC, `frame` counts from 1, `age_ms` is from the frame's capture to its caption."""
    caption, frame = told.caption, told.frame
    found: dict[str, Any] = {
        "time": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
        "frame": frame.number,
        "caption": caption.text,
        "changed": told.changed,
        "logprob": caption.logprob,
        "age_ms": round(told.age_ms, 2),
        "timings_ms": {stage: round(value, 3) for stage, value in caption.timings_ms.items()},
    }
    if frame.name:
        found["image"] = frame.name
    if caption.confidence is not None:
        found["confidence"] = round(caption.confidence, 4)
    if caption.maybe:
        found["maybe"] = labels(caption)
    if not told.sure:
        found["sure"] = False
    return found
