"""The search for a recipe: groups, damage, the walk, and an answer that holds, comes again, survives interruption."""

import itertools
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import keras
import numpy as np
import pytest
from click.testing import CliRunner
from drawings import write_drawings
from PIL import Image
from untrained import untrained

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow converts; KERAS_BACKEND is another", allow_module_level=True)

from captionlite.export import quantization
from captionlite.export.auto import BUILT_IN, BudgetError, Found, search
from captionlite.export.bundle_quantizer import quantize_bundle
from captionlite.export.calibration import Photographs
from captionlite.export.convert import convert
from captionlite.export.dev_set import DevSet
from captionlite.export.errors import ExportError
from captionlite.export.exporter import export_run
from captionlite.export.graphs import DecoderGraph
from captionlite.export.latency import Latency, graph_latencies
from captionlite.export.op_groups import JOINING, WEIGHTED, expression, find_groups, quantizable
from captionlite.export.pareto import Budget, Option, Point, cheaper, choose, front, nearest, promising, spread, walk
from captionlite.export.recipes import recipe
from captionlite.export.search_table import MARKDOWN, PLOT, RECIPE, TABLE
from captionlite.export.sensitivity import FLOAT32, LEVELS, Reference, Workshop, graph_recipe, levels
from captionlite.export.tflite_file import Op, read_ops
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.cli import cli

SEED = 3
UNTRIED = {level: LEVELS[level] for level in ("static-int8", "weight-only-int8")}
EVERY_LEVEL = dict(LEVELS)


@pytest.fixture(scope="module")
def drawings(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_drawings(tmp_path_factory.mktemp("drawings"))


@pytest.fixture(scope="module")
def photographs(drawings: Path) -> Photographs:
    return Photographs.of_data(f"jsonl:{drawings}", SEED)


@pytest.fixture(scope="module")
def bundle(drawings: Path, photographs: Photographs, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("float")
    run = untrained("lstm", drawings, folder)  # the family with the fewest ops
    export_run(run, recipe("float32"), folder / "float32", photographs=photographs.photos[:2])
    return Bundle.open(folder / "float32")


@pytest.fixture(scope="module")
def dev(drawings: Path, bundle: Bundle) -> DevSet:
    return DevSet.load(f"jsonl:{drawings}", "dev", bundle, SEED)


@pytest.fixture(scope="module", autouse=True)
def no_trial_processes() -> Any:
    """A process for each of some hundred files: what it is for has a test of its own. And fewer levels, for speed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(quantization, "_try", lambda content, where: None)
        for level in UNTRIED:
            patch.delitem(LEVELS, level)
        yield


def by_size(captioners: Mapping[str, Captioner], *_: object) -> dict[str, Latency]:
    """Times that depend on the files alone."""
    found = {}
    for name, captioner in captioners.items():
        files = captioner.bundle.manifest.files
        encoder_ms, step_us = files["encoder.tflite"].size_bytes / 1e4, files["decoder.tflite"].size_bytes / 100
        found[name] = Latency(encoder_ms, step_us, encoder_ms + step_us / 100)
    return found


@pytest.fixture(scope="module")
def found(
    bundle: Bundle, photographs: Photographs, dev: DevSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Found]:
    folder = tmp_path_factory.mktemp("search") / "auto"
    return folder, search(bundle, photographs, dev, Budget(), folder, seed=SEED, latencies=by_size)


def check_groups(content: bytes, graph: str) -> None:
    """Every op once, and rules that give each op its own group's level and no other, whatever the levels are."""
    groups, ops = find_groups(content, graph), read_ops(content)
    wanted = {op.scope for op in quantizable(content)}
    inside = [op.scope for group in groups for op in group.ops]
    assert len(inside) == len(wanted)
    assert set(inside) == wanted
    assert len({group.key for group in groups}) == len(groups)
    assert inside
    for number in range(6):
        drawn = np.random.default_rng(number)
        assignment = {group.key: str(drawn.choice(levels(group))) for group in groups}
        expected = {
            f"{op.name} {op.scope}": LEVELS[assignment[group.key]].get(op.name, "no_quantize")
            for group in groups
            for op in group.ops
        }
        rules = list(graph_recipe(groups, assignment, ops, "min_max").rules)
        found = {f"{op.name} {op.scope}": quantization._mode(rules, op) for op in ops if op.scope in wanted}
        assert found == expected


def test_groups_hold_every_op_once_and_rules_reach_just_them(bundle: Bundle) -> None:
    for graph, spec in bundle.manifest.graphs.items():
        check_groups(bundle.read(spec.file), graph)
    groups = {g.name: [op.name for op in g.ops] for g in find_groups(bundle.read("decoder.tflite"), "decoder")}
    assert groups["lstm_cell_1"] == ["FULLY_CONNECTED"] * 2
    assert ["GATHER"] in groups.values()
    assert len(groups) == 4


def test_groups_of_layers_end_where_their_residual_sum_stands(drawings: Path, tmp_path: Path) -> None:
    content = convert(DecoderGraph(untrained("transformer", drawings, tmp_path).model))
    check_groups(content, "decoder")
    names = [group.name for group in find_groups(content, "decoder")]
    assert len(names) == 9  # two tables, three parts of each of two layers, the head
    assert {"token_embedding_1", "position_embedding_1", "feed_forward_1"} < set(names)


def layer(*inputs: str, kind: str = "CONV_2D", name: str) -> Op:
    weights = {} if kind in JOINING else {f"{name}/weights": "FLOAT32"}
    return Op(kind, {**dict.fromkeys(inputs, "FLOAT32"), **weights}, {name: "FLOAT32"})


def grouped(ops: list[Op], monkeypatch: pytest.MonkeyPatch) -> dict[str, list[str]]:
    stored = {name: 4 for op in ops for name in op.inputs if name.endswith("/weights")}
    monkeypatch.setattr("captionlite.export.op_groups.read_ops", lambda content: ops)
    monkeypatch.setattr("captionlite.export.op_groups.stored_sizes", lambda content: stored)
    monkeypatch.setattr("captionlite.export.op_groups.output_names", lambda content: set())
    return {group.name: [next(iter(op.outputs)) for op in group.ops] for group in find_groups(b"", "encoder")}


def test_blocks_are_known_by_name_or_by_where_branches_join(monkeypatch: pytest.MonkeyPatch) -> None:
    named = [
        layer("image", name="net/stem_conv/Relu"),
        layer("net/stem_conv/Relu", name="net/block_1_expand/Relu"),
        layer("net/block_1_expand/Relu", name="net/block_1_project/Add"),
        layer("net/stem_conv/Relu", "net/block_1_project/Add", kind="ADD", name="net/block_1_add/Add"),
        layer("net/block_1_add/Add", name="net/block_11_expand/Relu"),
        layer("net/block_11_expand/Relu", name="net/block_11_project/Add"),
    ]
    assert grouped(named, monkeypatch) == {
        "stem_conv": ["net/stem_conv/Relu"],
        "block_1": ["net/block_1_expand/Relu", "net/block_1_project/Add"],
        "block_11": ["net/block_11_expand/Relu", "net/block_11_project/Add"],
        "joins": ["net/block_1_add/Add"],
    }
    assert expression([named[1]], named[:3]) == "block_1_expand/" or expression(named[1:3], named) == "block_1_"
    counted = [
        layer("image", name="net/conv2d/Relu"),
        layer("net/conv2d/Relu", name="net/conv2d_1/Relu"),
        layer("net/conv2d/Relu", "net/conv2d_1/Relu", kind="CONCATENATION", name="net/concatenate/concat"),
        layer("net/concatenate/concat", name="net/conv2d_2/Relu"),
        layer("net/conv2d_2/Relu", name="net/conv2d_3/Relu"),
    ]
    assert list(grouped(counted, monkeypatch).values()) == [
        ["net/conv2d/Relu", "net/conv2d_1/Relu"],
        ["net/conv2d_2/Relu", "net/conv2d_3/Relu"],
        ["net/concatenate/concat"],
    ]


def test_a_very_long_graph_has_a_bounded_number_of_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f"layer{i}_" for i in range(200)]
    ops = [layer(before, name=f"{name}a/x") for before, name in itertools.pairwise(["image", *names])]
    ops += [layer(f"{name}a/x", f"{name}b/x", kind="ADD", name=f"{name}sum") for name in names]
    found = grouped(ops, monkeypatch)
    assert len(found) <= 33
    assert sum(len(scopes) for name, scopes in found.items() if name != "joins") == 200


def test_groups_differ_in_what_they_can_be(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captionlite.export.sensitivity.LEVELS", EVERY_LEVEL)

    def group(*kinds: str) -> Any:
        return SimpleNamespace(kinds=kinds)

    assert levels(group("GATHER")) == ["int8", "float32"]
    assert levels(group("CONV_2D", "DEPTHWISE_CONV_2D")) == ["int8", "weight-only-int8", "float16", "float32"]
    assert levels(group("FULLY_CONNECTED")) == ["int4", "int8", "static-int8", "weight-only-int8", "float16", "float32"]
    assert levels(group("ADD")) == ["int8", "float32"]
    for kinds in EVERY_LEVEL.values():
        assert kinds.keys() <= {*WEIGHTED, *JOINING}
        for kind, mode in kinds.items():
            quantization.check_override(quantization.Override(mode, kind), kind)  # each has a kernel


def test_damage_is_nought_of_float32_and_grows_as_bits_go(bundle: Bundle, dev: DevSet, tmp_path: Path) -> None:
    reference = Reference(Captioner(bundle, 1), dev.photographs[:3])
    same = reference.damage(Captioner(bundle, 1))
    assert (same.encoder_rms, same.divergence, same.top1_changed) == (0.0, 0.0, 0.0)
    workshop = Workshop(bundle, dev.photographs[:3], tmp_path)
    head = [group.key for group in workshop.groups if group.graph == "decoder"][-1]
    found = {}
    for level in ("int4", "int8", "float16"):
        with workshop.opened(workshop.recipe(level, "", {head: level}, 0.05)) as captioner:
            found[level] = reference.damage(captioner(1), encoder_changed=False)
    assert found["int4"].divergence > found["int8"].divergence > found["float16"].divergence >= 0
    assert not list(tmp_path.iterdir())  # bundles are gone when they have served


def test_the_answer_is_no_worse_than_any_recipe_made_by_hand(found: tuple[Path, Found]) -> None:
    folder, result = found
    assert {point.name for point in result.points} > set(BUILT_IN)
    assert not any(point.dominates(result.point) for point in result.points)
    assert result.point in result.front
    assert result.point.name != FLOAT32
    assert recipe(str(folder / RECIPE)) == result.recipe
    assert result.recipe.name == "auto"
    assert "seed 3" in result.recipe.description
    table = (folder / MARKDOWN).read_text()
    for point in result.points:
        assert f"| {point.name} | {point.size_bytes:,} |" in table
    with Image.open(folder / PLOT) as picture:
        assert len(picture.getcolors(1 << 24) or ()) > 10  # something is drawn


def test_the_recipe_makes_the_bytes_that_were_measured(
    found: tuple[Path, Found], bundle: Bundle, photographs: Photographs, tmp_path: Path
) -> None:
    folder, result = found
    quantize_bundle(bundle, recipe(str(folder / RECIPE)), tmp_path / "out", photographs=photographs)
    written = Bundle.open(tmp_path / "out")
    assert sum(written.manifest.files[f"{graph}.tflite"].size_bytes for graph in ("encoder", "decoder")) == (
        result.point.size_bytes
    )
    workshop = Workshop(bundle, photographs.load(bundle.manifest.image), tmp_path)
    for graph, content in workshop.graphs(result.recipe).items():
        assert written.read(f"{graph}.tflite") == content, graph


def test_a_search_that_was_stopped_goes_on_and_ends_the_same(
    found: tuple[Path, Found], bundle: Bundle, photographs: Photographs, dev: DevSet, tmp_path: Path
) -> None:
    calls = 0

    def stopping(captioners: Mapping[str, Captioner], *_: object) -> dict[str, Latency]:
        nonlocal calls
        calls += 1
        if calls == 12:
            raise KeyboardInterrupt
        return by_size(captioners)

    again = {"seed": SEED, "latencies": stopping}
    with pytest.raises(KeyboardInterrupt):
        search(bundle, photographs, dev, Budget(), tmp_path / "auto", **again)  # type: ignore[arg-type]
    kept = json.loads((tmp_path / "auto" / TABLE).read_text())
    assert len(kept["trials"]) + len(kept["points"]) == 11
    said: list[str] = []
    result = search(bundle, photographs, dev, Budget(), tmp_path / "auto", **again, report=said.append)  # type: ignore[arg-type]
    assert "going on from" in said[0]
    whole = json.loads((found[0] / TABLE).read_text())
    assert calls - 1 == len(whole["trials"]) + len(whole["points"])  # nothing was measured twice
    assert json.loads((tmp_path / "auto" / TABLE).read_text()) == whole
    assert (tmp_path / "auto" / RECIPE).read_bytes() == (found[0] / RECIPE).read_bytes()
    assert result.point == found[1].point


def never(*_: object) -> dict[str, Latency]:
    raise AssertionError("measured again")


def test_budgets_are_met_or_the_nearest_point_is_named(
    found: tuple[Path, Found], bundle: Bundle, photographs: Photographs, dev: DevSet, tmp_path: Path
) -> None:
    shutil.copytree(found[0], tmp_path / "auto")
    sizes = sorted(point.size_bytes for point in found[1].points)
    limit = sizes[len(sizes) // 2] / 1e6
    within = search(bundle, photographs, dev, Budget(megabytes=limit), tmp_path / "auto", seed=SEED, latencies=by_size)
    assert within.point.size_bytes <= 1e6 * limit
    times = [point.whole_ms for point in within.points]
    tight = Budget(milliseconds=1.2 * min(times))
    assert search(bundle, photographs, dev, tight, tmp_path / "auto", seed=SEED, latencies=by_size).point.whole_ms <= (
        1.2 * min(times)
    )
    with pytest.raises(
        BudgetError, match=r"none of \d+ recipes meets the budgets \(at most 0\.001 MB\)\. The nearest, "
    ):
        search(bundle, photographs, dev, Budget(megabytes=0.001), tmp_path / "auto", seed=SEED, latencies=never)


def test_the_command(found: tuple[Path, Found], bundle: Bundle, drawings: Path, tmp_path: Path) -> None:
    shutil.copytree(found[0], tmp_path / "out-search")
    arguments = ["quantize", str(bundle.location), "--recipe", "auto", "--out", str(tmp_path / "out")]
    arguments += ["--calibrate", f"jsonl:{drawings}", "--data", f"jsonl:{drawings}", "--seed", str(SEED)]
    missed = CliRunner().invoke(cli, [*arguments, "--budget-mb", "0.001"])
    assert missed.exit_code == 3, missed.output
    assert "misses --budget-mb by" in missed.stderr
    assert not (tmp_path / "out").exists()
    done = CliRunner().invoke(cli, [*arguments, "--json"])  # everything is in the table: nothing is timed
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["bundle"] == str(tmp_path / "out")
    assert "going on from" in done.stderr
    assert (tmp_path / "out-search" / RECIPE).read_bytes() == (found[0] / RECIPE).read_bytes()
    facts = Bundle.open(tmp_path / "out").manifest.provenance
    assert facts["recipe"]["name"] == "auto"
    assert facts["recipe"]["content"] == json.loads((found[0] / RECIPE).read_text())
    held = CliRunner().invoke(cli, [*arguments, "--split", "test", "--force"])
    assert held.exit_code == 1
    assert "no longer a test" in held.stderr
    for wrong, message in (
        (["--recipe", "int8", "--budget-mb", "9"], "--data, --budget-mb: for --recipe auto"),
        (["--out", str(tmp_path / "out")], "exists already; give --force"),
    ):
        refused = CliRunner().invoke(cli, [*arguments, *wrong])
        assert refused.exit_code in (1, 2)
        assert message in refused.stderr
    bare = CliRunner().invoke(cli, ["quantize", str(bundle.location), "--recipe", "auto", "--out", "x"])
    assert bare.exit_code == 2
    assert "needs --calibrate" in bare.stderr


def test_what_cannot_be_searched_is_refused(
    found: tuple[Path, Found], bundle: Bundle, photographs: Photographs, dev: DevSet, drawings: Path, tmp_path: Path
) -> None:
    with pytest.raises(
        ExportError, match=r"captionlite export RUN --recipe float32 .* captionlite quantize FLOAT --rec"
    ):
        recipe("auto")
    with pytest.raises(ExportError, match="no longer a test"):
        DevSet.load(f"jsonl:{drawings}", "Test2017", bundle)
    everything = Photographs.of_folder(drawings.parent / "images")
    with pytest.raises(ExportError, match=r"6 photographs \(.*are to calibrate and are in .* dev as well"):
        search(bundle, everything, dev, Budget(), tmp_path / "a", latencies=never)
    shutil.copytree(found[0], tmp_path / "auto")
    with pytest.raises(
        ExportError, match=r"search\.json: of a search with other inputs \(seed\); give another --search"
    ):
        search(bundle, photographs, dev, Budget(), tmp_path / "auto", seed=9, latencies=never)
    (tmp_path / "auto" / TABLE).write_text("{")
    with pytest.raises(ExportError, match=r"search\.json: not readable as the table of a search"):
        search(bundle, photographs, dev, Budget(), tmp_path / "auto", seed=SEED, latencies=never)
    quantize_bundle(bundle, recipe("weight-only-int8"), tmp_path / "small")
    with pytest.raises(ExportError, match="quantized already"):
        search(Bundle.open(tmp_path / "small"), photographs, dev, Budget(), tmp_path / "b", latencies=never)


def point(name: str, size: int, ms: float, ciders: Sequence[float]) -> Point:
    return Point(name, name, {}, size, ms, 0.0, ms, 0.0, tuple(ciders))


def test_the_walk_repairs_most_for_what_it_costs() -> None:
    options = {
        "a": [Option("float32", 0, 0, 0.0), Option("int8", -300, 0, 0.5)],  # much damage, few bytes: repaired first
        "b": [Option("float32", 0, 0, 0.0), Option("int8", -3000, 0, 0.1), Option("int4", -3500, 0, 0.4)],
    }
    states = [dict(state.assignment) for state in walk(options, (1.0, 0.0), (10_000.0, 10.0))]
    assert states == [
        {"a": "int8", "b": "int4"},
        {"a": "float32", "b": "int4"},
        {"a": "float32", "b": "int8"},
        {"a": "float32", "b": "float32"},
    ]
    walked = walk(options, (1.0, 0.0), (10_000.0, 10.0))
    assert [round(state.divergence, 9) for state in walked] == [0.9, 0.4, 0.1, 0.0]
    assert promising([*walked, *walked], (10_000.0, 10.0), Budget(megabytes=0.0069))[0] == walked[1]
    assert len(spread(walked, 3)) == 3
    chosen = point("chosen", 7200, 10.0, [0.5])
    assert cheaper(walked, (10_000.0, 10.0), chosen) == walked[2]  # 7,000 bytes; the last, float32, has 10,000
    assert cheaper(walked[:2], (10_000.0, 10.0), None) == walked[0]
    assert cheaper(walked[3:], (10_000.0, 10.0), chosen) is None
    assert {walked[0], walked[-1]} < set(spread(sorted(walked, key=lambda s: s.divergence), 3))


def test_what_is_not_measurably_worse_and_cheaper_is_chosen() -> None:
    rng = np.random.default_rng(0)
    truth = rng.normal(0.5, 0.3, 400)
    noise = rng.normal(0, 0.1, 400)
    noise -= noise.mean()
    best = point("best", 900, 9.0, truth)
    tied = point("tied", 500, 5.0, truth + noise - 0.001)  # one standard error is 0.005
    worse = point("worse", 300, 3.0, truth + noise - 0.05)
    whole = point("float32", 4000, 20.0, truth)
    assert choose([best, tied, worse], Budget(), whole) == tied
    assert choose([best, worse], Budget(), whole) == best
    assert choose([best, tied, worse], Budget(megabytes=0.0004), whole) == worse
    assert choose([best, tied, worse], Budget(milliseconds=4), whole) == worse
    assert choose([best, tied, worse], Budget(milliseconds=4, min_cider=0.49), whole) is None
    lucky = point("lucky", 800, 8.0, truth + noise + 0.05)  # better than what it is a rounding of
    assert choose([lucky, tied, worse], Budget(), whole) == tied
    assert choose([lucky, worse], Budget(), point("float32", 4000, 20.0, truth + 0.1)) == lucky
    assert nearest([best, tied, worse], Budget(milliseconds=4.9, min_cider=0.47)) == tied
    assert front([best, tied, worse, point("lost", 901, 9.0, truth - 0.1)]) == [worse, tied, best]


def test_latencies_are_taken_in_turns() -> None:
    """A clock that each call moves on by what it is known to cost, and a machine that slows down in the middle."""
    now, order = 0.0, []

    def captioner(name: str, encode_s: float, step_s: float, tokens: int) -> Any:
        def spend(seconds: float, result: Any) -> Any:
            nonlocal now
            order.append(name)
            now += seconds * (10 if 12 <= len(order) < 16 else 1)
            return result

        return SimpleNamespace(
            encode_pixels=lambda pixels: spend(encode_s, {}),
            decode=lambda encoded: spend(step_s * tokens, SimpleNamespace(tokens=(0,) * tokens)),
        )

    captioners = {"slow": captioner("slow", 0.02, 0.002, 12), "fast": captioner("fast", 0.01, 0.001, 8)}
    pixels = [np.zeros((2, 2, 3), np.uint8)] * 2
    found = graph_latencies(captioners, pixels, 5, clock=lambda: now)
    assert found["slow"].encoder_ms == pytest.approx(20)
    assert found["fast"].step_us == pytest.approx(1000)
    assert found["fast"].whole_ms == pytest.approx(10 + 10 * 1)  # ten tokens for both: the mean of what they say
    assert found["slow"].whole_ms == pytest.approx(20 + 10 * 2)
    assert order[:8] == ["slow", "slow", "fast", "fast", "fast", "fast", "slow", "slow"]
