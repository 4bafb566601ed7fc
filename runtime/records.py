"""A caption as one JSON object, the same wherever captionlite gives one: `caption --json`, the service, the camera."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from captionlite.runtime.captioner import Captioner
    from captionlite.runtime.decoding import Alternative, Caption, DecodingOptions
    from captionlite.runtime.image import ImageSource

HYPOTHESES_IF_UNSURE = 3


def record(result: "Caption", others: "Sequence[Caption | Alternative]" = (), sure: bool = True) -> dict[str, Any]:
    """The object; `others` are the hypotheses beside the caption, and `sure` whether its confidence was asked for."""
    found: dict[str, Any] = {
        "caption": result.text,
        "tokens": list(result.tokens),
        "logprob": result.logprob,
        "timings_ms": {stage: round(value, 3) for stage, value in result.timings_ms.items()},
    }
    if result.confidence is not None:
        found["confidence"] = round(result.confidence, 4)
    if result.maybe:
        found["maybe"] = labels(result)
    if not sure:
        found["sure"] = False
    if others:
        found["alternatives"] = [
            {"caption": other.text, "tokens": list(other.tokens), "logprob": other.logprob, "score": other.score}
            for other in others
        ]
    return found


def labels(result: "Caption") -> list[dict[str, Any]]:
    """What the photograph may show besides, as JSON."""
    return [{"label": label.name, "probability": round(label.probability, 4)} for label in result.maybe]


def might_be(
    captioner: "Captioner", source: "ImageSource", options: "DecodingOptions"
) -> "list[Caption | Alternative]":
    """All hypotheses of the same options, at least a few, the best first, each once (draws may be equal)."""
    n = options.hypotheses if options.hypotheses > 1 else HYPOTHESES_IF_UNSURE
    options = replace(options, best_of=n, n_best=n) if options.temperature else replace(options, beams=n, n_best=n)
    found = captioner.caption(source, options)
    each: dict[tuple[int, ...], Caption | Alternative] = {found.tokens: found}
    for other in found.alternatives:
        each.setdefault(other.tokens, other)
    return list(each.values())
