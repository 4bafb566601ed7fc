"""A result is read back as it was written, and whatever is wrong with a file is told by its field."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from captionlite.benchmarks.latency import QUICK, Recording, Timed
from captionlite.benchmarks.results import (
    MAX_SAMPLES,
    SCHEMA,
    Model,
    Photographs,
    Result,
    ResultError,
    header,
    read_document,
    read_result,
    rounded,
    sampled_every,
    write_document,
)


def recording(captions: int) -> Recording:
    """Captions that differ, of 2 to 4 tokens."""
    timed = [
        Timed(1 + n / 7, 2 + n / 3, 3.0 + n, 0.1 + n / 9, 7 + n, 2 + n % 3, "a dog") for n in range(captions)
    ]  # fmt: skip
    return Recording(timed, 1.5)


def result(captions: int = 5, photographs: int = 3) -> Result:
    fields = header("latency", "edge", ["captionlite", "bench", "run"], {"cpu": None, "cores": 2})
    protocol = {"quick": True, "decoding": "greedy", "encoder_threads": 2, "decoder_threads": 1}
    return Result(
        **{**fields, "schema": SCHEMA, "command": tuple(fields["command"])},
        complete=True,
        model=Model("ab" * 32, "toy", "lstm", "int8", None, 100, {"encoder": 60, "decoder": 40}, {}),
        photographs=Photographs(photographs, "cd" * 32, "tests/photos"),
        **recording(captions).fields(photographs, QUICK, protocol),
        cold_start=None,
        peak_memory_bytes=None,
        energy={"unavailable": "not asked for"},
        batch={"captions_per_second": 3.0},
        notes=("a note",),
    )


def test_written_and_read_back_a_result_is_the_same(tmp_path: Path) -> None:
    written = result()
    write_document(tmp_path / "a.json", written.to_json())
    assert read_result(tmp_path / "a.json") == written
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


def test_samples_have_4_digits_and_the_summary_is_of_all_of_them() -> None:
    found = result(100)
    assert found.samples.image_ms[:3] == (1.0, 1.143, 1.286)
    assert found.samples.step_ms[1] == rounded(4 / 3)
    assert found.samples.tokens[:4] == (2, 3, 4, 2)
    assert found.summary["whole"] == {"p50": 56.5, "p90": 96.1, "p99": 105.0, "mean": 56.5}
    assert found.captions_per_second == rounded(1000 / 56.5)
    assert found.tokens_per_caption == 2.99


def test_of_very_many_samples_every_kth_is_kept_and_no_photograph_is_left_out(tmp_path: Path) -> None:
    assert [sampled_every(n, 5) for n in (1, MAX_SAMPLES, MAX_SAMPLES + 1, 5 * MAX_SAMPLES)] == [1, 1, 2, 6]
    captions, photographs = 12_300, 48  # every 4th would be of a quarter of the photographs
    found = result(captions, photographs)
    assert found.protocol.sampled_every == 5
    assert found.protocol.captions == captions
    assert len(found.samples.tokens) == 2460
    assert {number % photographs for number in range(0, captions, 5)} == set(range(photographs))
    write_document(tmp_path / "many.json", found.to_json())
    assert (tmp_path / "many.json").stat().st_size < 300_000


def test_a_later_minor_version_with_more_fields_is_read(tmp_path: Path) -> None:
    def edit(found: dict[str, Any]) -> None:
        found["schema"] = [SCHEMA[0], SCHEMA[1] + 1]
        found["humidity"] = 0.4
        found["model"]["colour"] = "blue"

    path = edited(tmp_path, edit)
    assert replace(read_result(path), schema=SCHEMA) == result_like(path)


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda found: found.update(schema=[2, 0]), r"schema is 2\.0, but this captionlite reads 1\.x\. Upgrade it"),
        (lambda found: found.update(schema="1"), r"schema is '1', expected \[1, 0\]"),
        (lambda found: found.update(schema=[0, 9]), r"schema is \[0, 9\], expected"),
        (lambda found: found.pop("schema"), "schema is missing"),
        (lambda found: found.update(kind="roofline"), "kind is 'roofline', expected 'latency'"),
        (lambda found: found.update(machine=[]), r"machine is \[\], expected dict"),
        (lambda found: found.pop("command"), "command is missing"),
        (lambda found: found.update(target="moon"), r"target: found 'moon', expected one of 'edge', 'keras', 'gpu'"),
        (lambda found: found.pop("photographs"), r"photographs: missing"),
        (lambda found: found["model"].update(size_bytes="big"), r"model\.size_bytes: found 'big', expected int"),
        (lambda found: found["samples"]["encode_ms"].__setitem__(2, None), r"samples\.encode_ms\[2\]: found None"),
        (lambda found: found["samples"]["encode_ms"].__setitem__(2, -1.0), r"encode_ms\[2\] is -1\.0, expected a num"),
        (lambda found: found["samples"]["whole_ms"].pop(), r"samples\.whole_ms has 4 entries, expected 5"),
        (lambda found: found.update(samples={name: [] for name in found["samples"]}), "samples has no captions"),
        (lambda found: found["summary"].pop("post"), r"summary\.post\.p50 is None, expected a number"),
        (lambda found: found["summary"]["step"].update(p99="1"), r"summary\.step\.p99 is '1', expected a number"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, edit: Callable[[dict[str, Any]], Any], message: str) -> None:
    path = edited(tmp_path, edit)
    with pytest.raises(ResultError, match=message) as caught:
        read_result(path)
    assert str(caught.value).startswith(str(path))
    assert str(caught.value).endswith(".")  # with what to do next


@pytest.mark.parametrize("content", [b"{", b"[]", b"\xff", b'{"schema": NaN}', b"[" * 100_000, b""])
def test_what_is_no_result_at_all_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(ResultError, match=r"a\.json: "):
        read_document(tmp_path / "a.json")


def test_files_that_are_not_there_and_folders_that_are_not(tmp_path: Path) -> None:
    with pytest.raises(ResultError, match="cannot be read"):
        read_document(tmp_path / "none.json")
    with pytest.raises(ResultError, match="cannot be written"):
        write_document(tmp_path / "none" / "a.json", {})


def test_another_kind_is_read_with_its_common_fields_checked(tmp_path: Path) -> None:
    write_document(tmp_path / "a.json", {**header("peers", "edge", [], {}), "peers": []})
    assert read_document(tmp_path / "a.json", "peers")["peers"] == []


def edited(folder: Path, edit: Callable[[dict[str, Any]], Any]) -> Path:
    """A result file with something changed."""
    found = result().to_json()
    edit(found)
    path = folder / "edited.json"
    path.write_text(json.dumps(found))
    return path


def result_like(path: Path) -> Result:
    """`result()`, with the time that stands in a file."""
    return replace(result(), created=json.loads(path.read_text())["created"])
