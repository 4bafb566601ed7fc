"""External delegates: the encoder on an accelerator (Edge TPU, ArmNN, a vendor's NPU), if it computes rightly there.

A delegate is a shared library with the functions `tflite_plugin_create_delegate` and `tflite_plugin_destroy_delegate`,
loaded into this very process: it is trusted as any native code is. It takes the ops that it can compute and leaves the
others to the CPU. Where it cannot be loaded, refuses the graph, fails, or computes something else than the golden
vectors (`selfcheck.py`), the CPU takes over and the logger `captionlite.delegates` says why; with `required` that is an
error instead. The decoder stays on the CPU: one step is too small to be sent anywhere.
"""

import ctypes
import importlib
import logging
import os
import re
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from captionlite.runtime.bundle import Bundle
from captionlite.runtime.errors import DelegateError, InterpreterError, OptionsError
from captionlite.runtime.interpreter import Graph, find_backend

GRAMMAR = "LIB[:KEY=VALUE[,KEY=VALUE...]]"
_FUNCTIONS = ("tflite_plugin_create_delegate", "tflite_plugin_destroy_delegate")
_LOADERS = {  # where `load_delegate` stands, by distribution
    "ai-edge-litert": ("ai_edge_litert.interpreter", "load_delegate"),
    "tflite-runtime": ("tflite_runtime.interpreter", "load_delegate"),
    "tensorflow": ("tensorflow", "lite.experimental.load_delegate"),
}
_log = logging.getLogger("captionlite.delegates")


@dataclass(frozen=True)
class DelegateSpec:
    """A shared library, as the dynamic loader takes it (a path with a slash, or a name such as libedgetpu.so.1), and
    the options that it is given, in their order. `required`: an error instead of the CPU where it does not work.
    """

    library: str
    options: tuple[tuple[str, str], ...] = ()
    required: bool = False

    def __str__(self) -> str:
        """As `parse_delegate` reads it."""
        pairs = ",".join(f"{_escaped(key, ',=')}={_escaped(value, ',')}" for key, value in self.options)
        return _escaped(self.library, ":") + (f":{pairs}" if pairs else "")


def parse_delegate(text: str, *, required: bool = False) -> DelegateSpec:
    r"""Read `LIB[:KEY=VALUE[,KEY=VALUE...]]`.

    LIB ends at the first colon, a KEY at the first equals sign, a VALUE at a comma. A backslash before a backslash, a
    colon, a comma or an equals sign takes that character as it is (`/opt/v\:2/lib.so`); before anything else it is
    refused. No LIB, no KEY, or the same KEY twice are refused as well; a VALUE may be empty. Raises OptionsError.
    """

    def fail(problem: str) -> OptionsError:
        return OptionsError(
            f"--delegate {text!r}: {problem}. Expected {GRAMMAR}, such as libedgetpu.so.1:device=usb; a backslash "
            f"takes the next of \\ : , = as it is."
        )

    if re.search(r"(?<!\\)(\\\\)*\\(?![\\:,=])", text):
        raise fail("a backslash before another character")
    library, colon, rest = _cut(text, ":")
    if not library:
        raise fail("no library")
    pairs: dict[str, str] = {}
    while colon:
        pair, colon, rest = _cut(rest, ",")
        raw_key, equals, raw_value = _cut(pair, "=")
        key = _unescaped(raw_key)
        if not raw_key or not equals:
            raise fail(f"the option {pair!r} is no KEY=VALUE")
        if key in pairs:
            raise fail(f"the option {key!r} stands there twice")
        pairs[key] = _unescaped(raw_value)
    return DelegateSpec(_unescaped(library), tuple(pairs.items()), required)


@dataclass(frozen=True)
class Partition:
    """Which ops of a graph a delegate took, by name and in the graph's order, and in how many pieces."""

    taken: tuple[str, ...]
    left: tuple[str, ...]
    pieces: int

    def __str__(self) -> str:
        """As in "1 of 9 ops of the encoder in 1 piece: TANH; on the CPU: CAST, MUL x 2"."""
        pieces = f"{self.pieces} piece{'s' if self.pieces > 1 else ''}"
        told = f"{len(self.taken)} of {len(self.taken) + len(self.left)} ops of the encoder in {pieces}"
        return f"{told}: {_counted(self.taken)}; on the CPU: {_counted(self.left) or 'nothing'}"

    def to_json(self) -> dict[str, Any]:
        """Both sides as counts by op."""
        return {"taken": dict(Counter(self.taken)), "left": dict(Counter(self.left)), "pieces": self.pieces}


class LoadedDelegate:
    """A delegate's library in this process, with an instance for one interpreter."""

    def __init__(self, spec: DelegateSpec) -> None:
        """Raises DelegateError that says what is wrong with the library or its options."""
        self.spec = spec
        try:
            library = ctypes.CDLL(spec.library)
        except OSError as error:
            advice = ""
            if os.sep not in spec.library and os.path.exists(spec.library):
                advice = f" A file in this folder is named with its folder: ./{spec.library}."
            raise DelegateError(
                f"the library {spec.library} cannot be loaded ({error}). Install it, or give its path.{advice}"
            ) from None
        missing = [name for name in _FUNCTIONS if not hasattr(library, name)]
        if missing:
            raise DelegateError(
                f"the library {spec.library} is no delegate: it has no function {' and no '.join(missing)}. Give the "
                f"external delegate of your accelerator."
            )
        backend = find_backend()
        module, attribute = _LOADERS[backend.name]
        loader: Any = importlib.import_module(module)
        for name in attribute.split("."):
            loader = getattr(loader, name)
        try:
            self.handle = loader(spec.library, dict(spec.options))
        except (ValueError, RuntimeError, OSError) as error:
            raise DelegateError(
                f"the library {spec.library} makes no delegate of these options ({_one_line(error)}). Is the "
                f"accelerator there, may this user open it, and does the library know all the options?"
            ) from None

    def identity(self) -> dict[str, Any] | None:
        """What the delegate's numbers depend on, as far as can be seen: options, and the file with its size and time.

        None where nobody can tell which file the dynamic loader took.
        """
        file = _loaded_file(self.spec.library)
        if file is None:
            return None
        try:
            found = file.stat()
        except OSError:
            return None
        named = [str(file), found.st_size, found.st_mtime_ns]
        return {"file": named, "options": [list(pair) for pair in self.spec.options]}


class Delegation:
    """What came of a delegate: it computes the encoder, or it fell back to the CPU."""

    def __init__(self, spec: DelegateSpec) -> None:
        self.spec = spec
        self.partition: Partition | None = None  # None: not loaded, or the interpreter does not say
        self.identity: dict[str, Any] | None = None
        self.fell_back: str | None = None

    @property
    def active(self) -> bool:
        """Whether the encoder still goes through the delegate."""
        return self.fell_back is None

    def fall_back(self, reason: str) -> None:
        """Note that the CPU takes over from here, and log it. Raises DelegateError where the delegate is required."""
        if self.spec.required:
            raise DelegateError(f"--delegate {self.spec}: {reason}")
        self.fell_back = reason
        _log.warning("--delegate %s is not used, the encoder runs on the CPU: %s", self.spec, reason)

    def __str__(self) -> str:
        """What was taken and what was not, in one line."""
        if self.fell_back is not None:
            return f"delegate {self.spec.library}: not used, the encoder runs on the CPU"
        taken = "unknown ops, because this interpreter does not say" if self.partition is None else str(self.partition)
        return f"delegate {self.spec.library} took {taken}"

    def to_json(self) -> dict[str, Any]:
        """For results: library, options, whether it was used and why not, and the ops by side (null: unknown)."""
        return {
            "library": self.spec.library,
            "options": dict(self.spec.options),
            "used": self.active,
            "fell_back": self.fell_back,
            "ops": None if self.partition is None or not self.active else self.partition.to_json(),
        }


def load_encoder(bundle: Bundle, threads: int, spec: DelegateSpec) -> tuple[Graph, Delegation]:
    """The bundle's encoder on the delegate, or on the CPU with the reason logged.

    Raises DelegateError where it is required, and what `Graph.from_bundle` raises of a graph that the CPU refuses too.
    """
    delegation = Delegation(spec)
    try:
        delegate = LoadedDelegate(spec)
        graph = Graph.from_bundle(bundle, "encoder", threads, delegate)
    except InterpreterError as error:
        return encoder_on_cpu(bundle, threads, delegation, str(error)), delegation
    if graph.partition is not None and not graph.partition.taken:
        reason = (
            f"the library {spec.library} takes none of the encoder's {len(graph.partition.left)} ops "
            f"({_counted(graph.partition.left)}). Use a bundle that is made for it; most accelerators want the recipe "
            f"full-int8, and the Edge TPU wants its compiler's output."
        )
        return encoder_on_cpu(bundle, threads, delegation, reason), delegation
    delegation.partition = graph.partition
    delegation.identity = delegate.identity()
    return graph, delegation


def encoder_on_cpu(bundle: Bundle, threads: int, delegation: Delegation, reason: str) -> Graph:
    """The encoder without the delegate, for this reason, which is logged once it is loaded.

    Raises DelegateError where the delegate is required, InterpreterError where the CPU cannot do without it.
    """
    if delegation.spec.required:
        delegation.fall_back(reason)
    try:
        graph = Graph.from_bundle(bundle, "encoder", threads)
    except InterpreterError as error:
        raise InterpreterError(f"{error} With --delegate {delegation.spec}: {reason}") from None
    delegation.fall_back(reason)
    return graph


def describe_delegate(spec: DelegateSpec) -> dict[str, Any]:
    """Whether the delegate can be loaded here, by itself, without a graph: for `captionlite env`."""
    found: dict[str, Any] = {"library": spec.library, "options": dict(spec.options)}
    try:
        delegate = LoadedDelegate(spec)
    except InterpreterError as error:
        return {**found, "loaded": False, "file": None, "error": str(error)}
    file = _loaded_file(spec.library)
    return {**found, "loaded": delegate.handle is not None, "file": None if file is None else str(file), "error": None}


def partition_of(interpreter: Any) -> Partition | None:
    """What a delegate has taken of a graph that no tensors were allocated for yet: later the CPU's own delegate has
    been there as well. None where the interpreter does not list its nodes.

    A delegated interpreter keeps the graph's nodes and adds one for each piece that the delegate computes: the node
    that writes what another writes already. A piece is all that lies between its inputs and its outputs.
    """
    try:
        nodes = [
            (str(node["op_name"]), _tensors(node["inputs"]), _tensors(node["outputs"]))
            for node in interpreter._get_ops_details()  # private, and the only one there is
        ]
    except (AttributeError, KeyError, TypeError, ValueError, RuntimeError):
        return None
    producer: dict[int, int] = {}
    pieces = []
    for number, (_, inputs, outputs) in enumerate(nodes):
        if outputs and all(tensor in producer for tensor in outputs):
            pieces.append((inputs, outputs))
        else:
            producer.update(dict.fromkeys(outputs, number))
    taken: set[int] = set()
    for inputs, outputs in pieces:
        open_tensors = list(outputs)
        while open_tensors:
            tensor = open_tensors.pop()
            number = producer.get(tensor, -1)
            if number >= 0 and number not in taken:
                taken.add(number)
                open_tensors += [t for t in nodes[number][1] if t not in inputs]
    names = [nodes[number][0] for number in range(len(nodes) - len(pieces))]
    return Partition(
        tuple(name for number, name in enumerate(names) if number in taken),
        tuple(name for number, name in enumerate(names) if number not in taken),
        len(pieces),
    )


def _tensors(indices: Sequence[Any]) -> list[int]:
    return [int(index) for index in indices if int(index) >= 0]


def _counted(names: Sequence[str]) -> str:
    return ", ".join(name if count == 1 else f"{name} x {count}" for name, count in Counter(names).items())


def _loaded_file(library: str) -> Path | None:
    """The file behind a library that this process has loaded; Linux lists them all."""
    if os.sep in library:
        return Path(library).resolve()
    if not sys.platform.startswith("linux"):
        return None
    try:
        lines = Path("/proc/self/maps").read_text(errors="replace").splitlines()
    except OSError:
        return None
    files = {fields[5] for fields in (line.split(maxsplit=5) for line in lines) if len(fields) == 6}
    # A library's name is often a link to a file whose name goes on: libedgetpu.so.1 -> libedgetpu.so.1.0.
    found = [Path(file) for file in files if Path(file).name.startswith(library)]
    return found[0] if len(found) == 1 else None


def _cut(text: str, mark: str) -> tuple[str, str, str]:
    """As str.partition at the first `mark` that no backslash stands before."""
    found = re.match(rf"((?:\\.|[^\\{mark}])*)({mark}?)(.*)", text, re.DOTALL)
    assert found is not None  # it matches anything
    return found[1], found[2], found[3]


def _escaped(text: str, marks: str) -> str:
    return re.sub(rf"[\\{marks}]", lambda found: f"\\{found[0]}", text)


def _unescaped(text: str) -> str:
    return re.sub(r"\\(.)", r"\1", text, flags=re.DOTALL)


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
