"""What each group of ops can bear: quantized alone in each of its ways, what it damages, and what it saves.

Damage is measured in numbers, which tell more in 100 photographs than captions do in 1,000: the encoder's outputs, and
the decoder's distributions over words along the float32 bundle's own captions. The Kullback-Leibler divergence of
those is a common currency for groups of both graphs, and roughly additive (it grows with the square of an error, and
errors of different groups are nearly independent), which is what lets `pareto.walk` predict combinations.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np

from captionlite.export.calibration import Calibration
from captionlite.export.op_groups import CONVOLUTIONS, JOINING, WEIGHTED, Group, expression, find_groups
from captionlite.export.parity import logits_along
from captionlite.export.quantization import every_range, quantize
from captionlite.export.recipes import GraphRecipe, Mode, Override, Ranges, Recipe
from captionlite.export.tflite_file import Op, read_ops
from captionlite.runtime.bundle import Bundle, write_bundle
from captionlite.runtime.captioner import Captioner

FLOAT32, BASE = "float32", "int8"
RANGES: dict[str, Ranges] = {"encoder": "moving_average", "decoder": "min_max", "refine": "min_max"}
KEPT_GRAPHS = 6  # of the bytes made last, per graph: neighbours share one graph or the other

Assignment: TypeAlias = Mapping[str, str]
"""Group key -> level; a group that is not named is float32."""


def _level(
    convolutions: Mode | None, products: Mode | None, tables: Mode | None, joins: Mode | None
) -> dict[str, Mode]:
    batched: dict[Mode, Mode] = {"dynamic_wi4_afp32": "dynamic_wi8_afp32"}  # what litert-quantizer has of these
    kinds: dict[str, Mode | None] = {
        **dict.fromkeys(CONVOLUTIONS, convolutions),
        "FULLY_CONNECTED": products,
        "BATCH_MATMUL": None if products in (None, "float_casting") else batched.get(products, products),
        "GATHER": tables,
        **dict.fromkeys(JOINING, joins),
    }
    return {kind: mode for kind, mode in kinds.items() if mode}


# The smallest first. Left out, because measured to lose on every side: dynamic int8 convolutions (slower than float32),
# convolutions of 4 bits (they lose the picture) and weight-only int4 (as exact as dynamic int4, and slower).
LEVELS: dict[str, dict[str, Mode]] = {
    "int4": _level("static_wi8_ai8", "dynamic_wi4_afp32", "static_wi8_ai8", "static_wi8_ai8"),
    "int8": _level("static_wi8_ai8", "dynamic_wi8_afp32", "static_wi8_ai8", "static_wi8_ai8"),
    "static-int8": _level("static_wi8_ai8", "static_wi8_ai8", "static_wi8_ai8", "static_wi8_ai8"),
    "weight-only-int8": _level("weight_only_wi8_afp32", "weight_only_wi8_afp32", "static_wi8_ai8", None),
    "float16": _level("float_casting", "float_casting", None, None),
    FLOAT32: {},
}


def levels(group: Group) -> list[str]:
    """The names of LEVELS that differ for this group's ops, float32 at the end."""
    found: dict[str, str] = {}
    for name in (BASE, FLOAT32, *LEVELS):  # of equal ones the first counts
        own = json.dumps({kind: LEVELS[name].get(kind) for kind in group.kinds})
        found.setdefault(own, name)
    return [name for name in LEVELS if name in found.values()]


def graph_recipe(groups: Sequence[Group], assignment: Assignment, ops: Sequence[Op], ranges: Ranges) -> GraphRecipe:
    """The assignment of one graph's groups as rules: for each kind of op what most have, then the exceptions."""
    rules = []
    for kind in (*WEIGHTED, *JOINING):
        of_kind = [op for op in ops if op.name == kind]
        modes: dict[Mode | None, list[Group]] = {}
        for group in groups:
            if kind in group.kinds:
                mode = LEVELS[assignment.get(group.key, FLOAT32)].get(kind)
                modes.setdefault(mode, []).append(group)
        counts = {mode: sum(op.name == kind for g in found for op in g.ops) for mode, found in modes.items()}
        usual = max(counts, key=lambda mode: counts[mode], default=None)
        whole = sum(counts.values()) == len(of_kind)  # else a rule for all would reach ops that are in no group
        if usual and whole:
            rules.append(_rule(usual, kind))
        for mode, found in modes.items():
            if (mode == usual and (whole or not usual)) or (mode is None and not whole):
                continue
            parts = [expression([op for op in group.ops if op.name == kind], of_kind) for group in found]
            rules.append(_rule(mode or "no_quantize", kind, "|".join(parts)))
    return GraphRecipe(ranges=ranges, overrides=tuple(rules))


def _rule(mode: Mode, kind: str, regex: str = ".*") -> Override:
    if mode == "dynamic_wi4_afp32":
        return Override(mode, kind, regex, algorithm_key="OCTAV")
    return Override(mode, kind, regex)


@dataclasses.dataclass(frozen=True)
class Damage:
    """What a change does: relative RMS error of the encoder's outputs, mean divergence of the word distributions (nats
    a position), and the part of positions whose likeliest word is another.
    """

    encoder_rms: float
    divergence: float
    top1_changed: float


class Reference:
    """What the float32 bundle makes of some photographs, to hold others against."""

    def __init__(self, captioner: Captioner, photographs: Sequence[np.ndarray]) -> None:
        """``photographs``: uint8 (H, W, 3) each."""
        spec = captioner.bundle.manifest.decoding
        size = captioner.bundle.manifest.vocabulary.size
        self._allowed = np.setdiff1d(np.arange(size), spec.suppressed_ids)
        self.photographs = photographs
        self._encoded = [captioner.encode_pixels(pixels) for pixels in photographs]
        self._fed: list[list[int]] = []
        self._logprobs: list[np.ndarray] = []  # (T, words that are allowed)
        for encoded in self._encoded:
            tokens = captioner.decode(encoded).tokens
            self._fed.append([spec.start_id, *tokens][: len(tokens)])
            self._logprobs.append(self._distributions(captioner, encoded, self._fed[-1]))

    def damage(self, captioner: Captioner, *, encoder_changed: bool = True) -> Damage:
        """Of a bundle of the same model. An encoder that is known to be the float32 one need not run again."""
        squares: dict[str, list[float]] = {}
        divergence, changed, positions = 0.0, 0, 0
        for row, pixels in enumerate(self.photographs):
            expected = self._encoded[row]
            encoded = captioner.encode_pixels(pixels) if encoder_changed else expected
            for name, value in expected.items():
                sums = squares.setdefault(name, [0.0, 0.0])
                sums[0] += float(np.square(encoded[name] - value, dtype=np.float64).sum())
                sums[1] += float(np.square(value, dtype=np.float64).sum())
            found = self._distributions(captioner, encoded, self._fed[row])
            truth = self._logprobs[row]
            divergence += float((np.exp(truth) * (truth - found)).sum(dtype=np.float64))
            changed += int((truth.argmax(axis=1) != found.argmax(axis=1)).sum())
            positions += len(truth)
        relative = [error / max(size, 1e-30) for error, size in squares.values()]
        return Damage(float(np.sqrt(np.mean(relative))), divergence / positions, changed / positions)

    def _distributions(self, captioner: Captioner, encoded: Mapping[str, Any], fed: Sequence[int]) -> np.ndarray:
        logits = logits_along(captioner, encoded, fed)[:, self._allowed]
        logits -= logits.max(axis=1, keepdims=True)
        found: np.ndarray = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
        return found


class Workshop:
    """Makes quantized graphs of one float32 bundle, as many as are wanted, and captioners of them.

    Every graph is calibrated once; what comes out equals `bundle_quantizer.quantize_bundle` byte for byte.
    """

    def __init__(self, bundle: Bundle, photographs: Sequence[np.ndarray], scratch: Path) -> None:
        """``photographs``: uint8 (H, W, 3), to calibrate on. ``scratch``: a folder for bundles that are soon gone."""
        self.bundle = bundle
        self.contents = {graph: bundle.read(spec.file) for graph, spec in bundle.manifest.graphs.items()}
        self.groups = [g for graph in ("encoder", "decoder") for g in find_groups(self.contents[graph], graph)]
        self._scratch = scratch
        self._ops = {graph: read_ops(content) for graph, content in self.contents.items()}
        self._refine = find_groups(self.contents["refine"], "refine") if "refine" in self.contents else []
        self._calibration = Calibration(photographs, lambda: Captioner(bundle, 1))
        self._ranges: dict[tuple[str, Ranges], dict[str, Any]] = {}
        self._made = lru_cache(KEPT_GRAPHS * len(self.contents))(self._make)

    def recipe(self, name: str, description: str, assignment: Assignment, tolerance: float) -> Recipe:
        """The assignment as a recipe; the graph of parallel passes follows the decoder's groups of the same name."""
        by_graph = {
            graph: graph_recipe(
                [g for g in self.groups if g.graph == graph], assignment, self._ops[graph], RANGES[graph]
            )
            for graph in ("encoder", "decoder")
        }
        refine = None
        if self._refine:
            mirrored = {g.key: assignment.get(f"decoder/{g.name}", self._usual(assignment)) for g in self._refine}
            refine = graph_recipe(self._refine, mirrored, self._ops["refine"], RANGES["refine"])
        return Recipe(name, description, tolerance, by_graph["encoder"], by_graph["decoder"], refine)

    def _usual(self, assignment: Assignment) -> str:
        sizes: dict[str, int] = {}
        for group in self.groups:
            level = assignment.get(group.key, FLOAT32)
            if group.graph == "decoder":
                sizes[level] = sizes.get(level, 0) + group.weights_bytes
        return max(sizes, key=lambda level: sizes[level], default=FLOAT32)

    def graphs(self, recipe: Recipe, *, tried: bool = True) -> dict[str, bytes]:
        """The bundle's graphs as the recipe has them. Raises ExportError as `quantization.quantize` does.

        Not ``tried``: of groups each of which has been tried alone.
        """
        return {graph: self._made(graph, recipe.graph(graph), tried) for graph in self.contents}

    def _make(self, graph: str, recipe: GraphRecipe, tried: bool) -> bytes:
        content = self.contents[graph]
        known = self._known(graph, recipe.ranges) if recipe.needs_calibration else None
        return quantize(content, recipe, None, graph, known=known, tried=tried)

    def _known(self, graph: str, ranges: Ranges) -> dict[str, Any]:
        if (graph, ranges) not in self._ranges:
            samples = self._calibration.samples(graph)
            self._ranges[graph, ranges] = every_range(self.contents[graph], ranges, samples)
        return self._ranges[graph, ranges]

    @contextmanager
    def opened(self, recipe: Recipe, *, tried: bool = True) -> Iterator[Callable[[int | None], Captioner]]:
        """Within, a function from threads (None: all cores) to a captioner of the bundle as the recipe has it."""
        manifest = dataclasses.replace(self.bundle.manifest, files={})
        files = {manifest.graphs[graph].file: content for graph, content in self.graphs(recipe, tried=tried).items()}
        files[manifest.vocabulary.file] = self.bundle.read(manifest.vocabulary.file)
        folder = Path(tempfile.mkdtemp(dir=self._scratch))
        try:
            write_bundle(folder / "bundle", manifest, {**files, manifest.golden.file: b"", "README.md": b""})
            opened = Bundle.open(folder / "bundle")
            yield lambda threads: Captioner(opened, threads)
        finally:
            shutil.rmtree(folder, ignore_errors=True)


def recipe_key(recipe: Recipe) -> str:
    """What a recipe makes of the graphs, whatever it is called: the same rules have the same key."""
    rules = {name: dataclasses.asdict(recipe.graph(name)) for name in ("encoder", "decoder", "refine")}
    return hashlib.sha256(json.dumps(rules, sort_keys=True).encode()).hexdigest()[:16]
