"""An ONNX Runtime session whose inputs and outputs are bound once, and the choice of the fastest of several."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
THREADS = (1, 2)
TRIALS, TRIAL_SECONDS = 7, 0.03

_TYPES = {"tensor(float)": np.float32, "tensor(int32)": np.int32, "tensor(int64)": np.int64, "tensor(uint8)": np.uint8}


class Session:
    """`inputs[name]` and `outputs[name]` are arrays that `run` reads and writes; nothing is copied or allocated.

    Sequential execution, every graph optimization, on the CPU.
    """

    def __init__(self, path: Path, threads: int) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self._binding = self._session.io_binding()
        self.inputs = {each.name: np.zeros(each.shape, _TYPES[each.type]) for each in self._session.get_inputs()}
        self.outputs = {each.name: np.zeros(each.shape, _TYPES[each.type]) for each in self._session.get_outputs()}
        for name, array in self.inputs.items():
            self._binding.bind_input(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)
        for name, array in self.outputs.items():
            self._binding.bind_output(name, "cpu", 0, array.dtype, array.shape, array.ctypes.data)

    def run(self) -> None:
        """Compute the outputs from the inputs."""
        self._session.run_with_iobinding(self._binding)

    def feed(self, values: Mapping[str, Array]) -> None:
        """Set the inputs of these names."""
        for name, value in values.items():
            if name in self.inputs:
                self.inputs[name][...] = value


def fastest(paths: Mapping[str, Path], sample: Mapping[str, Array]) -> tuple[str, int, dict[str, float]]:
    """Which of these files, on how many threads, computes one sample fastest; milliseconds of all that were tried.

    They take turns, and the median counts.
    """
    sessions = {(name, threads): Session(path, threads) for name, path in paths.items() for threads in THREADS}
    times: dict[tuple[str, int], list[float]] = {key: [] for key in sessions}
    for trial in range(TRIALS + 1):
        for key, session in sessions.items():
            session.feed(sample)
            session.run()
            count, started = 0, perf_counter()
            while count == 0 or perf_counter() - started < TRIAL_SECONDS:
                session.run()
                count += 1
            if trial:  # the first warms up
                times[key].append((perf_counter() - started) / count)
    medians = {key: median(values) for key, values in times.items()}
    name, threads = min(medians, key=lambda key: medians[key])
    told = {f"{name}, {threads} threads": round(1e3 * seconds, 4) for (name, threads), seconds in medians.items()}
    return name, threads, told


def distance(path: Path, reference: Path, samples: Sequence[Mapping[str, Array]]) -> float:
    """Relative RMS difference of all outputs over samples; banned words (below -1e3) are left out."""
    found, expected = Session(path, 1), Session(reference, 1)
    difference = power = 0.0
    for sample in samples:
        for session in (found, expected):
            session.feed(sample)
            session.run()
        for name, wanted in expected.outputs.items():
            said = wanted > -1e3
            difference += float(np.square(found.outputs[name][said] - wanted[said].astype(np.float64)).sum())
            power += float(np.square(wanted[said], dtype=np.float64).sum())
    return float(np.sqrt(difference / max(power, 1e-30)))
