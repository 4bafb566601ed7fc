"""`captionlite models` as a user and as a publisher have it: a folder or a real server with an index, and the cache."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import index_server
import pytest
import toy_bundle
from click.testing import CliRunner, Result
from index_server import Served
from PIL import Image

from captionlite.runtime import Bundle, Captioner
from captionlite.runtime.bundle import pack_bundle
from captionlite.runtime.cli import cli
from captionlite.runtime.errors import BundleError, ModelError
from captionlite.runtime.models import cache as caching
from captionlite.runtime.models.index import INDEX_FILE, parse_index, version_key
from captionlite.runtime.models.publish import make_index

PHOTOGRAPH = toy_bundle.photographs(1)[0]
TOKENS = tuple(toy_bundle.decode(PHOTOGRAPH).tokens)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no index."""
    monkeypatch.delenv("CAPTIONLITE_INDEX", raising=False)
    monkeypatch.setenv("CAPTIONLITE_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


@pytest.fixture
def shelf(toy_directory: Path, tmp_path: Path) -> Path:
    """What a publisher has: a bundle as a directory, an older version of it, and another as a zip, with an index."""
    folder = tmp_path / "shelf"
    shutil.copytree(toy_directory, folder / "toy@1.10")
    shutil.copytree(toy_directory, folder / "toy@1.9")
    data = json.dumps({"kind": "words", "pieces": [*toy_bundle.PIECES[:-1], "slowly"], "join": " "}).encode()
    toy_bundle.forge(folder / "toy@1.9", changed={"vocabulary.json": data})
    pack_bundle(toy_directory, folder / "small.zip")
    make_index(folder)
    return folder


@pytest.fixture
def server(shelf: Path) -> Iterator[Served]:
    with index_server.serve(shelf) as served:
        yield served


def run(*args: object) -> Result:
    result = CliRunner().invoke(cli, ["models", *map(str, args)], prog_name="captionlite")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def labels(*args: object) -> dict[str, str]:
    rows = json.loads(run("list", "--json", *args).stdout)["bundles"]
    return {row["label"]: row["state"] for row in rows}


# --- a publisher


def test_the_index_of_a_folder(shelf: Path, toy_directory: Path) -> None:
    (shelf / "notes.txt").write_text("nothing of interest")
    (shelf / INDEX_FILE).unlink()
    result = run("index", shelf, "--bundle-version", "2.0")
    assert result.exit_code == 0
    assert result.stdout.splitlines()[-1] == f"wrote {shelf / INDEX_FILE}: 3 bundles"
    found = json.loads((shelf / INDEX_FILE).read_text())
    assert found["format"] == [1, 0]
    assert [(row["name"], row["version"], row["path"]) for row in found["bundles"]] == [
        ("small", "2.0", "small.zip"),
        ("toy", "1.10", "toy@1.10"),
        ("toy", "1.9", "toy@1.9"),
    ]
    zipped, toy = found["bundles"][:2]
    assert toy["family"] == "toy"
    assert toy["recipe"] == "float32"
    assert toy["scores"] == {"float32": {"cider": 0.5}}
    assert set(toy["files"]) == {"manifest.json", *Bundle.open(toy_directory).manifest.files}
    assert zipped["zip"]["size_bytes"] == (shelf / "small.zip").stat().st_size
    assert parse_index((shelf / INDEX_FILE).read_bytes(), "x", "y").find("toy").version == "1.10"
    assert json.loads(run("index", shelf, "--json").stdout)["bundles"][0]["version"] == "1.0"


def test_what_cannot_be_published(shelf: Path, tmp_path: Path) -> None:
    for folder, reason in ((tmp_path / "nowhere", "no folder"), (tmp_path, "no bundle in it")):
        result = run("index", folder)
        assert result.exit_code == 1
        assert reason in result.stderr
    (shelf / "toy@1.9" / "decoder.tflite").write_bytes(b"TFL3")
    result = run("index", shelf)
    assert result.exit_code == 1
    assert "decoder.tflite" in result.stderr
    shutil.rmtree(shelf / "toy@1.9")
    (shelf / "toy@1.10").rename(shelf / "Toy bundle")
    result = run("index", shelf)
    assert result.exit_code == 1
    assert "'Toy bundle', expected a name of lower-case letters" in result.stderr
    (shelf / "Toy bundle").rename(shelf / "default")
    assert "not 'default'" in run("index", shelf).stderr
    assert run("index", shelf, "--bundle-version", "a/b").exit_code == 2


def test_versions_are_numbers() -> None:
    ordered = ["1.0a1", "1.0rc1", "1.0", "1.0.1", "1.9", "1.10", "2", "2024.1"]
    shuffled = [ordered[i] for i in (3, 0, 7, 1, 5, 2, 6, 4)]
    assert sorted(shuffled, key=version_key) == ordered


# --- from a folder, and from a server


def test_from_a_folder(shelf: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert labels("--index", shelf) == {
        "default": "packaged",
        "small@1.0": "available",
        "toy@1.10": "available",
        "toy@1.9": "available",
    }
    result = run("pull", "toy", "small", "--index", shelf / INDEX_FILE)
    assert result.stdout.splitlines() == [f"toy@1.10  {cache / 'toy@1.10'}", f"small@1.0  {cache / 'small@1.0'}"]
    monkeypatch.setenv("CAPTIONLITE_INDEX", str(shelf))
    assert labels() == {
        "default": "packaged",
        "small@1.0": "pulled",
        "toy@1.10": "pulled",
        "toy@1.9": "available",
    }
    assert run("pull", "toy@1.9", "--offline").exit_code == 0  # a folder is no network
    for name in ("toy", "toy@1.10", "small"):
        assert Captioner.from_bundle(name).caption(PHOTOGRAPH).tokens == TOKENS
    assert Bundle.open("toy@1.9").vocabulary.pieces[-1] == "slowly"
    assert Bundle.open("small").path("encoder.tflite") is not None  # unpacked, to be mapped into memory
    assert caching.begun() == []
    assert sorted(path.name for path in (cache / ".pulls").iterdir()) == [
        "small@1.0.lock",
        "toy@1.10.lock",
        "toy@1.9.lock",
    ]


def test_from_a_server(server: Served, cache: Path) -> None:
    for url in (server.url, f"{server.url}index.json"):
        assert labels("--index", url)["toy@1.10"] == "available"
    result = run("pull", "toy@1.10", "small", "--index", server.url, "--json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["pulled"][0] == {"label": "toy@1.10", "location": str(cache / "toy@1.10")}
    assert Captioner.from_bundle("toy").caption(PHOTOGRAPH).tokens == TOKENS
    assert Captioner.from_bundle("small").caption(PHOTOGRAPH).tokens == TOKENS
    asked = len(server.behaviour.asked)
    assert run("pull", "toy@1.10", "--index", server.url).exit_code == 0
    assert run("pull", "toy@1.10").exit_code == 0
    assert run("pull", "toy").exit_code == 0
    assert len(server.behaviour.asked) == asked
    assert run("pull", "toy", "--index", server.url).exit_code == 0  # there might be a newer one
    assert server.behaviour.asked[asked:] == [("index.json", None)]
    assert run("verify").stdout.splitlines() == ["small@1.0: right", "toy@1.10: right"]


def test_show(shelf: Path, cache: Path) -> None:
    found = json.loads(run("show", "toy@1.9", "--index", shelf, "--json").stdout)
    assert (found["state"], found["location"], found["version"]) == ("available", None, "1.9")
    run("pull", "toy@1.9", "--index", shelf)
    found = json.loads(run("show", "toy", "--json").stdout)
    assert (found["state"], found["location"]) == ("pulled", str(cache / "toy@1.9"))
    assert run("show", "toy").stdout.splitlines()[0] == f"toy@1.9  ({cache / 'toy@1.9'})"
    result = run("show", "dog", "--index", shelf)
    assert result.exit_code == 1
    assert "no bundle 'dog'. This index has: small@1.0, toy@1.10, toy@1.9." in result.stderr


def test_remove(shelf: Path, cache: Path) -> None:
    run("pull", "toy@1.9", "toy@1.10", "small", "--index", shelf)
    assert run("remove", "toy@1.9").stdout == "removed toy@1.9\n"
    assert labels() == {"default": "packaged", "small@1.0": "pulled", "toy@1.10": "pulled"}
    run("pull", "toy@1.9", "--index", shelf)
    assert json.loads(run("remove", "toy", "--json").stdout) == {"removed": ["toy@1.10", "toy@1.9"]}
    assert not list(cache.glob("toy*"))
    result = run("remove", "toy")
    assert result.exit_code == 1
    assert "toy: not in" in result.stderr
    assert "there: small@1.0." in result.stderr


# --- where there is no index, no network, no bundle


def test_without_an_index() -> None:
    for arguments in (["pull", "toy"], ["show", "toy"]):
        result = run(*arguments)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "give --index FOLDER or --index https://..., or set CAPTIONLITE_INDEX" in result.stderr
    result = run("list")
    assert result.exit_code == 0
    assert len(result.stdout.splitlines()) == 1
    assert "no index of bundles is named" in result.stderr


def test_offline(server: Served, shelf: Path) -> None:
    run("pull", "toy@1.9", "--index", shelf)
    assert run("pull", "toy", "--index", server.url, "--offline").exit_code == 0
    result = run("pull", "toy", "small", "--index", server.url, "--offline")
    assert result.exit_code == 1
    assert f"--offline: small would have to be fetched from {server.url}. Pulled before: toy@1.9." in result.stderr
    assert labels("--index", server.url, "--offline") == {"default": "packaged", "toy@1.9": "pulled"}
    assert run("show", "small", "--index", server.url, "--offline").exit_code == 1
    assert server.behaviour.asked == []


def test_a_name_that_nobody_knows(shelf: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run("pull", "toy@1.9", "--index", shelf)
    with pytest.raises(BundleError) as caught:
        Bundle.open("dog")
    message = str(caught.value)
    assert message.startswith(f"dog: no such bundle. Looked for a bundle directory or zip at {tmp_path / 'dog'}, ")
    assert f"a pulled bundle of that name in {cache} (there: toy@1.9), and in the package (there: `default`)" in message
    assert "`captionlite models pull dog` fetches it" in message
    with pytest.raises(BundleError) as caught:
        Bundle.open("some/where.zip")
    assert "pull" not in str(caught.value).partition("`default`")[2]
    (tmp_path / "toy").mkdir()  # a path comes first
    with pytest.raises(BundleError, match="manifest"):
        Bundle.open("toy")


def test_every_command_takes_a_name(shelf: Path, tmp_path: Path) -> None:
    run("pull", "toy", "--index", shelf)
    photo = tmp_path / "photo.png"
    Image.fromarray(PHOTOGRAPH).save(photo)
    for arguments in (["inspect", "toy"], ["verify", "toy"], ["caption", photo, "--bundle", "toy"]):
        result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
        assert result.exit_code == 0, result.output


def test_a_user_without_a_home(monkeypatch: pytest.MonkeyPatch, shelf: Path) -> None:
    monkeypatch.setenv("CAPTIONLITE_CACHE", "relative")
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    monkeypatch.setenv("HOME", "")
    result = run("pull", "toy", "--index", shelf)
    assert result.exit_code == 1
    assert "Set CAPTIONLITE_CACHE to a folder" in result.stderr
    with pytest.raises(BundleError, match="this user has no home"):
        Bundle.open("toy")


# --- what goes wrong on the way


def test_a_damaged_bundle_is_told_and_pulled_again(server: Served, cache: Path) -> None:
    run("pull", "toy@1.10", "--index", server.url)
    path = cache / "toy@1.10" / "decoder.tflite"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    result = run("verify", "toy")
    assert result.exit_code == 1
    assert "decoder.tflite: sha256 is" in result.stdout
    result = run("pull", "toy@1.10", "--index", server.url)
    assert result.exit_code == 0
    assert "Pulling it again." in result.stderr
    assert run("verify", "toy").exit_code == 0


def test_a_forged_bundle_is_not_what_the_index_promised(shelf: Path, cache: Path) -> None:
    run("pull", "toy@1.10", "--index", shelf)
    data = json.dumps({"kind": "words", "pieces": [*toy_bundle.PIECES[:-1], "slowly"], "join": " "}).encode()
    toy_bundle.forge(cache / "toy@1.10", changed={"vocabulary.json": data})
    Bundle.open("toy")  # its own manifest is right
    result = run("verify", "toy", "--json")
    assert result.exit_code == 1
    (problems,) = json.loads(result.stdout)["problems"].values()
    assert "manifest.json: sha256 is" in problems[0]
    assert "vocabulary.json: not the file that the index promised" in problems[1]


def test_a_version_never_changes(shelf: Path, cache: Path) -> None:
    run("pull", "toy@1.10", "--index", shelf)
    toy_bundle.forge(shelf / "toy@1.10", lambda manifest: manifest.update(name="other"))
    make_index(shelf)
    result = run("pull", "toy", "--index", shelf)
    assert result.exit_code == 1
    assert "there already, with other contents" in result.stderr
    assert "captionlite models remove toy@1.10" in result.stderr
    assert Bundle.open("toy").manifest.name == "toy"


def test_a_broken_pull_is_told_and_gone_on_with(server: Served, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captionlite.runtime.models.fetch.PAUSE_S", 0.0)
    assert run("list", "--index", server.url).exit_code == 0
    server.behaviour.asked.clear()
    server.behaviour.statuses = []
    size = Bundle.open(Path(cache.parents[1], "shelf", "small.zip")).size_bytes
    server.behaviour.break_after = [10**9, size // 2, 0, 0, 0, 0]  # the index comes whole
    result = run("pull", "small", "--index", server.url)
    assert result.exit_code == 1
    assert f"The {size // 2} bytes that came are kept: the same command goes on from there." in result.stderr
    assert "Error: " in result.stderr
    with pytest.raises(BundleError):
        Bundle.open("small")
    listed = run("list")
    assert "small@1.0: begun, not whole; `captionlite models pull small@1.0` goes on" in listed.stderr
    server.behaviour.break_after = []
    server.behaviour.asked.clear()
    assert run("pull", "small", "--index", server.url).exit_code == 0
    assert server.behaviour.asked == [("index.json", None), ("small.zip", f"bytes={size // 2}-")]
    assert caching.begun() == []
    assert Captioner.from_bundle("small").caption(PHOTOGRAPH).tokens == TOKENS


def test_what_was_begun_can_be_removed(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captionlite.runtime.models.fetch.PAUSE_S", 0.0)
    server.behaviour.break_after = [10**9, 100, 0, 0, 0, 0]
    assert run("pull", "small", "--index", server.url).exit_code == 1
    assert caching.begun() == ["small@1.0"]
    assert run("remove", "small").stdout == "removed small@1.0\n"
    assert caching.begun() == []


def test_a_wrong_file_leaves_what_was_good(server: Served, cache: Path) -> None:
    run("pull", "toy@1.9", "--index", server.url)
    server.behaviour.contents["toy@1.10/decoder.tflite"] = b"\0" * (
        Bundle.open("toy@1.9").manifest.files["decoder.tflite"].size_bytes
    )
    server.behaviour.asked.clear()
    result = run("pull", "toy", "--index", server.url)
    assert result.exit_code == 1
    assert "toy%401.10/decoder.tflite: sha256 is" in result.stderr
    assert Captioner.from_bundle("toy").bundle.location == cache / "toy@1.9"
    server.behaviour.contents.clear()
    fetched = {path for path, _ in server.behaviour.asked}
    server.behaviour.asked.clear()
    assert run("pull", "toy", "--index", server.url).exit_code == 0
    again = {path for path, _ in server.behaviour.asked}
    assert fetched & again == {"index.json", "toy@1.10/decoder.tflite"}  # the right ones were kept


def test_no_room(shelf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: full)
    result = run("pull", "toy", "--index", shelf)
    assert result.exit_code == 1
    assert "0 MB free, but toy@1.10 needs 0. Make room there." in result.stderr


def test_a_cache_that_others_write_to(shelf: Path, cache: Path) -> None:
    run("pull", "toy", "--index", shelf)
    cache.chmod(0o777)
    with pytest.raises(BundleError, match=r"no such bundle.*there: none"):
        Bundle.open("toy")
    result = run("pull", "toy", "--index", shelf)
    assert result.exit_code == 1
    assert "others may write there" in result.stderr
    cache.chmod(0o700)
    assert Bundle.open("toy").manifest.name == "toy"


# --- other processes


def process(*args: object, **options: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "captionlite.runtime.cli", "models", *map(str, args)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options)


def test_two_at_once_fetch_it_once(server: Served, cache: Path) -> None:
    server.behaviour.held = threading.Event()
    first = process("pull", "small", "--index", server.url)
    # The index comes in halves as well, so that it has to be let go first.
    second = None
    try:
        for _ in range(1000):
            if ("small.zip", None) in server.behaviour.asked:
                break
            if server.behaviour.half_sent.wait(0.02) and ("small.zip", None) not in server.behaviour.asked:
                held, server.behaviour.held = server.behaviour.held, None
                server.behaviour.half_sent.clear()
                held.set()
                server.behaviour.held = threading.Event()
        assert ("small.zip", None) in server.behaviour.asked
        zip_held, server.behaviour.held = server.behaviour.held, None
        second = process("pull", "small", "--index", server.url)
        assert second.stderr is not None
        assert second.stderr.readline() == "waiting for another process that pulls small@1.0\n"
        zip_held.set()
        told = [running.communicate(timeout=60) for running in (first, second)]
    finally:
        for running in (first, second):
            if running is not None and running.poll() is None:
                running.kill()
    assert [first.returncode, second.returncode] == [0, 0], told
    assert told[0][0] == told[1][0] == f"small@1.0  {cache / 'small@1.0'}\n"
    assert [path for path, _ in server.behaviour.asked].count("small.zip") == 1


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no kill -9 here")
def test_killed_in_the_middle(server: Served, shelf: Path, cache: Path) -> None:
    size = (shelf / "small.zip").stat().st_size
    index = (shelf / INDEX_FILE).read_bytes()
    server.behaviour.held = threading.Event()
    code = f"""
from captionlite.runtime.models.index import parse_index
from captionlite.runtime.models.pull import pull
index = parse_index({index!r}, "x", {server.url!r})
pull(index, index.find("small"))
"""
    killed = subprocess.Popen([sys.executable, "-c", code])
    partials: list[Path] = []
    for _ in range(3000):
        partials = [path for path in cache.glob(".pulls/small@1.0/*.partial") if path.stat().st_size]
        if partials or killed.poll() is not None:
            break
        server.behaviour.half_sent.wait(0.02)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait(60)
    assert [path.stat().st_size for path in partials] == [size // 2]
    assert caching.cached() == []
    server.behaviour.held.set()
    server.behaviour.held = None
    server.behaviour.asked.clear()
    assert run("pull", "small", "--index", server.url).exit_code == 0  # the lock is gone with the process
    assert server.behaviour.asked == [(INDEX_FILE, None), ("small.zip", f"bytes={size // 2}-")]
    assert Captioner.from_bundle("small").caption(PHOTOGRAPH).tokens == TOKENS


def test_a_caption_loads_nothing_of_this(toy_directory: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(PHOTOGRAPH).save(photo)
    code = f"""
import sys
from captionlite.runtime.cli import cli
cli(["caption", "--bundle", {str(toy_directory)!r}, {str(photo)!r}], standalone_mode=False)
loaded = [m for m in sys.modules if m.startswith(("captionlite.runtime.models", "captionlite.runtime.delegates"))]
assert not loaded, loaded
assert not {{"urllib.request", "http.client", "ssl"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_errors_are_one_line(shelf: Path) -> None:
    with pytest.raises(ModelError) as caught:
        parse_index(b"{", "x", "y")
    assert "\n" not in str(caught.value)
