"""`captionlite confidence`: the fit against known parameters, figures by hand, and the bundle it is written into."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import toy_bundle as toy
from click.testing import CliRunner, Result
from PIL import Image

from captionlite.benchmarks.calibration import (
    Bools,
    Floats,
    auc,
    brier,
    expected_calibration_error,
    fit_platt,
    probability,
    quality,
    reliability,
)
from captionlite.benchmarks.confidence import EVENT, Judged, calibrate, content_words, fits, write_confidence
from captionlite.export.model_card import with_confidence
from captionlite.runtime.bundle import Bundle, pack_bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.cli import cli
from captionlite.runtime.decoding import DecodingOptions
from captionlite.runtime.errors import BundleError, CaptionliteError
from captionlite.runtime.manifest import FORMAT, ConfidenceSpec
from captionlite.runtime.verify import verify

SPEC = ConfidenceSpec(slope=3.5, intercept=2.25, event=EVENT, fitted_on="drawn dev (4 photographs)")
MEASURED = {
    "photographs": 4, "captions": 1234, "base_rate": 0.5, "brier": 0.2, "brier_base_rate": 0.25, "ece": 0.04,
    "auc": 0.7, "thresholds": [{"at_least": 0.5, "coverage": 0.6, "precision": 0.75},
                               {"at_least": 0.7, "coverage": 0.0, "precision": None}],
}  # fmt: skip


def samples(slope: float, intercept: float, scores: Floats, copies: int = 20_000) -> tuple[Floats, Bools]:
    """Each score many times, with exactly the share of events that slope and intercept say, up to one sample."""
    shares = 1 / (1 + np.exp(-(slope * scores + intercept)))
    events = [np.arange(copies) < round(share * copies) for share in shares]
    return np.repeat(scores, copies), np.concatenate(events)


@pytest.mark.parametrize(("slope", "intercept"), [(3.66, 3.8), (0.5, -2.0), (12.0, 1.0), (0.001, 4.0)])
def test_the_fit_recovers_known_parameters(slope: float, intercept: float) -> None:
    found = fit_platt(*samples(slope, intercept, np.linspace(-2.0, 0.0, 11)))
    assert found == pytest.approx((slope, intercept), rel=0.02, abs=0.01)


def test_the_fit_is_the_least_cross_entropy_to_platts_targets() -> None:
    random = np.random.default_rng(1)
    scores = random.normal(-1e4, 3.0, 200)  # far from 0 and in a narrow band, where a careless fit would not arrive
    events = random.random(200) < 1 / (1 + np.exp(-0.7 * (scores + 1e4)))
    slope, intercept = fit_platt(scores, events)
    targets = np.where(events, (events.sum() + 1) / (events.sum() + 2), 1 / ((~events).sum() + 2))
    misses = 1 / (1 + np.exp(-(slope * scores + intercept))) - targets
    assert misses.sum() == pytest.approx(0, abs=1e-6)
    assert misses @ (scores + 1e4) == pytest.approx(0, abs=1e-6)


def test_separable_samples_give_no_certainty() -> None:
    scores, events = np.array([-2.0, -1.5, -0.5, -0.1]), np.array([False, False, True, True])
    slope, intercept = fit_platt(scores, events)
    chances = probability(slope, intercept, scores)
    assert slope > 0
    assert chances[3] < 0.9  # Platt's target of two events is 3 / 4
    assert chances[0] > 0.1


def test_a_score_that_tells_nothing_or_the_opposite_gives_the_share() -> None:
    events = np.array([True, True, True, False])
    target = (3 * 4 / 5 + 1 / 3) / 4
    for scores in (np.array([-3.0, -2.0, -2.5, -0.1]), np.full(4, -1.0)):
        slope, intercept = fit_platt(scores, events)
        assert slope == 0
        assert probability(slope, intercept, scores) == pytest.approx(np.full(4, target))
    for events in (np.ones(3, bool), np.zeros(3, bool)):
        with pytest.raises(ValueError, match="of 3 samples are positive, expected some of either kind"):
            fit_platt(np.arange(3.0), events)


def test_probability_neither_overflows_nor_loses_the_small_ones() -> None:
    assert probability(1e6, 0.0, np.array([-5.0, 0.0, 5.0])) == pytest.approx([0.0, 0.5, 1.0])
    assert probability(1.0, 0.0, np.array([-50.0]))[0] == pytest.approx(np.exp(-50.0))


def test_figures_by_hand() -> None:
    said = np.array([0.05, 0.15, 0.95, 0.95])
    events = np.array([False, True, True, False])
    bins = reliability(said, events)
    assert [(b.n, b.mean, b.share) for b in bins if b.n] == [
        (1, pytest.approx(0.05), 0.0), (1, pytest.approx(0.15), 1.0), (2, pytest.approx(0.95), 0.5),
    ]  # fmt: skip
    assert [b.low for b in bins if b.n] == pytest.approx([0.0, 0.1, 0.9])
    assert expected_calibration_error(bins) == pytest.approx((0.05 + 0.85 + 2 * 0.45) / 4)
    assert brier(said, events) == pytest.approx((0.05**2 + 0.85**2 + 0.05**2 + 0.95**2) / 4)
    # Pairs of event and non-event: .15 over .05 but under .95; .95 over .05 and equal to .95.
    assert auc(said, events) == pytest.approx((1 + 0 + 1 + 0.5) / 4)
    found = quality(said, events, said)
    assert found.brier_base_rate == pytest.approx(0.25)
    assert [(t.at_least, t.coverage, t.precision) for t in found.thresholds] == [
        (0.3, 0.5, 0.5), (0.5, 0.5, 0.5), (0.7, 0.5, 0.5),
    ]  # fmt: skip
    assert quality(said / 2, events, said).thresholds[2].precision is None
    assert quality(said, events, said, base_rates=np.array([1.0, 1.0, 0.0, 0.0])).brier_base_rate == 0.5


def test_bins_hold_their_lower_edge_and_the_last_one_also_1() -> None:
    said = np.array([0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0])
    assert [b.n for b in reliability(said, np.zeros(11, bool))] == [1] * 9 + [2]


def test_auc_counts_pairs() -> None:
    random = np.random.default_rng(2)
    scores, events = random.integers(0, 6, 40).astype(float), random.random(40) < 0.4
    pairs = [(a > b) + (a == b) / 2 for a, b in product(scores[events], scores[~events])]
    assert auc(scores, events) == pytest.approx(np.mean(pairs))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("A dog is running in front of the other dogs .", ["dog", "run"]),
        ("two ladies riding bikes", ["two", "lady", "rid", "bik"]),
        ("she rides a bike, hopped and jumps over it", ["rid", "bik", "hop", "jump"]),
        ("glasses on the grass, a dress, dresses, balls", ["glass", "grass", "dress", "ball"]),
        ("there is one on top of the other", []),
    ],
)
def test_content_words(text: str, words: list[str]) -> None:
    assert content_words(text) == words


PEOPLE = ["A brown dog runs through tall grass .", "The dog is running.", "Dogs race"]


@pytest.mark.parametrize(
    ("caption", "expected"),
    [
        ("a dog runs", True),
        ("a brown dog", True),
        ("a dog in a red hat", False),  # one word of three
        ("a dog in a hat", True),  # one of two, and all three said dog
        ("tall grass", False),  # both said, but each by one person alone
        ("a running man", True),
        ("a man on a beach", False),
        ("the", False),
        ("", False),
    ],
)
def test_whether_a_caption_fits(caption: str, expected: bool) -> None:
    assert fits(caption, PEOPLE) is expected


def test_most_people_are_more_than_half() -> None:
    assert not fits("a cat", ["a cat", "a dog"])
    assert fits("a cat", ["a cat", "cats", "a dog"])
    assert fits("a cat", ["a cat"])


def judged(logprobs: Floats, events: Bools, captions: int = 2) -> list[Judged]:
    return [
        Judged("drawn", f"{index // captions}.png", f"decoding {index % captions}", float(logprob), bool(event))
        for index, (logprob, event) in enumerate(zip(logprobs, events, strict=True))
    ]


def test_calibration_is_measured_on_what_the_fit_has_not_seen() -> None:
    """On noise, a fit measured on its own samples always seems better than none; on others' it does not."""
    random = np.random.default_rng(16)
    logprobs, events = random.normal(-1, 0.3, 60), random.random(60) < 0.5
    own = brier(probability(*fit_platt(logprobs, events), logprobs), events)
    found = calibrate(judged(logprobs, events))
    assert own < brier(np.full(60, events.mean()), events) - 0.005
    assert found.quality.brier > found.quality.brier_base_rate
    assert not found.useful


def test_calibration_of_what_is_true() -> None:
    random = np.random.default_rng(3)
    logprobs = random.normal(-1, 0.4, 8000)
    events = random.random(8000) < 1 / (1 + np.exp(-(4.0 * logprobs + 4.0)))
    found = calibrate(judged(logprobs, events))
    assert (found.slope, found.intercept) == pytest.approx((4.0, 4.0), rel=0.1)
    assert found.useful
    assert found.quality.ece < 0.02
    assert found.photographs == 4000
    assert [(group.decoding, group.n) for group in found.groups] == [("decoding 0", 4000), ("decoding 1", 4000)]
    for group in found.groups:
        assert group.mean_confidence == pytest.approx(group.share, abs=0.02)
    report = found.to_json()
    assert (report["captions"], len(report["bins"]), len(report["thresholds"])) == (8000, 10, 3)


def test_captions_of_one_photograph_stay_together() -> None:
    """Each photograph has one caption that fits and one that does not, so each half has half of either, always."""
    logprobs = np.tile([-0.5, -1.5], 9)
    events = np.tile([True, False], 9)
    found = calibrate(judged(logprobs, events))
    assert found.quality.brier_base_rate == pytest.approx(0.25)
    assert found.quality.auc == 1.0


def test_too_few_photographs_are_refused() -> None:
    for events in (np.ones(6, bool), np.zeros(6, bool), np.arange(6) == 0):
        with pytest.raises(CaptionliteError, match="Give more photographs"):
            calibrate(judged(np.linspace(-2, -1, 6), events))
    with pytest.raises(CaptionliteError, match="0 photographs"):
        calibrate([])


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "toy"
    toy.write(path)
    return path


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def test_written_into_a_bundle_that_opens_verifies_and_tells(bundle: Path) -> None:
    (bundle / "notes.txt").write_text("my own")
    before, old = Bundle.open(bundle).manifest.to_json(), contents(bundle)
    manifest = write_confidence(bundle, SPEC, MEASURED)
    found = Bundle.open(bundle)
    assert found.manifest == manifest
    assert manifest.decoding.confidence == SPEC
    after = json.loads((bundle / "manifest.json").read_text())
    assert after["decoding"].pop("confidence") == vars(SPEC)
    assert after["provenance"].pop("confidence") == MEASURED
    assert before["files"].pop("README.md") != after["files"].pop("README.md")
    assert after == before
    new = contents(bundle)
    assert {name for name in new if new[name] != old.get(name)} == {"manifest.json", "README.md"}
    assert verify(found).passed
    caption = Captioner(found).caption(toy.photographs(1)[0])
    assert caption.confidence == pytest.approx(1 / (1 + np.exp(-(3.5 * caption.logprob + 2.25))))
    card = new["README.md"].decode()
    assert card.startswith("# Toy\n\n## Confidence\n\n")
    for told in (
        EVENT,
        "1,234 captions 50% fit",
        "Brier score 0.200 (0.250",
        "| 0.5 | 60% | 75% |",
        "| 0.7 | 0% | - |",
    ):
        assert told in card


def test_written_again_it_replaces_what_was_there(bundle: Path) -> None:
    write_confidence(bundle, SPEC, MEASURED)
    first = contents(bundle)
    write_confidence(bundle, SPEC, MEASURED)
    assert contents(bundle) == first
    write_confidence(bundle, ConfidenceSpec(1.0, 0.0, "it is so", "others"), {**MEASURED, "captions": 99})
    card = (bundle / "README.md").read_text()
    assert card.count("## Confidence") == 1
    assert "it is so" in card
    assert "Of those 99 captions" in card
    assert EVENT not in card


def test_the_section_stands_where_the_card_has_it(bundle: Path) -> None:
    manifest = Bundle.open(bundle).manifest
    empty = with_confidence("# x\n\n## What it does not know\n\nmuch\n", manifest)
    assert empty == (
        "# x\n\n## Confidence\n\nNot fitted yet: `captionlite confidence --bundle BUNDLE --data DATA`.\n\n"
        "## What it does not know\n\nmuch\n"
    )
    fitted = with_confidence(empty, write_confidence(bundle, SPEC, MEASURED))
    assert fitted.startswith("# x\n\n## Confidence\n\nThe chance, ")
    assert fitted.endswith("| 0.7 | 0% | - |\n\n## What it does not know\n\nmuch\n")
    assert with_confidence(fitted, manifest) == empty


def test_older_formats_are_lifted_and_newer_ones_keep_what_they_have(bundle: Path) -> None:
    def age(manifest: dict[str, Any]) -> None:
        manifest["format"] = [1, 0]
        del manifest["attention"]

    toy.forge(bundle, age)
    assert write_confidence(bundle, SPEC, MEASURED).format == (1, 2)

    def renew(manifest: dict[str, Any]) -> None:
        manifest["format"] = [1, FORMAT[1] + 7]
        manifest["smell"] = {"of": "roses"}

    toy.forge(bundle, renew)
    assert write_confidence(bundle, SPEC, MEASURED).format == (1, FORMAT[1] + 7)
    assert json.loads((bundle / "manifest.json").read_text())["smell"] == {"of": "roses"}


def test_a_bundle_without_a_card_gets_none(bundle: Path) -> None:
    (bundle / "README.md").unlink()
    toy.forge(bundle, lambda manifest: manifest["files"].pop("README.md"))
    write_confidence(bundle, SPEC, MEASURED)
    assert Bundle.open(bundle).manifest.decoding.confidence == SPEC
    assert not (bundle / "README.md").exists()


@pytest.mark.parametrize("failing", [1, 2, 3])
def test_an_interrupted_write_leaves_a_bundle_that_opens(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, failing: int
) -> None:
    old, calls = contents(bundle), []
    replace = os.replace

    def interrupted(source: str, target: str) -> None:
        calls.append(target)
        if len(calls) == failing:
            raise OSError("the plug was pulled")
        replace(source, target)

    monkeypatch.setattr(os, "replace", interrupted)
    with pytest.raises(BundleError, match="the plug was pulled"):
        write_confidence(bundle, SPEC, MEASURED)
    monkeypatch.undo()
    assert set(contents(bundle)) == set(old)  # no temporary file either
    if failing == 1:
        assert contents(bundle) == old
    assert verify(Bundle.open(bundle)).passed
    write_confidence(bundle, SPEC, MEASURED)  # and nothing stands in the way of the next attempt
    assert "README.md" in Bundle.open(bundle).manifest.files
    assert len(calls) == failing


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Drawings whose people said what the toy says where it is rather sure, and something else where it is not."""
    folder = tmp_path_factory.mktemp("data")
    toy.write(folder / "toy")
    captioner = Captioner.from_bundle(folder / "toy")
    pictures = toy.photographs(60, seed=5)
    found = [(captioner.caption(p), captioner.caption(p, DecodingOptions(beams=3))) for p in pictures]
    middle = np.median([greedy.logprob for greedy, _ in found])
    rows = []
    for number, (pixels, captions) in enumerate(zip(pictures, found, strict=True)):
        Image.fromarray(pixels).save(folder / f"{number}.png")
        sure = captions[0].logprob > middle
        said = [caption.text if sure else "two zebras" for caption in captions]
        rows.append(json.dumps({"image": f"{number}.png", "captions": said, "split": "dev"}) + "\n")
    (folder / "captions.jsonl").write_text("".join(rows))
    return folder / "captions.jsonl"


@pytest.fixture
def run(bundle: Path, data: Path) -> Callable[..., Result]:
    def invoke(*arguments: str, path: Path | None = None) -> Result:
        return CliRunner().invoke(cli, ["confidence", "--bundle", str(path or bundle), *arguments])

    return invoke


def test_the_command_fits_writes_and_reports(run: Callable[..., Result], bundle: Path, data: Path) -> None:
    old = contents(bundle)
    dry = run("--data", str(data), "--json", "--dry-run")
    assert dry.exit_code == 0, dry.stderr
    assert contents(bundle) == old
    result = run("--data", str(data), "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert {**report, "written": False} == json.loads(dry.stdout)
    assert report["written"] is True
    manifest = Bundle.open(bundle).manifest
    spec = manifest.decoding.confidence
    assert spec is not None
    assert (spec.slope, spec.intercept, spec.event) == (report["slope"], report["intercept"], EVENT)
    name = data.parent.name
    assert spec.fitted_on == report["fitted_on"] == f"{name} dev (60 photographs), decoded greedy and beam 3"
    assert manifest.provenance["confidence"]["brier"] == report["brier"] < report["brier_base_rate"]
    assert (report["photographs"], report["captions"], report["auc"] > 0.6) == (60, 120, True)
    assert [group["decoding"] for group in report["groups"]] == ["greedy", "beam 3"]


def test_the_report_for_people(run: Callable[..., Result], data: Path) -> None:
    result = run("--data", str(data), "--dry-run")
    assert result.exit_code == 0, result.stderr
    for row in ("the chance that at least half", "Brier score", "reliability", "abstaining", "beam 3"):
        assert row in result.stdout
    assert "Written" not in result.stdout
    assert "Written into" in run("--data", str(data)).stdout


def test_several_data_sets_are_pooled(run: Callable[..., Result], data: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(data.parent, other)
    result = run("--data", str(data), "--data", f"jsonl:{other}/captions.jsonl", "--limit", "30", "--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    assert (report["photographs"], report["captions"]) == (60, 120)
    assert [(group["data"], group["n"]) for group in report["groups"]] == [
        (data.parent.name, 30), (data.parent.name, 30), ("other", 30), ("other", 30),
    ]  # fmt: skip
    assert f"{data.parent.name} dev (30 photographs) and other dev (30 photographs)" in report["fitted_on"]


def test_a_zip_is_refused_before_the_work_with_what_to_do(
    run: Callable[..., Result], bundle: Path, data: Path, tmp_path: Path
) -> None:
    path = tmp_path / "toy.zip"
    pack_bundle(bundle, path)
    old = path.read_bytes()
    result = run("--data", str(data), path=path)
    assert result.exit_code == 1
    assert "Unpack it" in result.stderr
    assert "captioning" not in result.stderr
    assert path.read_bytes() == old
    assert run("--data", str(data), "--dry-run", path=path).exit_code == 0


def test_a_log_probability_that_says_nothing_is_not_written(
    run: Callable[..., Result], bundle: Path, data: Path
) -> None:
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    opposite = data.with_name("opposite.jsonl")
    captioner = Captioner.from_bundle(bundle)
    logprobs = [captioner.caption(data.parent / row["image"]).logprob for row in rows]
    for row, logprob in zip(rows, logprobs, strict=True):
        said = captioner.caption(data.parent / row["image"]).text
        row["captions"] = ["two zebras" if logprob > np.median(logprobs) else said]
    opposite.write_text("".join(json.dumps(row) + "\n" for row in rows))
    old = contents(bundle)
    result = run("--data", str(opposite), "--json")
    assert result.exit_code == 3
    assert json.loads(result.stdout)["written"] is False
    assert "nothing was written" in result.stderr
    assert contents(bundle) == old


def test_a_bad_photograph_is_named_and_left_out(run: Callable[..., Result], data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "damaged"
    shutil.copytree(data.parent, folder)
    (folder / "7.png").write_bytes(b"not a picture")
    result = run("--data", f"jsonl:{folder}/captions.jsonl", "--json")
    assert result.exit_code == 1
    assert "7.png" in result.stderr
    report = json.loads(result.stdout)
    assert (report["photographs"], len(report["errors"]), report["written"]) == (59, 1, True)


def test_fitting_needs_neither_keras_nor_tensorflow() -> None:
    code = "import sys, captionlite.benchmarks.commands.confidence; print({'keras', 'tensorflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
