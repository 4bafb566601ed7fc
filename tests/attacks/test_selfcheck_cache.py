"""The cache of passed self-checks in any state: captioning goes on, and nothing but a true pass is believed."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import toy_bundle

from captionlite.runtime import Captioner, remembered
from captionlite.runtime import verify as verifying
from captionlite.runtime.errors import WrongNumbersError

PHOTOGRAPH = toy_bundle.photographs(1)[0]
POSIX = pytest.mark.skipif(os.name != "posix", reason="owners, links and pipes of POSIX")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "captionlite" / "selfcheck"


@pytest.fixture
def checks(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """One entry for each self-check that ran."""
    done: list[None] = []
    compare = verifying.compare_tensors

    def counted(captioner: Captioner, golden: verifying.Golden) -> tuple[verifying.TensorCheck, ...]:
        done.append(None)
        return compare(captioner, golden)

    monkeypatch.setattr(verifying, "compare_tensors", counted)
    return done


def caption(bundle: Path) -> None:
    assert Captioner.from_bundle(bundle).caption(PHOTOGRAPH).tokens == tuple(toy_bundle.decode(PHOTOGRAPH).tokens)


def the_pass(cache: Path) -> Path:
    (path,) = cache.iterdir()
    return path


def _link(path: Path) -> None:
    path.rename(path.parents[3] / "moved")
    path.symlink_to(path.parents[3] / "moved")


def _huge(path: Path) -> None:
    with path.open("r+b") as file:
        file.truncate(1 << 40)  # sparse, and no test would end that read it


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "cut short": lambda path: path.write_bytes(path.read_bytes()[:-1]),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\n"),
    "of another key": lambda path: path.write_bytes(path.read_bytes().replace(path.name.encode(), b"0" * 64)),
    "no text": lambda path: path.write_bytes(b"\xff\0" * 50),
    "a link to a true one": _link,
    "huge": _huge,
    "a pipe": _pipe,
}


@POSIX
@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_pass_is_none_and_is_replaced(bundle: Path, cache: Path, checks: list[None], name: str) -> None:
    caption(bundle)
    good = the_pass(cache).read_bytes()
    try:
        DAMAGE[name](the_pass(cache))
    except OSError as error:
        pytest.skip(f"this file system does not do that ({error})")
    caption(bundle)
    assert len(checks) == 2
    assert not the_pass(cache).is_symlink()
    assert the_pass(cache).read_bytes() == good
    caption(bundle)
    assert len(checks) == 2


def test_a_folder_in_place_of_a_pass(bundle: Path, cache: Path, checks: list[None]) -> None:
    caption(bundle)
    path = the_pass(cache)
    path.unlink()
    path.mkdir()
    for _ in range(2):
        caption(bundle)
    assert len(checks) == 3
    assert the_pass(cache).is_dir()


@pytest.mark.parametrize("level", range(3))
def test_a_file_in_place_of_a_folder(bundle: Path, cache: Path, checks: list[None], level: int) -> None:
    blocked = (cache, *cache.parents)[level]
    blocked.parent.mkdir(parents=True, exist_ok=True)
    blocked.write_text("in the way")
    for _ in range(2):
        caption(bundle)
    assert len(checks) == 2
    assert blocked.read_text() == "in the way"


@POSIX
def test_a_folder_that_others_may_write_to_is_not_used(bundle: Path, cache: Path, checks: list[None]) -> None:
    caption(bundle)
    cache.chmod(0o777)
    caption(bundle)
    assert len(checks) == 2
    the_pass(cache).unlink()
    caption(bundle)
    assert list(cache.iterdir()) == []


@POSIX
def test_a_linked_folder_is_not_used(bundle: Path, cache: Path, checks: list[None], tmp_path: Path) -> None:
    caption(bundle)
    elsewhere = tmp_path / "elsewhere"
    cache.rename(elsewhere)
    cache.symlink_to(elsewhere)
    caption(bundle)
    assert len(checks) == 2
    the_pass(elsewhere).unlink()
    caption(bundle)
    assert list(elsewhere.iterdir()) == []


@POSIX
def test_a_linked_home_is_used(
    bundle: Path, checks: list[None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "scratch").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "scratch")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "link"))
    for _ in range(2):
        caption(bundle)
    assert len(checks) == 1


@POSIX
def test_what_another_user_left_is_not_believed(
    bundle: Path, cache: Path, checks: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    caption(bundle)
    monkeypatch.setattr(remembered, "_effective_user", lambda: os.geteuid() + 1)
    caption(bundle)
    assert len(checks) == 2


@POSIX
def test_root_leaves_nothing_in_the_home_of_a_user(
    bundle: Path, cache: Path, checks: list[None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Under sudo: ~/.cache/captionlite would then belong to root, and the user could never write there again.
    monkeypatch.setattr(remembered, "_effective_user", lambda: 0)
    monkeypatch.setattr(remembered, "_ours", lambda found: False)
    caption(bundle)
    assert not cache.parents[1].exists()


def test_a_full_disk(bundle: Path, cache: Path, checks: list[None], monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(remembered, "write_bytes_atomically", refuse)
    for _ in range(2):
        caption(bundle)
    assert len(checks) == 2


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(bundle: Path, cache: Path, checks: list[None]) -> None:
    cache.mkdir(parents=True)
    cache.chmod(0o500)
    for _ in range(2):
        caption(bundle)
    assert len(checks) == 2


@POSIX
@pytest.mark.parametrize("home", ["", "relative", "/no/such/home", "/dev/null"])
def test_without_a_home(
    bundle: Path, checks: list[None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, home: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", home)
    before = sorted(tmp_path.iterdir())
    assert remembered.cache_directory() is None
    for _ in range(2):
        caption(bundle)
    assert len(checks) == 2
    assert sorted(tmp_path.iterdir()) == before
    assert not Path("/no").exists()


@POSIX
@pytest.mark.parametrize("cache_home", ["", "relative/cache"])
def test_the_cache_below_home(
    bundle: Path, checks: list[None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache_home: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "home").mkdir()
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CACHE_HOME", cache_home)
    for _ in range(2):
        caption(bundle)
    assert len(checks) == 1
    assert the_pass(tmp_path / "home" / ".cache" / "captionlite" / "selfcheck").is_file()
    assert not (tmp_path / "relative").exists()


def test_a_pass_does_not_let_other_numbers_through(bundle: Path, cache: Path) -> None:
    caption(bundle)
    changed = bundle.parent / "changed"
    shutil.copytree(bundle, changed)
    arrays = toy_bundle.golden_arrays()
    arrays["logits"] = arrays["logits"] * 2  # type: ignore[operator]
    toy_bundle.forge(changed, changed={"golden.npz": toy_bundle.npz(arrays)})
    with pytest.raises(WrongNumbersError):
        Captioner.from_bundle(changed)
    assert len(list(cache.iterdir())) == 1
