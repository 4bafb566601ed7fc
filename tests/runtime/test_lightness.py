"""What importing costs: neither the package nor --help may load anything heavy, and captioning no training library."""

import subprocess
import sys
from pathlib import Path

import pytest
import toy_bundle
from PIL import Image

HEAVY = ("numpy", "PIL", "tensorflow", "keras", "jax", "transformers", "torch", "ai_edge_litert", "tflite_runtime")


def loaded_by(code: str) -> set[str]:
    """Top-level modules in sys.modules after running code in a fresh interpreter."""
    code += "\nimport sys; print('|'.join({name.partition('.')[0] for name in sys.modules}), file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    return set(done.stderr.splitlines()[-1].split("|"))


CHEAP = {
    "the package": "import captionlite.runtime",
    "the version": "import captionlite.runtime as r; r.__version__; r.CaptionliteError",
    "the bundle": "from captionlite.runtime import Bundle",
    "--help": "from captionlite.runtime.cli import cli; cli(['--help'], standalone_mode=False)",
    "camera --help": "from captionlite.runtime.cli import cli; cli(['camera', '--help'], standalone_mode=False)",
    "caption --help": "from captionlite.runtime.cli import cli; cli(['caption', '--help'], standalone_mode=False)",
}


@pytest.mark.parametrize("name", CHEAP)
def test_nothing_heavy_is_imported(name: str) -> None:
    assert loaded_by(CHEAP[name]).isdisjoint(HEAVY)


def test_help_imports_no_command() -> None:
    code = CHEAP["--help"] + "\nimport sys; assert not [m for m in sys.modules if '.commands' in m], sys.modules"
    assert "click" in loaded_by(code)


def test_captioning_needs_no_training_library(toy_directory: Path, tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.fromarray(toy_bundle.photographs(1)[0]).save(path)
    caption = f"Captioner.from_bundle({str(toy_directory)!r}).caption({str(path)!r})"
    found = loaded_by(f"from captionlite.runtime import Captioner\n{caption}")
    assert {"numpy", "PIL", "ai_edge_litert"} <= found
    assert found.isdisjoint({"tensorflow", "keras", "jax", "transformers", "torch", "tokenizers", "matplotlib"})


def test_the_public_face() -> None:
    import captionlite.runtime as runtime

    for name in runtime.__all__:
        assert getattr(runtime, name) is not None
    assert runtime.__version__.count(".") >= 1
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = runtime.nothing
