"""`captionlite evaluate`: scores, failures and output, through the real runtime on a toy bundle."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import toy_bundle as toy
from click.testing import CliRunner, Result
from PIL import Image
from pycocoevalcap.cider.cider import Cider

from captionlite.benchmarks.evaluation import EvaluatedPhoto, describe_recipe, evaluate
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.cli import cli
from captionlite.runtime.decoding import DecodingOptions
from captionlite.runtime.errors import CaptionliteError
from captionlite.training.datasets import Example
from captionlite.training.scoring import score_captions, score_hypotheses, score_photographs


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("bundles") / "toy"
    toy.write(path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A JSONL data set of drawn photographs in which the references are what the toy itself says, slightly changed."""
    records = []
    for number, pixels in enumerate(toy.photographs(4)):
        name = f"{number}.png"
        Image.fromarray(pixels).save(tmp_path / name)
        said = " ".join(toy.PIECES[token] for token in toy.decode(pixels).tokens if token != toy.END)
        records.append({"image": name, "captions": [said, f"a dog {number}"], "split": "test"})
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


@pytest.fixture
def run(bundle: Path, data: Path) -> Callable[..., Result]:
    def invoke(*arguments: str) -> Result:
        return CliRunner().invoke(cli, ["evaluate", "--bundle", str(bundle), "--data", str(data), *arguments])

    return invoke


def test_json_has_every_figure_and_they_are_pycocoevalcaps(run: Callable[..., Result], data: Path) -> None:
    result = run("--json")
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    references = [json.loads(line)["captions"] for line in data.read_text().splitlines()]
    expected = score_captions(
        {str(i): captions[0] for i, captions in enumerate(references)},
        {str(i): captions for i, captions in enumerate(references)},
    )
    for name, value in expected.to_json().items():
        assert report[name] == pytest.approx(value), name
    assert report["n"] == 4
    assert (report["bundle"], report["recipe"], report["split"], report["decoding"]) == (
        "toy",
        "float32",
        "test",
        "greedy",
    )
    assert report["errors"] == []
    assert report["seconds"] > 0
    assert 1 <= report["distinct_captions"] <= 4
    assert report["distinct_words"] >= 1


def test_table_for_people(run: Callable[..., Result]) -> None:
    result = run()
    assert result.exit_code == 0, result.stderr
    for row in ("bleu_4", "cider", "distinct words", "photographs"):
        assert row in result.stdout
    assert "captioning" not in result.stdout  # progress is stderr's


def test_out_holds_one_line_a_photograph(run: Callable[..., Result], tmp_path: Path, data: Path) -> None:
    out = tmp_path / "said.jsonl"
    result = run("--out", str(out), "--json", "--limit", "3")
    assert result.exit_code == 0, result.stderr
    lines = [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()]
    references = [json.loads(line)["captions"] for line in data.read_text().splitlines()]
    assert [line["caption"] for line in lines] == [captions[0] for captions in references[:3]]
    assert [line["references"] for line in lines] == references[:3]
    assert [Path(line["image"]).name for line in lines] == ["0.png", "1.png", "2.png"]
    report = json.loads(result.stdout)
    assert report["n"] == 3
    # The scores of the photographs are the parts of the report's.
    for name in ("cider", "rouge_l"):
        assert np.mean([line[name] for line in lines]) == pytest.approx(report[name], abs=1e-4)
    assert "confidence" not in lines[0]  # the bundle has none
    assert "n_best" not in report


def test_a_bad_photograph_is_listed_left_out_and_fails_the_run(
    run: Callable[..., Result], data: Path, tmp_path: Path
) -> None:
    (data.parent / "1.png").write_bytes(b"not a picture")
    out = tmp_path / "said.jsonl"
    result = run("--json", "--out", str(out))
    assert result.exit_code == 1
    report = json.loads(result.stdout)
    assert report["n"] == 3
    assert [Path(error["image"]).name for error in report["errors"]] == ["1.png"]
    assert "1.png" in result.stderr
    second = json.loads(out.read_text().splitlines()[1])
    assert "error" in second
    assert "caption" not in second


def test_nothing_readable_is_an_error_not_a_score(run: Callable[..., Result], data: Path) -> None:
    for photo in data.parent.glob("*.png"):
        photo.write_bytes(b"not a picture")
    result = run("--json")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert "none of 4 photographs could be captioned" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--split", "validation"], 1, "'validation'"),
        (["--limit", "0"], 2, "--limit"),
        (["--out", "missing/folder/x.jsonl"], 1, "Create it first"),
        (["--gallery", "missing/folder/x.html"], 1, "Create it first"),
        (["--gallery-limit", "3"], 2, "--gallery FILE"),
        (["--n", "3"], 2, "raise beams or best_of"),
        (["--beams", "3", "--temperature", "1"], 2, "exclude each other"),
        (["--passes", "3"], 1, "predicts all words of a caption at once"),
        (["--max-length", "100"], 1, "takes at most 7"),
    ],
)
def test_wrong_use(run: Callable[..., Result], arguments: list[str], code: int, message: str) -> None:
    result = run(*arguments)
    assert result.exit_code == code
    assert result.stdout == ""
    assert message in result.stderr


def test_missing_bundle_and_missing_data(data: Path, bundle: Path, tmp_path: Path) -> None:
    nowhere = str(tmp_path / "nowhere")
    for arguments in (["--bundle", nowhere, "--data", str(data)], ["--bundle", str(bundle), "--data", nowhere]):
        result = CliRunner().invoke(cli, ["evaluate", *arguments])
        assert result.exit_code == 1
        assert "nowhere" in result.stderr
        assert "Traceback" not in result.stderr


def test_decoding_options_are_followed_and_said(run: Callable[..., Result], bundle: Path, data: Path) -> None:
    captioner = Captioner.from_bundle(bundle)
    options = DecodingOptions(beams=3, length_penalty=0.0, max_length=5)
    expected = [captioner.caption(data.parent / f"{number}.png", options).text for number in range(4)]
    assert expected != [captioner.caption(data.parent / f"{number}.png").text for number in range(4)]
    out = data.parent / "said.jsonl"
    result = run("--beams", "3", "--length-penalty", "0", "--max-length", "5", "--json", "--out", str(out))
    assert result.exit_code == 0, result.stderr
    assert [json.loads(line)["caption"] for line in out.read_text().splitlines()] == expected
    assert json.loads(result.stdout)["decoding"] == "beam 3, max_length 5, length_penalty 0"


def test_n_best_is_scored_by_hypothesis(run: Callable[..., Result], bundle: Path, data: Path) -> None:
    out = data.parent / "said.jsonl"
    result = run("--beams", "3", "--n", "3", "--json", "--out", str(out))
    assert result.exit_code == 0, result.stderr
    report = json.loads(result.stdout)
    references = [json.loads(line)["captions"] for line in data.read_text().splitlines()]
    captioner = Captioner.from_bundle(bundle)
    options = DecodingOptions(beams=3, n_best=3)
    found = [captioner.caption(data.parent / f"{number}.png", options) for number in range(4)]
    texts = [[c.text, *(other.text for other in c.alternatives)] for c in found]
    # pycocoevalcap itself, once for each rank
    by_rank = []
    for rank in range(3):
        truths = {i: list(captions) for i, captions in enumerate(references)}
        by_rank.append(Cider().compute_score(truths, {i: [texts[i][rank]] for i in range(4)})[1])
    each = np.array(by_rank).T  # (photograph, hypothesis)
    assert report["cider"] == pytest.approx(each[:, 0].mean())
    assert report["n_best"] == 3
    assert report["oracle_cider"] == pytest.approx(each.max(axis=1).mean(), abs=1e-5)
    assert report["n_best_mean_cider"] == pytest.approx(each.mean(), abs=1e-5)
    assert report["n_best_distinct_captions"] == pytest.approx(np.mean([len(set(row)) for row in texts]), abs=1e-3)
    assert report["oracle_cider"] > report["cider"] > report["n_best_mean_cider"]
    for line, row, said in zip(out.read_text().splitlines(), each, texts, strict=True):
        record = json.loads(line)
        assert [other["caption"] for other in record["alternatives"]] == said[1:]
        assert [other["cider"] for other in record["alternatives"]] == pytest.approx(list(row[1:]), abs=1e-4)
    table = run("--beams", "3", "--n", "3").stdout
    for row_name in ("best cider of 3", "mean cider of 3", "distinct captions of 3", "beam 3"):
        assert row_name in table


def test_fewer_hypotheses_than_asked_for_are_scored_as_they_are() -> None:
    references = {"a": ["a dog runs fast"], "b": ["the red grass"], "c": ["a cat sleeps"]}
    found = score_hypotheses({"a": ["a dog runs", "a cat"], "b": ["the red grass"], "c": ["a dog"]}, references)
    assert [len(scores) for scores in found.values()] == [2, 1, 1]
    alone = score_photographs({"a": "a cat", "b": "the red grass", "c": ""}, references)[1]
    assert (found["a"][1], found["b"][0]) == (alone["a"].cider, alone["b"].cider)
    assert found["b"][0] > 1
    with pytest.raises(ValueError, match="1 photographs without a hypothesis, the first 'a'"):
        score_hypotheses({"a": []}, references)


def test_calibrated_bundles_say_their_confidence(bundle: Path, data: Path, tmp_path: Path) -> None:
    sure = tmp_path / "sure"
    shutil.copytree(bundle, sure)
    confidence = {"slope": 2.0, "intercept": 1.0, "event": "it fits", "fitted_on": "drawings"}
    toy.forge(sure, lambda manifest: manifest["decoding"].update(confidence=confidence))
    out = tmp_path / "said.jsonl"
    arguments = ["evaluate", "--bundle", str(sure), "--data", str(data), "--out", str(out), "--json"]
    result = CliRunner().invoke(cli, arguments)
    assert result.exit_code == 0, result.stderr
    for line in map(json.loads, out.read_text().splitlines()):
        assert line["confidence"] == pytest.approx(1 / (1 + np.exp(-(2 * line["logprob"] + 1))), abs=1e-4)


def test_progress_counts_every_photograph_and_order_is_kept(bundle: Path, data: Path) -> None:
    examples = [Example(data.parent / f"{number}.png", ("a dog",), str(number)) for number in (2, 0, 3, 1)]
    done: list[int] = []
    evaluation = evaluate(Captioner.from_bundle(bundle), examples, done.append)
    assert done == [1, 1, 1, 1]
    assert [photo.example.id for photo in evaluation.photos] == ["2", "0", "3", "1"]
    assert evaluation.scores.n == 4
    assert evaluation.mean_words == pytest.approx(
        np.mean([len(photo.caption.text.split()) for photo in evaluation.photos if photo.caption])
    )


def test_no_examples_is_an_error(bundle: Path) -> None:
    with pytest.raises(CaptionliteError, match="none of 0 photographs"):
        evaluate(Captioner.from_bundle(bundle), [])


def test_recipe_names_both_graphs_when_they_differ() -> None:
    manifest = toy.manifest()
    assert describe_recipe(manifest) == "float32"
    graphs = {**manifest.graphs, "decoder": replace(manifest.graphs["decoder"], recipe="int8")}
    assert describe_recipe(replace(manifest, graphs=graphs)) == "float32/int8"


def test_a_failed_photo_says_why() -> None:
    photo = EvaluatedPhoto(Example(Path("x.jpg"), ("a",), "x"), None, "x.jpg: empty")
    assert photo.to_json() == {"id": "x", "image": "x.jpg", "error": "x.jpg: empty"}
