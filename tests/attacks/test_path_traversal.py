"""A manifest that names files outside its bundle, and bundles that reach outside through links."""

import hashlib
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import toy_bundle

from captionlite.runtime import Bundle
from captionlite.runtime.bundle import write_bundle
from captionlite.runtime.errors import BundleError

SECRET = toy_bundle.vocabulary_json()  # a file that would be taken, were it reached

NAMES = [
    "../secret.json",
    "../../secret.json",
    "sub/../../secret.json",
    "./vocabulary.json",
    "sub/secret.json",
    "..\\secret.json",
    "C:\\secret.json",
    "C:secret.json",
    "..",
    ".",
    ".hidden",
    "vocabulary.json\0.txt",
    "vocabulary.json\n",
    "~root",
    "manifest.json",
    "a" * 300,
    "",
]


@pytest.mark.parametrize("place", ["vocabulary.file", "graphs.encoder.file", "golden.file"])
@pytest.mark.parametrize("name", [*NAMES, "ABSOLUTE"], ids=repr)
def test_a_file_name_that_leaves_the_bundle(bundle: Path, name: str, place: str) -> None:
    secret = bundle.parent / "secret.json"
    secret.write_bytes(SECRET)
    name = str(secret) if name == "ABSOLUTE" else name

    def edit(manifest: dict[str, Any]) -> None:
        *parents, last = place.split(".")
        target = manifest
        for key in parents:
            target = target[key]
        target[last] = name
        manifest["files"][name] = {"sha256": hashlib.sha256(SECRET).hexdigest(), "size_bytes": len(SECRET)}

    toy_bundle.forge(bundle, edit)
    with pytest.raises(BundleError, match=r"manifest\.json: "):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_an_extra_file_that_leaves_the_bundle(bundle: Path, name: str) -> None:
    (bundle.parent / "secret.json").write_bytes(SECRET)
    entry = {"sha256": hashlib.sha256(SECRET).hexdigest(), "size_bytes": len(SECRET)}
    toy_bundle.forge(bundle, lambda manifest: manifest["files"].update({name: entry}))
    with pytest.raises(BundleError, match="expected a plain file name"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["../escaped.txt", "/tmp/escaped.txt", "sub/escaped.txt"])
def test_writing_a_bundle_never_leaves_it(tmp_path: Path, name: str) -> None:
    with pytest.raises(BundleError, match="expected a plain file name"):
        write_bundle(tmp_path / "bundle", toy_bundle.manifest(), {**toy_bundle.files(), name: b"x"})
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("name", ["vocabulary.json", "encoder.tflite", "manifest.json"])
def test_a_link_out_of_the_bundle(bundle: Path, name: str) -> None:
    # Even one that leads to the right bytes: what is checked now could be another file a moment later.
    outside = bundle.parent / "outside"
    os.rename(bundle / name, outside)
    (bundle / name).symlink_to(outside)
    with pytest.raises(BundleError, match=f"{name}: a symbolic link"):
        Bundle.open(bundle)


@pytest.mark.timeout(20)
def test_a_pipe_does_not_hang(bundle: Path) -> None:
    (bundle / "vocabulary.json").unlink()
    os.mkfifo(bundle / "vocabulary.json")
    with pytest.raises(BundleError, match="not a regular file"):
        Bundle.open(bundle)


def test_a_directory_in_place_of_a_file(bundle: Path) -> None:
    (bundle / "vocabulary.json").unlink()
    (bundle / "vocabulary.json").mkdir()
    with pytest.raises(BundleError, match=r"vocabulary\.json: "):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["../secret.json", "/secret.json", "sub/secret.json", "..\\secret.json"])
def test_a_zip_entry_that_leaves_the_bundle(bundle: Path, name: str) -> None:
    path = bundle.parent / "bundle.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in bundle.iterdir():
            archive.write(file, file.name)
        archive.writestr(name, SECRET)
    with pytest.raises(BundleError, match="is in a folder"):
        Bundle.open(path)
    assert sorted(os.listdir(bundle.parent)) == ["bundle", "bundle.zip"]


def test_the_bundle_itself_may_be_a_link(bundle: Path) -> None:
    link = bundle.parent / "link"
    link.symlink_to(bundle)
    assert Bundle.open(link).manifest.name == json.loads((bundle / "manifest.json").read_text())["name"]
