"""What a step and the encoder cost by the size of the model: one factor varied, everything else as in a base model.

Models of a family are built with random weights, which take as long as trained ones, and go through the real export:
Keras, TensorFlow's converter, the recipe int8. All sizes of a factor take turns, so that whatever else the machine does
meets all alike. Time is that of the bare graph, the lower quartile of its runs: other work only ever adds to it.

The fitted cost is a straight line, us = a + b x, by least squares over all sizes. For width and image size x is the
square, because that is how weights and pixels grow; for threads it is 1 / threads (Amdahl's law).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from captionlite.benchmarks.results import rounded
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.interpreter import Graph, core_count

if TYPE_CHECKING:
    from captionlite.training.encoders import EncoderSpec

Measure = Literal["step", "encoder"]

PRESETS = {  # the base model of each family
    "transformer": "default",
    "lstm": "show_and_tell",
    "gru_attention": "show_attend_tell",
    "masked_lm": "bimodal_small",
}
WIDTHS = ("units", "key_dim", "feed_forward", "embedding", "attention", "image_bottleneck", "logits_bottleneck")
VOCABULARY = 2500
IMAGE = 224
BURST = 8  # runs in a row of one graph's turn, of which the first finds other graphs' weights in the caches
ROUNDS, QUICK_ROUNDS = 60, 20
CALIBRATION_PICTURES = 4


@dataclass(frozen=True)
class Factor:
    """What can be varied: values, the graph it is measured on, what the line is fitted over, and which families."""

    title: str
    measures: Measure
    values: tuple[int, ...]
    quick: tuple[int, ...]
    fitted_over: str
    x: Callable[[float], float] = lambda value: value
    families: tuple[str, ...] = tuple(PRESETS)


FACTORS = {
    "vocabulary": Factor("words", "step", (1250, 2500, 5000, 10000, 20000), (1250, 5000, 20000), "words"),
    "layers": Factor("layers", "step", (1, 2, 3, 4, 6), (1, 2, 4), "layers", families=("transformer", "masked_lm")),
    "width": Factor("units", "step", (128, 192, 256, 384, 512), (128, 256, 512), "units^2", lambda value: value**2),
    "beam": Factor("hypotheses in a batch", "step", (1, 2, 3, 5, 8), (1, 3, 8), "hypotheses"),
    "length": Factor("longest caption (tokens)", "step", (12, 24, 48, 96, 192), (12, 48, 192), "tokens"),
    "image": Factor(
        "pixels a side", "encoder", (96, 128, 160, 192, 224, 256, 320), (96, 160, 224), "pixels^2", lambda v: v**2
    ),
    "threads": Factor("threads", "encoder", (1, 2, 3, 4, 6, 8), (1, 2, 4), "1 / threads", lambda value: 1 / value),
}


@dataclass(frozen=True)
class Fit:
    """us = a + b x; r2 is the share of the variance that the line explains, None for two points or no variance."""

    a: float
    b: float
    r2: float | None


@dataclass(frozen=True)
class Point:
    """A model to be timed: the graph on so many threads with a batch of so many."""

    value: int
    recipe: str
    content: bytes
    threads: int
    batch: int
    specs: Any  # inputs and outputs as the float32 file has them


def fit(x: Sequence[float], us: Sequence[float]) -> Fit:
    """The line of least squares through at least two points with two different x. Raises ValueError otherwise."""
    if len(set(x)) < 2:
        raise ValueError(f"{len(set(x))} different sizes, expected at least two to lay a line through")
    across, up = np.asarray(x, float), np.asarray(us, float)
    b = float(np.sum((across - across.mean()) * (up - up.mean())) / np.sum((across - across.mean()) ** 2))
    a = float(up.mean() - b * across.mean())
    total = float(np.sum((up - up.mean()) ** 2))
    left = float(np.sum((up - a - b * across) ** 2))
    return Fit(a, b, None if len(x) < 3 or total == 0 else 1 - left / total)


def time_points(
    points: Sequence[Point],
    rounds: int,
    clock: Callable[[], float] = perf_counter,
    between: Callable[[int, int], None] = lambda done, of: None,
) -> list[tuple[float, float]]:
    """Seconds of each point's bare `invoke()`, lower quartile and median; the points take turns."""
    graphs = [_loaded(point) for point in points]
    invokes = [graph._interpreter.invoke for graph in graphs]
    samples: list[list[float]] = [[] for _ in points]
    for number in range(rounds + 1):  # the first warms up
        for invoke, found in zip(invokes, samples, strict=True):
            invoke()
            for _ in range(BURST - 1):
                started = clock()
                invoke()
                ended = clock()
                if number:
                    found.append(ended - started)
        between(number + 1, rounds + 1)
    return [tuple(map(float, np.percentile(found, (25, 50)))) for found in samples]  # type: ignore[misc]


def _loaded(point: Point) -> Graph:
    graph = Graph(point.content, *point.specs, threads=point.threads, where=f"model of size {point.value}")
    graph.resize_batch(point.batch)
    random = np.random.default_rng(0)
    for view in graph.inputs.values():
        array = view()
        is_float = array.dtype == np.float32
        array[...] = random.normal(size=array.shape) if is_float else 4  # a word, and a position that has a past
        del array
    graph.invoke()
    return graph


class Builder:
    """Untrained models of one family through the real export; what has been built is kept."""

    def __init__(
        self,
        family: str,
        *,
        changes: Mapping[str, Any] | None = None,
        vocabulary: int = VOCABULARY,
        encoder: Callable[[int], EncoderSpec] | None = None,
        image: int = IMAGE,
    ) -> None:
        """`changes` to the family's base config; `encoder` gives the one for pictures of so many pixels a side."""
        from captionlite.training.config import load_config

        self.config = {**load_config(PRESETS[family]).family, **(changes or {})}
        self.vocabulary, self.image = vocabulary, image
        self.encoder = encoder or sized_encoder
        self._kept: dict[tuple[str, int], dict[str, tuple[bytes, Any]]] = {}

    def points(self, factor: str, value: int, recipes: Sequence[str]) -> list[Point]:
        """The models of one size, one a recipe."""
        made = self._made(*self._model(factor, value))
        threads = value if factor == "threads" else core_count() if FACTORS[factor].measures == "encoder" else 1
        batch = value if factor == "beam" else 1
        return [Point(value, recipe, made[recipe][0], threads, batch, made[recipe][1]) for recipe in recipes]

    def _model(self, factor: str, value: int) -> tuple[str, int]:
        """What has to be built: sizes that change no graph are the base model's."""
        if factor == "threads":
            return "image", self.image
        return ("base", 0) if factor == "beam" else (factor, value)

    def _made(self, factor: str, value: int) -> dict[str, tuple[bytes, Any]]:
        if (factor, value) not in self._kept:
            self._kept[factor, value] = self._encoder(value) if factor == "image" else self._step(factor, value)
        return self._kept[factor, value]

    def _step(self, factor: str, value: int) -> dict[str, tuple[bytes, Any]]:
        import keras

        from captionlite.export.graphs import DecoderGraph
        from captionlite.training.families import build_family

        keras.utils.set_random_seed(0)
        vocabulary = value if factor == "vocabulary" else self.vocabulary
        model = build_family(resized(self.config, factor, value), self.encoder(self.image).feature_shape, vocabulary)
        _no_zeros(model)
        return _exported(DecoderGraph(model), "decoder")

    def _encoder(self, side: int) -> dict[str, tuple[bytes, Any]]:
        import keras

        from captionlite.export.golden import drawn_photographs
        from captionlite.export.graphs import EncoderGraph
        from captionlite.runtime.manifest import ImageSpec
        from captionlite.training.encoders import ENCODERS, build_encoder
        from captionlite.training.families import build_family

        keras.utils.set_random_seed(0)
        spec = self.encoder(side)
        height, width = spec.image_size
        model = build_family(self.config, spec.feature_shape, self.vocabulary)
        _no_zeros(model)
        with _registered(ENCODERS, spec):
            encoder = build_encoder(spec.name, None)
        pictures = [{"image": p[None]} for p in drawn_photographs(height, width, CALIBRATION_PICTURES)]
        return _exported(EncoderGraph(encoder, model, ImageSpec(height, width)), "encoder", pictures)


def resized(config: Mapping[str, Any], factor: str, value: int) -> dict[str, Any]:
    """A family's config with one factor changed; a width takes all other widths with it, in the same proportion."""
    changed = dict(config)
    if factor == "layers":
        changed["layers"] = value
    elif factor == "length":
        changed["max_length"] = value
    elif factor == "width":
        for name in WIDTHS:
            if name in config:
                changed[name] = max(1, round(config[name] * value / config["units"]))
    return changed


def sized_encoder(side: int) -> EncoderSpec:
    """EfficientNet-Lite0 for square pictures; its grid is a 32nd of them, rounded up."""
    from captionlite.training.efficientnet_lite import build_efficientnet_lite
    from captionlite.training.efficientnet_lite_blocks import EFFICIENTNET_LITE0
    from captionlite.training.encoders import EncoderSpec

    def build(weights: str | None) -> Any:
        return build_efficientnet_lite(dataclasses.replace(EFFICIENTNET_LITE0, image_size=(side, side)))

    grid = -(-side // 32)
    return EncoderSpec(f"efficientnet_lite0_{side}", (side, side), (grid, grid, 1280), "(pixel - 127) / 128", build)


@contextmanager
def _registered(encoders: dict[str, EncoderSpec], spec: EncoderSpec) -> Iterator[None]:
    known = encoders.get(spec.name)
    encoders[spec.name] = spec
    try:
        yield
    finally:
        if known is None:
            del encoders[spec.name]
        else:
            encoders[spec.name] = known


def _no_zeros(model: Any) -> None:
    """Weights as training leaves them: nowhere zero."""
    random = np.random.default_rng(0)
    for weight in model.weights:
        weight.assign(weight + random.normal(0.0, 0.02, weight.shape).astype("float32"))


def _exported(module: Any, graph: str, samples: Sequence[dict[str, Any]] = ()) -> dict[str, tuple[bytes, Any]]:
    """float32 and int8 files with the inputs and outputs of the float32 one, which alone knows what is a batch."""
    from captionlite.export.convert import convert
    from captionlite.export.quantization import quantize
    from captionlite.export.recipes import recipe
    from captionlite.export.tflite_file import signature_specs

    content = convert(module)
    specs = signature_specs(content)
    quantized = quantize(content, recipe("int8").graph(graph), lambda: samples, graph, tried=False)
    return {"float32": (content, specs), "int8": (quantized, specs)}


def measure_factor(
    builder: Builder,
    name: str,
    values: Sequence[int],
    recipes: Sequence[str] = ("float32", "int8"),
    *,
    rounds: int = ROUNDS,
    built: Callable[[int, int], None] = lambda done, of: None,
    between: Callable[[int, int], None] = lambda done, of: None,
) -> dict[str, Any]:
    """One factor's part of the result. Raises CaptionliteError when there are not two sizes to lay a line through."""
    factor = FACTORS[name]
    values = sorted(set(values))
    if name == "threads":
        values = [value for value in values if value <= core_count()]
    if len(values) < 2:
        raise CaptionliteError(
            f"{name}: {len(values)} size{'s' if len(values) != 1 else ''} to measure here, expected at least two"
            + (f"; this machine has {core_count()} core(s)" if name == "threads" else "")
        )
    points: list[Point] = []
    for done, value in enumerate(values):
        points += builder.points(name, value, recipes)
        built(done + 1, len(values))
    timed = time_points(points, rounds, between=between)
    series = {}
    for recipe in recipes:
        mine = [(low, middle) for point, (low, middle) in zip(points, timed, strict=True) if point.recipe == recipe]
        us = [1e6 * low for low, _ in mine]
        line = fit([factor.x(value) for value in values], us)
        series[recipe] = {
            "us": [rounded(value) for value in us],
            "median_us": [rounded(1e6 * middle) for _, middle in mine],
            "file_bytes": [len(point.content) for point in points if point.recipe == recipe],
            "fit": {
                "a_us": rounded(line.a),
                "b_us": rounded(line.b),
                "r2": None if line.r2 is None else round(line.r2, 4),
            },
        }
    return {
        "title": factor.title,
        "measured_on": factor.measures,
        "threads": "varied" if name == "threads" else points[0].threads,
        "values": list(values),
        "fitted_over": factor.fitted_over,
        "series": series,
    }
