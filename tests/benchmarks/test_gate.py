"""`captionlite gate`: figures, verdicts, refusals, exit codes and files, through the real runtime on toy bundles."""

import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_bundle as toy
from broken_graphs import Model, break_graph
from click.testing import CliRunner, Result
from PIL import Image

from captionlite.benchmarks import gate
from captionlite.benchmarks.bootstrap import Interval
from captionlite.benchmarks.gate import Measured, first_difference, measure
from captionlite.benchmarks.gate_reference import BundleReference, Facts
from captionlite.benchmarks.gate_verdict import Floors, bar_for, judge, provenance_warnings
from captionlite.export.recipes import recipe
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.cli import cli
from captionlite.runtime.decoding import DecodingOptions
from captionlite.runtime.errors import CaptionliteError
from captionlite.training.datasets import Example, load_dataset
from captionlite.training.scoring import score_captions

PHOTOGRAPHS = 40


@pytest.fixture(scope="module")
def float32(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "float32"
    toy.write(path)
    return path


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photographs of which people wrote what the toy says, and something else."""
    folder = tmp_path_factory.mktemp("data")
    rows = []
    for number, pixels in enumerate(toy.photographs(PHOTOGRAPHS)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
        said = " ".join(toy.PIECES[token] for token in toy.decode(pixels).tokens if token != toy.END)
        captions = [said, f"the red dog {number % 5}"]
        rows.append(json.dumps({"image": f"{number}.png", "captions": captions, "split": "test"}) + "\n")
    (folder / "captions.jsonl").write_text("".join(rows))
    return folder / "captions.jsonl"


def changed(float32: Path, target: Path, graph: str, edit: Callable[[Model], object]) -> Path:
    """A copy of the bundle with another graph."""
    shutil.copytree(float32, target)
    return break_graph(target, graph, edit)


def scale(which: int, factor: float) -> Callable[[Model], object]:
    return lambda model: model.scale(model.weighted()[which], factor)


@pytest.fixture(scope="module")
def coarse(float32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nearly the toy: some captions are others."""
    return changed(float32, tmp_path_factory.mktemp("coarse") / "coarse", "decoder", scale(-1, 1.03))


@pytest.fixture(scope="module")
def broken(float32: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return changed(float32, tmp_path_factory.mktemp("broken") / "broken", "encoder", scale(-1, -1.0))


def invoke(bundle: Path, reference: Path, data: Path, *arguments: str) -> Result:
    fixed = ["gate", str(bundle), "--reference", str(reference), "--data", f"jsonl:{data}"]
    return CliRunner().invoke(cli, [*fixed, *arguments])


def examples(data: Path) -> tuple[Example, ...]:
    return load_dataset(f"jsonl:{data}").split("test")


def measured(bundle: Path, float32: Path, data: Path, **options: Any) -> Measured:
    reference = BundleReference(Bundle.open(float32))
    return measure(reference, Captioner(Bundle.open(bundle)), examples(data), DecodingOptions(**options))


def test_the_reference_itself_passes_with_nothing_different(float32: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    result = invoke(float32, float32, data, "--allow-fewer", "--json", "--report", str(out))
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert report["schema"] == [1, 0]
    assert (report["bundle"], report["reference_kind"], report["decoding"]) == ("toy", "float32 bundle", "greedy")
    assert report["photographs"] == PHOTOGRAPHS
    assert report["verdict"]["passed"] is True
    assert f"on {PHOTOGRAPHS} photographs only: fewer than the 1,000" in report["verdict"]["headline"]
    assert report["verdict"]["warnings"] == [
        "the bundle has the very graphs of the reference: this says nothing of either"
    ]
    assert report["encoder"].keys() == {"projected", "hidden"}
    for output in report["encoder"].values():
        assert output["mean_cosine"] == pytest.approx(1.0)
        assert output["snr_db"] is None
    assert (report["logits"]["top1"], report["logits"]["relative_rms"]) == (1.0, 0.0)
    assert report["captions"]["equal"] == PHOTOGRAPHS
    assert report["captions"]["first_differences"] == []
    assert report["captions"]["median_first_difference"] is None
    assert report["captions"]["reference"] == report["captions"]["bundle"]
    assert report["cider_ratio"] == {"value": 1.0, "low": 1.0, "high": 1.0}
    for pair in report["scores"].values():
        assert pair["difference"] == {"value": 0.0, "low": 0.0, "high": 0.0}
    assert sorted(path.name for path in out.iterdir()) == ["gate.json", "gate.md", "gate.png"]


def test_the_figures_are_those_of_the_tensors(coarse: Path, float32: Path, data: Path) -> None:
    """Against everything computed anew, a photograph at a time."""
    found = measured(coarse, float32, data)
    ours, theirs = Captioner(Bundle.open(coarse)), Captioner(Bundle.open(float32))
    allowed = [i for i in range(toy.V) if i not in toy.SUPPRESSED]
    agreements, steps, equal = [], [], 0
    for example in examples(data):
        expected = theirs.caption(example.image)
        equal += ours.caption(example.image).tokens == expected.tokens
        rows = []
        for captioner in (ours, theirs):
            captioner.decoder.begin(captioner.encode(example.image))
            logits = []
            for t, token in enumerate([toy.START, *expected.tokens[:-1]]):
                captioner.decoder.step(token, t)
                logits.append(captioner.decoder.logits[0, allowed].astype(np.float64))
                captioner.decoder.advance(t)
            rows.append(np.array(logits))
        agreements.append((rows[0].argmax(axis=1) == rows[1].argmax(axis=1)).mean())
        steps += list(zip(*rows, strict=True))
    assert found.equal_captions == equal
    assert 0 < equal < PHOTOGRAPHS
    assert [photo.top1 for photo in found.photographs] == pytest.approx(agreements)
    assert found.worst_top1.top1 == min(agreements)
    assert found.logits.n == len(steps) == sum(step.n for step in found.steps)
    assert found.logits.cosine == pytest.approx(np.mean([np.corrcoef(a, b)[0, 1] for a, b in steps]))
    steps = [(a - a.mean(), b - b.mean()) for a, b in steps]
    difference = np.sqrt(sum(np.square(a - b).sum() for a, b in steps) / sum(np.square(b).sum() for _, b in steps))
    assert found.logits.relative_rms == pytest.approx(difference, rel=1e-6)
    assert found.steps[0].n == PHOTOGRAPHS
    assert sum(found.first_differences) == PHOTOGRAPHS - equal
    references = {example.id: example.captions for example in examples(data)}
    for captioner, score in ((theirs, "reference"), (ours, "candidate")):
        said = {example.id: captioner.caption(example.image).text for example in examples(data)}
        expected_scores = score_captions(said, references)
        for name, pair in found.bootstrap.scores.items():
            assert getattr(pair, score) == pytest.approx(getattr(expected_scores, name), abs=1e-9), name
    assert all(output.snr_db is None for output in found.outputs)  # the encoder is the same


def test_encoder_outputs_are_compared_by_cosine_and_snr(float32: Path, data: Path, tmp_path: Path) -> None:
    bundle = changed(float32, tmp_path / "louder", "encoder", scale(-1, 1.25))
    found = {output.name: output for output in measured(bundle, float32, data).outputs}
    louder = next(output for output in found.values() if output.snr_db is not None)
    assert len(louder.cosines) == PHOTOGRAPHS
    captioners = [Captioner(Bundle.open(path)) for path in (bundle, float32)]
    pairs = [[c.encode(e.image)[louder.name].ravel().astype(float) for c in captioners] for e in examples(data)]
    cosines = [a @ b / math.sqrt((a @ a) * (b @ b)) for a, b in pairs]
    assert list(louder.cosines) == pytest.approx(cosines)
    assert louder.worst_photograph == examples(data)[int(np.argmin(cosines))].id
    noise, signal = sum((a - b) @ (a - b) for a, b in pairs), sum(b @ b for _, b in pairs)
    assert louder.snr_db == pytest.approx(10 * math.log10(signal / noise), abs=1e-4)


def test_a_bundle_that_says_worse_fails_with_3_and_says_by_how_much(coarse: Path, float32: Path, data: Path) -> None:
    result = invoke(coarse, float32, data, "--allow-fewer", "--json")
    assert result.exit_code == 3
    report = json.loads(result.stdout)
    ratio = report["cider_ratio"]
    assert ratio["low"] < ratio["value"] < 0.999
    (problem, *_) = report["verdict"]["problems"]
    asked = report["asked"]["min_cider_ratio"]
    assert asked == 0.999  # the toy's graphs say float32
    assert f"{100 * (asked - ratio['value']):.2f} points below the 99.9 % asked for" in problem
    inside = "includes" if ratio["low"] <= asked <= ratio["high"] else "does not include"
    assert f"{inside} what is asked for" in problem
    assert "FAILED" in report["verdict"]["headline"]
    assert problem in result.stderr


def test_the_bar_is_the_users_to_set(coarse: Path, float32: Path, data: Path) -> None:
    result = invoke(coarse, float32, data, "--allow-fewer", "--min-cider-ratio", "0.5", "--json")
    report = json.loads(result.stdout)
    assert report["asked"]["source"] == "by --min-cider-ratio"
    assert not [problem for problem in report["verdict"]["problems"] if "CIDEr" in problem]


def test_a_broken_graph_fails_whatever_its_captions_score(broken: Path, float32: Path, data: Path) -> None:
    result = invoke(broken, float32, data, "--allow-fewer", "--min-cider-ratio", "0.000001", "--json")
    assert result.exit_code == 3
    problems = json.loads(result.stdout)["verdict"]["problems"]
    assert [problem for problem in problems if problem.startswith("the encoder output") and "mean cosine" in problem]


def test_numbers_that_are_none_fail_without_a_crash(float32: Path, data: Path, tmp_path: Path) -> None:
    for graph, what in (("encoder", "the encoder output "), ("decoder", "logits")):
        bundle = changed(float32, tmp_path / graph, graph, scale(-1, math.nan))
        out = tmp_path / f"report-{graph}"
        result = invoke(bundle, float32, data, "--allow-fewer", "--json", "--report", str(out))
        assert result.exit_code == 3, result.stderr
        report = json.loads(result.stdout)
        assert what in report["verdict"]["problems"][0]
        assert "scores" not in report
        assert "nothing more was measured" in (out / "gate.md").read_text()
        assert (out / "gate.png").read_bytes().startswith(b"\x89PNG")
    result = invoke(float32, tmp_path / "encoder", data, "--allow-fewer")
    assert result.exit_code == 1
    assert "the reference's own encoder output" in result.stderr


def test_the_report_files(coarse: Path, float32: Path, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "report"
    for _ in range(2):  # the second time into the folder that is there
        result = invoke(coarse, float32, data, "--allow-fewer", "--report", str(out))
        assert result.exit_code == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["report"]
    full = json.loads((out / "gate.json").read_text())
    assert len(full["each"]) == PHOTOGRAPHS
    assert {"id", "reference", "candidate", "first_difference", "cosines", "top1"} <= full["each"][0].keys()
    assert np.mean([photo["candidate_cider"] for photo in full["each"]]) == pytest.approx(
        full["scores"]["cider"]["candidate"]
    )
    page = (out / "gate.md").read_text()
    for told in ("# Gate: toy (float32)", "**FAILED", "| cider |", "| projected |", "| all |", "(gate.png)", "seed 0"):
        assert told in page
    differing = next(photo for photo in full["each"] if photo["first_difference"] is not None)
    assert f"| {differing['id']} | {differing['reference']} | {differing['candidate']} |" in page
    with Image.open(out / "gate.png") as picture:
        assert min(picture.size) > 500
    for told in ("Scores", "repeated phrases", "Encoder outputs", "top-1 agreement", "FAILED"):
        assert told in result.stdout


def test_an_unreadable_photograph_is_left_out_on_both_sides(float32: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data.parent, folder)
    (folder / "7.png").write_bytes(b"not a picture")
    result = invoke(float32, float32, folder / "captions.jsonl", "--allow-fewer", "--json")
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["photographs"] == PHOTOGRAPHS - 1
    assert ["7.png" in error for error in report["errors"]] == [True]
    assert "7.png" in result.stderr
    assert report["verdict"]["passed"] is True


def test_nothing_readable(float32: Path, data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data.parent, folder)
    for path in folder.glob("*.png"):
        path.write_bytes(b"not a picture")
    result = invoke(float32, float32, folder / "captions.jsonl", "--allow-fewer")
    assert result.exit_code == 1
    assert f"none of {PHOTOGRAPHS} photographs could be captioned" in result.stderr


def test_decoding_options_hold_for_both(coarse: Path, float32: Path, data: Path) -> None:
    found = measured(coarse, float32, data, beams=3, max_length=5)
    for path, side in ((float32, "reference"), (coarse, "candidate")):
        captioner = Captioner(Bundle.open(path))
        said = [captioner.caption(e.image, DecodingOptions(beams=3, max_length=5)).text for e in examples(data)]
        assert [getattr(photo, side) for photo in found.photographs] == said
    assert found.logits.n > 0


def test_a_reference_that_scores_nothing_is_no_yardstick(float32: Path, data: Path, tmp_path: Path) -> None:
    nothing = tmp_path / "captions.jsonl"
    rows = [{**json.loads(line), "captions": ["zebras"]} for line in data.read_text().splitlines()]
    rows = [{**row, "image": str(data.parent / row["image"])} for row in rows]
    nothing.write_text("".join(json.dumps(row) + "\n" for row in rows))
    result = invoke(float32, float32, nothing, "--allow-fewer")
    assert result.exit_code == 1
    assert "have a CIDEr of 0" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 1, f"has {PHOTOGRAPHS} photographs, expected 1,000 or more"),
        (["--limit", "20"], 2, "a verdict takes 1,000 photographs"),
        (["--allow-fewer", "--split", "dev"], 1, "'dev'"),
        (["--allow-fewer", "--min-cider-ratio", "0"], 2, "--min-cider-ratio"),
        (["--allow-fewer", "--min-cider-ratio", "1.5"], 2, "--min-cider-ratio"),
        (["--allow-fewer", "--report", "missing/folder/report"], 1, "Create it first"),
        (["--allow-fewer", "--passes", "3"], 1, "predicts all words of a caption at once"),
        (["--allow-fewer", "--beams", "3", "--temperature", "1"], 2, "exclude each other"),
    ],
)
def test_wrong_use(arguments: list[str], code: int, message: str, float32: Path, data: Path) -> None:
    result = invoke(float32, float32, data, *arguments)
    assert result.exit_code == code, result.stderr
    assert result.stdout == ""
    assert message in result.stderr


def test_a_report_over_a_file_is_refused_before_the_work(float32: Path, data: Path, tmp_path: Path) -> None:
    path = tmp_path / "report"
    path.write_text("mine")
    result = invoke(float32, float32, data, "--allow-fewer", "--report", str(path))
    assert result.exit_code != 0
    assert path.read_text() == "mine"


def test_an_interrupt_leaves_nothing(
    float32: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.rename

    def interrupted(source: Any, target: Any) -> None:
        if Path(target).name == "report":
            raise KeyboardInterrupt
        real(source, target)

    monkeypatch.setattr(os, "rename", interrupted)
    monkeypatch.setattr("captionlite.benchmarks.gate_picture.picture", lambda *args: b"drawn")  # that takes a second
    result = invoke(float32, float32, data, "--allow-fewer", "--report", str(tmp_path / "report"))
    assert result.exit_code != 0
    assert list(tmp_path.iterdir()) == []


def edited(float32: Path, target: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    shutil.copytree(float32, target)
    return toy.forge(target, edit)


def rename_piece(folder: Path) -> None:
    pieces = [*toy.PIECES[:-1], "slow"]
    toy.forge(
        folder, changed={"vocabulary.json": json.dumps({"kind": "words", "pieces": pieces, "join": " "}).encode()}
    )


def test_another_model_is_refused_by_what_differs(float32: Path, data: Path, tmp_path: Path) -> None:
    family = edited(float32, tmp_path / "family", lambda manifest: manifest.update(family="lstm"))
    words = tmp_path / "words"
    shutil.copytree(float32, words)
    rename_piece(words)
    suppressed = edited(
        float32, tmp_path / "ids", lambda manifest: manifest["decoding"].update(suppressed_ids=[0, 1, 2, 5])
    )
    for bundle, message in (
        (family, "the family is lstm, expected toy as of"),
        (words, "piece 11 of the vocabulary is 'slow', expected 'fast' as in"),
        (suppressed, "start, end and suppressed ids"),
    ):
        result = invoke(bundle, float32, data, "--allow-fewer")
        assert result.exit_code == 1
        assert message in result.stderr
        assert "give that one as --reference" in result.stderr


def test_other_facts_are_told_apart(float32: Path) -> None:
    facts = Facts.of_bundle(Bundle.open(float32))
    facts.require_same(facts, "a", "b")
    row = facts.state["hidden"]
    for other, message in (
        (replace(facts, image=replace(facts.image, height=9)), "taken as 8 x 12, squash, bilinear, expected 9 x 12"),
        (replace(facts, state={**facts.state, "hidden": replace(row, kind="constant")}), "the state hidden is"),
        (replace(facts, encoder_outputs=frozenset({"x"})), "the encoder's outputs are"),
        (replace(facts, pieces=facts.pieces[:-1]), "the vocabulary has 12 pieces, expected the 11 of"),
    ):
        with pytest.raises(CaptionliteError, match=message):
            facts.require_same(other, "a", "b")


def test_bars_cannot_be_lowered_by_the_bundle() -> None:
    def asked(name: str, provenance: dict[str, Any]) -> float:
        manifest = toy.manifest()
        graphs = {graph: replace(spec, recipe=name) for graph, spec in manifest.graphs.items()}
        return bar_for(replace(manifest, graphs=graphs, provenance={"recipe": provenance})).min_cider_ratio

    for name, ratio in (("full-int8", 0.98), ("float16", 0.999), ("int8", 0.99)):
        assert asked(name, recipe(name).provenance()) == ratio
    own = recipe("full-int8").provenance()
    assert asked("full-int8", {**own, "sha256": "0" * 64}) == 0.99  # its name on something else
    assert asked("float16", {**own, "name": "float16"}) == 0.999
    assert asked("int8", own) == 0.99  # the graphs say int8, the provenance full-int8
    mine = {"name": "mine", "sha256": "0" * 64, "content": {"min_cider_ratio": 0.1}}
    assert asked("mine", mine) == 0.99
    assert asked("mine", {**mine, "content": {"min_cider_ratio": 0.995}}) == 0.995
    for nonsense in (math.nan, "1", None, [], True, 7):
        assert 0.99 <= asked("mine", {**mine, "content": {"min_cider_ratio": nonsense}}) <= 1
    assert bar_for(replace(toy.manifest(), provenance={"recipe": "x"})).min_cider_ratio == 0.999
    assert bar_for(toy.manifest(), 0.3).min_cider_ratio == 0.3


def test_better_than_float_by_more_than_noise_is_suspected(float32: Path, data: Path) -> None:
    found = measured(float32, float32, data)
    bar = bar_for(toy.manifest())
    cider = found.bootstrap.scores["cider"]
    for low, suspected in ((0.01, True), (0.0, False), (-0.01, False)):
        pair = replace(cider, difference=Interval(0.02, low, 0.03))
        better = replace(found.bootstrap, scores={**found.bootstrap.scores, "cider": pair})
        verdict = judge(replace(found, bootstrap=better), bar)
        assert verdict.passed
        assert bool([line for line in verdict.warnings if "suspect the evaluation" in line]) is suspected


def test_floors_are_said_with_the_worst_photograph(broken: Path, float32: Path, data: Path) -> None:
    found = measured(broken, float32, data)
    problems = Floors().problems(found)
    worst = min(found.outputs, key=lambda output: output.worst_cosine)
    assert any(worst.worst_photograph in problem for problem in problems)
    assert any("dB" in problem for problem in problems)
    assert Floors(mean_cosine=-1, photograph_cosine=-1, snr_db=-99, top1=0).problems(found) == []
    assert [problem for problem in Floors(top1=1.01).problems(found) if found.worst_top1.id in problem]


def test_what_the_manifest_says_against_it(float32: Path, coarse: Path, data: Path, tmp_path: Path) -> None:
    reference = BundleReference(Bundle.open(float32))
    assert provenance_warnings(Bundle.open(coarse), reference, ["0.png"]) == []

    def provenance(manifest: dict[str, Any]) -> None:
        manifest["provenance"] = {
            "calibration": {"ids": ["9.png", "3.png", "x.png"]},
            "quantized_from": {"sha256": {"encoder.tflite": "0" * 64}},
        }

    bundle = edited(coarse, tmp_path / "told", provenance)
    other, seen = provenance_warnings(Bundle.open(bundle), reference, [e.id for e in examples(data)])
    assert "quantized from other files" in other
    assert "2 of the photographs, 3.png the first" in seen


def test_a_quantized_reference_is_refused(float32: Path, data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("captionlite.benchmarks.gate_reference.is_quantized", lambda content: True)
    result = invoke(float32, float32, data, "--allow-fewer")
    assert result.exit_code == 1
    assert "quantized (recipe float32), and no yardstick" in result.stderr


@pytest.mark.parametrize(
    ("one", "other", "step"),
    [([4, 5, 3], [4, 5, 3], None), ([4, 5], [4, 6], 1), ([4], [4, 3], 1), ([4, 3], [5], 0), ([], [], None)],
)
def test_first_difference(one: list[int], other: list[int], step: int | None) -> None:
    assert first_difference(one, other) == step


def test_batches_of_any_size_say_the_same(
    coarse: Path, float32: Path, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = measured(coarse, float32, data)
    monkeypatch.setattr(gate, "BATCH", 7)
    parts = measured(coarse, float32, data)
    assert parts.photographs == whole.photographs
    assert parts.logits == whole.logits
