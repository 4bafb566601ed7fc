"""The photograph and the options in a request's body: multipart, raw bytes, or JSON with base64.

The body is in memory already and bounded. Nothing here keeps a second copy of a photograph for longer than it must, and
no file name or part header that came along is used for anything.
"""

import binascii
from base64 import b64decode
from dataclasses import dataclass
from http import HTTPStatus
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl

from captionlite.runtime.jsonreader import strict_json
from captionlite.runtime.service.parameters import PARAMETERS, read_texts, read_values
from captionlite.runtime.service.problems import RequestError, bad_request, shown

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

FIELD = "image"
MAX_PARTS = 32
MAX_HEADER_BYTES = 4000  # of a part, all its header lines together
MAX_TEXT = 1000
"""Longest option in a form, in bytes."""

MAX_QUERY = 4000
ACCEPTED = "multipart/form-data with a field image, image/* or application/octet-stream, or application/json"


@dataclass(frozen=True)
class Upload:
    """What a body holds: the bytes of an image file, and options by name, checked one by one."""

    image: bytes
    options: dict[str, Any]


def media_type(content_type: str) -> str:
    """The type without its parameters, lower case; raises RequestError (415) for one that is not taken here."""
    kind = content_type.partition(";")[0].strip().lower()
    if kind in ("multipart/form-data", "application/json", "application/octet-stream") or kind.startswith("image/"):
        return kind
    raise RequestError(
        HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
        "The body is of a type that is not taken here.",
        found=f"Content-Type {shown(content_type)}" if content_type else "no Content-Type",
        expected=ACCEPTED,
        next_step="Set Content-Type, e.g. `curl -F image=@photo.jpg` or `curl --data-binary @photo.jpg "
        "-H 'Content-Type: image/jpeg'`.",
    )


def read_upload(body: bytes, content_type: str, limit: int) -> Upload:
    """The photograph, at most `limit` bytes, and the options beside it. Raises RequestError: 400, 413, 415."""
    kind = media_type(content_type)
    if not body:
        raise empty()
    if kind == "multipart/form-data":
        upload = _multipart(body, content_type)
    elif kind == "application/json":
        upload = _json(body)
    else:
        upload = Upload(body, {})
    if not upload.image:
        raise empty()
    if len(upload.image) > limit:
        raise too_large(f"{len(upload.image):,} bytes", limit)
    return upload


def read_query(query: bytes) -> dict[str, Any]:
    """Options in a query string. Raises RequestError (400)."""
    if len(query) > MAX_QUERY:
        raise bad_request("The query is too long.", found=f"{len(query):,} bytes", expected=f"at most {MAX_QUERY:,}")
    try:
        text = query.decode("ascii")
        pairs = parse_qsl(text, keep_blank_values=True, strict_parsing=bool(text), errors="strict", max_num_fields=64)
    except ValueError as error:  # UnicodeDecodeError is one
        raise bad_request("The query cannot be read.", found=shown(str(error)), expected="name=value&...") from None
    return read_texts(pairs, "query")


def empty() -> RequestError:
    """400, for no photograph at all."""
    return bad_request(
        "There is no photograph in the body.",
        found="0 bytes",
        expected="the bytes of an image file",
        next_step="Send the photograph, e.g. with `curl -F image=@photo.jpg`.",
    )


def too_large(found: str, limit: int) -> RequestError:
    """413, for more bytes than the service takes."""
    return RequestError(
        HTTPStatus(413),
        "The photograph is too large.",
        found=found,
        expected=f"at most {limit:,} bytes",
        next_step="Make it smaller, or start the service with a larger --max-upload-mb.",
    )


def _json(body: bytes) -> Upload:
    try:
        found = strict_json(body)
    except ValueError as error:
        raise bad_request("The body is not readable as JSON.", found=shown(str(error), 200)) from None
    if not isinstance(found, dict):
        raise bad_request(
            "The JSON is no object.", found=type(found).__name__, expected='{"image": "<base64>", "beams": 3, ...}'
        )
    encoded = found.pop(FIELD, None)
    if not isinstance(encoded, str):
        kind = "no such field" if encoded is None else type(encoded).__name__
        raise bad_request(
            "The JSON has no photograph.", found=f"{FIELD}: {kind}", expected=f'"{FIELD}": the file in base64'
        )
    options = read_values(found, "JSON")
    if encoded.startswith("data:"):  # as a browser's FileReader gives it
        encoded = encoded.partition(",")[2]
    try:
        return Upload(b64decode(encoded, validate=True), options)
    except (binascii.Error, ValueError) as error:
        raise bad_request(
            f"{FIELD} is not readable as base64.",
            found=shown(str(error)),
            expected="base64 of the whole file, in one line, padded with =",
            next_step="Encode the file as it is, e.g. with `base64 -w0 photo.jpg`.",
        ) from None


class _Form:
    """Callbacks for python_multipart's parser: keeps the field `image` and short texts, refuses everything else."""

    def __init__(self) -> None:
        self.image: bytearray | None = None
        self.texts: list[tuple[str, bytes]] = []
        self._parts = 0
        self._ended = False
        self._field, self._value = b"", b""
        self._disposition = b""
        self._header_bytes = 0
        self._part: bytearray = bytearray()
        self._most = 0

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._begin,
            "on_header_begin": self._header,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_headers_finished": self._open,
            "on_part_data": self._data,
            "on_part_end": self._close,
            "on_end": self._end,
        }

    def finish(self) -> Upload:
        if not self._ended:
            raise bad_request(
                "The multipart body is cut off.",
                found="no closing boundary",
                expected="the boundary, followed by -- at the end",
                next_step="Send it whole.",
            )
        if self.image is None:
            names = ", ".join(shown(name, 20) for name, _ in self.texts[:5]) or "no parts"
            raise bad_request(
                "The form has no photograph.", found=names, expected=f"a field named {FIELD}", next_step="Add it."
            )
        try:
            texts = [(name, value.decode("utf-8")) for name, value in self.texts]
        except UnicodeDecodeError:
            raise bad_request("A field of the form is no UTF-8.", expected="UTF-8") from None
        return Upload(bytes(self.image), read_texts(texts, "form"))

    def _begin(self) -> None:
        self._parts += 1
        if self._parts > MAX_PARTS:
            raise bad_request(
                "The form has too many parts.", found=f"more than {MAX_PARTS}", expected=f"at most {MAX_PARTS}"
            )
        self._disposition = b""
        self._header_bytes = 0

    def _header(self) -> None:
        self._field, self._value = b"", b""
        self._count(0)

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._field += data[start:end]

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._count(end - start)
        self._value += data[start:end]

    def _count(self, length: int) -> None:
        self._header_bytes += length + 4
        if self._header_bytes > MAX_HEADER_BYTES:
            raise bad_request(
                "A part of the form has too long a header.", expected=f"at most {MAX_HEADER_BYTES:,} bytes"
            )

    def _header_end(self) -> None:
        if self._field.lower() == b"content-disposition":
            self._disposition = self._value

    def _open(self) -> None:
        from python_multipart.multipart import parse_options_header

        _, parameters = parse_options_header(self._disposition.decode("latin-1"))
        name = parameters.get(b"name", b"").decode("utf-8", "replace")
        self._part = bytearray()
        if name == FIELD:
            if self.image is not None:
                raise bad_request(
                    "The form has more than one photograph.",
                    found=f"{FIELD} twice",
                    expected=f"one field named {FIELD}",
                    next_step="Send a request for each.",
                )
            self.image, self._most = self._part, -1
        elif name in PARAMETERS:
            self._most = MAX_TEXT
            self.texts.append((name, b""))
        else:
            raise bad_request(
                "The form has a field that is not known here.",
                found=shown(name) if name else "a part without a name",
                expected=f"{FIELD}, or an option: {', '.join(PARAMETERS)}",
                next_step="Correct its name or leave it out.",
            )

    def _data(self, data: bytes, start: int, end: int) -> None:
        self._part += memoryview(data)[start:end]
        if 0 <= self._most < len(self._part):
            raise bad_request(
                f"The field {self.texts[-1][0]} of the form is too long.", expected=f"at most {MAX_TEXT} bytes"
            )

    def _close(self) -> None:
        if self._most >= 0:
            self.texts[-1] = self.texts[-1][0], bytes(self._part)

    def _end(self) -> None:
        self._ended = True


def _multipart(body: bytes, content_type: str) -> Upload:
    from python_multipart.exceptions import FormParserError
    from python_multipart.multipart import MultipartParser, parse_options_header

    _, parameters = parse_options_header(content_type)
    boundary = parameters.get(b"boundary", b"")
    if not boundary:
        raise bad_request(
            "The Content-Type of the form names no boundary.",
            found=shown(content_type),
            expected="multipart/form-data; boundary=...",
            next_step="Let the HTTP client set Content-Type by itself.",
        )
    form = _Form()
    try:
        parser = MultipartParser(boundary, form.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise bad_request("The multipart body cannot be read.", found=shown(str(error), 200)) from None
    return form.finish()
