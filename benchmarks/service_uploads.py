"""What the load test sends: photographs whose captions are known, and uploads that must be answered with a 4xx."""

from __future__ import annotations

import json
import struct
import zlib
from base64 import b64encode
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from io import BytesIO
from pathlib import Path

from PIL import Image

from captionlite.runtime.captioner import Captioner
from captionlite.runtime.decoding import DecodingOptions

MB = 10**6
LARGE_PIXELS = 12_000_000
"""Of the one large photograph among the good ones: as a phone takes them."""

BEAMS = DecodingOptions(beams=3)


@dataclass(frozen=True)
class Upload:
    """One POST to /v1/caption; `tokens` are those of its caption, or None for one that must be refused."""

    kind: str
    name: str
    body: bytes
    headers: dict[str, str] = field(default_factory=dict)
    query: str = ""
    tokens: tuple[int, ...] | None = None
    declared: int | None = None  # Content-Length, where it is not that of the body


def good_uploads(paths: Sequence[Path], captioner: Captioner) -> list[Upload]:
    """Each photograph raw, as a form and as JSON, greedily and with three beams, and one of them enlarged."""
    uploads: list[Upload] = []
    for path in paths:
        data = path.read_bytes()
        greedy, beams = captioner.caption(data).tokens, captioner.caption(data, BEAMS).tokens
        uploads += _in_all_ways(path.name, data, greedy, beams)
    large = _enlarged(paths[0])
    uploads.append(
        Upload("good", "12 megapixels", large, {"Content-Type": "image/jpeg"}, "", captioner.caption(large).tokens)
    )
    return uploads


def _in_all_ways(name: str, data: bytes, greedy: tuple[int, ...], beams: tuple[int, ...]) -> Iterator[Upload]:
    body, headers = form(data)
    encoded = b64encode(data).decode()
    raw = {"Content-Type": "image/jpeg"}
    yield Upload("good", f"{name}, raw", data, raw, "", greedy)
    yield Upload("good", f"{name}, form", body, headers, "", greedy)
    yield Upload("good", f"{name}, JSON", json.dumps({"image": encoded}).encode(), _JSON, "", greedy)
    yield Upload("good", f"{name}, beams", data, raw, "?beams=3", beams)


def bad_uploads(path: Path, limit_bytes: int) -> list[Upload]:
    """Huge, truncated and hostile ones, for a service that takes files of `limit_bytes`."""
    photo = path.read_bytes()
    image = {"Content-Type": "image/jpeg"}
    body, headers = form(photo)
    huge_form, huge_headers = form(bytes(limit_bytes + 2 * MB))
    deep = b'{"image": ' + b"[" * 100_000 + b"]" * 100_000 + b"}"
    return [
        Upload("huge", "zeros", bytes(limit_bytes + 2 * MB), image),
        Upload("huge", "zeros in a form", huge_form, huge_headers),
        Upload("huge", "base64", json.dumps({"image": "A" * (2 * limit_bytes)}).encode(), _JSON),
        Upload("huge", "pixels: a PNG of 100 megapixels", _bomb(10_000, 10_000), image),
        Upload("huge", "pixels: a header of 10^18", _bomb(10**9, 10**9, rows=1), image),
        Upload("huge", "a length of a petabyte", b"", image, declared=10**15),
        *(Upload("truncated", f"at {part} %", photo[: len(photo) * part // 100], image) for part in (1, 10, 50, 90)),
        Upload("truncated", "form", body[: len(body) // 2], headers),
        Upload("truncated", "JSON", b'{"image": "' + b64encode(photo)[:1000], _JSON),
        Upload("truncated", "nothing", b"", image),
        Upload("hostile", "noise", bytes(range(256)) * 200, image),
        Upload("hostile", "PostScript", b"%!PS-Adobe-3.0 EPSF-3.0\n(/etc/passwd) run\n", image),
        Upload("hostile", "a bomb in an icon", _icon(), image),
        Upload("hostile", "JSON 100,000 deep", deep, _JSON),
        Upload("hostile", "NaN", b'{"image": "AAAA", "temperature": NaN}', _JSON),
        Upload("hostile", "rubbish in base64", b'{"image": "!!!!"}', _JSON),
        Upload("hostile", "a path for a photograph", b'{"image": "/etc/passwd"}', _JSON),
        Upload("hostile", "2,000 parts", _parts(2000), {"Content-Type": "multipart/form-data; boundary=b"}),
        Upload("hostile", "a part with a huge header", _huge_header(), {"Content-Type": _FORM}),
        Upload("hostile", "an unknown option", photo, image, "?__class__=1"),
        Upload("hostile", "a million beams", photo, image, "?beams=1000000"),
        Upload("hostile", "another name in Host", photo, {**image, "Host": "evil.example"}),
        Upload("hostile", "another site's page", photo, {**image, "Origin": "http://evil.example"}),
        Upload("hostile", "compressed", zlib.compress(bytes(10 * MB)), {**image, "Content-Encoding": "deflate"}),
        Upload("hostile", "HTML", b"<script>", {"Content-Type": "text/html"}),
    ]


_JSON = {"Content-Type": "application/json"}
_FORM = "multipart/form-data; boundary=b"


def form(data: bytes) -> tuple[bytes, dict[str, str]]:
    """A form with one file, as curl sends it, and its headers."""
    head = b'--b\r\nContent-Disposition: form-data; name="image"; filename="../x.jpg"\r\n\r\n'
    return head + data + b"\r\n--b--\r\n", {"Content-Type": _FORM}


def _enlarged(path: Path) -> bytes:
    stream = BytesIO()
    with Image.open(path) as image:
        scale = (LARGE_PIXELS / (image.width * image.height)) ** 0.5
        size = (round(image.width * scale), round(image.height * scale))
        image.convert("RGB").resize(size).save(stream, "JPEG", quality=80)
    return stream.getvalue()


def _bomb(width: int, height: int, rows: int | None = None) -> bytes:
    """A PNG of one colour: its header promises this size, and it has so many rows, all of them if not given."""
    packer = zlib.compressobj(9)
    row = bytes(1 + min(width, 100_000))
    pixels = b"".join(packer.compress(row) for _ in range(height if rows is None else rows)) + packer.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", pixels), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def _icon() -> bytes:
    inside = _bomb(6000, 6000)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


def _parts(count: int) -> bytes:
    return b'--b\r\nContent-Disposition: form-data; name="beams"\r\n\r\n1\r\n' * count + b"--b--\r\n"


def _huge_header() -> bytes:
    return b"--b\r\nX-A: " + b"a" * 60_000 + b'\r\nContent-Disposition: form-data; name="image"\r\n\r\nx\r\n--b--\r\n'
