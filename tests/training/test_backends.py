"""A stage's steps on TensorFlow and on JAX: the same samples, losses, gradients and weights, to float32's rounding."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import keras
import numpy as np
import pytest
import stage_steps

HERE = keras.backend.backend()
OTHER = {"tensorflow": "jax", "jax": "tensorflow"}[HERE]
QUICK = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"  # to compile, not to run


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a process on the other backend wrote."""
    if importlib.util.find_spec(OTHER) is None:
        pytest.skip(f"{OTHER} is not installed")
    folder = tmp_path_factory.mktemp(OTHER)
    environment = {**os.environ, "KERAS_BACKEND": OTHER, "CUDA_VISIBLE_DEVICES": "", "JAX_PLATFORMS": "cpu"}
    if OTHER == "jax":
        environment["XLA_FLAGS"] = QUICK
    command = [sys.executable, stage_steps.__file__, str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.mark.parametrize("stage", stage_steps.STAGES)
def test_a_step_is_the_same_on_both_backends(stage: str, elsewhere: Path) -> None:
    here = stage_steps.run_steps(stage)
    with np.load(elsewhere / f"{stage}.npz") as there:
        assert set(here) == set(there.files)
        kinds = {key.split("/")[0] for key in here}
        assert kinds == {"figures", "weights", "slots", "averages"} | (
            {"samples"} if stage == "self_critical" else set()
        )
        for key, value in here.items():
            # A bias of keys has no gradient but rounding, some 1e-10; velocities are squared gradients, far smaller.
            floor = 1e-12 if key.endswith("velocity") else 1e-8
            size = float(np.abs(value).max(initial=0.0))
            np.testing.assert_allclose(there[key], value, rtol=1e-4, atol=1e-5 * size + floor, err_msg=key)


def test_a_word_that_a_batch_has_often_has_one_gradient() -> None:
    """Adam squares the sum of a row's gradients, and clipping measures it; not each occurrence by itself."""
    stage, model = stage_steps.build_stage("cross_entropy")
    batch = next(stage.plan.epoch(0))
    stage.run(batch, 0)
    stage.sync()
    slots = {v.path.split("/")[-1]: stage_steps.numpy(v) for v in stage.optimizer.variables}
    momentum, velocity = (slots[f"{model.name}_token_embedding_embeddings_{kind}"] for kind in ("momentum", "velocity"))
    gradient = momentum / 0.1  # 1 - beta_1
    assert np.count_nonzero(np.abs(gradient).max(axis=1)) > 5
    np.testing.assert_allclose(velocity, 0.001 * gradient**2, rtol=1e-4, atol=1e-12)
    assert np.linalg.norm(gradient) <= stage_steps.OPTIMIZER.clipnorm * 1.0001  # type: ignore[operator]
