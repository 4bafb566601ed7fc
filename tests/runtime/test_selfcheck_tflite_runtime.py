"""The mistake that the self-check is for, in the interpreter that makes it: tflite-runtime 2.14 under a Python of its
own, named by CAPTIONLITE_TFLITE_RUNTIME_PYTHON. Make one with

    python3.11 -m venv V && V/bin/pip install tflite-runtime==2.14.0 'numpy<2' pillow click
"""

import json
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import pytest

if not os.environ.get("CAPTIONLITE_TFLITE_RUNTIME_PYTHON"):
    pytest.skip("CAPTIONLITE_TFLITE_RUNTIME_PYTHON names no Python with tflite-runtime", allow_module_level=True)

import keras

if keras.backend.backend() != "tensorflow":
    pytest.skip("TensorFlow converts; KERAS_BACKEND is another", allow_module_level=True)

from drawings import write_drawings
from untrained import untrained

import captionlite.runtime
from captionlite.export.bundle_quantizer import quantize_bundle
from captionlite.export.calibration import Photographs
from captionlite.export.exporter import export_run
from captionlite.export.recipes import recipe
from captionlite.runtime import Bundle, Captioner
from captionlite.runtime.verify import read_golden

PYTHON = os.environ["CAPTIONLITE_TFLITE_RUNTIME_PYTHON"]
OPEN_AND_CAPTION = """
import json, sys
from captionlite.runtime import Bundle, Captioner
read, reads = Bundle.read, []
Bundle.read = lambda self, name: reads.append(name) or read(self, name)
captioner = Captioner.from_bundle(sys.argv[1])
checked = "golden.npz" in reads
from captionlite.runtime.verify import read_golden
captions = [captioner.caption(image).tokens for image in read_golden(captioner.bundle).images]
print(json.dumps({"checked": checked, "captions": captions}))
"""


@dataclass(frozen=True)
class Other:
    """The other Python with this very runtime, and a cache of its own."""

    environment: dict[str, str]

    def __call__(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        command = [PYTHON, *map(str, arguments)]
        return subprocess.run(
            command, capture_output=True, text=True, timeout=120, check=False, env=self.environment, cwd="/"
        )

    def command(self, *arguments: object) -> "subprocess.CompletedProcess[str]":
        return self("-m", "captionlite.runtime.cli", *arguments)


@pytest.fixture
def other(tmp_path: Path) -> Other:
    (tmp_path / "path").mkdir()
    (tmp_path / "path" / "captionlite").symlink_to(Path(captionlite.runtime.__file__).resolve().parents[1])
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path / "path"),
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    return Other(environment)


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A tiny model as legacy and as dynamic int8, which this interpreter computes rightly."""
    folder = tmp_path_factory.mktemp("bundles")
    drawings = write_drawings(folder / "drawings")
    photographs = Photographs.of_data(f"jsonl:{drawings}")
    export_run(
        untrained("transformer", drawings, folder),
        recipe("float32"),
        folder / "float32",
        photographs=photographs.photos[:2],
    )
    made = {}
    for name in ("legacy", "dynamic-int8"):
        made[name] = quantize_bundle(Bundle.open(folder / "float32"), recipe(name), folder / name).bundle
        Captioner.from_bundle(made[name])
    return made


def test_the_other_python_is_what_it_should_be(other: Other) -> None:
    found = json.loads(other.command("env", "--json").stdout)["interpreter"]
    assert found["name"] == "tflite-runtime"
    assert found["version"].startswith("2.14")


def test_wrong_numbers_are_refused(other: Other, bundles: dict[str, Path], tmp_path: Path) -> None:
    photo = Path(__file__).parents[1] / "photos" / "cat.jpg"
    path = bundles["dynamic-int8"]
    for _ in range(2):  # a failure is not remembered
        done = other.command("caption", photo, "--bundle", path)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith(f"Error: {path}: tflite-runtime 2.14")
        assert "computes wrong numbers" in done.stderr
        assert "--recipe legacy" in done.stderr
        assert "Traceback" not in done.stderr
    assert not (tmp_path / "cache").exists()
    details = other.command("verify", path, "--json")
    assert details.returncode == 1
    errors = {name: check["error"] for name, check in json.loads(details.stdout)["tensors"].items()}
    assert max(errors.values()) > 0.2, errors  # not rounding: other captions


def test_legacy_opens_is_checked_once_and_captions_alike(
    other: Other, bundles: dict[str, Path], tmp_path: Path
) -> None:
    path = bundles["legacy"]
    here = Captioner.from_bundle(path)
    captions = [list(here.caption(image).tokens) for image in read_golden(here.bundle).images]
    for checked in (True, False):
        done = other("-c", OPEN_AND_CAPTION, path)
        assert done.returncode == 0, done.stderr
        assert json.loads(done.stdout) == {"checked": checked, "captions": captions}
    assert len(list((tmp_path / "cache" / "captionlite" / "selfcheck").iterdir())) == 1


def test_a_proof_of_the_other_python_is_recorded(other: Other, bundles: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "legacy"
    shutil.copytree(bundles["legacy"], path)
    done = other.command("verify", path, "--record")
    assert done.returncode == 0, done.stderr
    assert "tflite-runtime" in {row.interpreter for row in Bundle.open(path).manifest.proven}
    assert json.loads(other("-c", OPEN_AND_CAPTION, path).stdout)["checked"] is False
    assert not (tmp_path / "cache").exists()
