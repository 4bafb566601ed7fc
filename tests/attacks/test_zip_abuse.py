"""Zips that grow when they are read, say one thing twice, or are damaged."""

import io
import struct
import zipfile
from pathlib import Path

import pytest
import toy_bundle

from captionlite.runtime import Bundle
from captionlite.runtime.bundle import pack_bundle
from captionlite.runtime.errors import BundleError


def packed(bundle: Path, **options: int) -> zipfile.ZipFile:
    """A zip of the bundle, still open for more entries."""
    archive = zipfile.ZipFile(bundle.parent / "bundle.zip", "w", **options)
    for file in sorted(bundle.iterdir()):
        archive.write(file, file.name)
    return archive


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compressed_zip(bundle: Path, method: int) -> None:
    packed(bundle, compression=method).close()
    with pytest.raises(BundleError, match=r"is compressed, expected an uncompressed zip \(`zip -0`\)"):
        Bundle.open(bundle.parent / "bundle.zip")


def test_a_bomb_beside_the_files(bundle: Path) -> None:
    # 20 MB of zeros in 20 KB, in a file that the manifest does not even name.
    with packed(bundle) as archive:
        archive.writestr("bomb.bin", bytes(20_000_000), compress_type=zipfile.ZIP_DEFLATED)
    with pytest.raises(BundleError, match=r"bomb\.bin' is compressed"):
        Bundle.open(bundle.parent / "bundle.zip")


def changed_directory(bundle: Path, offset: int, layout: str, *values: int) -> Path:
    """A zip of the bundle, some fields of its last directory entry (vocabulary.json) overwritten."""
    path = bundle.parent / "bundle.zip"
    pack_bundle(bundle, path)
    data = bytearray(path.read_bytes())
    struct.pack_into(layout, data, data.rindex(b"PK\x01\x02") + offset, *values)
    path.write_bytes(data)
    return path


def test_a_stored_entry_that_lies_about_its_size(bundle: Path) -> None:
    # The directory of the zip says 4 GB for a few bytes: nothing may be allocated for it.
    path = changed_directory(bundle, 20, "<II", 0xFFFFFF00, 0xFFFFFF00)
    with pytest.raises(BundleError, match=r"vocabulary\.json: 4294967040 bytes, expected"):
        Bundle.open(path)


def test_an_encrypted_entry(bundle: Path) -> None:
    path = changed_directory(bundle, 8, "<H", 1)
    with pytest.raises(BundleError, match=r"'vocabulary\.json' is encrypted"):
        Bundle.open(path)


def test_a_manifest_too_large(bundle: Path) -> None:
    (bundle / "manifest.json").write_bytes(b" " * (1 << 20) + (bundle / "manifest.json").read_bytes())
    with pytest.raises(BundleError, match="larger than the 1048576 bytes expected"):
        Bundle.open(bundle)


def test_an_entry_twice(bundle: Path) -> None:
    with packed(bundle) as archive, pytest.warns(UserWarning, match="Duplicate name"):
        archive.writestr("vocabulary.json", b"{}")
    with pytest.raises(BundleError, match=r"'vocabulary\.json' stands in the zip twice"):
        Bundle.open(bundle.parent / "bundle.zip")


def test_too_many_entries(bundle: Path) -> None:
    with packed(bundle) as archive:
        for i in range(200):
            archive.writestr(f"{i}.txt", b"")
    with pytest.raises(BundleError, match="expected at most 100"):
        Bundle.open(bundle.parent / "bundle.zip")


def test_a_folder_inside_the_zip_says_what_to_do(bundle: Path) -> None:
    path = bundle.parent / "bundle.zip"
    with zipfile.ZipFile(path, "w") as archive:
        for file in bundle.iterdir():
            archive.write(file, f"bundle/{file.name}")
    with pytest.raises(BundleError, match="expected every file at the top of the zip"):
        Bundle.open(path)


@pytest.mark.parametrize("part", range(1, 12))
def test_a_zip_cut_short(bundle: Path, part: int) -> None:
    path = bundle.parent / "bundle.zip"
    pack_bundle(bundle, path)
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * part // 12])
    with pytest.raises(BundleError):
        Bundle.open(path)


def test_a_damaged_entry(bundle: Path) -> None:
    path = bundle.parent / "bundle.zip"
    pack_bundle(bundle, path)
    data = path.read_bytes()
    place = data.index(toy_bundle.vocabulary_json()) + 40
    path.write_bytes(data[:place] + b"X" + data[place + 1 :])
    with pytest.raises(BundleError, match=r"vocabulary\.json"):
        Bundle.open(path)


def test_golden_vectors_that_are_a_bomb(bundle: Path) -> None:
    # golden.npz is a zip of its own, and may be compressed: its arrays are sized before they are inflated.
    from captionlite.runtime.verify import read_golden

    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        header = (
            b"\x93NUMPY\x01\x00\x76\x00"
            + repr({"descr": "|u1", "fortran_order": False, "shape": (1_000_000_000, 8, 12, 3)}).encode().ljust(117)
            + b"\n"
        )
        archive.writestr("images.npy", header + bytes(50_000_000))
    toy_bundle.forge(bundle, changed={"golden.npz": buffer.getvalue()})
    with pytest.raises(BundleError, match=r"'images' is uint8 \[1000000000, 8, 12, 3\].*at most"):
        read_golden(Bundle.open(bundle))
