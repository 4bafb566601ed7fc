"""Golden vectors that carry code: NumPy files may hold pickles, and none may ever be opened."""

import io
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import toy_bundle

from captionlite.runtime import Bundle
from captionlite.runtime.errors import BundleError
from captionlite.runtime.verify import read_golden, verify


class Bomb:
    """Unpickling this makes a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("name", ["images", "tokens", "logits", "encoder/hidden"])
def test_an_array_of_objects(bundle: Path, name: str) -> None:
    marker = bundle.parent / "executed"
    arrays = toy_bundle.golden_arrays()
    arrays[name] = np.array([Bomb(marker)] * 4, dtype=object)  # type: ignore[assignment]
    toy_bundle.forge(bundle, changed={"golden.npz": toy_bundle.npz(arrays)})
    with pytest.raises(BundleError, match=rf"the array '{name}' is object"):
        verify(Bundle.open(bundle))
    assert not marker.exists()


def test_the_bomb_is_real(bundle: Path) -> None:
    marker = bundle.parent / "executed"
    pickle.loads(pickle.dumps(Bomb(marker)))
    assert marker.exists()


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_pickle_in_place_of_an_array(bundle: Path, wrapped: bool) -> None:
    marker = bundle.parent / "executed"
    data = pickle.dumps(Bomb(marker))
    if wrapped:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            archive.writestr("images.npy", data)
        data = buffer.getvalue()
    toy_bundle.forge(bundle, changed={"golden.npz": data})
    with pytest.raises(BundleError, match=r"golden\.npz: not readable as golden vectors"):
        read_golden(Bundle.open(bundle))
    assert not marker.exists()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '|O', 'fortran_order': False, 'shape': (4, 8, 12, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (-4, 8, 12, 3)}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': (4, 8, 12, 3), 'x': 1}",
        "{'descr': '|u1', 'fortran_order': False, 'shape': 4}",
        "__import__('os').mkdir('executed')",
        "[" * 5000,
        "'" + "x" * 60_000 + "'",
    ],
    ids=["objects", "negative", "extra key", "no tuple", "code", "nested", "long"],
)
def test_a_hostile_header(bundle: Path, monkeypatch: pytest.MonkeyPatch, header: str) -> None:
    monkeypatch.chdir(bundle.parent)
    text = header.encode() + b"\n"
    data = b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + bytes(4 * 8 * 12 * 3)
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("images.npy", data)
    toy_bundle.forge(bundle, changed={"golden.npz": buffer.getvalue()})
    with pytest.raises(BundleError, match=r"golden\.npz: "):
        read_golden(Bundle.open(bundle))
    assert not (bundle.parent / "executed").exists()
