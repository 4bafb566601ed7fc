"""The soak of the camera, as short as it can be: every part of it is real, and its verdicts follow the numbers."""

import json
from pathlib import Path

import pytest
import toy_bundle
from click.testing import CliRunner

from captionlite.benchmarks import camera_soak
from captionlite.benchmarks.camera_soak import Run, growth_bytes, main, minutes_of
from captionlite.runtime.camera.stats import Stats
from captionlite.runtime.errors import CaptionliteError

pytest.importorskip("cv2", reason="pip install 'captionlite[camera]'")
pytest.importorskip("psutil", reason="pip install 'captionlite[bench]'")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundle") / "toy"
    toy_bundle.write(directory)
    return directory


def test_a_short_soak(toy: Path) -> None:
    short = ["--minutes", "0.06", "--bundle", str(toy), "--up", "0.5", "--away", "0.2", "--json"]
    result = CliRunner().invoke(main, short)
    assert result.exit_code == 0, result.output
    found = json.loads(result.stdout)
    assert found["passed"] is True
    assert found["stats"]["captured"] > 0
    assert found["stats"]["captions"] > 0
    assert found["vanished"]["reconnects"] == 1
    assert found["vanished"]["first_caption_after_return_s"] > 0
    assert found["vanished"]["captions_after"] > 0
    assert any("there again" in line for line in found["vanished"]["messages"])


def test_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    vanished = {"away_s": 15.0, "captions_before": 90, "captions_after": 80, "reconnects": 1, "messages": []}
    row = {
        "minute": 1,
        "fps": 30.0,
        "captions_per_s": 9.0,
        "p50_ms": 7.0,
        "p90_ms": 8.0,
        "p99_ms": 9.0,
        "resident_mb": 90.0,
    }

    def measured(growth_mb: float, first_s: float | None) -> tuple[int, str, str]:
        stats = Stats(0.0).to_json(60.0)
        found = {
            "load_before_and_after": [0.1, 0.2],
            "stats": {"source": "video", **stats},
            "cpu_of_one_core": 0.2,
            "minutes": [row],
            "growth_mb": growth_mb,
            "growth_after_s": 60.0,
            "vanished": {**vanished, "first_caption_after_return_s": first_s},
        }
        monkeypatch.setattr(camera_soak, "measure", lambda *given: dict(found))
        result = CliRunner().invoke(main, ["--max-growth-mb", "5"])
        return result.exit_code, result.stdout, result.stderr

    code, text, problems = measured(4.9, 0.5)
    assert (code, problems) == (0, "")
    assert "| minute | frames/s |" in text
    assert "| 1 | 30.0 | 9.0 |" in text
    assert "first caption 0.5 s after it was back" in text
    code, _, problems = measured(5.1, 0.5)
    assert (code, problems) == (3, "memory grew by 5.1 MB, expected at most 5\n")
    code, text, problems = measured(0.0, None)
    assert (code, problems) == (3, "captions did not resume after the camera was back\n")
    assert "no caption after it" in text


def test_a_command_that_fails_is_exit_code_1(tmp_path: Path) -> None:
    video = tmp_path / "no.mp4"
    video.write_bytes(b"no video")
    result = CliRunner().invoke(main, ["--video", str(video), "--minutes", "0.05"])
    assert result.exit_code == 1
    assert "captionlite camera failed (exit 1)" in result.stderr
    assert "OpenCV cannot read it" in result.stderr


def test_growth_is_told_by_medians() -> None:
    memory = [(float(at), 100_000_000 + 1_000 * at) for at in range(600)]
    memory[590] = (590.0, 900_000_000)  # one odd reading
    assert growth_bytes(memory, 60.0) == pytest.approx(520_000, abs=2_000)
    with pytest.raises(CaptionliteError, match="too short"):
        growth_bytes([(0.0, 1), (1.0, 1)], 60.0)


def test_minute_by_minute() -> None:
    lines = [(0.5 * n, {"caption": "a", "frame": 15 * n + 1, "age_ms": 4.0 + n % 2}) for n in range(310)]
    run = Run(lines, [], [(float(at), 50_000_000) for at in range(155)])  # type: ignore[arg-type]
    rows = minutes_of(run)
    assert [row["minute"] for row in rows] == [1, 2, 3]
    assert rows[1] == {
        "minute": 2,
        "fps": 30.0,
        "captions_per_s": 2.0,
        "p50_ms": 4.5,
        "p90_ms": 5.0,
        "p99_ms": 5.0,
        "resident_mb": 50.0,
    }
