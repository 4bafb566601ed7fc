"""The TensorFlow Lite interpreter, whichever is installed, and a graph whose tensors are bound by name.

Measured on a 2-layer decoder: NumPy views into the interpreter's own tensors cost 48 us per step against 70 us through
its SignatureRunner, so the runner is used once, to learn which name is which tensor, and then dropped: while one is
alive, or any view, `invoke()` raises.
"""

import ctypes
import importlib
import os
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from captionlite.runtime.bundle import Bundle
from captionlite.runtime.errors import InterpreterError
from captionlite.runtime.manifest import TensorSpec

if TYPE_CHECKING:
    from captionlite.runtime.delegates import LoadedDelegate, Partition

View = Callable[[], npt.NDArray[Any]]
"""Gives a fresh array over the interpreter's memory. Keep the function, never the array: see the module's text."""

UNKNOWN_VERSION = "unknown"

# (distribution, module, where the class stands), best first.
_BACKENDS = (
    ("ai-edge-litert", "ai_edge_litert.interpreter", "Interpreter"),
    ("tflite-runtime", "tflite_runtime.interpreter", "Interpreter"),
    ("tensorflow", "tensorflow", "lite.Interpreter"),
)


@dataclass(frozen=True)
class Backend:
    """An installed interpreter: its distribution and class."""

    name: str
    interpreter: Callable[..., Any]

    @property
    def version(self) -> str:
        """Version, by its package or else by the distribution's metadata, which costs 10 ms; "unknown" without both."""
        found = getattr(sys.modules.get(self.name.replace("-", "_")), "__version__", None)
        if isinstance(found, str):
            return found
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version(self.name)
        except PackageNotFoundError:  # a nightly build, or one that the system's package manager made
            return UNKNOWN_VERSION

    @property
    def next_step(self) -> str:
        """What to do about a bundle that this interpreter refuses or computes wrongly."""
        if self.name == "tflite-runtime":  # 2.14 is its last version
            return (
                "Use a bundle of the recipe legacy: `captionlite export RUN --recipe legacy`, or `captionlite quantize "
                "FLOAT32_BUNDLE --recipe legacy`."
            )
        return f"Export the bundle again, or upgrade the interpreter with `pip install --upgrade {self.name}`."


@cache
def find_backend() -> Backend:
    """The best interpreter installed here. Raises InterpreterError that says why each candidate was passed over."""
    reasons = []
    for distribution, module_name, attribute in _BACKENDS:
        if distribution == "tflite-runtime" and int(np.__version__.partition(".")[0]) >= 2:
            # Built for NumPy 1: it imports under NumPy 2, and then every Interpreter() raises a bare SystemError.
            reasons.append(f"{distribution} needs `pip install 'numpy<2'` (found {np.__version__})")
            continue
        try:
            found: Any = importlib.import_module(module_name)
            for name in attribute.split("."):
                found = getattr(found, name)
        except (ImportError, AttributeError, OSError) as error:
            reasons.append(f"{distribution}: {error}")
            continue
        return Backend(distribution, found)
    raise InterpreterError(
        f"No TensorFlow Lite interpreter here ({'; '.join(reasons)}). Install one with `pip install ai-edge-litert`, "
        f"or on 32-bit ARM `pip install tflite-runtime 'numpy<2'`."
    )


@contextmanager
def without_chatter() -> Iterator[None]:
    """Keep the interpreter's own INFO lines off stderr; other lines written meanwhile follow at the end.

    It has no switch for them, so this catches file descriptor 2 of the whole process: for command lines, not libraries.
    """
    with tempfile.TemporaryFile() as caught:
        sys.stderr.flush()
        try:
            stderr = os.dup(2)
        except OSError:  # no stderr, nothing to keep clean
            yield
            return
        os.dup2(caught.fileno(), 2)
        try:
            yield
        finally:
            sys.stderr.flush()
            os.dup2(stderr, 2)
            os.close(stderr)
            caught.seek(0)
            for line in caught:
                if not line.startswith(b"INFO: "):
                    os.write(2, line)


def core_count() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Graph:
    """One TensorFlow Lite file: `inputs[name]()` and `outputs[name]()` are writable views, `invoke()` computes.

    Inputs persist between invokes. Not for two threads at once.
    """

    def __init__(
        self,
        model: Path | bytes,
        inputs: Iterable[TensorSpec],
        outputs: Iterable[TensorSpec],
        *,
        threads: int,
        where: str,
        delegate: "LoadedDelegate | None" = None,
    ) -> None:
        """Load a file (memory-mapped when it is a path) and bind its tensors. A `delegate` computes what it takes.

        Raises InterpreterError when the interpreter or the delegate refuses the file, or when names, types or shapes
        are not those that the manifest promised. Shapes of outputs are checked after the first invoke, when they are
        known.
        """
        self._where = where
        self._input_specs = {spec.name: spec for spec in inputs}
        self._output_specs = {spec.name: spec for spec in outputs}
        self._delegate = delegate
        self.partition: Partition | None = None  # what the delegate took; None as well where nobody can tell
        source: dict[str, Any] = {"model_path": str(model)} if isinstance(model, Path) else {"model_content": model}
        if delegate is not None:
            source["experimental_delegates"] = [delegate.handle]
        backend = find_backend()
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # TensorFlow's own interpreter announces that it is deprecated
                self._interpreter = backend.interpreter(**source, num_threads=threads)
            if delegate is not None:
                from captionlite.runtime.delegates import partition_of

                self.partition = partition_of(self._interpreter)
            self._input_index = self._bind("inputs", self._input_specs)
            self._output_index = self._bind("outputs", self._output_specs)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError, TypeError, SystemError) as error:
            raise self._refused(error) from None
        self.batch = 1
        self._check_shapes(self._input_specs, self._input_index)
        self.inputs: dict[str, View] = {n: self._interpreter.tensor(i) for n, i in self._input_index.items()}
        self.outputs: dict[str, View] = {n: self._interpreter.tensor(i) for n, i in self._output_index.items()}
        self._outputs_checked = False

    @classmethod
    def from_bundle(cls, bundle: Bundle, name: str, threads: int, delegate: "LoadedDelegate | None" = None) -> "Graph":
        """The bundle's "encoder" or "decoder" on that many threads. Raises BundleError, InterpreterError."""
        spec = bundle.manifest.graphs[name]
        model = bundle.path(spec.file) or bundle.read(spec.file)
        where = f"{bundle.location}/{spec.file}"
        return cls(model, spec.inputs, spec.outputs, threads=threads, where=where, delegate=delegate)

    def resize_batch(self, batch: int) -> None:
        """Give every input whose first dimension is free this many rows. The contents of the inputs are lost."""
        if batch == self.batch:
            return
        for name, spec in self._input_specs.items():
            if spec.shape[0] is None:
                self._interpreter.resize_tensor_input(self._input_index[name], [batch, *spec.shape[1:]])
        try:
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise self._refused(error) from None
        self.batch = batch
        self._outputs_checked = False

    def pinned(self) -> tuple[dict[str, npt.NDArray[Any]], dict[str, npt.NDArray[Any]]]:
        """Inputs and outputs by name as arrays that may live on over `invoke()`, up to the next `resize_batch`.

        A view through the interpreter costs 0.27 us, and a step needs a dozen. The interpreter plans its memory when
        it allocates; a tensor moves only with its size, which the manifest fixes. The arrays keep the graph alive.
        """
        for view in self.inputs.values():
            view()[...] = 0  # what a resize leaves there is no token that an embedding has
        self.invoke()  # an output that is allocated late has its address from here on
        return (
            {name: self._pin(view()) for name, view in self.inputs.items()},
            {name: self._pin(view()) for name, view in self.outputs.items()},
        )

    def _pin(self, view: npt.NDArray[Any]) -> npt.NDArray[Any]:
        memory = (ctypes.c_char * view.nbytes).from_address(view.ctypes.data)
        memory.graph = self  # type: ignore[attr-defined]
        return np.ndarray(view.shape, view.dtype, buffer=memoryview(memory))

    def invoke(self) -> None:
        """Compute the outputs from the inputs. No view may be alive. Raises InterpreterError."""
        try:
            self._interpreter.invoke()
        except (ValueError, RuntimeError) as error:
            who = "the interpreter" if self._delegate is None else f"the delegate {self._delegate.spec.library}"
            raise InterpreterError(f"{self._where}: {who} failed ({error}). Run `captionlite verify`.") from None
        if not self._outputs_checked:
            self._check_shapes(self._output_specs, self._output_index)
            self._outputs_checked = True

    def _bind(self, side: str, specs: dict[str, TensorSpec]) -> dict[str, int]:
        """Tensor index by name, after checking names and types against the manifest."""
        signatures = self._interpreter.get_signature_list()
        if len(signatures) != 1:
            raise InterpreterError(
                f"{self._where}: {len(signatures)} signatures, expected exactly one, because tensors are bound by name."
                f" Export the bundle again."
            )
        runner = self._interpreter.get_signature_runner(next(iter(signatures)))
        details = runner.get_input_details() if side == "inputs" else runner.get_output_details()
        del runner
        if details.keys() != specs.keys():
            raise InterpreterError(
                f"{self._where}: the graph's {side} are {sorted(details)}, expected {sorted(specs)} as in the manifest."
                f" Export the bundle again."
            )
        for name, spec in specs.items():
            dtype = np.dtype(details[name]["dtype"]).name
            if dtype != spec.dtype:
                raise InterpreterError(
                    f"{self._where}: {side} {name} is {dtype}, expected {spec.dtype} as in the manifest. "
                    f"Export the bundle again."
                )
        return {name: int(details[name]["index"]) for name in specs}

    def _check_shapes(self, specs: dict[str, TensorSpec], index: dict[str, int]) -> None:
        for name, spec in specs.items():
            expected = tuple(self.batch if size is None else size for size in spec.shape)
            try:
                found = self._interpreter.tensor(index[name])().shape
            except (ValueError, RuntimeError) as error:
                raise self._refused(error) from None
            if found != expected:
                raise InterpreterError(
                    f"{self._where}: {name} has shape {list(found)}, expected {list(expected)} as in the manifest. "
                    f"Export the bundle again."
                )

    def _refused(self, error: Exception) -> InterpreterError:
        if self._delegate is not None:
            return InterpreterError(
                f"{self._where}: the delegate {self._delegate.spec.library} refuses this graph "
                f"({' '.join(str(error).split())}). Use a bundle that is made for it."
            )
        backend = find_backend()
        told, next_step = " ".join(str(error).split()), backend.next_step
        if "unresolved custom op" in told:
            next_step = "It has an op that only an accelerator's delegate computes; give that as --delegate."
        return InterpreterError(
            f"{self._where}: {backend.name} {backend.version} refuses this graph ({told}). {next_step}"
        )
