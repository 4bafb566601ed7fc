"""The floor of a graph: what is counted of it, and the arithmetic from rates to times, worked out by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import toy_bundle
from click.testing import CliRunner

from captionlite.benchmarks import op_profile, peaks, roofline
from captionlite.benchmarks.commands import bench_profile, bench_roofline
from captionlite.benchmarks.graph_costs import GraphCost, OpCost, read_costs
from captionlite.benchmarks.op_profile import OpTime, Profile
from captionlite.benchmarks.peaks import Bandwidth, Peaks, Probe
from captionlite.benchmarks.probe_files import KINDS, fully_connected, pointwise, row_sums, small_ops
from captionlite.benchmarks.tflite_model import load_model, op_names, pack, segment, tflite_schema
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.errors import InterpreterError

V, DEPTH = toy_bundle.V, toy_bundle.DEPTH
FLOAT = 4  # bytes


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundles") / "toy"
    toy_bundle.write(directory)
    return directory


def test_the_toy_encoder_is_counted_by_hand() -> None:
    cost = read_costs(toy_bundle.convert()[0], "toy")
    regions, pixels = toy_bundle.REGIONS, toy_bundle.HEIGHT * toy_bundle.WIDTH * 3
    by_name = {op.name: op for op in cost.ops}
    assert cost.multiply_adds == {"float32": regions * 3 * DEPTH + 3 * DEPTH, "int8_weights": 0, "int8": 0}
    cast = by_name["CAST"]
    assert (cast.read_bytes, cast.written_bytes, cast.weight_bytes) == (pixels, FLOAT * pixels, 0)
    assert by_name["RESHAPE"].moved_bytes == 0
    pooled = by_name["AVERAGE_POOL_2D"]
    assert (pooled.read_bytes, pooled.written_bytes) == (FLOAT * pixels, FLOAT * regions * 3)
    # Both projections, two scalars of the normalisation, and the axis that is averaged over.
    assert cost.weight_bytes == FLOAT * (2 * 3 * DEPTH + 2 + 1)
    assert cost.boundary_bytes == pixels + FLOAT * (regions * DEPTH + DEPTH)
    assert cost.working_set_bytes == cost.weight_bytes + cost.boundary_bytes + 2 * FLOAT * pixels
    assert cost.to_json()["bytes"] == cost.weight_bytes + cost.activation_bytes


def test_the_toy_decoder_is_counted_by_hand() -> None:
    cost = read_costs(toy_bundle.convert()[1], "toy")
    assert sum(cost.multiply_adds.values()) == 2 * DEPTH * DEPTH + 3 * DEPTH * V
    largest = max(cost.ops, key=lambda op: op.multiply_adds)
    assert (largest.name, largest.kind, largest.shape) == ("FULLY_CONNECTED", "float32", (1, V))
    assert (largest.weight_bytes, largest.read_bytes, largest.written_bytes) == (
        FLOAT * 3 * DEPTH * V,
        FLOAT * 3 * DEPTH,
        FLOAT * V,
    )
    (lookup,) = [op for op in cost.ops if op.name == "GATHER"]
    assert lookup.weight_bytes == FLOAT * DEPTH  # one row of the table, not all V


def test_products_are_told_apart_by_type() -> None:
    for kind in KINDS:
        wide = FLOAT if kind == "float32" else 1
        (dense,) = read_costs(fully_connected(kind, 4, 8, 16), "probe").ops
        assert (dense.kind, dense.multiply_adds) == (kind, 4 * 8 * 16)
        assert dense.weight_bytes == wide * 8 * 16 + 4 * 16  # a bias is four bytes wide in each
        inner = 1 if kind == "int8" else FLOAT
        assert (dense.read_bytes, dense.written_bytes) == (inner * 4 * 8, inner * 4 * 16)
        (conv,) = read_costs(pointwise(kind, 3, 8, 16), "probe").ops
        assert (conv.label, conv.multiply_adds) == (f"CONV_2D {kind}", 3 * 3 * 8 * 16)


def test_a_depthwise_convolution_sees_one_channel() -> None:
    model = load_model(pointwise("float32", 4, 8, 8), "probe")
    schema = tflite_schema()
    model.operatorCodes[0].builtinCode = model.operatorCodes[0].deprecatedBuiltinCode = (
        schema.BuiltinOperator.DEPTHWISE_CONV_2D
    )
    model.subgraphs[0].tensors[1].shape = [1, 1, 1, 8]
    (op,) = read_costs(pack(model), "probe").ops
    assert op.multiply_adds == 4 * 4 * 8


def test_weights_behind_the_flatbuffer_are_found() -> None:
    content = fully_connected("float32", 1, 4, 4)
    model = load_model(content, "probe")
    weights = model.subgraphs[0].tensors[1].buffer
    data = bytes(model.buffers[weights].data)
    model.buffers[weights].data = None
    model.buffers[weights].offset, model.buffers[weights].size = 1 << 14, len(data)  # a number as wide as the last one
    outside = pack(model)
    assert len(outside) < 1 << 14
    outside = outside.ljust(1 << 14, b"\0") + data
    assert read_costs(outside, "probe") == read_costs(content, "probe")
    assert bytes(load_model(outside, "probe").buffers[weights].data) == data


def test_what_is_no_graph_is_refused() -> None:
    for content in (b"", b"TFL3" * 9, b"\0" * 64):
        with pytest.raises(InterpreterError, match=r"thing\.tflite"):
            read_costs(content, "thing.tflite")


def _op(kind: str | None, products: int, weights: int, read: int, written: int) -> OpCost:
    return OpCost(0, "OP", ("x",), (1,), kind, products, weights, read, written)  # type: ignore[arg-type]


PEAKS = Peaks(
    threads=1,
    rates={"float32": 10.0, "int8_weights": 20.0, "int8": 40.0},
    bandwidth=Bandwidth((100, 1000), (8.0, 2.0)),
    invoke_s=0.5,
    small_op_s=0.25,
)


def test_the_floor_is_the_longer_of_two_times_op_by_op() -> None:
    ops = (
        _op("float32", 100, 8, 8, 8),  # 10 s of products; 8 / 2 + 16 / 8 = 6 s of bytes
        _op("int8", 40, 20, 40, 40),  # 1 s; 20 / 2 + 80 / 8 = 20 s
        _op(None, 0, 0, 300, 100),  # 0 s; 400 / 2 = 200 s: too much for the near level
    )
    lowest = roofline.floor(GraphCost(ops, 28, 0, 500), PEAKS)
    assert [(op.compute_s, op.memory_s) for op in lowest.ops] == [(10.0, 6.0), (1.0, 20.0), (0.0, 200.0)]
    assert lowest.seconds == 10 + 20 + 200
    assert lowest.totals_s == max(11, 226)
    # A graph small enough takes its weights from the near level.
    near = roofline.floor(GraphCost(ops, 28, 0, 100), PEAKS)
    assert [op.memory_s for op in near.ops] == [3.0, 12.5, 200.0]


def test_bandwidth_never_falls_for_what_is_smaller() -> None:
    curve = Bandwidth((10, 100, 1000), (5.0, 9.0, 1.0))
    assert [curve.at(size) for size in (1, 10, 11, 100, 101, 1000, 10**9)] == [9.0, 9.0, 9.0, 9.0, 1.0, 1.0, 1.0]


def test_the_gap_is_told_by_type() -> None:
    ops = (_op("float32", 100, 0, 8, 8), OpCost(1, "ADD", ("y",), (1,), None, 0, 0, 8, 8))
    lowest = roofline.floor(GraphCost(ops, 0, 0, 500), PEAKS)
    times = (OpTime(ops[0], True, 11.0, 0.0), OpTime(ops[1], False, 7.0, 0.0))
    profile = Profile(1, 3, 1, 19.0, times)
    rows = {row["type"]: row for row in roofline.by_type(lowest, profile)}
    assert rows["OP float32"]["lost_us"] == 1e6 * (11 - 10)
    assert rows["ADD"]["lost_us"] == 1e6 * (7 - 16 / 8)
    assert [row["type"] for row in roofline.by_type(lowest, profile)] == ["ADD", "OP float32"]  # the most lost first
    told = profile.to_json()
    assert (told["whole_us"], told["sum_of_ops_us"]) == (19e6, 18e6)
    assert told["delegate"] == {"partitions": 1, "ops": 1, "not_taken": 1, "not_taken_us": 7e6}
    assert [row["share"] for row in told["by_type"]] == [0.6111, 0.3889]


def test_every_probe_runs_in_the_interpreter() -> None:
    contents = [make(kind) for kind in KINDS for make in (_dense, _conv)] + [row_sums(64, 128), small_ops(5)]
    for content in contents:
        assert 0 < Probe(content, 1).fastest(0.0) < 10
    assert op_names(load_model(small_ops(5), "probe")) == ["MUL"] * 5


def _dense(kind: peaks.Kind) -> bytes:
    return fully_connected(kind, 2, 16, 8)


def _conv(kind: peaks.Kind) -> bytes:
    return pointwise(kind, 2, 16, 8)


def test_peaks_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "FULLY_CONNECTED", ((4, 16, 16),))
    monkeypatch.setattr(peaks, "POINTWISE", ((2, 16, 16),))
    calls = []
    found = peaks.measure_peaks(
        1, kilobytes=(16, 64), rounds=2, seconds=0.0, between=lambda done, of: calls.append((done, of))
    )
    assert found.rates.keys() == set(KINDS)
    assert all(0 < rate < math.inf for rate in found.rates.values())
    assert found.bandwidth.sizes == (16 * 1024, 64 * 1024)
    probes = 3 + 2 * len(KINDS) + 2
    assert calls == [(number, 2 * probes) for number in range(1, 2 * probes + 1)]
    rows = peaks.matrix_vector(1024, 1, rounds=1, seconds=0.0)
    assert {kind: row["weight_bytes"] for kind, row in rows.items()} == {
        "float32": 256.0 * 8 * 4, "int8_weights": 256.0 * 8, "int8": 256.0 * 8
    }  # fmt: skip


def test_a_profile_lists_the_ops_of_the_file(bundle: Path) -> None:
    captioner = Captioner.from_bundle(bundle, 1)
    for name, feed in roofline.feeds(captioner, 1).items():
        profile = op_profile.profile_graph(feed.content, feed.inputs, threads=1, where=name, rounds=2)
        names = op_names(load_model(feed.content, name))
        assert [one.op.name for one in profile.ops] == names
        assert sum(row["ops"] for row in profile.by_type()) == len(names)
        assert len(profile.to_json()["per_op"]) == len(names)
        assert profile.partitions >= 1
        delegated = {one.op.name for one in profile.ops if one.delegated}
        assert "FULLY_CONNECTED" in delegated
        left = {one.op.name for one in profile.ops if not one.delegated}
        assert ("CAST" in left) if name == "encoder" else ("GATHER" in left)


def test_an_op_takes_what_it_adds_to_those_before() -> None:
    """With a clock that counts the runs' ops, each of them takes exactly one second."""
    content = small_ops(11)
    model = load_model(content, "probe")
    schema = tflite_schema()
    signature = schema.SignatureDefT()
    signature.signatureKey = "serving_default"
    named = schema.TensorMapT()
    named.name, named.tensorIndex = "input", 0
    signature.inputs, signature.outputs, signature.subgraphIndex = [named], [], 0
    model.signatureDefs = [signature]
    lengths = []
    for first in range(0, 11, op_profile.STRETCH):
        stretch = range(first + 1, min(first + op_profile.STRETCH, 11) + 1)
        turn = [0, *(last - first for last in stretch), 11]  # nothing, the cuts, the whole graph
        lengths += turn * 4  # three rounds, and one that warms up
    ticks = [tick for length in lengths for tick in (0.0, float(length))]
    clock = iter(ticks)
    found = op_profile.profile_graph(
        pack(model),
        {"input": np.ones(16, np.float32)},
        threads=1,
        where="probe",
        rounds=3,
        clock=lambda: next(clock),
    )
    assert next(clock, None) is None
    assert [one.seconds for one in found.ops] == [1.0] * 11
    assert [one.uncertainty_s for one in found.ops] == [0.0] * 11
    assert found.whole_s == 11.0


def test_a_segment_is_a_graph_of_its_own() -> None:
    content = toy_bundle.convert()[1]
    model = load_model(content, "toy")
    names = op_names(model)
    before = (list(model.subgraphs[0].inputs), list(model.subgraphs[0].outputs), len(model.subgraphs[0].operators))
    for first in range(0, len(names), 3):
        cut = segment(model, first, first + 3)
        assert op_names(load_model(cut, "cut")) == names[first : first + 3]
        produced = {int(i) for op in model.subgraphs[0].operators[:first] for i in op.outputs}
        given = {int(i) for i in load_model(cut, "cut").subgraphs[0].inputs}
        assert given <= produced | set(before[0])
    graph = model.subgraphs[0]
    assert (list(graph.inputs), list(graph.outputs), len(graph.operators)) == before


def test_the_commands_write_their_results(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peaks, "FULLY_CONNECTED", ((4, 16, 16),))
    monkeypatch.setattr(peaks, "POINTWISE", ((2, 16, 16),))
    monkeypatch.setattr(bench_roofline, "KILOBYTES", (16, 64))
    monkeypatch.setattr(bench_roofline, "QUICK_TIMING_ROUNDS", 2)
    monkeypatch.setattr(bench_roofline, "QUICK_PROFILE_ROUNDS", 2)
    out = tmp_path / "roofline.json"
    arguments = [str(bundle), "--threads", "1", "--quick", "--out", str(out)]
    result = CliRunner().invoke(bench_roofline.command, [*arguments, "--json"])
    assert result.exit_code == 0, result.output
    document = json.loads(result.stdout)
    assert document == json.loads(out.read_text())
    assert (document["kind"], document["target"], document["schema"]) == ("roofline", "edge", [1, 0])
    for name in ("encoder", "decoder"):
        graph = document["graphs"][name]
        assert graph["measured_over_floor"] > 0
        assert graph["floor_of_totals_us"] <= graph["floor_us"] * 1.001
        assert len(graph["ops"]) == graph["cost"]["ops"] == graph["profile"]["ops"]
    text = CliRunner().invoke(bench_roofline.command, arguments).stdout
    assert "times its floor" in text
    profile = CliRunner().invoke(bench_profile.command, [str(bundle), "--rounds", "2", "--graph", "decoder", "--json"])
    assert profile.exit_code == 0, profile.output
    told = json.loads(profile.stdout)
    assert (told["kind"], list(told["graphs"])) == ("profile", ["decoder"])
    shown = CliRunner().invoke(bench_profile.command, [str(bundle), "--rounds", "2"])
    assert "the delegate took" in shown.stdout
    refused = CliRunner().invoke(bench_profile.command, [str(bundle), "--out", str(tmp_path / "no" / "x.json")])
    assert refused.exit_code != 0
    assert "Create it first" in str(refused.exception)
