"""Whether a bundle passes the gate: the part of the reference's CIDEr that its recipe promises, and fixed floors."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any

from captionlite.benchmarks.gate import Measured
from captionlite.benchmarks.gate_reference import BundleReference, Reference
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.errors import CaptionliteError
from captionlite.runtime.manifest import Manifest

MIN_PHOTOGRAPHS = 1_000
"""On fewer, the interval of the CIDEr ratio is wider than what is asked: some 3 points either way on 1,000."""
DEFAULT_MIN_CIDER_RATIO = 0.99


_BROKEN = "a graph is broken, or the reference is another model"


@dataclass(frozen=True)
class Floors:
    """What holds whatever the captions score: below these a graph is broken, not merely coarse.

    The default model on Flickr8k's 1,000 test photographs, the worst of its encoder outputs, in int8, full-int8, int4,
    weight-only int8 and int8 with float first blocks: mean cosine .984 or more, one photograph's .88, SNR 14.9 dB,
    relative RMS error of the logits .11 or less (an SNR of 19 dB), likeliest token the same at 92 % of the steps. Of
    its int8 broken on purpose: a convolution's scale doubled, cosine .41; zeroed, .01; the scale of the output layer
    doubled, relative RMS error 1.32; a cross-attention zeroed, likeliest token 80 %; cross keys and values swapped,
    75 %.

    Not everything shows: a head of attention zeroed or a feed-forward layer 10 % too loud costs no more than int4 does,
    and is up to CIDEr.
    """

    mean_cosine: float = 0.95
    photograph_cosine: float = 0.5
    snr_db: float = 10.0
    top1: float = 0.85

    def problems(self, measured: Measured) -> list[str]:
        """What is below a floor, in words."""
        found = []
        for output in measured.outputs:
            worst, missed = f"{output.worst_cosine:.3f} on {output.worst_photograph}", []
            if not output.mean_cosine >= self.mean_cosine:
                missed.append(f"a mean cosine of {output.mean_cosine:.4f} to the reference's, below {self.mean_cosine}")
            if not output.worst_cosine >= self.photograph_cosine:
                missed.append(f"a cosine to the reference's of {worst}, below {self.photograph_cosine}")
            if output.snr_db is not None and not output.snr_db >= self.snr_db:
                missed.append(f"a signal-to-noise ratio of {output.snr_db:.1f} dB, below {self.snr_db:g} dB")
            if missed:
                found.append(f"the encoder output {output.name} has {' and '.join(missed)}: {_BROKEN}")
        error, most = measured.logits.relative_rms, 10 ** (-self.snr_db / 20)
        if not error <= most:
            found.append(
                f"along the reference's captions the logits have a relative RMS error of {error:.2f}, above "
                f"{most:.2f}: {_BROKEN}"
            )
        if not measured.logits.top1 >= self.top1:
            worst = f"{percent(measured.worst_top1.top1)} on {measured.worst_top1.id}"
            found.append(
                f"along the reference's captions the likeliest token is the reference's at "
                f"{percent(measured.logits.top1)} of the steps ({worst}), below {percent(self.top1)}: {_BROKEN}"
            )
        return found


def percent(share: float) -> str:
    """As in "99.6 %"."""
    return f"{100 * share:.1f} %"


@dataclass(frozen=True)
class Bar:
    """The part of the reference's CIDEr that is asked for, and why: "by recipe int8"."""

    min_cider_ratio: float
    source: str
    floors: Floors = Floors()


@dataclass(frozen=True)
class Verdict:
    """`problems` fail the bundle; `warnings` do not, but a reader should know of them."""

    problems: tuple[str, ...]
    warnings: tuple[str, ...]
    headline: str

    @property
    def passed(self) -> bool:
        return not self.problems

    def to_json(self) -> dict[str, Any]:
        return {
            "passed": self.passed,
            "headline": self.headline,
            "problems": list(self.problems),
            "warnings": list(self.warnings),
        }


def bar_for(manifest: Manifest, override: float | None = None) -> Bar:
    """What a bundle must reach: by `override`, else by its recipe. A bundle cannot lower its own bar.

    A recipe of captionlite is known by its name and the hash of its content, and only such a one may ask for less than
    0.99; any other may ask for more. Raises CaptionliteError where recipes cannot be read for want of the quantizer.
    """
    if override is not None:
        return Bar(override, "by --min-cider-ratio")
    stated = manifest.provenance.get("recipe")
    stated = stated if isinstance(stated, dict) else {}
    name, names = stated.get("name"), {spec.recipe for spec in manifest.graphs.values()}
    if len(names) == 1 and not stated:
        name = next(iter(names))  # of a bundle from before recipes were recorded
    built_in = _built_in(name) if names == {name} else None
    if built_in is not None and stated.get("sha256") == built_in.provenance()["sha256"]:
        return Bar(built_in.min_cider_ratio, f"by recipe {name}")
    asked = [DEFAULT_MIN_CIDER_RATIO]
    if built_in is not None:
        asked.append(built_in.min_cider_ratio)
    content = stated.get("content")
    own = content.get("min_cider_ratio") if isinstance(content, dict) else None
    if isinstance(own, int | float) and 0 < own <= 1:
        asked.append(float(own))
    return Bar(max(asked), f"of recipes that are not captionlite's own ({name or ', '.join(sorted(names))})")


def _built_in(name: Any) -> Any:
    """captionlite's recipe of that name, or None."""
    from captionlite.export.recipes import recipe, recipe_names

    if name not in recipe_names():
        return None
    try:
        return recipe(name)
    except ImportError as error:
        raise CaptionliteError(
            f"what recipe {name} promises cannot be read without the quantizer ({error}). Install it with "
            f"`pip install 'captionlite[export]'`, or give --min-cider-ratio."
        ) from error


def judge(measured: Measured, bar: Bar, warnings: Sequence[str] = ()) -> Verdict:
    """The verdict on what was measured; `warnings` are said beside those found here."""
    ratio, cider = measured.bootstrap.cider_ratio, measured.bootstrap.scores["cider"]
    asked, problems = bar.min_cider_ratio, bar.floors.problems(measured)
    interval = f"95 % interval {percent(ratio.low)} to {percent(ratio.high)}"
    if not ratio.value >= asked:
        inside = "includes" if asked in ratio else "does not include"
        problems.insert(
            0,
            f"CIDEr is {cider.candidate:.4f}, {percent(ratio.value)} of the reference's {cider.reference:.4f}: "
            f"{100 * (asked - ratio.value):.2f} points below the {percent(asked)} asked for {bar.source}; the "
            f"{interval} {inside} what is asked for",
        )
    said = list(warnings)
    if cider.difference.low > 0:
        said.append(
            f"the bundle is better than the reference by more than the noise (CIDEr {cider.difference.value:+.4f}, "
            f"95 % interval {cider.difference.low:+.4f} to {cider.difference.high:+.4f}): suspect the evaluation. Was "
            f"the reference trained further, or were the photographs calibrated on?"
        )
    headline = (
        f"{'FAILED' if problems else 'passed'}: CIDEr {percent(ratio.value)} of the reference's ({interval}), "
        f"{percent(asked)} asked for {bar.source}"
    )
    return Verdict(tuple(problems), tuple(said), headline + _on_how_many(measured.n))


def not_computable(problem: str, bar: Bar, warnings: Sequence[str] = ()) -> Verdict:
    """The verdict on a bundle that computes no finite numbers."""
    return Verdict((problem,), tuple(warnings), f"FAILED: {problem}; nothing more was measured")


def _on_how_many(n: int) -> str:
    if n >= MIN_PHOTOGRAPHS:
        return f", on {n:,} photographs"
    return f", on {n} photographs only: fewer than the {MIN_PHOTOGRAPHS:,} that a verdict takes"


def provenance_warnings(bundle: Bundle, reference: Reference, photographs: Collection[str]) -> list[str]:
    """What the bundle's own manifest says against this comparison."""
    said = []
    manifest = bundle.manifest
    graphs = {spec.file: manifest.files[spec.file].sha256 for spec in manifest.graphs.values()}
    if isinstance(reference, BundleReference):
        other = reference.bundle.manifest
        theirs = {spec.file: other.files[spec.file].sha256 for spec in other.graphs.values()}
        origin = manifest.provenance.get("quantized_from")
        made_of = origin.get("sha256") if isinstance(origin, dict) else None
        if graphs == theirs:
            said.append("the bundle has the very graphs of the reference: this says nothing of either")
        elif made_of is not None and made_of != theirs:
            said.append(f"the bundle says that it was quantized from other files than those of {reference.location}")
    calibration = manifest.provenance.get("calibration")
    ids = calibration.get("ids") if isinstance(calibration, dict) else None
    seen = set(ids) & set(photographs) if isinstance(ids, list) and all(isinstance(i, str) for i in ids) else set()
    if seen:
        said.append(
            f"{len(seen)} of the photographs, {min(seen)} the first, have the names of photographs that the bundle was "
            f"calibrated on: give others"
        )
    return said
