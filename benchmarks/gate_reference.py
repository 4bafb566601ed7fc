"""What `captionlite gate` holds a bundle to: the float32 bundle, or the Keras model of a training run.

Either tells, of a few photographs at a time, what the encoder gives out, the caption, and the logits along it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from captionlite.benchmarks.evaluation import describe_recipe
from captionlite.export.parity import logits_along
from captionlite.export.tflite_file import is_quantized
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.captioner import Captioner
from captionlite.runtime.decoding import Caption, DecodingOptions
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.manifest import DecodingSpec, ImageSpec, StateSpec

if TYPE_CHECKING:
    from captionlite.training.run import Run

Pixels = npt.NDArray[np.uint8]  # (height, width, 3)
Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Shown:
    """One photograph through the reference: encoder outputs by name, each (1, ...), caption, logits (T, V) along it."""

    encoded: dict[str, Array]
    caption: Caption
    logits: Array


class Reference(Protocol):
    """The float model."""

    kind: str  # "float32 bundle" or "Keras run"
    name: str
    location: Path
    facts: Facts

    def check(self, options: DecodingOptions) -> None:
        """Raises CaptionliteError when it cannot decode so."""

    def show(self, batch: Sequence[Pixels], options: DecodingOptions) -> list[Shown]:
        """Each photograph of a batch."""


@dataclass(frozen=True)
class Facts:
    """What must be the same of two models for their numbers to be compared."""

    family: str
    image: ImageSpec
    pieces: tuple[str, ...]
    ids: tuple[Any, ...]  # start, end, suppressed, and the largest number of steps
    state: dict[str, StateSpec]
    encoder_outputs: frozenset[str]

    @classmethod
    def of_bundle(cls, bundle: Bundle) -> Facts:
        manifest = bundle.manifest
        return cls(
            family=manifest.family,
            image=manifest.image,
            pieces=tuple(bundle.vocabulary.pieces),
            ids=_ids(manifest.decoding),
            state={row.name: row for row in manifest.state},
            # Labels are no part of a caption, and a run has none.
            encoder_outputs=frozenset(spec.name for spec in manifest.graphs["encoder"].outputs)
            - frozenset((manifest.labels.output,) if manifest.labels else ()),
        )

    def require_same(self, other: Facts, ours: str, theirs: str) -> None:
        """Raises CaptionliteError naming the first fact in which `other`, at `theirs`, is another model."""
        for field in fields(self):
            found, expected = getattr(self, field.name), getattr(other, field.name)
            if found != expected:
                raise CaptionliteError(
                    f"{ours}: {_difference(field.name, found, expected)} {theirs}, the reference. A bundle is held to "
                    f"the float model that it was made of; give that one as --reference."
                )


def _ids(spec: DecodingSpec) -> tuple[Any, ...]:
    return spec.start_id, spec.end_id, tuple(sorted(spec.suppressed_ids)), spec.max_length


def _difference(name: str, found: Any, expected: Any) -> str:
    """The beginning of the refusal, up to where the reference is named."""
    if name == "pieces":
        if len(found) != len(expected):
            return f"the vocabulary has {len(found)} pieces, expected the {len(expected)} of"
        first = next(i for i, (a, b) in enumerate(zip(found, expected, strict=True)) if a != b)
        return f"piece {first} of the vocabulary is {found[first]!r}, expected {expected[first]!r} as in"
    if name == "image":
        sides = (f"{spec.height} x {spec.width}, {spec.resize}, {spec.resample}" for spec in (found, expected))
        return "photographs are taken as {}, expected {} as by".format(*sides)
    if name == "state":
        names = sorted(row for row in found.keys() | expected.keys() if found.get(row) != expected.get(row))
        row = names[0]
        return f"the state {row} is {found.get(row, 'missing')}, expected {expected.get(row, 'none')} as in"
    if name == "ids":
        return f"start, end and suppressed ids and the most steps are {found}, expected {expected} as in"
    if name == "encoder_outputs":
        return f"the encoder's outputs are {sorted(found)}, expected {sorted(expected)} as of"
    return f"the {name} is {found}, expected {expected} as of"


def open_reference(path_or_name: str, threads: int | None = None) -> Reference:
    """A training run's directory, or a float32 bundle.

    Raises CaptionliteError when it is neither, and ImportError where Keras, which a run needs, is not installed.
    """
    path = Path(path_or_name)
    if (path / "config.json").is_file() and not (path / "manifest.json").is_file():
        from captionlite.training.run import load_run

        return RunReference(load_run(path))
    return BundleReference(Bundle.open(path_or_name), threads)


class BundleReference:
    """A float32 bundle through the device runtime."""

    kind = "float32 bundle"

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        for spec in bundle.manifest.graphs.values():
            if is_quantized(bundle.read(spec.file)):
                raise CaptionliteError(
                    f"{bundle.location}/{spec.file}: quantized (recipe {describe_recipe(bundle.manifest)}), and no "
                    f"yardstick for another. Give the float32 bundle (captionlite export RUN --recipe float32) or the "
                    f"training run as --reference."
                )
        self.bundle = bundle
        self.name, self.location = bundle.manifest.name, bundle.location
        self.facts = Facts.of_bundle(bundle)
        self._captioner = Captioner(bundle, threads)

    def check(self, options: DecodingOptions) -> None:
        self._captioner.check(options)

    def show(self, batch: Sequence[Pixels], options: DecodingOptions) -> list[Shown]:
        encoded = [self._captioner.encode_pixels(pixels) for pixels in batch]
        for outputs in encoded:
            _require_finite(outputs, self.location)
        captions = self._captioner.decode_many(encoded, options)
        start = self.bundle.manifest.decoding.start_id
        return [
            Shown(
                {name: one[name] for name in one if name in self.facts.encoder_outputs},
                caption,
                logits_along(self._captioner, one, [start, *caption.tokens[:-1]]),
            )
            for one, caption in zip(encoded, captions, strict=True)
        ]


class RunReference:
    """A training run's Keras model. It decodes greedily: its other searches are training's, not the device's."""

    kind = "Keras run"

    def __init__(self, run: Run) -> None:
        from captionlite.training.vocabulary import END_ID, START_ID

        self.run = run
        self.name, self.location = run.config.name, run.directory
        self._start, self._end = START_ID, END_ID
        model = run.model
        suppressed = tuple(sorted(run.vocabulary.suppressed_ids))
        features = np.zeros((1, *model.feature_shape), np.float32)
        self._allowed = np.setdiff1d(np.arange(len(run.vocabulary)), suppressed)
        self.facts = Facts(
            family=model.family,
            image=run.image_spec,
            pieces=tuple(run.vocabulary.runtime_vocabulary()["pieces"]),
            ids=(START_ID, END_ID, suppressed, model.max_length),
            state={row.name: row for row in model.state_specs()},
            encoder_outputs=frozenset(model.initial_state(features)),
        )

    def check(self, options: DecodingOptions) -> None:
        if options != DecodingOptions():
            raise CaptionliteError(
                f"{self.location}: a Keras run decodes greedily only; leave the decoding options out, or give the "
                f"float32 bundle as --reference."
            )

    def show(self, batch: Sequence[Pixels], options: DecodingOptions) -> list[Shown]:
        features = self.run.features(np.stack(batch))  # (B, h, w, C)
        state = {name: np.asarray(value) for name, value in self.run.model.initial_state(features).items()}
        _require_finite(state, self.location)
        most = self.run.model.max_length
        said = [(t if len(t) == most else [*t, self._end]) for t in self.run.generator.generate(features)]
        fed = np.full((len(batch), max(map(len, said))), self._end, np.int32)
        fed[:, 0] = self._start
        for row, tokens in zip(fed, said, strict=True):
            row[1 : len(tokens)] = tokens[:-1]
        logits = self.run.generator.logits(features, fed)  # (B, T, V)
        return [
            Shown(
                {name: value[i : i + 1] for name, value in state.items()},
                self._caption(tokens, logits[i]),
                logits[i, : len(tokens)],
            )
            for i, tokens in enumerate(said)
        ]

    def _caption(self, tokens: Sequence[int], logits: Array) -> Caption:
        """What the runtime would return of these tokens; logits (T or more, V)."""
        logprobs = []
        for row, token in zip(logits, tokens, strict=False):
            allowed = row[self._allowed].astype(np.float64)
            logprobs.append(float(row[token] - allowed.max() - np.log(np.exp(allowed - allowed.max()).sum())))
        return Caption(
            text=self.run.vocabulary.decode([token for token in tokens if token != self._end]),
            tokens=tuple(tokens),
            logprobs=tuple(logprobs),
            logprob=sum(logprobs) / len(logprobs),
            timings_ms={},
            stop_reason="end" if tokens[-1] == self._end else "max_length",
            attention=None,
        )


def _require_finite(outputs: dict[str, Array], location: Path) -> None:
    for name, values in outputs.items():
        if not np.isfinite(values).all():
            raise CaptionliteError(
                f"{location}: the reference's own encoder output {name} is no finite number, so nothing can be held to "
                f"it. Check it with `captionlite verify`, or train again."
            )
