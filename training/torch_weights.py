"""Read tensors from a legacy PyTorch file (`torch.save` before version 1.6) without PyTorch and without `pickle`.

Such a file is four pickles (magic number, protocol version, system information, the state dict), a fifth with the keys
of the storages, then the storages' raw bytes. A pickle is a program, and unpickling runs it. Here the few opcodes that
a dictionary of tensors needs are interpreted by a small machine that has nothing to call: a file that asks for more is
refused before anything of it is used.
"""

import math
import pickletools
from collections import OrderedDict
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from captionlite.training.errors import WeightsError

MAGIC_NUMBER = 0x1950A86A20F9469CFC6C
PROTOCOL_VERSION = 1001

_STORAGE_DTYPES = {
    "DoubleStorage": "<f8",
    "FloatStorage": "<f4",
    "HalfStorage": "<f2",
    "LongStorage": "<i8",
    "IntStorage": "<i4",
    "ShortStorage": "<i2",
    "CharStorage": "i1",
    "ByteStorage": "u1",
    "BoolStorage": "?",
}
_ORDERED_DICT = "collections OrderedDict"
_REBUILD_TENSOR = "torch._utils _rebuild_tensor_v2"
_GLOBALS = {_ORDERED_DICT, _REBUILD_TENSOR} | {f"torch {name}" for name in _STORAGE_DTYPES}

_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINUNICODE"}
_MEMO_WRITES = {"BINPUT", "LONG_BINPUT"}
_MEMO_READS = {"BINGET", "LONG_BINGET"}
_TUPLE_SIZES = {"EMPTY_TUPLE": 0, "TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
_MAX_DIMENSIONS = 8
_MAX_SHARING = 4


class _RefusedError(Exception):
    """Why a pickle is refused; turned into a WeightsError that names the file."""


class _Mark:
    """The stack's mark; an instance so that nothing in a file can be equal to it."""


@dataclass(frozen=True)
class _Global:
    name: str


@dataclass(frozen=True)
class _Storage:
    key: str
    dtype: np.dtype[Any]
    numel: int


@dataclass(frozen=True)
class _Tensor:
    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


def read_torch_weights(path: Path) -> dict[str, NDArray[Any]]:
    """The tensors of a legacy .pth state dict by name, as NumPy arrays of their own shapes and types.

    Raises:
        WeightsError: the file is missing, is not in the legacy format, is damaged, or holds anything but tensors.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read: {error.strerror or error}.") from None
    if data.startswith(b"PK\x03\x04"):
        raise WeightsError(
            f"{path}: written by PyTorch 1.6 or later (a zip file); expected the older format. Convert it to "
            ".safetensors, or save it with _use_new_zipfile_serialization=False."
        )
    try:
        return _read(BytesIO(data), len(data))
    except _RefusedError as error:
        raise WeightsError(
            f"{path}: refused: {error}. Expected a legacy PyTorch state dict with nothing but tensors in it; do not "
            "load this file with anything else unless you trust its source."
        ) from None


def _read(stream: BytesIO, size: int) -> dict[str, NDArray[Any]]:
    if _run_pickle(stream) != MAGIC_NUMBER:
        raise _RefusedError("it does not begin with PyTorch's magic number")
    if (version := _run_pickle(stream)) != PROTOCOL_VERSION:
        raise _RefusedError(f"protocol version {version!r:.40}, expected {PROTOCOL_VERSION}")
    system = _run_pickle(stream)
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise _RefusedError("not written on a little-endian machine")
    state = _run_pickle(stream)
    if not isinstance(state, dict) or not state:
        raise _RefusedError(f"holds a {type(state).__name__.strip('_')}, expected a dictionary of tensors")
    tensors: dict[str, _Tensor] = {}
    for name, value in state.items():
        if not isinstance(value, _Tensor):
            raise _RefusedError(f"{name!r:.80} is a {type(value).__name__.strip('_')}, expected a tensor")
        tensors[name] = value
    declared: dict[str, _Storage] = {}
    for name, tensor in tensors.items():
        if declared.setdefault(tensor.storage.key, tensor.storage) != tensor.storage:
            raise _RefusedError(f"{name!r:.80} describes its storage otherwise than another tensor does")
    # Tied weights share a storage; thousands of tensors over one large storage are an attempt on the memory.
    if (
        sum(math.prod(tensor.shape) * tensor.storage.dtype.itemsize for tensor in tensors.values())
        > _MAX_SHARING * size
    ):
        raise _RefusedError("its tensors are far larger than the file")
    storages = _read_storages(stream, size, declared)
    return {name: _view(name, tensor, storages) for name, tensor in tensors.items()}


def _read_storages(stream: BytesIO, size: int, declared: dict[str, _Storage]) -> dict[str, NDArray[Any]]:
    keys = _run_pickle(stream)
    if not isinstance(keys, list) or not all(isinstance(key, str) for key in keys):
        raise _RefusedError("its list of storages is not a list of names")
    if len(set(keys)) != len(keys) or set(keys) != set(declared):
        raise _RefusedError("its list of storages does not match its tensors")
    storages = {}
    for key in keys:
        storage = declared[key]
        count = stream.read(8)
        size_bytes = storage.numel * storage.dtype.itemsize
        if count != storage.numel.to_bytes(8, "little") or size_bytes > size - stream.tell():
            raise _RefusedError(f"storage {key}: cut short or of another size than its tensors say")
        storages[key] = np.frombuffer(stream.read(size_bytes), storage.dtype)
    if stream.tell() != size:
        raise _RefusedError(f"{size - stream.tell()} bytes follow the last storage")
    return storages


def _view(name: str, tensor: _Tensor, storages: dict[str, NDArray[Any]]) -> NDArray[Any]:
    storage = storages[tensor.storage.key]
    last = tensor.offset + sum(
        (length - 1) * stride for length, stride in zip(tensor.shape, tensor.strides, strict=True)
    )
    elements = math.prod(tensor.shape)
    # A tensor larger than its storage would be an expanded one, or an attempt on the memory.
    if elements > storage.size or (elements and last >= storage.size):
        raise _RefusedError(f"{name!r}: reaches beyond its storage")
    if not elements:
        return np.empty(tensor.shape, storage.dtype)
    strides = [stride * storage.dtype.itemsize for stride in tensor.strides]
    view = np.lib.stride_tricks.as_strided(storage[tensor.offset :], tensor.shape, strides)
    return np.array(view, order="C")


def _run_pickle(stream: BytesIO) -> Any:
    """Interpret one pickle. Dictionary keys must be strings, so that nothing nested is ever hashed."""
    stack: list[Any] = []
    memo: dict[int, Any] = {}
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return stack.pop()
            _step(opcode.name, argument, stack, memo)
    except _RefusedError:
        raise
    except (ValueError, IndexError, KeyError, EOFError, OverflowError) as error:
        raise _RefusedError(f"damaged, or no pickle ({error or type(error).__name__!s:.120})") from None
    raise _RefusedError("damaged: a pickle does not end")


def _step(name: str, argument: Any, stack: list[Any], memo: dict[int, Any]) -> None:
    if name in _LITERALS:
        stack.append(argument)
    elif name in _CONSTANTS:
        stack.append(_CONSTANTS[name])
    elif name in _MEMO_WRITES:
        memo[argument] = stack[-1]
    elif name in _MEMO_READS:
        stack.append(memo[argument])
    elif name == "MARK":
        stack.append(_Mark())
    elif name in _TUPLE_SIZES:
        count = _TUPLE_SIZES[name]
        items = [stack.pop() for _ in range(count)][::-1]
        stack.append(tuple(items))
    elif name == "TUPLE":
        stack.append(tuple(_pop_to_mark(stack)))
    elif name == "EMPTY_DICT":
        stack.append({})
    elif name == "EMPTY_LIST":
        stack.append([])
    elif name in ("SETITEM", "SETITEMS"):
        items = _pop_to_mark(stack) if name == "SETITEMS" else [stack.pop(), stack.pop()][::-1]
        _set_items(stack[-1], items)
    elif name in ("APPEND", "APPENDS"):
        items = _pop_to_mark(stack) if name == "APPENDS" else [stack.pop()]
        if not isinstance(stack[-1], list):
            raise _RefusedError("appends to something that is no list")
        stack[-1].extend(items)
    elif name == "GLOBAL":
        if argument not in _GLOBALS:
            raise _RefusedError(f"it asks for {'.'.join(argument.split(' ', 1))!r:.120}, which is no tensor")
        stack.append(_Global(argument))
    elif name == "BINPERSID":
        stack.append(_storage(stack.pop()))
    elif name == "REDUCE":
        arguments = stack.pop()
        stack.append(_reduce(stack.pop(), arguments))
    elif name == "BUILD":  # an OrderedDict's attributes (`_metadata`), which no tensor needs
        stack.pop()
        if not isinstance(stack[-1], OrderedDict):
            raise _RefusedError("sets attributes of something that is no dictionary")
    elif name != "PROTO":
        raise _RefusedError(f"it uses the pickle instruction {name}, which no tensor needs")


def _pop_to_mark(stack: list[Any]) -> list[Any]:
    items = []
    while not isinstance(item := stack.pop(), _Mark):
        items.append(item)
    return items[::-1]


def _set_items(target: Any, items: list[Any]) -> None:
    if not isinstance(target, dict) or len(items) % 2:
        raise _RefusedError("sets items of something that is no dictionary")
    for key, value in zip(items[::2], items[1::2], strict=True):
        if not isinstance(key, str):
            raise _RefusedError(f"a dictionary key is a {type(key).__name__.strip('_')}, expected text")
        if key in target:
            raise _RefusedError(f"the key {key!r:.80} occurs twice")
        target[key] = value


def _storage(identifier: Any) -> _Storage:
    match identifier:
        case ("storage", _Global(name), str(key), str(), int(numel), None) if (
            name.startswith("torch ") and not isinstance(numel, bool) and 0 <= numel < 1 << 63
        ):
            return _Storage(key, np.dtype(_STORAGE_DTYPES[name.removeprefix("torch ")]), numel)
    raise _RefusedError("a storage is not described as PyTorch does")


def _reduce(function: Any, arguments: Any) -> Any:
    match function, arguments:
        case _Global(name), () if name == _ORDERED_DICT:
            return OrderedDict()
        case _Global(name), (_Storage() as storage, offset, tuple(shape), tuple(strides), bool(), hooks) if (
            name == _REBUILD_TENSOR
        ):
            numbers = (offset, *shape, *strides)
            if any(type(number) is not int or number < 0 for number in numbers) or len(shape) != len(strides):
                raise _RefusedError("a tensor's offset, shape or strides are not counts")
            if len(shape) > _MAX_DIMENSIONS or not isinstance(hooks, dict) or hooks:
                raise _RefusedError("a tensor has too many dimensions, or hooks")
            return _Tensor(storage, offset, shape, strides)
    raise _RefusedError("it calls something other than the making of a tensor")
