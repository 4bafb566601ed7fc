"""A compiled encoder in a bundle: with an op that the CPU does not have, and a delegate that has it."""

from pathlib import Path
from typing import Any

import keras
import native_delegate
import pytest
import toy_bundle
from ai_edge_litert import schema_py_generated as schema
from click.testing import CliRunner

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow converts; KERAS_BACKEND is another", allow_module_level=True)

from captionlite.export.edge_tpu_bundle import CUSTOM_OP, install_compiled, main
from captionlite.export.errors import ExportError
from captionlite.export.flat_model import pack_model, unpack_model
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.errors import InterpreterError
from captionlite.runtime.verify import verify


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return native_delegate.built(tmp_path_factory)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    path = tmp_path_factory.mktemp("bundles") / "toy"
    toy_bundle.write(path)
    return Bundle.open(path)


def compiled(bundle: Bundle, *, signature: bool = False, edit: Any = lambda model: None) -> bytes:
    """What the compiler does to an encoder, as far as it matters here: TANH becomes its own op, the signature goes."""
    model = unpack_model(bundle.read("encoder.tflite"))
    code = schema.OperatorCodeT()
    code.builtinCode = schema.BuiltinOperator.CUSTOM
    code.deprecatedBuiltinCode = schema.BuiltinOperator.CUSTOM
    code.customCode, code.version = CUSTOM_OP.encode(), 1
    for op in model.subgraphs[0].operators:
        if model.operatorCodes[op.opcodeIndex].builtinCode == schema.BuiltinOperator.TANH:
            op.opcodeIndex, op.builtinOptions, op.builtinOptionsType = len(model.operatorCodes), None, 0
    model.operatorCodes.append(code)
    if not signature:
        model.signatureDefs = None
    edit(model)
    return pack_model(model)


@pytest.mark.parametrize("signature", [False, True])
def test_it_runs_through_the_delegate_and_nowhere_else(
    bundle: Bundle, library: Path, tmp_path: Path, signature: bool
) -> None:
    path = tmp_path / "compiled"
    left = install_compiled(bundle, compiled(bundle, signature=signature), path, where="x")
    assert "TANH" not in left
    assert "AVERAGE_POOL_2D" in left
    captioner = Captioner.from_bundle(path, delegate=str(library))
    assert captioner.delegation is not None
    assert captioner.delegation.partition is not None
    assert captioner.delegation.partition.taken == (CUSTOM_OP,)
    for photograph in toy_bundle.photographs(4):
        assert list(captioner.caption(photograph).tokens) == toy_bundle.decode(photograph).tokens
    assert verify(captioner.bundle, captioner=captioner).passed
    manifest = captioner.bundle.manifest
    assert (manifest.graphs["encoder"].recipe, manifest.graphs["decoder"].recipe) == ("float32, Edge TPU", "float32")
    assert manifest.proven == ()
    reasons = {
        None: "give that as --delegate",
        f"{library}:fail=prepare": f"With --delegate {library}:fail=prepare: .*no memory for this graph",
        f"{library}:compute=wrong": "it computes wrong numbers",
    }
    for delegate, reason in reasons.items():
        with pytest.raises(InterpreterError, match=rf"refuses this graph .*{CUSTOM_OP}(.|\n)*{reason}"):
            Captioner.from_bundle(path, delegate=delegate)


def test_what_is_none_of_it(bundle: Bundle, tmp_path: Path) -> None:
    def rename(model: Any) -> None:
        model.subgraphs[0].tensors[model.subgraphs[0].outputs[0]].name = b"other"

    def reshape(model: Any) -> None:
        model.subgraphs[0].tensors[model.subgraphs[0].inputs[0]].shape = [1, 2, 3, 3]

    for data, problem in (
        (b"nothing", "not readable as a TFLite file"),
        (bundle.read("encoder.tflite"), "has no op edgetpu-custom-op"),
        (compiled(bundle, edit=rename), "its outputs are"),
        (compiled(bundle, edit=reshape), "has another type or shape than in the bundle"),
    ):
        with pytest.raises(ExportError) as caught:
            install_compiled(bundle, data, tmp_path / "out", where="x.tflite")
        assert str(caught.value).startswith("x.tflite: ")
        assert problem in str(caught.value)
        assert not (tmp_path / "out").exists()


def test_the_command(bundle: Bundle, tmp_path: Path) -> None:
    file = tmp_path / "encoder_edgetpu.tflite"
    file.write_bytes(compiled(bundle))
    arguments = [str(bundle.location), str(file), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    assert done.output.startswith(f"wrote {tmp_path / 'out'}; on the CPU stay: AVERAGE_POOL_2D, CAST, ")
    assert CliRunner().invoke(main, arguments).exit_code == 1
