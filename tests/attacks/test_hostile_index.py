"""An index from somebody who means harm: it reaches nothing outside the cache, and asks for no more than it says."""

import copy
import hashlib
import io
import json
import os
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import index_server
import pytest
import toy_bundle

from captionlite.runtime import Bundle
from captionlite.runtime.bundle import pack_bundle
from captionlite.runtime.errors import BundleError, CaptionliteError, ModelError
from captionlite.runtime.models import cache as caching
from captionlite.runtime.models.fetch import Web
from captionlite.runtime.models.index import MAX_BUNDLES, MAX_INDEX_BYTES, Remote, local_index, parse_index
from captionlite.runtime.models.publish import make_index
from captionlite.runtime.models.pull import pull

NAMES = [
    "..", ".", "../x", "/etc/passwd", "a/b", "a\\b", ".hidden", "-rf", "", "a b", "A", "ä", "a\n", "a\0b", "default",
    "x" * 65, "a@b",
]  # fmt: skip
PATHS = [
    "..", "../x", "/x", "x/../../y", "x//y", "x/", "x/.", "./x", "C:\\x", "https://evil.example/x", "//evil.example/x",
    "x?y", "x#y", "%2e%2e/x", "x\ny", "~/x",
]  # fmt: skip


@pytest.fixture(scope="module")
def toy_bundle_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundles") / "toy"
    toy_bundle.write(directory)
    return directory


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CAPTIONLITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture(scope="module")
def made_shelf(toy_bundle_directory: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("shelf") / "shelf"
    shutil.copytree(toy_bundle_directory, folder / "toy")
    pack_bundle(toy_bundle_directory, folder / "small.zip")
    make_index(folder)
    return folder


@pytest.fixture
def shelf(made_shelf: Path, tmp_path: Path) -> Path:
    shutil.copytree(made_shelf, tmp_path / "shelf")
    return tmp_path / "shelf"


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def edited(shelf: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    """The index with its two entries (small, a zip; toy, a directory) changed."""
    path = shelf / "index.json"
    found = json.loads(path.read_text())
    edit(found)
    path.write_text(json.dumps(found))
    return shelf


def refused(shelf: Path, *expected: str) -> None:
    before = files_below(shelf.parent)
    with pytest.raises(ModelError) as caught:
        local_index(shelf)
    for part in ("index.json: ", *expected):
        assert part in str(caught.value)
    assert files_below(shelf.parent) == before


@pytest.mark.parametrize("name", NAMES)
def test_names_that_are_none(shelf: Path, name: str) -> None:
    refused(edited(shelf, lambda found: found["bundles"][0].update(name=name)), "bundles[0].name")
    with pytest.raises(BundleError):
        Bundle.open(f"{name}@1.0")


@pytest.mark.parametrize("version", ["..", "/", "1/2", "1\\2", "", "-1", ".1", "1 0", "1@2", "x" * 33])
def test_versions_that_are_none(shelf: Path, version: str) -> None:
    refused(edited(shelf, lambda found: found["bundles"][0].update(version=version)), "bundles[0].version")


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("entry", [0, 1])
def test_paths_that_lead_elsewhere(shelf: Path, path: str, entry: int) -> None:
    refused(edited(shelf, lambda found: found["bundles"][entry].update(path=path)), f"bundles[{entry}].path")


@pytest.mark.parametrize("name", ["../x", "a/b", "..", "", "/x", "a\\b", ".entry.json", ".hidden"])
def test_files_of_a_bundle_that_lead_elsewhere(shelf: Path, name: str) -> None:
    def edit(found: dict[str, Any]) -> None:
        files = found["bundles"][1]["files"]
        files[name] = files["README.md"]

    refused(edited(shelf, edit), "bundles[1].files", "a plain name instead of")


EDITS: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "no format": (lambda found: found.pop("format"), "format is missing"),
    "newer": (lambda found: found.update(format=[2, 0]), "pip install --upgrade captionlite"),
    "format 0": (lambda found: found.update(format=[0, 9]), "format is [0, 9]"),
    "unknown field": (lambda found: found.update(run="rm -rf"), "run is not a field"),
    "unknown field of a bundle": (lambda found: found["bundles"][0].update(url="x"), "url is not a field"),
    "twice": (lambda found: found["bundles"].append(copy.deepcopy(found["bundles"][0])), "small@1.0 stands there"),
    "both": (lambda found: found["bundles"][1].update(zip={}), "either files or zip"),
    "neither": (lambda found: found["bundles"][0].pop("zip"), "either files or zip"),
    "no manifest": (lambda found: found["bundles"][1]["files"].pop("manifest.json"), "manifest.json among them"),
    "many files": (
        lambda found: found["bundles"][1]["files"].update({f"f{i}": {} for i in range(100)}),
        "at most 100 files",
    ),
    "negative": (lambda found: found["bundles"][0]["zip"].update(size_bytes=-1), "size_bytes is -1"),
    "enormous": (lambda found: found["bundles"][0]["zip"].update(size_bytes=10**15), "size_bytes is 10000000"),
    "boolean": (lambda found: found["bundles"][0]["zip"].update(size_bytes=True), "size_bytes is True"),
    "no hash": (lambda found: found["bundles"][0]["zip"].update(sha256="x"), "64 lower-case hexadecimal digits"),
    "a terminal's commands": (lambda found: found["bundles"][0].update(description="\x1b[2J"), "printable"),
    "many": (lambda found: found.update(bundles=[0] * (MAX_BUNDLES + 1)), "expected at most 1000"),
    "no list": (lambda found: found.update(bundles={}), "expected a list"),
}  # fmt: skip


@pytest.mark.parametrize("what", EDITS)
def test_what_is_no_index(shelf: Path, what: str) -> None:
    edit, problem = EDITS[what]
    refused(edited(shelf, edit), problem)


def test_a_later_minor_version_may_have_more(shelf: Path) -> None:
    def edit(found: dict[str, Any]) -> None:
        found.update(format=[1, 7], mood="calm")
        found["bundles"][0]["mirror"] = "x"
        found["bundles"][1]["files"]["README.md"]["mood"] = "calm"

    assert len(local_index(edited(shelf, edit)).entries) == 2


@pytest.mark.parametrize("data", [b"", b"[]", b"null", b"\xff", b"[" * 200_000, b'{"format": NaN}', b'{"a":1,"a":2}'])
def test_what_is_no_json(data: bytes) -> None:
    with pytest.raises(ModelError, match=r"^x: "):
        parse_index(data, "x", "y")


def test_an_index_without_end(tmp_path: Path) -> None:
    with open(tmp_path / "index.json", "wb") as file:
        file.truncate(MAX_INDEX_BYTES * 1000)
    with pytest.raises(ModelError, match="larger than"):
        local_index(tmp_path)
    with index_server.serve(tmp_path) as server:
        server.behaviour.contents["index.json"] = b" " * (2 * MAX_INDEX_BYTES)
        with pytest.raises(ModelError, match="larger than"):
            Web().index(server.url)


RAW = {
    "a reason that clears the screen": b"HTTP/1.0 404 \x1b[2J\x1b[H\r\n\r\n",
    "a status line that is none": b"\x1b[2J\r\n\r\n",
    "an address with commands": b"HTTP/1.0 302 Found\r\nLocation: http://\x1b[2J.example/\r\n\r\n",
    "another scheme with commands": b"HTTP/1.0 302 Found\r\nLocation: ftp://\x1b]0;owned\x07/\r\n\r\n",
    "no answer": b"",
    "headers without end": b"HTTP/1.0 200 OK\r\n" + b"X: y\r\n" * 1000 + b"\r\n",
    "a length that is none": b"HTTP/1.0 200 OK\r\nContent-Length: \x1b[2J\r\n\r\n{}",
    "a length below zero": b"HTTP/1.0 200 OK\r\nContent-Length: -5\r\n\r\n{}",
    "chunks that are none": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n{}",
}


@pytest.mark.parametrize("what", RAW)
def test_servers_that_talk_to_the_terminal_or_nonsense(tmp_path: Path, what: str) -> None:
    remote = Remote("x", "0" * 64, 100)
    with index_server.serve(tmp_path) as server:
        web = Web(pause=lambda seconds: None, timeout_s=5)
        for fetch in (lambda: web.index(server.url), lambda: web.download(server.url, remote, tmp_path / "x", print)):
            server.behaviour.raw = [RAW[what]] * 10
            with pytest.raises(ModelError) as caught:
                fetch()
            assert str(caught.value).isprintable()


def rightly_listed(shelf: Path, data: bytes) -> Path:
    """Another small.zip, of which the index says size and checksum rightly."""
    (shelf / "small.zip").write_bytes(data)
    right = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    return edited(shelf, lambda found: found["bundles"][0].update(zip=right))


@pytest.mark.parametrize("member", ["../evil", "/tmp/evil", "a/../../evil", "..\\evil", "folder/evil", "manifest.json"])
def test_members_of_a_zip_that_lead_elsewhere(shelf: Path, tmp_path: Path, member: str) -> None:
    data = (shelf / "small.zip").read_bytes()
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        entries = [(info, archive.read(info)) for info in archive.infolist()]
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive, pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *args, **kwargs: None)  # of a name that stands there twice
        for info, content in entries:
            archive.writestr(info, content)
        archive.writestr(zipfile.ZipInfo(member), b"evil")
    index = local_index(rightly_listed(shelf, buffer.getvalue()))
    before = files_below(tmp_path)
    with pytest.raises(BundleError):
        pull(index, index.find("small"))
    new = {path for path in files_below(tmp_path) - before if not path.startswith("cache")}
    assert new == set()
    assert caching.cached() == []
    assert not [path for path in tmp_path.rglob("*") if path.name == "evil" or path.name.endswith("\\evil")]


def test_a_compressed_zip_is_no_bomb(shelf: Path) -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("manifest.json", b" " * 100_000_000)
    index = local_index(rightly_listed(shelf, buffer.getvalue()))
    with pytest.raises(BundleError, match="is compressed"):
        pull(index, index.find("small"))
    assert caching.cached() == []


def test_files_that_are_right_by_the_index_and_no_bundle(shelf: Path) -> None:
    data = (shelf / "toy" / "manifest.json").read_bytes().replace(b'"toy"', b'"yot"')
    (shelf / "toy" / "manifest.json").write_bytes(data)

    def edit(found: dict[str, Any]) -> None:
        found["bundles"][1]["files"]["manifest.json"] = {
            "sha256": hashlib.sha256(data).hexdigest(),
            "size_bytes": len(data),
        }

    index = local_index(edited(shelf, edit))
    with pytest.raises(BundleError, match="of the family 'yot', but the index says 'toy'"):
        pull(index, index.find("toy"))
    assert caching.cached() == []


@pytest.mark.parametrize("change", ["size", "sha256"])
def test_a_folder_that_is_not_what_its_index_says(shelf: Path, change: str) -> None:
    def edit(found: dict[str, Any]) -> None:
        row = found["bundles"][1]["files"]["decoder.tflite"]
        row.update({"size_bytes": row["size_bytes"] - 1} if change == "size" else {"sha256": "0" * 64})

    index = local_index(edited(shelf, edit))
    with pytest.raises(ModelError, match=r"decoder\.tflite: found .*, expected .* as in the index"):
        pull(index, index.find("toy"))
    assert caching.cached() == []


def test_links_in_the_cache_are_not_followed(
    shelf: Path, toy_bundle_directory: Path, cache: Path, tmp_path: Path
) -> None:
    index = local_index(shelf)
    pull(index, index.find("toy"))
    (cache / "link@1.0").symlink_to(toy_bundle_directory)
    assert [one.label for one in caching.cached()] == ["toy@1.0"]
    with pytest.raises(BundleError):
        Bundle.open("link")
    # A lock that is a link to somebody's file: neither opened nor emptied.
    victim = tmp_path / "victim"
    victim.write_text("precious")
    (cache / ".pulls" / "small@1.0.lock").symlink_to(victim)
    with pytest.raises(ModelError, match=r"small@1\.0\.lock: cannot be written"):
        pull(index, index.find("small"))
    assert victim.read_text() == "precious"


def test_a_damaged_record_is_no_record(shelf: Path, cache: Path) -> None:
    index = local_index(shelf)
    one = pull(index, index.find("toy"))
    for data in (b"", b"{}", b"\xff", b"[" * 100_000, b'{"name": "../x"}'):
        (one.path / caching.ENTRY_FILE).write_bytes(data)
        (found,) = caching.cached()
        assert found.entry is None
        assert Bundle.open("toy").manifest.name == "toy"
        with pytest.raises(ModelError, match="there already, with other contents"):
            pull(index, index.find("toy"))
    os.mkdir(cache / "nonsense@1.0")
    with pytest.raises(CaptionliteError):
        Bundle.open("nonsense")
