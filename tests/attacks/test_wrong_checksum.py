"""Files that are not what the manifest says: by size, by content, by absence."""

import json
from pathlib import Path

import pytest
import toy_bundle

from captionlite.runtime import Bundle
from captionlite.runtime.bundle import pack_bundle
from captionlite.runtime.errors import BundleError

FILES = sorted(toy_bundle.files())


@pytest.mark.parametrize("name", FILES)
def test_one_byte_changed(bundle: Path, name: str) -> None:
    data = bytearray((bundle / name).read_bytes())
    data[len(data) // 2] ^= 1
    (bundle / name).write_bytes(data)
    with pytest.raises(BundleError, match=rf"{name}: sha256 is [0-9a-f]{{64}}, expected .*copy or export"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", FILES)
def test_one_byte_less_or_more(bundle: Path, name: str) -> None:
    data = (bundle / name).read_bytes()
    for changed in (data[:-1], data + b"\0"):
        (bundle / name).write_bytes(changed)
        with pytest.raises(BundleError, match=rf"{name}: {len(changed)} bytes, expected {len(data)}"):
            Bundle.open(bundle)


@pytest.mark.parametrize("name", FILES)
def test_one_file_missing(bundle: Path, name: str) -> None:
    (bundle / name).unlink()
    with pytest.raises(BundleError, match=f"{name}: missing"):
        Bundle.open(bundle)


def test_two_files_swapped(bundle: Path) -> None:
    encoder, decoder = bundle / "encoder.tflite", bundle / "decoder.tflite"
    first, second = encoder.read_bytes(), decoder.read_bytes()
    encoder.write_bytes(second)
    decoder.write_bytes(first)
    with pytest.raises(BundleError, match="tflite"):
        Bundle.open(bundle)


def test_packing_a_damaged_bundle(bundle: Path) -> None:
    (bundle / "README.md").write_text("changed")
    with pytest.raises(BundleError, match=r"README\.md"):
        pack_bundle(bundle, bundle.parent / "bundle.zip")
    assert not (bundle.parent / "bundle.zip").exists()


@pytest.mark.parametrize("digest", ["", "0" * 63, "0" * 65, "G" * 64, "A" * 64, "٠" * 64, None, 0])
def test_a_digest_that_is_none(bundle: Path, digest: object) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["files"]["README.md"]["sha256"] = digest
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match=r"files\.README\.md\.sha256"):
        Bundle.open(bundle)
