"""`python -m captionlite.benchmarks.keras_caption RUN IMAGE`: one caption from the Keras model, nothing measured here.

What somebody without an export step would run; `captionlite.benchmarks.cold_start` measures it from outside.
"""

import sys


def caption(run_directory: str, image: str) -> str:
    """The caption of the trained run, greedily, through Keras on its active backend."""
    from captionlite.training.run import load_run

    return load_run(run_directory).caption(image)


if __name__ == "__main__":
    # TensorFlow imports jax where it finds it, which costs a second; whoever captions with TensorFlow needs none.
    sys.modules["jax"] = None  # type: ignore[assignment]
    print(caption(*sys.argv[1:]))
