"""Verdicts on captions: chosen from an evaluation, refused where unfinished, counted with the right intervals."""

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result
from scipy.stats import binomtest

from captionlite.benchmarks.errors import CLASSES, PARTS, Count, Verdict, main, to_jsonl
from captionlite.benchmarks.gallery import drawn_at_random


def run(*arguments: object) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def verdict(name: str, parts: tuple[str, ...], *classes: str) -> Verdict:
    return Verdict(name, f"a caption of {name}", parts, classes)


@pytest.fixture
def captions(tmp_path: Path) -> Path:
    """What `captionlite evaluate --out` writes, as far as it is read; photograph 3 could not be read."""
    rows: list[dict[str, Any]] = [
        {"id": f"{i}.jpg", "image": f"/photos/{i}.jpg", "caption": f"a dog № {i}", "cider": i / 10, "references": ["x"]}
        for i in range(9, -1, -1)
    ]
    rows[6] = {"id": "3.jpg", "image": "/photos/3.jpg", "error": "empty"}
    path = tmp_path / "captions.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_photographs_are_chosen_as_the_page_shows_them(captions: Path, tmp_path: Path) -> None:
    out = tmp_path / "verdicts.jsonl"
    assert run("choose", captions, "--worst", 3, "--random", 5, "--seed", 2, "--out", out).exit_code == 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    worst = ["0.jpg", "1.jpg", "2.jpg"]
    drawn = drawn_at_random({f"{i}.jpg": i / 10 for i in range(9, -1, -1) if i != 3}, 5, 2)
    assert [row["id"] for row in rows] == [*worst, *(name for name in drawn if name not in worst)]
    for row in rows:
        assert row.keys() == {"id", "caption", "parts", "classes"}  # nothing of the photographs, nothing people wrote
        assert row["caption"] == f"a dog № {row['id'][0]}"
        assert row["parts"] == [part for part, ids in zip(PARTS, (drawn, worst), strict=True) if row["id"] in ids]
        assert row["classes"] == []
    before = out.read_text()
    again = run("choose", captions, "--out", out)
    assert again.exit_code == 1
    assert "there already" in again.output
    assert out.read_text() == before


def test_classes_are_counted_by_part(tmp_path: Path) -> None:
    path, picture = tmp_path / "verdicts.jsonl", tmp_path / "errors.png"
    verdicts = [
        verdict("a", ("worst",), "who", "action"),
        verdict("b", ("random", "worst"), "action", "place"),
        verdict("c", ("random",), "right"),
        verdict("d", ("random",), "action"),
        verdict("e", ("random",), "right"),
    ]
    path.write_text(to_jsonl(verdicts))
    done = run("count", path, "--json", "--picture", picture, "--title", "drawn $1")
    assert done.exit_code == 0, done.output
    found = json.loads(done.output)
    assert {part: found[part]["n"] for part in found} == {"random": 4, "worst": 2}
    assert list(found["random"]["classes"]) == list(CLASSES)
    action = found["random"]["classes"]["action"]
    assert (action["count"], action["gravest"], action["share"]) == (2, 2, 0.5)
    assert found["random"]["classes"]["place"]["gravest"] == 0
    assert found["random"]["classes"]["right"]["count"] == 2
    assert found["worst"]["classes"]["action"] == {"count": 2, "gravest": 1, "share": 1.0}
    assert picture.read_bytes().startswith(b"\x89PNG")

    table = run("count", path).output.splitlines()
    assert table[0] == "| class | random, of 4 | gravest | 95 % of all | worst, of 2 | gravest | what it means |"
    assert len(table) == 2 + len(CLASSES)
    assert table[2].startswith("| right | 2 | 2 | 15-85 % | 0 | 0 | ")


@pytest.mark.parametrize(("count", "n"), [(0, 100), (1, 100), (37, 100), (100, 100), (3, 7)])
def test_the_interval_is_wilsons(count: int, n: int) -> None:
    expected = binomtest(count, n).proportion_ci(0.95, method="wilson")
    assert Count(count, n).interval == pytest.approx((expected.low, expected.high), abs=1e-6)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "verdicts.jsonl:2: no JSON"),
        ("[]", "2: has no 'id'"),
        ('{"id": "b", "caption": "", "parts": ["random"]}', "2: has no 'classes'"),
        (
            '{"id": "b", "caption": "", "parts": ["random"], "classes": "who"}',
            "2.classes: found 'who', expected a list",
        ),
        ('{"id": "b", "caption": "", "parts": ["random"], "classes": []}', "2.classes: b has none yet"),
        ('{"id": "b", "caption": "", "parts": [], "classes": ["who"]}', "2.parts: found [], expected some of random"),
        ('{"id": "b", "caption": "", "parts": ["best"], "classes": ["who"]}', "2.parts: found ['best']"),
        ('{"id": "b", "caption": "", "parts": ["worst"], "classes": ["sex"]}', "2.classes: found 'sex', expected some"),
        ('{"id": "b", "caption": "", "parts": ["worst"], "classes": ["right", "who"]}', "'right' by itself"),
        ('{"id": "b", "caption": "", "parts": ["worst"], "classes": ["who", "who"]}', "expected each once"),
        ('{"id": "a", "caption": "", "parts": ["worst"], "classes": ["who"]}', "2.id: a has a verdict already"),
    ],
)
def test_an_unfinished_or_wrong_line_is_named(line: str, says: str, tmp_path: Path) -> None:
    path = tmp_path / "verdicts.jsonl"
    path.write_text(to_jsonl([verdict("a", ("random",), "right")]) + line + "\n")
    done = run("count", path)
    assert done.exit_code == 1
    assert says in done.output


def test_an_empty_file_and_one_without_scores_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "captions.jsonl"
    path.write_text("")
    assert "empty, expected" in run("count", path).output
    path.write_text('{"id": "a.jpg", "caption": "a dog"}\n')
    refused = run("choose", path, "--out", tmp_path / "verdicts.jsonl")
    assert refused.exit_code == 1
    assert "a.jpg has no caption and cider" in refused.output
    assert not (tmp_path / "verdicts.jsonl").exists()
