"""What a worker does with a request: body to photograph and options, photograph to caption, caption to JSON."""

from contextlib import nullcontext
from dataclasses import dataclass
from http import HTTPStatus
from threading import Lock
from typing import Any

from captionlite.runtime.captioner import Captioner
from captionlite.runtime.errors import ImageError, OptionsError
from captionlite.runtime.image import image_size
from captionlite.runtime.records import might_be, record
from captionlite.runtime.service.limits import ONE_AT_A_TIME_PIXELS, Limits
from captionlite.runtime.service.parameters import Asked, cannot_follow, merge
from captionlite.runtime.service.problems import RequestError
from captionlite.runtime.service.uploads import read_upload


@dataclass(frozen=True)
class Question:
    """One request's body as it came, what it says it is, and the options of its query."""

    body: bytes
    content_type: str
    query: dict[str, Any]


class Answerer:
    """Answers for all workers; each calls it with a captioner of its own."""

    def __init__(self, limits: Limits, defaults: Asked) -> None:
        self._limits = limits
        self._defaults = defaults
        self._large = Lock()

    def __call__(self, captioner: Captioner, question: Question) -> dict[str, Any]:
        """The object of `caption --json` without a path. Raises RequestError: 400, 413, 415, 422."""
        upload = read_upload(question.body, question.content_type, self._limits.upload_bytes)
        asked = merge(self._defaults, question.query, upload.options)
        self.check(captioner, asked)
        try:
            pixels = self._pixels(upload.image)
            with self._large if pixels > ONE_AT_A_TIME_PIXELS else nullcontext():
                return _caption(captioner, upload.image, asked)
        except ImageError as error:
            raise RequestError(
                HTTPStatus(422),
                "The photograph cannot be read.",
                found=str(error).removeprefix("image bytes: ")[:500],
                expected="a whole JPEG, PNG, WebP, GIF, BMP, TIFF or AVIF file",
                next_step="Send the file as it is, whole and unchanged.",
            ) from None
        except OptionsError as error:  # what only shows while decoding: options that leave no token to choose
            raise cannot_follow(error) from None

    @staticmethod
    def check(captioner: Captioner, asked: Asked) -> None:
        """Raises RequestError (422) when the bundle cannot follow what is asked."""
        try:
            captioner.check(asked.options)
            if asked.min_confidence is not None and captioner.bundle.manifest.decoding.confidence is None:
                raise OptionsError(
                    f"min_confidence: the bundle {captioner.bundle.manifest.name!r} has no calibrated confidence."
                )
        except OptionsError as error:
            raise cannot_follow(error) from None

    def _pixels(self, image: bytes) -> int:
        width, height = image_size(image)
        if width * height > self._limits.pixels:
            raise RequestError(
                HTTPStatus(413),
                "The photograph has too many pixels.",
                found=f"{width} x {height}",
                expected=f"at most {self._limits.pixels:,} in all",
                next_step="Make it smaller, or start the service with a larger --max-megapixels.",
            )
        return width * height


def _caption(captioner: Captioner, image: bytes, asked: Asked) -> dict[str, Any]:
    """As `caption --json` does it: where the caption is not sure enough, what it might be."""
    result = captioner.caption(image, asked.options)
    sure = asked.min_confidence is None or result.confidence is None or result.confidence >= asked.min_confidence
    if sure:
        return record(result, result.alternatives)
    if asked.options.passes is not None:
        return record(result, sure=False)
    hypotheses = might_be(captioner, image, asked.options)
    return record(result, [one for one in hypotheses if one.tokens != result.tokens], sure=False)
