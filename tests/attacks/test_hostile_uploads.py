"""Uploads from somebody who means harm: each is answered with a 4xx that says why, and the service is as before."""

import io
import json
import select
import socket
import struct
import zlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import serving
import toy_bundle
from PIL import Image
from serving import Client, form, png

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

JSON = {"Content-Type": "application/json"}


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Client]:
    """A real service that takes files of up to 200 kB and a megapixel."""
    folder = tmp_path_factory.mktemp("bundle") / "toy"
    toy_bundle.write(folder)
    limits = ["--max-upload-mb", "0.2", "--max-megapixels", "1", "--workers", "1", "--read-timeout", "2"]
    with serving.serve(folder, *limits) as client:
        yield client


@pytest.fixture(autouse=True)
def unharmed(client: Client) -> Iterator[None]:
    """After each attack a photograph is captioned as before it, nothing is held, and the process is the same."""
    expected = client.caption(png()).body["caption"]
    yield
    assert client.caption(png()).body["caption"] == expected
    assert client.metric("captionlite_held_bytes") == 0
    assert client.metric("captionlite_workers_alive") == 1
    assert client.metric("captionlite_workers_given_up") == 0
    assert client.process is not None
    assert client.process.poll() is None


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def bomb(width: int, height: int) -> bytes:
    """A PNG of one colour."""
    rows = zlib.compressobj(9)
    pixels = b"".join(rows.compress(bytes(1 + width)) for _ in range(height)) + rows.flush()
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def saved(kind: str, size: int = 64, **options: object) -> bytes:
    stream = io.BytesIO()
    Image.effect_noise((size, size), 90).convert("RGB").save(stream, kind, **options)  # type: ignore[arg-type]
    return stream.getvalue()


def icon() -> bytes:
    inside = bomb(3000, 3000)
    return struct.pack("<HHHBBBBHHII", 0, 1, 1, 16, 16, 0, 0, 1, 32, len(inside), 22) + inside


IMAGES: dict[str, tuple[Callable[[], bytes], int]] = {
    "nothing": (lambda: b"", 400),
    "noise": (lambda: bytes(range(256)) * 40, 422),
    "text": (lambda: b"GET /etc/passwd", 422),
    "a truncated JPEG": (lambda: saved("JPEG")[:-500], 422),
    "the first bytes of a JPEG": (lambda: saved("JPEG")[:3], 422),
    "a truncated PNG": (lambda: png()[:60], 422),
    "a decompression bomb": (lambda: bomb(5000, 5000), 413),
    "a header that lies": (
        lambda: b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", struct.pack(">IIBBBBB", 2**31 - 1, 2**31 - 1, 8, 2, 0, 0, 0)),
        422,
    ),
    "a bomb in an icon": (icon, 422),
    "PostScript": (lambda: b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n(/etc/passwd) run\n", 422),
    "SVG": (lambda: b'<svg xmlns="http://www.w3.org/2000/svg"><image href="file:///etc/passwd"/></svg>', 422),
    "a zip": (lambda: b"PK\x05\x06" + bytes(18), 422),
    "larger than may be": (lambda: bytes(200_001), 413),
    "much larger than may be": (lambda: bytes(8_000_000), 413),
}


@pytest.mark.parametrize("name", IMAGES)
def test_images_that_are_none(client: Client, name: str) -> None:
    make, status = IMAGES[name]
    image = make()
    reply = client.caption(image, kind="image/jpeg")
    assert reply.status == status
    assert reply.error["expected"]
    body, headers = form(("image", image, "photo.jpg"))
    assert client.ask("POST", "/v1/caption", body, headers).error["status"] == status
    encoded = json.dumps({"image": b64encode(image).decode()})
    assert client.ask("POST", "/v1/caption", encoded, JSON).error["status"] == status


def test_a_polyglot_is_a_photograph_and_nothing_else(client: Client) -> None:
    script = b"<script>alert(1)</script>"
    expected = client.caption(png()).body
    reply = client.caption(png() + script + b"PK\x03\x04", kind="image/svg+xml")
    assert reply.status == 200
    assert reply.body["tokens"] == expected["tokens"]
    assert reply.headers["content-type"] == "application/json"
    assert reply.headers["x-content-type-options"] == "nosniff"


def head(*lines: str) -> bytes:
    start = ["POST /v1/caption HTTP/1.1", "Host: localhost", "Content-Type: image/png"]
    return "\r\n".join([*start, *lines, "", ""]).encode()


def test_a_content_length_that_promises_more_is_cut_off(client: Client) -> None:
    with socket.create_connection((client.host, client.port), 60) as connection:
        connection.sendall(head("Content-Length: 1000") + png()[:50])
    client.await_metric("captionlite_requests_in_flight", 1)


def test_a_content_length_that_promises_less_leaves_the_rest_for_the_next_request(client: Client) -> None:
    image = png()
    answer = client.raw(head(f"Content-Length: {len(image)}") + image + b"smuggled\r\n\r\n", end=False)
    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"HTTP/1.1 ") == 2
    assert b"HTTP/1.1 400" in answer


def test_a_content_length_of_a_petabyte_is_refused_before_a_byte_is_read(client: Client) -> None:
    answer = client.raw(head("Content-Length: 1000000000000000"))
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"1,000,000,000,000,000" in answer


def test_an_endless_chunked_body_is_cut_off(client: Client) -> None:
    piece = b"10000\r\n" + bytes(0x10000) + b"\r\n"
    with socket.create_connection((client.host, client.port), 60) as connection:
        connection.sendall(head("Transfer-Encoding: chunked"))
        for _ in range(100_000):  # 6.5 GB, if anybody took them
            connection.sendall(piece)
            if select.select([connection], [], [], 0)[0]:
                break
        assert connection.recv(65536).startswith(b"HTTP/1.1 413")


SMUGGLED = {
    "two lengths": head("Content-Length: 5", "Content-Length: 6") + b"aaaaa",
    "a list of lengths": head("Content-Length: 5, 6") + b"aaaaa",
    "a negative length": head("Content-Length: -5") + b"aaaaa",
    "a length with a sign": head("Content-Length: +5") + b"aaaaa",
    "a length in hex": head("Content-Length: 0x5") + b"aaaaa",
    "a length of 400 digits": head("Content-Length: " + "9" * 400),
    "an unknown transfer encoding": head("Transfer-Encoding: gzip, chunked") + b"0\r\n\r\n",
    "a chunk that is no number": head("Transfer-Encoding: chunked") + b"zz\r\n\r\n",
    "a chunk with a long extension": head("Transfer-Encoding: chunked") + b"5;" + b"a" * 100_000 + b"\r\naaaaa",
    "a blank before the colon": head("Content-Length : 5") + b"aaaaa",
    "a folded header": head("X-A: b\r\n\tContent-Length: 5", "Content-Length: 0", "Connection: close"),
    "a bare line feed in a header": head("X-A: b\nX-B: c\0"),
    "no host": b"POST /v1/caption HTTP/1.1\r\nContent-Length: 5\r\n\r\naaaaa",
    "two hosts": head("Host: evil.example", "Content-Length: 5") + b"aaaaa",
    "a header without end": head("X-A: " + "a" * 200_000),
    "ten thousand headers": head(*(f"X-{i}: {i}" for i in range(10_000))),
    "a line of rubbish": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 that is TLS\r\n\r\n",
    "another protocol": b"\0\0\x12\4\0\0\0\0\0\0\3\0\0\0\x80\r\n\r\n",
}


@pytest.mark.parametrize("name", SMUGGLED)
def test_headers_that_two_parsers_could_read_differently(client: Client, name: str) -> None:
    answer = client.raw(SMUGGLED[name], end=False)
    assert answer.startswith(b"HTTP/1.1 4"), answer[:200]
    assert answer.count(b"HTTP/1.1 ") == 1
    assert set(json.loads(answer.partition(b"\r\n\r\n")[2])) == {"error"}


def test_length_and_chunked_together_is_read_as_chunked_and_no_further(client: Client) -> None:
    body = b"0\r\n\r\n" + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    lines = [f"Content-Length: {len(body)}", "Transfer-Encoding: chunked", "Connection: close"]
    answer = client.raw(head(*lines) + body, end=False)
    assert answer.startswith(b"HTTP/1.1 4")


FORMS: dict[str, tuple[bytes, dict[str, str]]] = {
    "thousands of parts": form(*(("beams", b"1", None) for _ in range(2000))),
    "a part with huge headers": (
        b"--b\r\nX-A: " + b"a" * 100_000 + b"\r\nContent-Disposition: form-data; name=image\r\n\r\nx\r\n--b--\r\n",
        {"Content-Type": "multipart/form-data; boundary=b"},
    ),
    "a part with thousands of headers": (
        b"--b\r\n" + b"X-A: b\r\n" * 10_000 + b"\r\nx\r\n--b--\r\n",
        {"Content-Type": "multipart/form-data; boundary=b"},
    ),
    "no boundary": (form(("image", png(), "x"))[0], {"Content-Type": "multipart/form-data"}),
    "a boundary of 10,000 letters": (
        form(("image", png(), "x"))[0],
        {"Content-Type": "multipart/form-data; boundary=" + "b" * 10_000},
    ),
    "another boundary": (form(("image", png(), "x"))[0], {"Content-Type": "multipart/form-data; boundary=other"}),
    "no end": (form(("image", png(), "x"))[0][:-20], {"Content-Type": "multipart/form-data; boundary=b0undary"}),
    "two photographs": form(("image", png(), "a"), ("image", png(4), "b")),
    "no photograph": form(("beams", b"2", None)),
    "a field that is not known": form(("image", png(), "a"), ("__class__", b"x", None)),
    "an option of a megabyte": form(("prefix", b"a" * 150_000, None), ("image", png(), "a")),
    "an option that is no UTF-8": form(("prefix", b"\xff\xfe", None), ("image", png(), "a")),
    "a field without a name": (
        b"--b\r\nContent-Disposition: form-data\r\n\r\nx\r\n--b--\r\n",
        {"Content-Type": "multipart/form-data; boundary=b"},
    ),
    "only line ends": (b"\r\n" * 90_000, {"Content-Type": "multipart/form-data; boundary=b"}),
    "only hyphens": (b"-" * 190_000, {"Content-Type": "multipart/form-data; boundary=b"}),
    "almost boundaries": (b"\r\n--" * 45_000, {"Content-Type": "multipart/form-data; boundary=b"}),
}


@pytest.mark.parametrize("name", FORMS)
def test_forms_that_are_none(client: Client, name: str) -> None:
    body, headers = FORMS[name]
    assert client.ask("POST", "/v1/caption", body, headers).error["status"] == 400


@pytest.mark.parametrize("filename", ["../../../etc/cron.d/x", "/etc/passwd", "C:\\x", "\x00", "a" * 3000, "|sh", "é"])
def test_a_file_name_is_used_for_nothing(client: Client, filename: str, tmp_path: Path) -> None:
    body, headers = form(("image", png(), filename))
    assert client.ask("POST", "/v1/caption", body, headers).status == 200


JSONS: dict[str, bytes] = {
    "a depth bomb": b'{"image": ' + b"[" * 90_000 + b"]" * 90_000 + b"}",
    "a depth bomb of objects": b'{"a":' * 20_000 + b"1" + b"}" * 20_000,
    "NaN": b'{"image": "AAAA", "temperature": NaN}',
    "Infinity": b'{"image": "AAAA", "temperature": Infinity}',
    "a number out of range": b'{"image": "AAAA", "temperature": 1e999}',
    "a number of 100,000 digits": b'{"image": "AAAA", "seed": ' + b"9" * 100_000 + b"}",
    "a field twice": b'{"image": "AAAA", "image": "BBBB"}',
    "true for a number": b'{"image": "AAAA", "beams": true}',
    "a text for a number": b'{"image": "AAAA", "beams": "3"}',
    "null": b"null",
    "a list": b"[1]",
    "no photograph": b"{}",
    "a photograph that is no text": b'{"image": 3}',
    "a list of 1,000 words": json.dumps({"image": "AAAA", "suppress": ["a"] * 1000}).encode(),
    "an unknown field": b'{"image": "AAAA", "path": "/etc/passwd"}',
    "no JSON": b"image=AAAA",
    "half of it": b'{"image": "AAAA"',
    "no UTF-8": b'{"image": "\xff"}',
    "UTF-16": '{"image": "AAAA"}'.encode("utf-16"),
    "base64 with rubbish": b'{"image": "AA!A"}',
    "base64 with wrong padding": b'{"image": "AAAAA"}',
    "base64 with lines": b'{"image": "AAAA\\nAAAA"}',
    "a path for a photograph": b'{"image": "/etc/passwd"}',
    "an address for a photograph": b'{"image": "http://169.254.169.254/"}',
    "a lone surrogate": b'{"image": "\\ud800"}',
}


@pytest.mark.parametrize("name", JSONS)
def test_json_that_is_none(client: Client, name: str) -> None:
    reply = client.ask("POST", "/v1/caption", JSONS[name], JSON)
    assert reply.error["status"] == 400, reply.body


TYPES = [
    "",
    "text/html",
    "multipart/mixed; boundary=x",
    "application/x-www-form-urlencoded",
    "image",
    "\x01",
    "a" * 9000,
]


@pytest.mark.parametrize("kind", TYPES)
def test_types_that_are_not_taken(client: Client, kind: str) -> None:
    assert client.caption(png(), kind=kind).error["status"] == 415


def test_a_compressed_body_is_not_unpacked(client: Client) -> None:
    packed = zlib.compress(bytes(100_000_000), 9)
    reply = client.caption(packed, **{"Content-Encoding": "deflate"})
    assert reply.error["status"] == 415


def test_a_request_without_a_body_is_told_so(client: Client) -> None:
    assert client.raw(head()).startswith(b"HTTP/1.1 411")


def test_a_body_that_drips_is_given_up_while_others_are_served(client: Client) -> None:
    with socket.create_connection((client.host, client.port), 60) as slow:
        slow.sendall(head("Content-Length: 1000") + b"a")
        client.await_metric("captionlite_held_bytes", 1)
        assert client.caption(png()).status == 200
        answer = slow.recv(65536)
    assert answer.startswith(b"HTTP/1.1 408")


def test_paths_lead_nowhere(client: Client) -> None:
    for path in ("/../../etc/passwd", "/%2e%2e/%2e%2e/etc/passwd", "//etc/passwd", "/v1/caption/../../x", "/\\x"):
        assert client.ask("GET", path).error["status"] == 404
    assert client.raw(b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n").startswith(b"HTTP/1.1 404")


def test_memory_does_not_grow_with_attacks(client: Client) -> None:
    def attack() -> None:
        for make, _ in IMAGES.values():
            client.caption(make(), kind="image/png")
        for body in JSONS.values():
            client.ask("POST", "/v1/caption", body, JSON)
        for body, headers in FORMS.values():
            client.ask("POST", "/v1/caption", body, headers)

    for _ in range(3):
        attack()
    before = client.metric("process_resident_memory_bytes")
    for _ in range(5):
        attack()
    assert client.metric("process_resident_memory_bytes") - before < 20_000_000
