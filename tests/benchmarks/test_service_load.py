"""The load test of the service, with the toy bundle: what it sends, what it counts, and that it restarts a service."""

import json
import signal
from pathlib import Path

import pytest
import serving
import toy_bundle

pytest.importorskip("uvicorn", reason="the extra serve is not installed")

from captionlite.benchmarks.service_clients import Tally, for_seconds, run_clients
from captionlite.benchmarks.service_load import bars, measure_load, table
from captionlite.benchmarks.service_process import Rules, Supervisor, first_caption_s, free_port, stop
from captionlite.benchmarks.service_uploads import Upload, bad_uploads, good_uploads
from captionlite.runtime import Captioner

PHOTOS = [Path(__file__).parents[1] / "photos" / name for name in ("cat.jpg", "lake.jpg")]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle") / "toy"
    toy_bundle.write(folder)
    return folder


@pytest.fixture(scope="module")
def good(toy: Path) -> list[Upload]:
    return good_uploads(PHOTOS, Captioner.from_bundle(toy))


def test_mixed_uploads_to_a_real_service(toy: Path, good: list[Upload]) -> None:
    found = measure_load(["--bundle", str(toy)], good, bad_uploads(PHOTOS[0], 10**7), clients=3, seconds=1.5)
    for name in ("wrong_captions", "good_without_caption", "bad_without_4xx", "broken_connections"):
        assert found[name] == []
    assert found["same_process"]
    assert found["exit_code"] == 0
    kinds = {answer.split()[0] for answer in found["answers"]}
    assert "good" in kinds
    assert kinds & {"huge", "truncated", "hostile"}
    assert 0 < found["good_p50_ms"] <= found["good_p99_ms"]
    assert found["memory_start_mb"] > 10


def test_every_bad_upload_is_answered_with_a_4xx(toy: Path, good: list[Upload]) -> None:
    port = free_port()
    _, process = first_caption_s(port, ["--bundle", str(toy)], good[0])
    try:
        tally, waiting = Tally(), [*bad_uploads(PHOTOS[0], 10**7), *good]
        names = {upload.name for upload in waiting}
        run_clients(port, 1, lambda draw: waiting.pop(), lambda: not waiting, tally)
        assert tally.let_in == tally.wrong == tally.failed == tally.lost == []
        assert len(tally.good_ms) == len(good)
        assert sum(tally.answers.values()) == len(names)
    finally:
        assert stop(process) == 0


def test_what_counts_as_what() -> None:
    tally = Tally()
    good = Upload("good", "g", b"", tokens=(4, 3))
    bad = Upload("huge", "b", b"")
    said = json.dumps({"error": {"what": "Too large.", "next": "Less."}}).encode()
    tally.add(good, 200, b'{"tokens": [4, 3]}', 0.1)
    tally.add(good, 200, b'{"tokens": [5, 3]}', 0.1)
    tally.add(good, 503, said, 0.1)
    tally.add(bad, 413, said, 0.1)
    tally.add(bad, 413, b"no", 0.1)
    tally.add(bad, 200, b'{"tokens": [4, 3]}', 0.1)
    tally.add(bad, 500, said, 0.1)
    assert len(tally.good_ms) == len(tally.wrong) == len(tally.failed) == 1
    assert len(tally.let_in) == 3
    assert tally.answers["huge 413"] == 2


def test_rules_are_those_of_the_unit() -> None:
    rules = Rules.of_unit()
    assert (rules.restart, rules.restart_s) == ("on-failure", 2)
    assert rules.again(-signal.SIGKILL)
    assert rules.again(1)
    assert not rules.again(0)
    assert not rules.again(-signal.SIGTERM)
    assert Rules("always", 1).again(0)


def test_kill_9_loses_what_was_in_flight_and_the_service_comes_back(toy: Path, good: list[Upload]) -> None:
    port = free_port()
    supervisor = Supervisor(port, ["--bundle", str(toy)])
    first = supervisor.process.pid
    supervisor.kill()
    serving.until(lambda: supervisor.restarts == 1, "the restart")
    tally = Tally()
    run_clients(port, 2, lambda draw: draw.choice(good), lambda: len(tally.good_ms) > 3, tally)
    assert tally.lost == tally.wrong == tally.failed == []
    assert supervisor.process.pid != first
    assert supervisor.stop() == 0
    assert supervisor.restarts == 1


def test_bars_and_table() -> None:
    found = {
        "cores": 2, "workers": 2, "load_average": 0.5,
        "load": {
            "seconds": 60, "clients": 4, "answers": {"good 200": 9}, "wrong_captions": [], "good_without_caption": [],
            "bad_without_4xx": [], "broken_connections": [], "same_process": True, "exit_code": 0, "good_p50_ms": 9.0,
            "good_p99_ms": 12.0, "good_per_second": 99.0, "memory_start_mb": 90.0, "memory_warm_mb": 99.0,
            "memory_end_mb": 100.0, "memory_peak_mb": 140.0, "memory_growth_mb": 1.0,
        },
        "throughput": {"direct_per_second": 100.0, "served_per_second": 120.0, "ratio": 1.2, "rounds_ratios": [1.2]},
        "kill": {
            "restart": "on-failure", "restart_s": 2.0, "restarts": 1, "away_s": 2.5, "in_flight_lost": 4,
            "others_lost": 0, "wrong_captions": [], "good_without_caption": [], "captions_after": 50, "exit_code": 0,
        },
        "cold": {"first_caption_s": 0.6, "memory_first_mb": 90.0, "memory_mb": 100.0, "requests": 1000},
    }  # fmt: skip
    found["bars"] = bars(found, 10, None)
    assert all(found["bars"].values())
    assert "ratio 1.20" in table(found)
    assert not bars(found, 0.5, None)["memory grows by at most 0.5 MB"]
    assert not bars(found, 10, 1.5)["at least 1.5 of direct calls"]
    found["kill"]["others_lost"] = 1  # type: ignore[index]
    found["load"]["wrong_captions"] = ["x"]  # type: ignore[index]
    missed = {name for name, held in bars(found, 10, None).items() if not held}
    assert missed == {"no wrong caption", "kill -9 loses what was in flight only"}


def test_for_seconds_ends() -> None:
    assert not for_seconds(60)()
    assert for_seconds(0)()
