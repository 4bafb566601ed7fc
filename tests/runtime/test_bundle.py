"""Bundles on disk: written in one stroke, read back equal, packed to the same bytes, never half there."""

import dataclasses
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest
import toy_bundle

from captionlite.runtime import Bundle
from captionlite.runtime.bundle import pack_bundle, write_bundle
from captionlite.runtime.errors import BundleError
from captionlite.runtime.manifest import Manifest


def test_a_bundle_reads_back_what_was_written(toy_directory: Path) -> None:
    bundle = Bundle.open(toy_directory)
    assert dataclasses.replace(bundle.manifest, files={}) == toy_bundle.manifest()
    for name, data in toy_bundle.files().items():
        assert bundle.read(name) == data
        assert bundle.manifest.files[name].size_bytes == len(data)
        assert bundle.path(name) == toy_directory / name
    assert bundle.size_bytes == sum(map(len, toy_bundle.files().values()))


def test_a_zip_reads_like_its_directory(toy_directory: Path, toy_zip: Path) -> None:
    directory, packed = Bundle.open(toy_directory), Bundle.open(str(toy_zip))
    assert packed.manifest == directory.manifest
    assert packed.vocabulary == directory.vocabulary
    for name in directory.manifest.files:
        assert packed.read(name) == directory.read(name)
        assert packed.path(name) is None


def test_packing_twice_gives_the_same_bytes(toy_directory: Path, toy_zip: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.zip"
    pack_bundle(toy_directory, again)
    assert again.read_bytes() == toy_zip.read_bytes()
    with zipfile.ZipFile(again) as archive:
        assert {entry.compress_type for entry in archive.infolist()} == {zipfile.ZIP_STORED}
        assert archive.namelist()[0] == "manifest.json"


def test_packing_does_not_overwrite_unless_forced(toy_directory: Path, tmp_path: Path) -> None:
    target = tmp_path / "bundle.zip"
    target.write_text("mine")
    with pytest.raises(BundleError, match="exists already"):
        pack_bundle(toy_directory, target)
    assert target.read_text() == "mine"
    pack_bundle(toy_directory, target, force=True)
    assert Bundle.open(target).manifest.name == "toy"
    assert os.listdir(tmp_path) == ["bundle.zip"]


def test_detokenize_drops_specials_by_id(toy_directory: Path) -> None:
    vocabulary = Bundle.open(toy_directory).vocabulary
    ids = [toy_bundle.START, 4, 5, toy_bundle.UNKNOWN, 6, toy_bundle.END, toy_bundle.PAD]
    assert vocabulary.detokenize(ids) == "a dog runs"
    assert vocabulary.detokenize([]) == ""
    assert len(vocabulary) == toy_bundle.V


def test_missing_bundle_says_what_to_give(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"no such bundle.*`default`"):
        Bundle.open(tmp_path / "nowhere")


def test_a_directory_without_manifest(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"manifest\.json: missing"):
        Bundle.open(tmp_path)


def test_a_file_that_is_no_zip(tmp_path: Path) -> None:
    path = tmp_path / "bundle.zip"
    path.write_bytes(b"not a zip")
    with pytest.raises(BundleError, match="not readable as a bundle zip"):
        Bundle.open(path)


def test_a_file_that_the_manifest_does_not_list(toy_directory: Path) -> None:
    bundle = Bundle.open(toy_directory)
    with pytest.raises(BundleError, match=r"It has: README\.md, decoder\.tflite"):
        bundle.read("secret.txt")
    with pytest.raises(BundleError, match=r"no file '\.\./toy\.zip'"):
        bundle.path("../toy.zip")


def test_an_absent_default_bundle_is_explained(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("captionlite.runtime.bundle.PACKAGED_BUNDLES", tmp_path)
    with pytest.raises(BundleError, match="no default bundle"):
        Bundle.open()


def test_default_is_the_packaged_bundle(monkeypatch: pytest.MonkeyPatch, toy_directory: Path, tmp_path: Path) -> None:
    shutil.copytree(toy_directory, tmp_path / "default")
    monkeypatch.setattr("captionlite.runtime.bundle.PACKAGED_BUNDLES", tmp_path)
    assert Bundle.open("default").location == tmp_path / "default"


def test_writing_refuses_to_overwrite(tmp_path: Path) -> None:
    directory = tmp_path / "bundle"
    toy_bundle.write(directory)
    before = (directory / "manifest.json").read_bytes()
    with pytest.raises(BundleError, match="--force"):
        write_bundle(directory, dataclasses.replace(toy_bundle.manifest(), name="new"), toy_bundle.files())
    assert (directory / "manifest.json").read_bytes() == before


def test_writing_with_force_replaces_everything(tmp_path: Path) -> None:
    directory = tmp_path / "bundle"
    toy_bundle.write(directory)
    (directory / "left-over.txt").write_text("old")
    write_bundle(directory, dataclasses.replace(toy_bundle.manifest(), name="new"), toy_bundle.files(), force=True)
    assert Bundle.open(directory).manifest.name == "new"
    assert not (directory / "left-over.txt").exists()
    assert os.listdir(tmp_path) == ["bundle"]


def test_force_does_not_remove_what_is_no_bundle(tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "thesis.txt").write_text("years of work")
    with pytest.raises(BundleError, match="not a bundle"):
        write_bundle(home, toy_bundle.manifest(), toy_bundle.files(), force=True)
    assert (home / "thesis.txt").read_text() == "years of work"


def test_writing_into_an_empty_directory_needs_no_force(tmp_path: Path) -> None:
    directory = tmp_path / "deeper" / "bundle"
    directory.mkdir(parents=True)
    toy_bundle.write(directory)
    assert Bundle.open(directory).manifest.name == "toy"


@pytest.mark.parametrize("nth", range(1, 9))
def test_an_interrupted_write_leaves_the_old_bundle(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, nth: int) -> None:
    # The n-th fsync fails, as when the disk is full: six files and two directories are synced on the way.
    directory = tmp_path / "bundle"
    toy_bundle.write(directory)
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    calls, fsync = iter(range(1, 100)), os.fsync

    def failing(descriptor: int) -> None:
        if next(calls) == nth:
            raise OSError(28, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    new = dataclasses.replace(toy_bundle.manifest(), name="new")
    with pytest.raises(OSError, match="No space left"):
        write_bundle(directory, new, toy_bundle.files(), force=True)
    if nth < 8:  # the eighth comes after the rename: then the new one stands there, whole
        assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    assert Bundle.open(directory).manifest.name == ("toy" if nth < 8 else "new")
    assert os.listdir(tmp_path) == ["bundle"]


def test_writing_refuses_a_manifest_that_contradicts_its_files(tmp_path: Path) -> None:
    files = toy_bundle.files()
    del files["golden.npz"]
    with pytest.raises(BundleError, match=r"files does not list golden\.npz"):
        write_bundle(tmp_path / "bundle", toy_bundle.manifest(), files)
    assert os.listdir(tmp_path) == []


def test_writing_refuses_a_vocabulary_that_does_not_fit(tmp_path: Path) -> None:
    vocabulary = json.dumps({"kind": "words", "pieces": ["a"], "join": " "}).encode()
    with pytest.raises(BundleError, match="1 pieces, but the decoder has 12 logits"):
        write_bundle(tmp_path / "bundle", toy_bundle.manifest(), {**toy_bundle.files(), "vocabulary.json": vocabulary})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("value", [float("nan"), object()])
def test_writing_refuses_scores_that_json_cannot_hold(tmp_path: Path, value: object) -> None:
    manifest = dataclasses.replace(toy_bundle.manifest(), scores={"cider": value})
    with pytest.raises(BundleError, match="cannot be written as JSON"):
        write_bundle(tmp_path / "bundle", manifest, toy_bundle.files())
    assert os.listdir(tmp_path) == []


def test_manifest_survives_a_round_trip() -> None:
    manifest = dataclasses.replace(toy_bundle.manifest(), files=_file_specs())
    assert Manifest.from_json(json.loads(json.dumps(manifest.to_json())), "manifest.json") == manifest


def _file_specs() -> dict[str, object]:
    from captionlite.runtime.manifest import FileSpec

    return {name: FileSpec("0" * 64, len(data)) for name, data in toy_bundle.files().items()}
