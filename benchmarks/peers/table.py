"""The peers by name, as data: a peer is a module with a function `prepare`, and a row here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module

from captionlite.benchmarks.peers.base import Peer, Task, Weights

OWN = "captionlite"


@dataclass(frozen=True)
class Row:
    """The class that says what the peer is, and the weights it runs."""

    module: str
    peer: str
    weights: tuple[Weights, ...]

    @property
    def kind(self) -> type[Peer]:
        """The peer's class; its module imports none of what it compares with."""
        found: type[Peer] = getattr(import_module(self.module), self.peer)
        return found

    @property
    def prepare(self) -> Callable[[Task, Weights], Peer]:
        """Raises PeerUnavailable with the reason when this peer is to be left out."""
        found: Callable[[Task, Weights], Peer] = import_module(self.module).prepare
        return found


_HERE = "captionlite.benchmarks.peers"
_BOTH: tuple[Weights, ...] = ("float32", "quantized")

PEERS = {
    "keras-eager": Row(f"{_HERE}.keras_eager", "KerasEager", ("float32",)),
    "keras-function": Row(f"{_HERE}.keras_function", "KerasFunction", ("float32",)),
    "keras-loop": Row(f"{_HERE}.keras_loop", "KerasLoop", ("float32",)),
    "tflite-prefix": Row(f"{_HERE}.tflite_prefix", "TflitePrefix", _BOTH),
    "onnxruntime": Row(f"{_HERE}.onnx_runtime", "OnnxRuntime", _BOTH),
    "signature-runner": Row(f"{_HERE}.signature_runner", "SignatureLoop", _BOTH),
    "native-c": Row(f"{_HERE}.native_c", "NativeC", _BOTH),
}
OWN_ROW = Row(f"{_HERE}.own", "Own", _BOTH)
