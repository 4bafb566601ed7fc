"""Choosing an interpreter, binding by name, resizing the batch, and keeping its chatter off stderr."""

import os
import types
from pathlib import Path

import numpy as np
import pytest
import toy_bundle

from captionlite.runtime import Bundle, interpreter
from captionlite.runtime.errors import InterpreterError
from captionlite.runtime.interpreter import Graph, find_backend, without_chatter


@pytest.fixture
def backends(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """find_backend without its memory, before and after."""
    monkeypatch.setattr(interpreter, "find_backend", find_backend.__wrapped__)
    return monkeypatch


def test_litert_comes_first() -> None:
    backend = find_backend()
    assert backend.name == "ai-edge-litert"
    assert backend.version.partition(".")[0].isdigit()


def test_without_any_interpreter_every_candidate_is_explained(backends: pytest.MonkeyPatch) -> None:
    missing = (("ai-edge-litert", "no_such_litert", "Interpreter"), ("tensorflow", "json", "lite.Interpreter"))
    backends.setattr(interpreter, "_BACKENDS", missing)
    with pytest.raises(InterpreterError, match=r"no_such_litert.*tensorflow: .*pip install ai-edge-litert"):
        interpreter.find_backend()


def test_tflite_runtime_is_not_tried_under_numpy_2(backends: pytest.MonkeyPatch) -> None:
    # It would import, and then raise a bare SystemError from every Interpreter().
    backends.setattr(interpreter, "_BACKENDS", (("tflite-runtime", "json", "loads"),))
    backends.setattr(interpreter.np, "__version__", "2.4.0")
    with pytest.raises(InterpreterError, match=r"numpy<2.*found 2\.4\.0"):
        interpreter.find_backend()
    backends.setattr(interpreter.np, "__version__", "1.26.4")
    assert interpreter.find_backend().name == "tflite-runtime"


def test_a_nested_class_is_found(backends: pytest.MonkeyPatch) -> None:
    module = types.SimpleNamespace(lite=types.SimpleNamespace(Interpreter=dict))
    backends.setattr(interpreter.importlib, "import_module", lambda name: module)
    backends.setattr(interpreter, "_BACKENDS", (("tensorflow", "tensorflow", "lite.Interpreter"),))
    assert interpreter.find_backend().interpreter is dict


@pytest.fixture
def decoder(toy_directory: Path) -> Graph:
    return Graph.from_bundle(Bundle.open(toy_directory), "decoder", threads=1)


def test_names_lead_to_the_right_tensors(decoder: Graph) -> None:
    # The converter orders tensors as it likes; each name must still reach the tensor of its own shape and meaning.
    spec = toy_bundle.manifest().graphs["decoder"]
    for tensor in spec.inputs:
        assert decoder.inputs[tensor.name]().shape == tuple(size or 1 for size in tensor.shape)
        assert decoder.inputs[tensor.name]().dtype == tensor.dtype
        decoder.inputs[tensor.name]()[...] = 0
    decoder.inputs["count"]()[...] = 41
    decoder.invoke()
    assert decoder.outputs["count"]()[0, 0] == 42
    np.testing.assert_allclose(decoder.outputs["attention"]().sum(), 1, rtol=1e-6)


def test_inputs_persist_between_invokes(decoder: Graph) -> None:
    for view in decoder.inputs.values():
        view()[...] = 0
    decoder.inputs["count"]()[...] = 5
    for _ in range(3):
        decoder.invoke()
        assert decoder.outputs["count"]()[0, 0] == 6


@pytest.mark.parametrize("batches", [(3,), (5, 1), (2, 8, 2)])
def test_the_batch_resizes(decoder: Graph, batches: tuple[int, ...]) -> None:
    for batch in batches:
        decoder.resize_batch(batch)
        for view in decoder.inputs.values():
            view()[...] = 0
        decoder.inputs["count"]()[:, 0] = np.arange(batch)
        decoder.invoke()
        assert decoder.batch == batch
        assert decoder.outputs["logits"]().shape == (batch, toy_bundle.V)
        np.testing.assert_array_equal(decoder.outputs["count"]()[:, 0], np.arange(batch) + 1)


def test_a_living_view_is_refused_by_the_interpreter(decoder: Graph) -> None:
    # The reason why inputs and outputs are functions; should this stop raising, they could be arrays.
    for fill in decoder.inputs.values():
        fill()[...] = 0
    view = decoder.inputs["token"]()
    with pytest.raises(InterpreterError, match="reference to internal data"):
        decoder.invoke()
    del view
    decoder.invoke()


def test_chatter_is_dropped_and_the_rest_is_kept(capfd: pytest.CaptureFixture[str]) -> None:
    with without_chatter():
        os.write(2, b"INFO: Created TensorFlow Lite XNNPACK delegate for CPU.\nERROR: this matters\n")
    os.write(2, b"INFO: afterwards\n")
    assert capfd.readouterr().err == "ERROR: this matters\nINFO: afterwards\n"


def test_chatter_is_released_when_something_fails(capfd: pytest.CaptureFixture[str]) -> None:
    def fail() -> None:
        os.write(2, b"WARNING: before the end\n")
        raise RuntimeError("boom")

    with pytest.raises(RuntimeError, match="boom"), without_chatter():
        fail()
    os.write(2, b"after\n")
    assert capfd.readouterr().err == "WARNING: before the end\nafter\n"
