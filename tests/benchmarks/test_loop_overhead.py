"""The benchmark of the loop: it counts the tokens and steps that there are, and says what it measured."""

import json
from pathlib import Path

import pytest
import toy_bundle
from click.testing import CliRunner
from PIL import Image

from captionlite.benchmarks import loop_overhead
from captionlite.runtime import Captioner, DecodingOptions

PHOTOGRAPHS = toy_bundle.photographs(3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("bundles") / "toy"
    toy_bundle.write(directory)
    return directory


def test_it_measures_both_sides(bundle: Path, tmp_path: Path) -> None:
    files = []
    for number, image in enumerate(PHOTOGRAPHS):
        files.append(str(tmp_path / f"{number}.png"))
        Image.fromarray(image).save(files[-1])
    arguments = [*files, "--bundle", str(bundle), "--rounds", "2", "--beams", "3"]
    result = CliRunner().invoke(loop_overhead.main, [*arguments, "--json"])
    assert result.exit_code == 0, result.stderr
    found = json.loads(result.stdout)
    assert found["tokens_a_round"] == sum(len(toy_bundle.decode(image).tokens) for image in PHOTOGRAPHS)
    assert (found["rounds"], found["beams"]) == (2, 3)
    assert found["greedy_us_a_token"] > 0
    assert found["invoke_us"] > 0
    assert found["greedy_over_invoke"] > 0
    assert found["beam_over_greedy"] > 0
    assert "greedy" in CliRunner().invoke(loop_overhead.main, arguments).stdout


def test_steps_are_counted_at_the_loop(bundle: Path) -> None:
    captioner = Captioner.from_bundle(bundle)
    encoded = [captioner.encode(image) for image in PHOTOGRAPHS]
    tokens = sum(len(captioner.decode(one).tokens) for one in encoded)
    # Drawing among one: greedy, but step by step.
    assert loop_overhead._steps(captioner, encoded, DecodingOptions(temperature=1.0, top_k=1)) == tokens
    assert loop_overhead._steps(captioner, encoded, DecodingOptions(beams=3)) >= len(encoded)
