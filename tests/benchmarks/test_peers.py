"""Peers of all four families caption as captionlite does; what cannot run says why, and what is wrong is not timed."""

import dataclasses
import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import keras
import numpy as np
import pytest
import toy_bundle as toy
from click.testing import CliRunner, Result
from drawings import write_drawings
from untrained import untrained

if keras.backend.backend() != "tensorflow":
    pytest.skip("these peers are TensorFlow's, or converted by it; KERAS_BACKEND is another", allow_module_level=True)

from captionlite.benchmarks.peers import check as check_module
from captionlite.benchmarks.peers import native_c, onnx_runtime, onnx_session
from captionlite.benchmarks.peers.base import Facts, Peer, PeerUnavailable, Task, Turn, Weights
from captionlite.benchmarks.peers.check import TIE, check, margin
from captionlite.benchmarks.peers.comparison import Comparison, Entry, compare
from captionlite.benchmarks.peers.native_c import compile_program, find_library, plan
from captionlite.benchmarks.peers.table import OWN, PEERS
from captionlite.benchmarks.results import read_document
from captionlite.export.bundle_quantizer import quantize_bundle
from captionlite.export.calibration import Photographs
from captionlite.export.exporter import export_run
from captionlite.export.recipes import recipe
from captionlite.runtime.bundle import Bundle, write_bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.cli import cli
from captionlite.runtime.image import load_image
from captionlite.training import run as run_module
from captionlite.training.vocabulary import END_ID

FAMILIES = ("transformer", "lstm", "gru_attention", "masked_lm")
PHOTOGRAPHS, CALIBRATION = 6, 6
ONNX = all(importlib.util.find_spec(name) for name in ("onnx", "onnxruntime", "tf2onnx"))
needs_onnx = pytest.mark.skipif(not ONNX, reason="onnx, onnxruntime or tf2onnx is not installed")


@pytest.fixture(autouse=True)
def no_trials(monkeypatch: pytest.MonkeyPatch) -> None:
    """Which of several graphs is the fastest is of no matter here."""
    monkeypatch.setattr(onnx_session, "TRIALS", 1)
    monkeypatch.setattr(onnx_session, "TRIAL_SECONDS", 0.0)


def native_reason() -> str | None:
    """Why the C program cannot run here."""
    try:
        find_library()
    except PeerUnavailable as reason:
        return str(reason)
    return None if shutil.which("cc") else "there is no C compiler here"


@dataclasses.dataclass(frozen=True)
class Made:
    """A run, its bundles, and its pictures."""

    run: run_module.Run
    float32: Path
    int8: Path
    pictures: list[Path]

    def task(self, scratch: Path) -> Task:
        image = self.run.image_spec
        pixels = [load_image(path, image) for path in self.pictures]
        return Task(
            self.run,
            Captioner(Bundle.open(self.float32)),
            Captioner(Bundle.open(self.int8)),
            chosen(pixels),
            tuple(pixels[1 : CALIBRATION + 1]),
            scratch,
        )


Maker = Callable[[str], Made]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    """Runs and bundles by family, each made when it is first asked for."""
    folder = tmp_path_factory.mktemp("peers")
    drawings = write_drawings(folder / "drawings")
    pictures = sorted((folder / "drawings/images").iterdir())
    known: dict[str, Made] = {}

    def make(family: str) -> Made:
        if family not in known:
            run = untrained(family, drawings, folder / family, max_length=6)
            have_something_to_say(run, pictures)
            float32, int8 = folder / f"{family}-float32", folder / f"{family}-int8"
            export_run(run, recipe("float32"), float32)
            calibration = Photographs(tuple(pictures[:CALIBRATION]), "drawings")
            quantize_bundle(Bundle.open(float32), recipe("int8"), int8, photographs=calibration)
            known[family] = Made(run, float32, int8, pictures)
        return known[family]

    return make


def have_something_to_say(run: run_module.Run, pictures: Sequence[Path]) -> None:
    """Weights for which captions depend on the photograph, and some end by themselves and some at the limit."""
    for weight in run.encoder.weights:
        weight.assign(weight * 2.2)
    for weight in run.model.weights:
        weight.assign(weight * (1.5 if "kernel" in weight.path else 1.0))
    *_, bias = (weight for weight in run.model.weights if weight.shape == (len(run.vocabulary),))
    values = bias.numpy()
    values[values > -1e3] = 0.0
    features = run.features(np.stack([load_image(path, run.image_spec) for path in chosen(pictures)]))
    for extra in np.arange(-1.0, 6.0, 0.125):
        values[END_ID] = extra
        bias.assign(values)
        captions = run.generator.generate(features)
        if len({*map(tuple, captions)}) > 2 and {len(tokens) < 6 for tokens in captions} == {True, False}:
            return
    raise AssertionError(f"{run.model.family}: no bias of the end token gives captions of different lengths")


def chosen(of: Sequence[Any]) -> tuple[Any, ...]:
    """Some that differ."""
    return tuple(of[:: len(of) // PHOTOGRAPHS][:PHOTOGRAPHS])


@pytest.mark.parametrize("family", FAMILIES)
def test_every_peer_captions_as_captionlite_does(made: Maker, family: str, tmp_path: Path) -> None:
    task = made(family).task(tmp_path)
    found = {(entry.name, entry.weights): entry for entry in compare(task, tuple(PEERS), rounds=0).entries}
    expected = {(name, weights) for name, row in PEERS.items() for weights in row.weights}
    assert found.keys() == expected | {(OWN, "float32"), (OWN, "quantized")}
    own = [task.float32.caption(pixels) for pixels in task.photographs]
    assert len({caption.tokens for caption in own}) > 2  # photographs that all get one caption would prove little
    assert {caption.stop_reason for caption in own} == {"end", "max_length"}
    for (name, weights), entry in found.items():
        if name == "onnxruntime" and not ONNX:
            assert entry.status == "skipped"
            assert "pip install 'captionlite[peers]'" in entry.reason
            continue
        if name == "native-c" and (reason := native_reason()):
            assert (entry.status, entry.reason) == ("skipped", reason)
            continue
        if name == "onnxruntime" and weights == "quantized" and entry.status == "skipped":
            assert "no way to quantize" in entry.reason  # weights that nobody trained may bear no rounding
            continue
        if (family, name, weights) == ("lstm", "tflite-prefix", "quantized"):
            assert entry.status == "skipped"  # the quantizer does not see into Keras' loop over the words
            assert "the graph cannot be made" in entry.reason
            continue
        assert (entry.status, entry.reason) == ("checked", ""), name
        assert entry.check is not None
        assert entry.check.photographs == PHOTOGRAPHS
        if weights == "float32" or name in ("signature-runner", "native-c"):
            assert entry.check.equal + entry.check.near_ties == PHOTOGRAPHS, name
        if name in ("keras-function", "keras-loop"):
            assert ("no cache of keys and values" in entry.facts.note) == (family == "masked_lm")
    if ONNX:
        assert found["onnxruntime", "float32"].facts.threads.keys() == {"encoder", "decoder"}


@needs_onnx
def test_the_onnx_loop_gives_the_logits_of_the_float32_bundle(made: Maker, tmp_path: Path) -> None:
    """Not only the same captions: the last step's logits, with the state that the loop fed forward."""
    task = made("transformer").task(tmp_path)
    peer = onnx_runtime.prepare(task, "float32")
    assert isinstance(peer, onnx_runtime.OnnxRuntime)
    for pixels in task.photographs:
        tokens = peer.decode(peer.encode(pixels))
        assert tokens == list(task.float32.caption(pixels).tokens)
        allowed = np.isfinite(task.float32.decoder.logits[0])
        found = peer._decoder.outputs["logits"][0]
        np.testing.assert_allclose(found[allowed], task.float32.decoder.logits[0][allowed], rtol=0, atol=1e-4)


@needs_onnx
def test_tidying_an_onnx_graph_changes_no_number() -> None:
    import onnx
    import onnxruntime
    import tensorflow as tf

    from captionlite.benchmarks.peers.onnx_export import _convert
    from captionlite.benchmarks.peers.onnx_tidy import tidy

    embedding, norm = keras.layers.Embedding(7, 6), keras.layers.LayerNormalization()
    norm.build((None, 6))
    rng = np.random.default_rng(0)
    norm.set_weights([rng.normal(size=6), rng.normal(size=6)])

    def function(token: Any) -> Any:
        return {"y": norm(embedding(token) * 3.0) + 1.0}

    model = _convert(tf.function(function), [tf.TensorSpec((4,), tf.int32, name="token")])
    token = np.array([0, 6, 3, 3], np.int32)

    def run() -> Any:
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"token": token})[0]

    before, count = run(), len(model.graph.node)
    assert tidy(model) == (1, 1)
    onnx.checker.check_model(model)
    assert len(model.graph.node) <= count - 16
    np.testing.assert_allclose(run(), before, rtol=0, atol=1e-5)
    assert tidy(model) == (0, 0)


def test_the_margin_is_that_of_the_bundles_own_logits(tmp_path: Path) -> None:
    toy.write(tmp_path / "toy")
    captioner = Captioner(Bundle.open(tmp_path / "toy"))
    for pixels in toy.photographs(3):
        decoded = toy.decode(pixels)
        for step, logits in enumerate(decoded.logits):
            allowed = np.delete(logits, list(toy.SUPPRESSED))
            second, greatest = np.sort(allowed)[-2:]
            assert margin(captioner, pixels, decoded.tokens, step) == pytest.approx(greatest - second, abs=1e-4)


def test_captions_may_part_at_a_tie_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    toy.write(tmp_path / "toy")
    captioner = Captioner(Bundle.open(tmp_path / "toy"))
    photographs = toy.photographs(3)
    reference = [list(captioner.caption(pixels).tokens) for pixels in photographs]
    other = [reference[0], [*reference[1][:-1], 5], [7, *reference[2][1:]]]
    asked = []

    def gap(_: Captioner, pixels: Any, tokens: Sequence[int], step: int) -> float:
        asked.append((list(tokens), step))
        return TIE / 2 if step else 2 * TIE

    monkeypatch.setattr(check_module, "margin", gap)
    found = check(captioner, photographs, reference, other)
    assert (found.equal, found.near_ties, found.different) == (1, 1, 1)
    assert asked == [(reference[1], len(reference[1]) - 1), (reference[2], 0)]
    assert found.first_difference is not None
    assert found.first_difference.startswith("photograph 3: ")
    assert "they part at token 1" in found.first_difference


class Fake(Peer):
    """A peer that says what a test wants."""

    title = "fake"

    def __init__(self, weights: Weights, task: Task, tokens: list[int] | None) -> None:
        super().__init__(weights)
        self.closed, self._captioner, self._tokens = False, task.captioner(weights), tokens

    def encode(self, pixels: Any) -> Any:
        return pixels

    def decode(self, encoded: Any) -> list[int]:
        return self._tokens or list(self._captioner.caption(encoded).tokens)

    def close(self) -> None:
        self.closed = True


def fake_peers(monkeypatch: pytest.MonkeyPatch, prepare: Callable[[Task, Weights], Peer]) -> None:
    """The only peer that there is."""
    module = ModuleType("fake_peer")
    module.prepare, module.Fake = prepare, Fake  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "fake_peer", module)
    monkeypatch.setitem(PEERS, "fake", dataclasses.replace(PEERS["native-c"], module="fake_peer", peer="Fake"))


def test_a_peer_with_other_captions_is_not_timed(made: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    peers: list[Fake] = []

    def prepare(task: Task, weights: Weights) -> Peer:
        peers.append(Fake(weights, task, [5, 5, 3] if weights == "float32" else None))
        return peers[-1]

    fake_peers(monkeypatch, prepare)
    found = compare(made("lstm").task(tmp_path), ["fake"], rounds=2)
    by_weights = {entry.weights: entry for entry in found.entries if entry.name == "fake"}
    assert by_weights["float32"].status == "wrong"
    assert not by_weights["float32"].turns
    assert f"of {PHOTOGRAPHS} captions are not captionlite's: photograph" in by_weights["float32"].reason
    assert by_weights["quantized"].status == "timed"
    assert len(by_weights["quantized"].turns) == 2
    assert all(peer.closed for peer in peers)


def test_a_peer_that_breaks_or_is_missing_leaves_the_others_alone(
    made: Maker, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prepare(task: Task, weights: Weights) -> Peer:
        if weights == "float32":
            raise PeerUnavailable("nobody has it")
        raise RuntimeError("its library fell over\nand said much more")

    fake_peers(monkeypatch, prepare)
    entries = compare(made("lstm").task(tmp_path), ["fake", "signature-runner"], rounds=1).entries
    assert [(e.name, e.status) for e in entries] == [
        (OWN, "timed"), (OWN, "timed"), ("fake", "skipped"), ("fake", "failed"),
        ("signature-runner", "timed"), ("signature-runner", "timed"),
    ]  # fmt: skip
    assert entries[2].reason == "nobody has it"
    assert entries[3].reason == "RuntimeError: its library fell over"


def test_ratios_are_medians_of_rounds() -> None:
    def entry(name: str, weights: Weights, us: Sequence[float]) -> Entry:
        turns = [Turn(0.004, 1e-6 * each * 10, 2, 10) for each in us]
        return Entry(name, name, weights, "timed", "", Facts(), None, turns)

    found = Comparison((entry(OWN, "float32", (10, 20, 40)), entry("peer", "float32", (50, 40, 120))))
    assert found.entries[1].step_us == pytest.approx(50)
    assert found.entries[1].encode_ms == pytest.approx(2)
    assert found.ratios(found.entries[1]) == {"float32": pytest.approx(3)}


def test_the_native_program_is_left_out_with_a_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "no-such-compiler")
    with pytest.raises(PeerUnavailable, match="there is no C compiler 'no-such-compiler' here"):
        compile_program(tmp_path)
    monkeypatch.setenv("CC", "false")
    with pytest.raises(PeerUnavailable, match="refused the program"):
        compile_program(tmp_path)
    monkeypatch.setattr(native_c, "version", lambda name: "2.2.1")
    with pytest.raises(PeerUnavailable, match=r"ai-edge-litert is 2\.2\.1, and the C API has been tried with 2\.3\.x"):
        find_library()


def test_the_native_program_is_told_the_manifest() -> None:
    assert plan(toy.manifest(), [("h", "c")]).splitlines() == [
        f"image {toy.HEIGHT * toy.WIDTH * 3}",
        f"vocabulary {toy.V}",
        f"steps {toy.LENGTH}",
        f"start {toy.START}",
        f"end {toy.END}",
        *(f"suppress {token}" for token in toy.SUPPRESSED),
        f"state projected constant 1 1 {toy.REGIONS * toy.DEPTH * 4}",
        f"state hidden carried 1 1 {toy.DEPTH * 4}",
        "state count carried 1 1 4",
        f"state history appended 1 {toy.LENGTH} {toy.DEPTH * 4}",
        "alias h c",
    ]


@pytest.fixture
def bench(made: Maker, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """`captionlite bench peers` on the LSTM, whose run stands in memory only."""
    lstm = made("lstm")
    monkeypatch.setattr(run_module, "load_run", lambda directory: lstm.run)

    def invoke(*arguments: str, bundles: Sequence[Path] = (lstm.float32, lstm.int8)) -> Result:
        given = [part for bundle in bundles for part in ("--bundle", str(bundle))]
        photos = [part for path in lstm.pictures[:3] for part in ("--photos", str(path))]
        return CliRunner().invoke(cli, ["bench", "peers", "RUN", *given, *photos, *arguments])

    return invoke


def test_the_command_writes_a_result(bench: Callable[..., Result], tmp_path: Path) -> None:
    out, page = tmp_path / "peers.json", tmp_path / "peers.md"
    arguments = ["--peers", "signature-runner,keras-eager", "--rounds", "2", "--out", str(out), "--markdown", str(page)]
    result = bench(*arguments, "--json")
    assert result.exit_code == 0, result.output
    document = read_document(out, "peers")
    assert json.loads(result.stdout) == document
    assert document["photographs"]["count"] == 3
    assert document["protocol"]["rounds"] == 2
    assert document["models"]["float32"]["id"] == document["models"]["quantized"]["id"] == document["model"]["id"]
    assert document["versions"]["tensorflow"]
    rows = {(peer["name"], peer["weights"]): peer for peer in document["peers"]}
    assert set(rows) == {
        (OWN, "float32"), (OWN, "quantized"), ("keras-eager", "float32"),
        ("signature-runner", "float32"), ("signature-runner", "quantized"),
    }  # fmt: skip
    for row in rows.values():
        assert row["status"] == "timed"
        assert len(row["samples"]["step_us"]) == len(row["samples"]["encode_ms"]) == 2
        assert row["summary"]["step_over_captionlite"].keys() == {"float32", "quantized"}
        assert row["tokens_timed"] >= row["photographs_timed"] == 3
    assert rows[OWN, "float32"]["summary"]["step_over_captionlite"]["float32"] == 1
    assert "| SignatureRunner loop, same files (`signature-runner`) | quantized |" in page.read_text()


def test_the_command_does_without_a_quantized_bundle(bench: Callable[..., Result], made: Maker) -> None:
    result = bench("--peers", "signature-runner", "--rounds", "1", bundles=[made("lstm").float32])
    assert result.exit_code == 0, result.output
    assert "signature-runner" in result.stdout
    assert "quantized │" not in result.stdout


def test_the_command_refuses(bench: Callable[..., Result], made: Maker, tmp_path: Path) -> None:
    lstm = made("lstm")
    unknown = bench("--peers", "torch")
    assert unknown.exit_code == 2
    assert "unknown torch; there are keras-eager, " in unknown.output
    twice = bench(bundles=[lstm.int8])
    assert twice.exit_code == 1
    assert "found the recipes int8, expected one float32 bundle" in twice.output
    nowhere = bench("--out", str(tmp_path / "no" / "folder.json"))
    assert nowhere.exit_code == 1
    assert "there is no folder" in nowhere.output
    bundle = Bundle.open(lstm.float32)
    files = {name: bundle.read(name) for name in bundle.manifest.files}
    other = dataclasses.replace(bundle.manifest, provenance={**bundle.manifest.provenance, "training": {"epochs": 1}})
    write_bundle(tmp_path / "other", other, files)
    foreign = bench(bundles=[tmp_path / "other"])
    assert foreign.exit_code == 1
    assert "name the run that the bundle was exported from" in foreign.output


def test_the_command_fails_with_a_wrong_peer(
    bench: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    fake_peers(monkeypatch, lambda task, weights: Fake(weights, task, [5, 5, 3]))
    result = bench("--peers", "fake", "--rounds", "1", "--out", str(tmp_path / "peers.json"))
    assert result.exit_code == 1
    assert "Error: fake (float32) wrong: 3 of 3 captions are not captionlite's" in result.stderr
    peers = read_document(tmp_path / "peers.json", "peers")["peers"]
    assert [(peer["name"], peer["status"]) for peer in peers[2:]] == [("fake", "wrong"), ("fake", "wrong")]
    assert peers[2]["summary"] is None
