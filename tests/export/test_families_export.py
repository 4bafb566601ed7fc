"""Every family as it is exported: converted decoders against Keras, and a whole run to a verified bundle."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import harness
import keras
import numpy as np
import pytest
from drawings import TINY_PRESET, write_drawings

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow converts; KERAS_BACKEND is another", allow_module_level=True)

from converted import FirstState, graph

from captionlite.export.convert import convert
from captionlite.export.exporter import export_run, signature_specs
from captionlite.export.graphs import DecoderGraph, decoder_inputs
from captionlite.export.quantization import quantize
from captionlite.export.recipes import recipe
from captionlite.export.tflite_file import op_names
from captionlite.runtime.attention import check_attention_file, write_attention
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.errors import OptionsError
from captionlite.runtime.interpreter import Graph
from captionlite.runtime.manifest import AttentionSpec
from captionlite.runtime.verify import verify
from captionlite.training.config import DataConfig, RunConfig, from_json
from captionlite.training.families.base import DecoderFamily
from captionlite.training.run import Run, load_run
from captionlite.training.trainer import train

FLOAT32_TOLERANCE = 1e-4  # absolute, state fed forward
INT8_TOLERANCE = 0.05  # relative RMS

CONTROL_FLOW = {"WHILE", "IF", "CALL", "CALL_ONCE"}
# The quantizer leaves matrices of fewer than 1024 weights alone, so the int8 test makes the tiny models wider.
WIDTHS = ("units", "key_dim", "feed_forward", "embedding", "attention", "image_bottleneck", "logits_bottleneck")
WIDER = 4


@cache
def model_of(name: str, wider: bool = False) -> DecoderFamily:
    config = harness.CONFIGS[name]
    if wider:
        config = {key: value * WIDER if key in WIDTHS else value for key, value in config.items()}
    return harness.build(config)


@cache
def decoder_file(name: str, recipe_name: str, wider: bool = False) -> bytes:
    return quantize(convert(DecoderGraph(model_of(name, wider))), recipe(recipe_name).decoder, None, name)


def tensors(content: bytes) -> list[Any]:
    """Every tensor of a TFLite file, as its schema describes it."""
    from ai_edge_litert import schema_py_generated as schema

    file = schema.ModelT.InitFromPackedBuf(content, 0)
    return [tensor for subgraph in file.subgraphs for tensor in subgraph.tensors]


def int8_count(content: bytes) -> int:
    from ai_edge_litert import schema_py_generated as schema

    return sum(tensor.type == schema.TensorType.INT8 for tensor in tensors(content))


def decode(first: Graph, decoder: Graph, model: DecoderFamily, features: np.ndarray, tokens: np.ndarray) -> np.ndarray:
    """The runtime's loop by hand: features (h, w, C) and fed tokens (T,) -> logits (T, V)."""
    first.inputs["features"]()[...] = features[None]
    first.invoke()
    state = {
        row.name: first.outputs[row.name]().copy()
        if row.name in first.outputs
        else np.zeros((1, *row.shape[1:]), row.dtype)
        for row in model.state_specs()
    }
    logits = []
    for t, token in enumerate(tokens):
        for name, value in state.items():
            decoder.inputs[name]()[...] = value
        decoder.inputs["token"]()[...] = token
        decoder.inputs["position"]()[...] = t
        decoder.invoke()
        logits.append(decoder.outputs["logits"]()[0].copy())
        for row in model.state_specs():
            if row.kind == "carried":
                state[row.name] = decoder.outputs[row.name]().copy()
            elif row.kind == "appended":
                assert row.axis is not None
                np.moveaxis(state[row.name], row.axis, 0)[t] = np.moveaxis(decoder.outputs[row.name](), row.axis, 0)[0]
    return np.stack(logits)


def fed_forward(model: DecoderFamily, content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Logits (3, T, V) of the converted decoder and of Keras, each feeding its own state forward; no banned words."""
    features, tokens = harness.features_and_tokens(model, photographs=3, captions=1)
    expected = harness.generator(model).logits(features, tokens)
    first, decoder = graph(convert(FirstState(model))), graph(content)
    found = np.stack([decode(first, decoder, model, *pair) for pair in zip(features, tokens, strict=True)])
    allowed = expected[0, 0] > -1e3  # a banned word's logit only says never, and says it differently in a file
    return found[..., allowed], expected[..., allowed]


@pytest.mark.parametrize("name", harness.CONFIGS)
def test_a_converted_decoder_follows_keras_step_by_step(name: str) -> None:
    model, content = model_of(name), decoder_file(name, "float32")
    found, expected = fed_forward(model, content)
    assert found.shape == (3, model.max_length, found.shape[-1])
    np.testing.assert_allclose(found, expected, rtol=0, atol=FLOAT32_TOLERANCE)


@pytest.mark.parametrize("name", harness.CONFIGS)
def test_an_int8_decoder_stays_near_keras(name: str) -> None:
    model, content = model_of(name, wider=True), decoder_file(name, "int8", wider=True)
    assert int8_count(content) >= 3
    found, expected = fed_forward(model, content)
    error = np.sqrt(np.square(found - expected).mean() / np.square(expected).mean())
    assert 0.0 < error < INT8_TOLERANCE


@pytest.mark.parametrize("name", harness.CONFIGS)
def test_the_converted_graph_is_plain(name: str) -> None:
    """Names as the manifest says, builtin ops without control flow, and no tensor that is slow for its rank."""
    model, content = model_of(name), decoder_file(name, "float32")
    ops = op_names(content)
    assert not CONTROL_FLOW & set(ops)
    assert not [op for op in ops if op.startswith(("CUSTOM", "VAR_HANDLE", "READ_VARIABLE", "ASSIGN_VARIABLE"))]
    assert max(len(tensor.shape if tensor.shape is not None else ()) for tensor in tensors(content)) <= 4
    inputs, outputs = signature_specs(content)
    assert {spec.name: spec for spec in inputs} == {spec.name: spec for spec in decoder_inputs(model)}
    moving = {row.name for row in model.state_specs() if row.kind != "constant"}
    assert {spec.name for spec in outputs} == {"logits", *moving, *(["attention"] if model.attends else [])}


@pytest.mark.parametrize("name", harness.CONFIGS)
def test_a_converted_decoder_takes_any_batch(name: str) -> None:
    """Beams are a batch: five rows at once give what each gives alone."""
    model, decoder = model_of(name), graph(decoder_file(name, "float32"))
    rng = np.random.default_rng(5)
    inputs: dict[str, np.ndarray] = {"token": rng.integers(4, harness.VOCABULARY, (5, 1)).astype("int32")}
    for row in model.state_specs():
        value = rng.normal(size=(5, *row.shape[1:])) if row.dtype == "float32" else np.full((5, *row.shape[1:]), 5)
        inputs[row.name] = value.astype(row.dtype)

    def logits(rows: slice) -> np.ndarray:
        decoder.resize_batch(rows.stop - rows.start)
        for name, value in inputs.items():
            decoder.inputs[name]()[...] = value[rows]
        decoder.inputs["position"]()[...] = 2
        decoder.invoke()
        return np.array(decoder.outputs["logits"]())

    together = logits(slice(0, 5))
    alone = np.concatenate([logits(slice(i, i + 1)) for i in range(5)])
    np.testing.assert_allclose(together, alone, rtol=0, atol=1e-5)


# One run of each family, not of each variation: the whole road takes some seconds.
ROAD = ("lstm", "gru_attention")


@pytest.fixture(scope="module", params=ROAD)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, list[Path]]:
    """A run trained for two epochs on drawings, and their pictures."""
    folder = tmp_path_factory.mktemp("road")
    drawings = write_drawings(folder / "drawings")
    encoder = {"name": "wide", "weights": None}
    settings = {
        **TINY_PRESET,
        "encoder": encoder,
        "family": harness.CONFIGS[request.param],
        "epochs": 2,
        "flip": False,
    }
    config: RunConfig = from_json(RunConfig, {**settings, "data": [vars(DataConfig(f"jsonl:{drawings}"))]}, "tiny")
    train(config, folder / "run", tmp_path_factory.getbasetemp() / "features")
    return load_run(folder / "run"), sorted((folder / "drawings/images").iterdir())


def test_a_run_becomes_a_bundle_that_captions_as_keras_does(trained: tuple[Run, list[Path]], tmp_path: Path) -> None:
    run, pictures = trained
    result = export_run(run, recipe("float32"), tmp_path / "bundle", photographs=pictures[:3])
    assert result.parity.equal_captions == result.parity.photographs == 3
    assert {t.name for t in result.parity.tensors} >= {"decoder/logits"}
    bundle = Bundle.open(result.bundle)
    assert bundle.manifest.family == run.model.family
    # Rows and columns of the features that are attended to; the LSTM's photograph is one vector.
    assert bundle.manifest.attention == (AttentionSpec((4, 6)) if run.model.attends else None)
    report = verify(bundle)
    assert report.passed, report
    captioner = Captioner(bundle)
    for picture in pictures[::5]:
        assert captioner.caption(picture).text == run.caption(picture)
    out = tmp_path / "seen.json"
    caption = captioner.caption(pictures[0])
    if run.model.attends:
        write_attention(out, pictures[0], caption, bundle)
        words = json.loads(out.read_text())["words"]
        assert [word["word"] for word in words] == caption.text.split()
        assert all(np.shape(word["attention"]) == (4, 6) for word in words)
    else:
        with pytest.raises(OptionsError, match="sees the photograph as one vector"):
            check_attention_file(out, bundle)


def test_an_int8_bundle_verifies(trained: tuple[Run, list[Path]], tmp_path: Path) -> None:
    run, pictures = trained
    result = export_run(run, recipe("int8"), tmp_path / "bundle", photographs=pictures[:8])
    bundle = Bundle.open(result.bundle)
    report = verify(bundle)
    assert report.passed, report
    assert int8_count(bundle.read("encoder.tflite")) >= 3
