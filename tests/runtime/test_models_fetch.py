"""Files from a real server: gone on with after a break, held to size and checksum, over https and by its rules."""

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path

import index_server
import numpy as np
import pytest
from index_server import Served

from captionlite.runtime.errors import ModelError
from captionlite.runtime.models import fetch
from captionlite.runtime.models.fetch import Web
from captionlite.runtime.models.index import Remote

DATA = np.random.default_rng(0).bytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
REMOTE = Remote("a/data.bin", SHA256, len(DATA))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "served" / "a").mkdir(parents=True)
    (tmp_path / "served" / "a" / "data.bin").write_bytes(DATA)
    return tmp_path / "served"


@pytest.fixture
def server(folder: Path) -> Iterator[Served]:
    with index_server.serve(folder) as served:
        yield served


class Run:
    """A download with what it told on the way; it never really waits."""

    def __init__(self, server: Served, partial: Path, remote: Remote = REMOTE) -> None:
        self.said: list[str] = []
        self.pauses: list[float] = []
        self.steps: list[int] = []
        self.partial = partial
        self.error: str | None = None
        try:
            web = Web(pause=self.pauses.append, say=self.said.append, timeout_s=5)
            web.download(server.url, remote, partial, self.steps.append)
        except ModelError as error:
            self.error = str(error)

    @property
    def whole(self) -> bool:
        return self.error is None and self.partial.read_bytes() == DATA and sum(self.steps) == len(DATA)


def ranges(server: Served) -> list[str | None]:
    return [wanted for _, wanted in server.behaviour.asked]


def test_a_download(server: Served, tmp_path: Path) -> None:
    run = Run(server, tmp_path / "x")
    assert run.whole
    assert (run.said, run.pauses, ranges(server)) == ([], [], [None])
    assert [path.name for path in tmp_path.glob("x*")] == ["x"]  # no tag left


def test_a_broken_connection_is_gone_on_with(server: Served, tmp_path: Path) -> None:
    server.behaviour.break_after = [100_000, 50_000]
    run = Run(server, tmp_path / "x")
    assert run.whole
    assert ranges(server) == [None, "bytes=100000-", "bytes=150000-"]
    assert len(run.said) == 2
    assert "the connection ended after 100000 of 300000 bytes; trying again" in run.said[0]


@pytest.mark.parametrize("tags", [True, False])
def test_another_process_goes_on(server: Served, tmp_path: Path, tags: bool) -> None:
    server.behaviour.tags = tags
    server.behaviour.break_after = [123_456, 0, 0, 0, 0]
    run = Run(server, tmp_path / "x")
    assert run.error is not None
    assert "cannot be fetched" in run.error
    assert "The 123456 bytes that came are kept" in run.error
    assert (tmp_path / "x").stat().st_size == 123_456
    server.behaviour.break_after = []
    server.behaviour.asked.clear()
    run = Run(server, tmp_path / "x")
    assert run.whole
    assert ranges(server) == ["bytes=123456-"]
    assert run.steps[0] == 123_456


def test_a_whole_file_needs_no_server(server: Served, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA)
    assert Run(server, tmp_path / "x").whole
    assert server.behaviour.asked == []


@pytest.mark.parametrize("chunked", [False, True])
def test_a_server_without_ranges_starts_again(server: Served, tmp_path: Path, chunked: bool) -> None:
    server.behaviour.ranges, server.behaviour.chunked = False, chunked
    (tmp_path / "x").write_bytes(DATA[:1000])
    run = Run(server, tmp_path / "x")
    assert run.whole
    assert ranges(server) == ["bytes=1000-"]


def test_another_version_of_the_file_starts_again(server: Served, tmp_path: Path) -> None:
    server.behaviour.contents["a/data.bin"] = b"\1" * len(DATA)
    server.behaviour.break_after = [20_000, 0, 0, 0, 0]
    assert Run(server, tmp_path / "x").error is not None
    server.behaviour.contents.clear()
    server.behaviour.break_after = []
    server.behaviour.asked.clear()
    assert Run(server, tmp_path / "x").whole
    assert ranges(server) == ["bytes=20000-"]  # whose If-Range is not that of the file now


@pytest.mark.parametrize("size", [5000, len(DATA), len(DATA) + 5])
def test_what_is_there_and_wrong_is_fetched_again_once(server: Served, tmp_path: Path, size: int) -> None:
    (tmp_path / "x").write_bytes(b"\1" * size)
    run = Run(server, tmp_path / "x")
    assert run.whole
    expected = {5000: ["bytes=5000-", None], len(DATA): [None], len(DATA) + 5: [None]}
    assert ranges(server) == expected[size]


def test_a_range_that_is_not_there(server: Served, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA[:2000])
    server.behaviour.statuses = [416]
    assert Run(server, tmp_path / "x").whole
    assert ranges(server) == ["bytes=2000-", None]


def test_a_wrong_checksum_names_both_and_is_not_kept(server: Served, tmp_path: Path) -> None:
    other = b"\2" * len(DATA)
    server.behaviour.contents["a/data.bin"] = other
    run = Run(server, tmp_path / "x")
    assert run.error is not None
    assert SHA256 in run.error
    assert hashlib.sha256(other).hexdigest() in run.error
    assert not (tmp_path / "x").exists()
    assert len(server.behaviour.asked) == 1


def test_a_server_with_troubles_of_its_own_is_asked_again(server: Served, tmp_path: Path) -> None:
    server.behaviour.statuses = [503, 429]
    run = Run(server, tmp_path / "x")
    assert run.whole
    assert run.pauses == [1.0, 2.0]
    server.behaviour.statuses = [500] * 10
    run = Run(server, tmp_path / "y")
    assert run.error is not None
    assert "the server answers 500" in run.error
    assert len(run.pauses) == fetch.ATTEMPTS - 1
    server.behaviour.statuses = [404]
    run = Run(server, tmp_path / "z")
    assert run.error is not None
    assert "the server answers 404 Not Found. Is the address right?" in run.error
    assert run.pauses == []


@pytest.mark.parametrize(
    ("headers", "problem"),
    [
        ({"Content-Length": "400000"}, "the server has 400000 bytes to send, expected 300000 by the index"),
        ({"Content-Length": "10"}, "the server has 10 bytes to send, expected 300000 by the index"),
        ({"Content-Encoding": "gzip"}, "comes compressed"),
    ],
)
def test_lies_about_the_size_are_seen_before_reading(
    server: Served, tmp_path: Path, headers: dict[str, str], problem: str
) -> None:
    server.behaviour.headers = headers
    run = Run(server, tmp_path / "x")
    assert run.error is not None
    assert problem in run.error
    assert not (tmp_path / "x").exists()


def test_more_than_was_promised_is_not_read(server: Served, tmp_path: Path) -> None:
    server.behaviour.chunked = True
    server.behaviour.contents["a/data.bin"] = DATA + b"\0" * 10_000_000
    run = Run(server, tmp_path / "x")
    assert run.error is not None
    assert "more than the 300000 bytes that the index tells" in run.error
    assert (tmp_path / "x").stat().st_size <= len(DATA)


def test_a_wrong_range_is_refused(server: Served, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(DATA[:1000])
    server.behaviour.headers = {"Content-Range": "bytes 0-299999/300000", "Content-Length": "300000"}
    run = Run(server, tmp_path / "x")
    assert run.error is not None
    assert "expected 'bytes 1000-299999/300000'" in run.error
    assert (tmp_path / "x").read_bytes() == DATA[:1000]


def test_a_server_that_falls_silent(folder: Path, tmp_path: Path) -> None:
    import threading

    with index_server.serve(folder) as server:
        server.behaviour.held = threading.Event()
        partial = tmp_path / "x"
        with pytest.raises(ModelError, match="timed out"):
            Web(timeout_s=0.05, pause=lambda seconds: None).download(server.url, REMOTE, partial, lambda size: None)
        assert partial.stat().st_size >= len(DATA) // 2


def test_a_byte_now_and_then_is_no_progress(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "STALL_S", -1.0)  # every block is at the end of its time
    monkeypatch.setattr(fetch, "STALL_BYTES", 1 << 30)
    run = Run(server, tmp_path / "x")
    assert run.error is not None
    assert "bytes in -1 s" in run.error


def test_a_full_disk_is_no_broken_connection(server: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full")
    (tmp_path / "x").symlink_to("/dev/full")
    run = Run(server, tmp_path / "x")
    assert run.error is not None
    assert "cannot be written (No space left on device)" in run.error
    assert len(server.behaviour.asked) == 1


# --- addresses


@pytest.mark.parametrize(
    "url",
    [
        "http://example.org/", "ftp://127.0.0.1/", "file:///etc/passwd", "data:,x", "https:///x", "//example.org/",
        "http://localhost.example.org/", "http://127.0.0.1.example.org/", "javascript:1", "",
        "https://[/", "https://host:port/",
    ],
)  # fmt: skip
def test_addresses_that_nothing_is_fetched_from(url: str) -> None:
    with pytest.raises(ModelError, match="https"):
        Web().check(url)


def test_addresses_that_are_fine() -> None:
    for url in ("https://example.org/x/", "http://localhost:8000/", "http://127.0.0.1/", "http://[::1]:80/"):
        Web().check(url)
    Web(allow_http=True).check("http://192.168.1.2/")
    with pytest.raises(ModelError):
        Web(allow_http=True).check("ftp://192.168.1.2/")
    with pytest.raises(ModelError) as caught:
        Web().check("https://user:secret@example.org/")
    assert "secret" not in str(caught.value)


def test_redirects(server: Served, tmp_path: Path) -> None:
    server.behaviour.redirects["a/data.bin"] = "/b/data.bin"
    server.behaviour.contents["b/data.bin"] = DATA
    (tmp_path / "x").write_bytes(DATA[:100])
    assert Run(server, tmp_path / "x").whole
    assert server.behaviour.asked == [("a/data.bin", "bytes=100-"), ("b/data.bin", "bytes=100-")]
    for target in ("http://example.org/", "file:///etc/passwd", "ftp://127.0.0.1/x"):
        server.behaviour.redirects["a/data.bin"] = target
        run = Run(server, tmp_path / "y")
        assert run.error is not None
        assert "https" in run.error or "is not allowed" in run.error
        assert not (tmp_path / "y").exists()
    server.behaviour.redirects["a/data.bin"] = "/a/data.bin"
    server.behaviour.asked.clear()
    assert Run(server, tmp_path / "y").error is not None
    assert 1 < len(server.behaviour.asked) < 20


# --- https


@pytest.fixture(scope="session")
def tls(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return index_server.certificate(tmp_path_factory.getbasetemp())


def test_https_with_a_certificate_that_is_trusted(
    folder: Path, tls: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with index_server.serve(folder, tls) as server:
        run = Run(server, tmp_path / "x")
        assert run.error is not None
        assert "certificate is not trusted" in run.error
        assert "SSL_CERT_FILE" in run.error
        assert not (tmp_path / "x").exists()
        monkeypatch.setenv("SSL_CERT_FILE", str(tls[0]))
        server.behaviour.break_after = [70_000]
        assert Run(server, tmp_path / "x").whole
        assert ranges(server) == [None, "bytes=70000-"]
        with index_server.serve(folder) as plain:  # not even to this very machine
            server.behaviour.redirects["a/data.bin"] = f"{plain.url}a/data.bin"
            run = Run(server, tmp_path / "y")
        assert run.error is not None
        assert "which is not https" in run.error
        assert plain.behaviour.asked == []
