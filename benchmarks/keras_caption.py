"""`python -m captionlite.benchmarks.keras_caption RUN IMAGE`: one caption from the Keras model, nothing measured here.

What somebody without an export step would run; `captionlite.benchmarks.cold_start` measures it from outside.
"""

import sys

from captionlite.training.run import load_run

if __name__ == "__main__":
    run_directory, image = sys.argv[1:]
    print(load_run(run_directory).caption(image))
