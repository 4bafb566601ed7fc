"""What gets imported when: the runtime stays alone and light, training does without TensorFlow on JAX."""

import ast
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ("tensorflow", "keras", "transformers", "torch", "matplotlib", "jax", "tokenizers", "rich", "scipy")


def modules(package: str) -> list[str]:
    """Dotted names of every module of one of the packages."""
    names = []
    for path in sorted((ROOT / package).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        names.append(".".join(("captionlite", *(part for part in parts if part != "__init__"))))
    return names


def loaded_by(code: str, **environment: str) -> set[str]:
    """Top-level names of all modules that a fresh interpreter has loaded after running `code`."""
    ending = "\nimport sys, json; print(json.dumps(sorted({name.partition('.')[0] for name in sys.modules})))"
    done = subprocess.run(
        [sys.executable, "-c", code + ending], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stdout.splitlines()[-1]))


def imports(path: Path) -> set[str]:
    """Every module that a source file imports, wherever in the file, as a dotted name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; imports here are absolute"
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def test_runtime_modules_load_nothing_heavy() -> None:
    code = "import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in modules("runtime"))
    assert not loaded_by(code) & set(HEAVY)


@pytest.mark.parametrize("arguments", [["--help"], ["caption", "--help"], ["verify", "--help"], ["env", "--json"]])
def test_runtime_commands_load_nothing_heavy(arguments: list[str]) -> None:
    code = f"from captionlite.runtime.cli import cli\ncli.main({arguments!r}, standalone_mode=False)"
    assert not loaded_by(code) & set(HEAVY)


def test_help_imports_no_command() -> None:
    code = (
        "from captionlite.runtime.cli import cli\ncli.main(['--help'], standalone_mode=False)\n"
        "import sys; assert not [m for m in sys.modules if '.commands.' in m]; assert 'numpy' not in sys.modules"
    )
    loaded_by(code)


def test_captioning_loads_nothing_heavy(tmp_path: Path) -> None:
    toy_bundle = pytest.importorskip("toy_bundle")
    toy_bundle.write(tmp_path / "toy")
    photo = ROOT / "tests" / "photos" / "cat.jpg"
    arguments = ["caption", "--bundle", str(tmp_path / "toy"), str(photo)]
    code = f"from captionlite.runtime.cli import cli\ncli.main({arguments!r}, standalone_mode=False)"
    loaded = loaded_by(code)
    assert not loaded & set(HEAVY)
    assert {"numpy", "PIL"} <= loaded


@pytest.mark.parametrize("name", modules("runtime"))
def test_runtime_imports_nothing_of_the_other_packages(name: str) -> None:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    others = ("captionlite.training", "captionlite.export", "captionlite.benchmarks")
    assert not [module for module in imports(Path(spec.origin)) if module.startswith(others)]


@pytest.mark.parametrize("package", ["training", "export"])
def test_packages_import_only_downwards(package: str) -> None:
    above = {"training": ("captionlite.export", "captionlite.benchmarks"), "export": ("captionlite.benchmarks",)}
    for path in (ROOT / package).rglob("*.py"):
        assert not [module for module in imports(path) if module.startswith(above[package])], path


@pytest.mark.skipif(importlib.util.find_spec("jax") is None, reason="jax is not installed")
def test_training_on_jax_loads_no_tensorflow() -> None:
    code = "import importlib\n" + "\n".join(f"importlib.import_module({name!r})" for name in modules("training"))
    loaded = loaded_by(code, KERAS_BACKEND="jax", CUDA_VISIBLE_DEVICES="")
    assert "jax" in loaded
    assert not loaded & {"tensorflow", "torch", "transformers"}


@pytest.mark.parametrize("name", ["datasets", "datasets.flickr8k", "datasets.jsonl", "scoring", "files"])
def test_data_and_scoring_load_no_keras(name: str) -> None:
    assert not loaded_by(f"import captionlite.training.{name}") & {"keras", "tensorflow", "jax"}


def test_a_missing_extra_is_named() -> None:
    code = (
        "import sys\nsys.modules['rich'] = None\n"  # as if not installed
        "from captionlite.runtime.cli import main\nmain(['evaluate', '--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "pip install 'captionlite[bench]'" in done.stderr
    assert "Traceback" not in done.stderr
