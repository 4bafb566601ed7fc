"""`captionlite bench compare`: what belongs together and what does not, ratios, scores, GPU columns, exact Markdown."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from bench_results import result, write
from click.testing import CliRunner, Result
from rich.console import Console

from captionlite.benchmarks.commands import bench_compare
from captionlite.benchmarks.compare import ComparisonError, read_comparison
from captionlite.benchmarks.compare_page import markdown, merged, other_tables
from captionlite.benchmarks.compare_tables import cost_table, figure, stage_table, whole_table
from captionlite.benchmarks.plots import Picture
from captionlite.benchmarks.results import ResultError, read_result
from captionlite.runtime.cli import cli

FAMILIES = {
    "lstm": "show_and_tell",
    "gru_attention": "show_attend_tell",
    "transformer": "default",
    "masked_lm": "small",
}


def compare(*arguments: object, width: int = 200) -> Result:
    return CliRunner().invoke(cli, ["bench", "compare", *map(str, arguments)], env={"COLUMNS": str(width)})


@pytest.fixture
def two(tmp_path: Path) -> tuple[Path, Path]:
    first = write(tmp_path / "a.json", result("float32", encode_ms=4.0, step_ms=0.2))
    return first, write(tmp_path / "b.json", result("int8", threads=2))


def survey(folder: Path, *, gpu: tuple[str, ...] = ()) -> Path:
    """All families, float32 and int8, one thread and two."""
    folder.mkdir()
    for family, name in FAMILIES.items():
        more: dict[str, Any] = {"family": family, "name": name}
        for recipe, encode_ms in (("int8", 2.0), ("float32", 4.0)):
            for threads in (2, 1):
                file = folder / f"{family}-{recipe}-{threads}.json"
                write(file, result(recipe, threads, encode_ms=encode_ms / threads, **more))
        if family in gpu:
            write(folder / f"{family}-gpu.json", result("float32", None, target="gpu", encode_ms=0.5, **more))
    return folder


def test_what_the_tests_make_is_a_result(two: tuple[Path, Path]) -> None:
    assert read_result(two[0]).model.recipe == "float32"


def test_ratios_are_of_medians_and_labels_tell_results_apart(two: tuple[Path, Path]) -> None:
    comparison = read_comparison(two)
    assert [entry.label for entry in comparison.entries] == ["edge float32 1 thread", "edge int8 2 threads"]
    # medians: 1.5 + 4 + 10 * 0.2 and 1.5 + 2 + 10 * 0.1
    assert [entry.ratio for entry in comparison.entries] == [1.0, pytest.approx(4.5 / 7.5)]
    assert comparison.warnings == ()


def test_the_table_on_the_terminal(two: tuple[Path, Path]) -> None:
    done = compare(*two)
    assert done.exit_code == 0, done.output
    rows = [line.split() for line in done.stdout.splitlines()]
    assert ["float32", "1", "7.50", "1.00", "222", "400"] in rows
    assert ["int8", "2", "/", "1", "4.50", "0.600", "222", "400"] in rows
    assert ["int8", "2", "/", "1", "8.7", "10.0", "0.174", "74", "–", "0.480"] in rows
    assert "Fastest is edge int8 2 threads: 4.50 ms a caption (median); slowest edge float32 1 thread" in done.stdout


def test_no_figure_is_cut_off_by_a_narrow_terminal(tmp_path: Path) -> None:
    comparison = read_comparison([survey(tmp_path / "all", gpu=tuple(FAMILIES))])
    built = [build(comparison, short=True) for build in (whole_table, stage_table, cost_table)]
    for width in range(64, 132, 4):
        console = Console(width=width, file=io.StringIO())
        for table in built:
            with console.capture() as captured:
                console.print(bench_compare.fitting(console, table))
            lines = captured.get().splitlines()
            assert max(map(len, lines)) <= width
            lasts = [row[-1].shown for row in table.rows]
            assert [line.split()[-1] for line in lines if line.strip() and line.split()[-1] in lasts] == lasts, width
    # GPU: 1.5 + 0.5 + 1 ms against 6.5
    done = compare(tmp_path / "all", width=80)
    shown = [line.split() for line in done.stdout.splitlines()]
    assert ["masked_lm", "float32", "edge", "1", "6.50", "1.00", "222", "400", "3.00", "2.17"] in shown


@pytest.mark.parametrize(
    ("change", "field", "told"),
    [
        ({"photographs": {"sha256": "ee" * 32, "source": "mine"}}, "photographs.sha256", "5 of mine (sha256 eeeeeeee)"),
        ({"model": {"id": "ff" * 32}}, "model.id", "default (transformer, ffffffff)"),
        ({"protocol": {"decoding": "beam 3"}}, "protocol.decoding", "'beam 3'"),
        ({"protocol": {"quick": True}}, "protocol.quick", "True"),
        ({"protocol": {"warm_up": 1}}, "protocol.warm_up", "1 in"),
        ({"protocol": {"min_captions": 3}}, "protocol.min_captions", "3 in"),
        ({"protocol": {"min_seconds": 0.5}}, "protocol.min_seconds", "0.5 in"),
        ({"protocol": {"name": "offline"}}, "protocol.name", "'offline'"),
        ({"complete": False}, "complete", "interrupted"),
    ],
)
def test_what_differs_is_refused_by_name_and_forced_under_a_warning(
    tmp_path: Path, two: tuple[Path, Path], change: dict[str, Any], field: str, told: str
) -> None:
    other = write(tmp_path / "other.json", result("int8", **change))
    refused = compare(two[0], other, "--out", tmp_path / "report")
    assert refused.exit_code == 1
    for part in (f"- {field}: ", told, "other.json", "--force"):
        assert part in refused.stderr
    assert not (tmp_path / "report").exists()
    forced = compare(two[0], other, "--force", "--json")
    assert forced.exit_code == 0, forced.output
    (warning,) = json.loads(forced.stdout)["warnings"]
    assert warning.startswith(f"{field}: ")
    page = markdown(read_comparison([two[0], other], force=True), [], "captionlite")
    assert page.splitlines()[2] == "> **Compared by force; these figures do not belong together.**"
    assert compare(two[0], other, "--force").stdout.startswith("Compared by force")


def test_threads_recipes_targets_and_machines_may_differ(tmp_path: Path, two: tuple[Path, Path]) -> None:
    keras = write(tmp_path / "keras.json", result("float32", 2, target="keras", machine={"cpu": "Other CPU"}))
    assert [entry.label for entry in read_comparison([*two, keras]).entries] == [
        "edge float32 1 thread",
        "edge int8 2 threads",
        "keras float32 2 threads",
    ]
    pi = write(tmp_path / "pi.json", result("int8", 2, machine={"device": "Raspberry Pi 5", "cores": 4}))
    labels = [entry.label for entry in read_comparison([two[1], pi]).entries]
    assert labels == ["edge int8 Test CPU, 2 cores", "edge int8 Raspberry Pi 5, 4 cores"]


def test_equal_results_are_told_apart_by_their_files_and_no_file_counts_twice(tmp_path: Path) -> None:
    (tmp_path / "x").mkdir()
    paths = [write(path, result()) for path in (tmp_path / "a.json", tmp_path / "b.json", tmp_path / "x" / "b.json")]
    labels = [entry.label for entry in read_comparison([*paths, paths[0]]).entries]
    assert labels == ["edge int8 (a)", "edge int8 (b) #2", "edge int8 (b) #3"]


def test_a_score_is_that_of_the_recipe_and_decoding_from_any_result_of_the_model(tmp_path: Path) -> None:
    more = {"everyday, int8, greedy": {"cider": 0.9}, "drawings test, int8, beam 3": {"cider": 0.7}, "odd": 1}
    quantized = write(tmp_path / "a.json", result("int8", scores=more))
    float32 = write(tmp_path / "b.json", result("float32", scores={}))
    assert [entry.cider for entry in read_comparison([quantized, float32]).entries] == [0.9, None]
    known = write(tmp_path / "c.json", result("int8", 2))
    comparison = read_comparison([quantized, float32, known])
    assert comparison.scored_on == "drawings test"  # it scores all three
    assert [entry.cider for entry in comparison.entries] == [0.48, 0.5, 0.48]


def test_a_folder_is_a_survey_by_family(tmp_path: Path) -> None:
    comparison = read_comparison([survey(tmp_path / "all", gpu=("lstm", "transformer"))])
    assert comparison.families == tuple(FAMILIES)
    recipes = [(entry.result.model.recipe, entry.result.protocol.encoder_threads) for entry in comparison.entries[:5]]
    assert recipes == [("float32", 1), ("float32", 2), ("int8", 1), ("int8", 2), ("float32", None)]
    assert [entry.ratio for entry in comparison.entries if entry.result.protocol.encoder_threads == 1][::2] == [1.0] * 4
    table = whole_table(comparison)
    assert table.sections == {5, 9, 14}
    assert [(column.group, column.name) for column in table.columns[-2:]] == [
        ("NVIDIA H200 (jax)", "p50, ms"),
        ("NVIDIA H200 (jax)", "× faster"),
    ]
    by_family = {row[0].shown: (row[-2].shown, row[-1].shown) for row in reversed(table.rows)}
    assert by_family["lstm"] == by_family["transformer"] == ("3.00", "2.17")
    assert by_family["gru_attention"] == by_family["masked_lm"] == ("–", "–")
    assert [missing.family for missing in comparison.missing_gpu] == ["gru_attention", "masked_lm"]


def test_files_of_several_families_are_refused_and_two_models_of_a_family_too(tmp_path: Path) -> None:
    folder = survey(tmp_path / "all")
    with pytest.raises(ComparisonError, match=r"model\.id: different models: .* by giving their folder"):
        read_comparison(sorted(folder.glob("*.json")))
    write(folder / "another.json", result("int8", family="lstm", model={"id": "99" * 32}))
    with pytest.raises(ComparisonError, match=r"model\.id: .*lstm, 99999999\) in .*another\.json.*of the family lstm"):
        read_comparison([folder])


def test_the_command_that_fills_the_gpu_column(tmp_path: Path) -> None:
    folder = survey(tmp_path / "all")
    protocol = {"quick": True, "min_captions": 128, "min_seconds": 5.0}
    for path in folder.glob("*.json"):
        document = json.loads(path.read_text())
        document["protocol"] |= protocol
        document["photographs"]["source"] = "my photos, more"
        write(path, document)
    run = ["captionlite", "bench", "run", "--target", "keras", "--run=runs/of mine"]
    more = {"source": "my photos, more"}
    write(folder / "k.json", result("float32", target="keras", protocol=protocol, photographs=more, command=run))
    done = compare(folder)
    assert done.exit_code == 0, done.output
    always = "--photos 'my photos' --photos more --quick --seconds 5 --out"
    start = "KERAS_BACKEND=jax captionlite bench run --target gpu --run"
    assert f"{start} 'runs/of mine' {always} {folder}/transformer-gpu.json\n" in done.stdout
    assert f"{start} runs/show_and_tell {always} {folder}/lstm-gpu.json\n" in done.stdout
    assert "see below" in done.stdout


def test_a_gpu_target_on_a_cpu_is_no_gpu(tmp_path: Path) -> None:
    accelerator = {"backend": "jax", "version": "0.7.1", "keras": "3.15.1", "kind": "cpu", "device": "cpu"}
    notes = ["no GPU: measured on the cpu because of --allow-cpu; this is no figure of a GPU"]
    folder = survey(tmp_path / "all")
    there = result("float32", None, target="gpu", machine={"accelerator": accelerator}, notes=notes)
    write(folder / "gpu.json", there)
    comparison = read_comparison([folder])
    assert comparison.gpus == ()
    assert len(comparison.missing_gpu) == 4
    done = compare(folder)
    assert "gpu on cpu" in done.stdout
    assert f"Mind: {notes[0]}: transformer gpu on cpu float32" in done.stdout


def test_the_newest_result_of_each_gpu_counts(tmp_path: Path) -> None:
    edge = write(tmp_path / "edge.json", result())
    old = write(tmp_path / "old.json", result("float32", None, target="gpu", encode_ms=9.0))
    new = write(
        tmp_path / "new.json", result("float32", None, target="gpu", encode_ms=1.0, created="2026-12-01T00:00:00Z")
    )
    found = json.loads(compare(edge, new, old, "--json").stdout)
    assert found["results"][0]["gpu_whole_ms"] == {"NVIDIA H200 (jax)": 3.5}
    assert found["missing_gpu"] == []


def test_json_has_what_the_tables_have(two: tuple[Path, Path]) -> None:
    found = json.loads(compare(*two, "--json").stdout)
    assert (found["schema"], found["kind"], found["survey"], found["written"]) == ([1, 0], "comparison", False, [])
    row = found["results"][1]
    assert row["file"] == str(two[1])
    assert (row["ratio"], row["cider"], row["cold_start_seconds"]) == (pytest.approx(0.6), 0.48, 0.174)
    assert row["summary_ms"]["decode"] == {"p50": 1.0, "p90": 1.16, "p99": 1.196, "mean": 1.0}
    assert row["caveats"] == []


def test_other_work_and_throttling_are_told(tmp_path: Path) -> None:
    machine = {"load_average": {"before": [3.25, 1, 1], "after": None}, "throttled_after": "0x50000"}
    done = compare(write(tmp_path / "a.json", result(machine=machine)))
    assert "Mind: other work on the machine is in the figures; load average before: edge int8 3.2" in done.stdout
    assert "get_throttled: edge int8 0x50000" in done.stdout


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("{", "not readable as JSON"),
        ("[]", "schema is missing"),
        (json.dumps({**result(), "schema": [2, 0]}), "Upgrade it"),
        (json.dumps(result(summary={"whole": {"p50": 1, "p90": 1, "p99": 1}})), "summary.whole.mean is None"),
        (json.dumps(result()).replace('"p90": 1.16', '"p90": 1e999'), "summary.decode.p90 is inf"),
        (json.dumps(result()).replace('"p90": 1.16', '"p90": -1'), "summary.decode.p90 is -1"),
        (json.dumps(result(samples={"tokens": [1]})), "samples.image_ms has 3 entries"),
    ],
)
def test_a_damaged_result_is_refused_even_by_force(
    tmp_path: Path, two: tuple[Path, Path], content: str, told: str
) -> None:
    (tmp_path / "damaged.json").write_text(content)
    done = compare(*two, tmp_path / "damaged.json", "--force")
    assert done.exit_code == 1
    assert told in done.stderr
    assert "damaged.json" in done.stderr


def test_nothing_to_compare(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ComparisonError, match=r"no \.json in this folder"):
        read_comparison([tmp_path / "empty"])
    other = write(tmp_path / "peers.json", {**result(), "kind": "peers"})
    with pytest.raises(ComparisonError, match="no result of kind 'latency'"):
        read_comparison([other])
    with pytest.raises(ResultError, match="cannot be read"):
        read_comparison([tmp_path / "nowhere.json"])
    assert compare().exit_code == compare(tmp_path / "nowhere.json").exit_code == 2


def test_what_nobody_checked_may_be_missing_or_of_any_type(tmp_path: Path) -> None:
    odd = result(threads=None, scores={"x, int8, greedy": [], "y": {"cider": "0.5"}}, model={"size_bytes": 10**400})
    odd["machine"] = {
        "load_average": {"before": [], "after": "much"},
        "governor": 3,
        "frequencies_mhz": [None, 7],
        "cpu_features": [None],
        "interpreter": "mine",
        "accelerator": [],
        "temperature_c": True,
        "throttled_after": 5,
        "cores": "two",
    }
    odd |= {"cold_start": {}, "energy": {}, "batch": {"captions_per_second": None}, "peak_memory_bytes": None}
    path = write(tmp_path / "odd.json", odd)
    comparison = read_comparison([path])
    assert comparison.entries[0].label == "edge int8"
    page = markdown(comparison, [], "captionlite")
    assert "| transformer | int8 | edge | – | unknown machine | 4.50 |" in page
    assert json.loads(compare(path, "--json").stdout)["results"][0]["peak_memory_bytes"] is None
    assert compare(path).exit_code == 0


def test_a_result_that_took_no_time_has_no_ratio(tmp_path: Path) -> None:
    nothing = dict.fromkeys(("p50", "p90", "p99", "mean"), 0)
    path = write(tmp_path / "a.json", result(summary={"whole": nothing}))
    assert read_comparison([path]).entries[0].ratio is None
    assert compare(path).exit_code == 0


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (None, "–"),
        (0.0, "0.000"),
        (0.0123, "0.0123"),
        (0.5, "0.500"),
        (5.5, "5.50"),
        (12.345, "12.3"),
        (1234.5, "1,234"),
    ],
)
def test_figures_have_three_digits(value: float | None, shown: str) -> None:
    assert figure(value).shown == shown


def peers(**changes: Any) -> dict[str, Any]:
    return {
        **{key: result()[key] for key in ("schema", "target", "created", "machine", "model", "photographs")},
        "kind": "peers",
        "command": ["captionlite", "bench", "peers", "runs/default"],
        "protocol": {"rounds": 15},
        "peers": [
            {
                "name": "eager",
                "title": "Keras eager",
                "weights": "float32",
                "status": "timed",
                "samples": {"step_us": [1.0, 2.0]},
                "summary": {"step_us": 15000.0, "encode_ms": 44.4, "step_over_captionlite": {"float32": 81.1}},
            },
            {
                "name": "ort",
                "title": "ONNX",
                "weights": "float32",
                "status": "skipped",
                "reason": "none",
                "summary": None,
            },
        ],
        **changes,
    }


def test_other_kinds_stand_in_tables_of_their_own(two: tuple[Path, Path], tmp_path: Path) -> None:
    other = write(tmp_path / "p.json", peers(photographs={"count": 48, "sha256": "12" * 32, "source": "others"}))
    (found,) = read_comparison([*two, other]).others
    values, rows = (merged(table) for table in other_tables(found))
    assert ["photographs.count", "48"] in values[2]
    assert ["protocol.rounds", "15"] in values[2]
    assert rows[0][:5] == ["peer", "weights", "status", "a token, µs", "× captionlite float32"]
    assert rows[2][0][:7] == ["Keras eager", "float32", "timed", "15,000", "81.1", "–", "44.4"]
    assert rows[2][1][:4] == ["ONNX", "float32", "skipped", "–"]
    assert "p.json: kind peers" in compare(*two, other).stdout
    write(other, peers(model={"id": "77" * 32, "name": "x", "family": "lstm"}))
    assert "x (lstm, 77777777) in" in compare(*two, other).stderr


def test_any_list_or_object_of_objects_becomes_a_table(two: tuple[Path, Path], tmp_path: Path) -> None:
    document = peers(kind="roofline", graphs={"encoder": {"bytes": 10, "floor": {"ms": 1.5}}}, peers=[], note="why")
    (found,) = read_comparison([*two, write(tmp_path / "r.json", document)]).others
    tables = {table.title: merged(table) for table in other_tables(found)}
    assert tables["graphs"] == (["", "bytes", "floor.ms"], [False, True, True], [["encoder", "10", "1.50"]])
    assert ["note", "why"] in tables["values"][2]


EXPECTED = """\
# What a caption costs

Fastest is edge int8 2 threads: 4.50 ms a caption (median); slowest edge float32 1 thread, 7.50 ms, 1.67 times as long.

- Protocol: single-stream: one caption after another, from a photograph's bytes in memory to the text; 64 captions to \
warm up, then at least 1,024 and 60 s; greedy decoding, nothing tuned to the input
- Photographs: 5 of tests/photos, sha256 PHOTOGRAPHS
- Model: default (transformer), id MODEL

## Whole caption

| family | recipe | target | threads | machine | whole, ms: p50 | whole, ms: p90 | whole, ms: p99 | ratio | \
captions a second | in batches |
| --- | --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| transformer | float32 | edge | 1 | Test CPU, 2 cores | 7.50 | 7.82 | 7.89 | 1.00 | 222 | 400 |
| transformer | int8 | edge | 2 / 1 | Test CPU, 2 cores | 4.50 | 4.66 | 4.70 | 0.600 | 222 | 400 |

- ratio: p50 to that of the first row.

## Stages, ms

| family | recipe | target | threads | machine | photo: p50 / p90 / p99 | encoder: p50 / p90 / p99 | \
a step: p50 / p90 / p99 | all steps: p50 / p90 / p99 | to text: p50 / p90 / p99 | whole: p50 / p90 / p99 |
| --- | --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| transformer | float32 | edge | 1 | Test CPU, 2 cores | 1.00 / 1.00 / 1.00 | 4.00 / 4.00 / 4.00 | \
0.200 / 0.200 / 0.200 | 2.00 / 2.32 / 2.39 | 0.500 / 0.500 / 0.500 | 7.50 / 7.82 / 7.89 |
| transformer | int8 | edge | 2 / 1 | Test CPU, 2 cores | 1.00 / 1.00 / 1.00 | 2.00 / 2.00 / 2.00 | \
0.100 / 0.100 / 0.100 | 1.00 / 1.16 / 1.20 | 0.500 / 0.500 / 0.500 | 4.50 / 4.66 / 4.70 |

- A step is the mean over one caption's steps.

## What it takes

| family | recipe | target | threads | machine | size, MB | tokens | cold start, s | peak, MB | joules | CIDEr |
| --- | --- | --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: |
| transformer | float32 | edge | 1 | Test CPU, 2 cores | 8.7 | 10.0 | 0.174 | 74 | – | 0.500 |
| transformer | int8 | edge | 2 / 1 | Test CPU, 2 cores | 8.7 | 10.0 | 0.174 | 74 | – | 0.480 |

- size: of the bundle; of Keras its variables. tokens, joules: a caption's.
- cold start, peak memory: a fresh process's that captions one photograph; on a GPU the GPU's memory.
- CIDEr: on drawings test, greedy; of Keras and GPU the float32 bundle's.
- joules: not asked for; give --energy

transformer: No result of a GPU. On a machine with one this makes it; docs/gpu.md says how where there is no network:

```bash
KERAS_BACKEND=jax captionlite bench run --target gpu --run runs/default --photos tests/photos --out \
FOLDER/transformer-gpu.json
```

## Seen

![of it](seen.png)

## Not seen

because

## Machines and versions

| result | machine | measured | captions | load | °C | clock | CPU features | platform | versions |
| --- | --- | --- | ---: | --- | --- | --- | --- | --- | --- |
| edge float32 1 thread | Test CPU, 2 cores | 2026-11-21T12:00:00Z | 1,024 | 0.1 → 1.9 | 41 → 56 | \
performance, 2400 MHz | avx2 fma | Linux-6.1-x86\\_64 | captionlite 0.1.0, python 3.11.7, numpy 2.4.6, pillow 13.0.0, \
ai-edge-litert 2.3.0 |
| edge int8 2 threads | Test CPU, 2 cores | 2026-11-21T12:00:00Z | 1,024 | 0.1 → 1.9 | 41 → 56 | \
performance, 2400 MHz | avx2 fma | Linux-6.1-x86\\_64 | captionlite 0.1.0, python 3.11.7, numpy 2.4.6, pillow 13.0.0, \
ai-edge-litert 2.3.0 |

- load: average over a minute, °C: of the processor; before → after.

## Made with

FOLDER/a.json:

```bash
captionlite bench run --photos tests/photos
```

FOLDER/b.json:

```bash
captionlite bench run --photos tests/photos
```

This page:

```bash
captionlite bench compare
```
"""


def test_the_markdown_page_to_the_letter(two: tuple[Path, Path]) -> None:
    pictures = [Picture("seen.png", "Seen", "of it", b"png"), Picture("no.png", "Not seen", "", skipped="because")]
    page = markdown(read_comparison(two), pictures, "captionlite bench compare")
    first = read_result(two[0])
    expected = EXPECTED.replace("PHOTOGRAPHS", first.photographs.sha256).replace("MODEL", first.model.id)
    # Markdown escapes what pytest may have in its folder's name, code blocks have it as it is.
    escaped = str(two[0].parent).replace("_", "\\_")
    expected = expected.replace("FOLDER/a.json", f"{escaped}/a.json").replace("FOLDER/b.json", f"{escaped}/b.json")
    assert page == expected.replace("FOLDER", str(two[0].parent))


@pytest.mark.parametrize("prepare", [lambda folder: folder / "a" / "b", lambda folder: write(folder / "file", {})])
def test_a_folder_that_cannot_be_made_is_told_first(
    tmp_path: Path, two: tuple[Path, Path], prepare: Callable[[Path], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bench_compare, "_write", lambda *_: pytest.fail("too late"))
    done = compare(*two, "--out", prepare(tmp_path))
    assert done.exit_code in (1, 2)
    assert "Error: " in done.stderr
