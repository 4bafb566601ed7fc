"""README.md of a bundle: what it is, what it was trained on, what it scores, what it does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captionlite.export.shortlist_loss import describe_shortlist
from captionlite.runtime.manifest import Manifest

if TYPE_CHECKING:  # it imports Keras, and who fits a confidence need not have that
    from captionlite.export.parity import Parity

CARD_FILE = "README.md"
LIMITS = """\
It describes what its training photographs show and guesses at the rest. It misses small objects, miscounts, mistakes
sexes and colours, and repeats the biases of the people who wrote the training captions. Do not use it where a wrong
description could hurt somebody."""
METRICS = ("bleu_1", "bleu_4", "rouge_l", "cider")
_CONFIDENCE = "## Confidence"
_UNKNOWN = "## What it does not know"


def model_card(manifest: Manifest, sizes_bytes: dict[str, int], parity: Parity) -> str:
    """Markdown, made from the manifest and nothing else, so that it cannot drift from the files."""
    facts = manifest.provenance
    parameters = facts["parameters"]["encoder"] + facts["parameters"]["decoder"]
    summary = (
        f"An image captioner ({manifest.family} decoder behind {facts['encoder']['name']}): {parameters:,} parameters, "
        f"{manifest.vocabulary.size:,} words, {sum(sizes_bytes.values()) / 1e6:.1f} MB, "
        f"recipe {manifest.graphs['encoder'].recipe}."
    )
    lines = [
        f"# {manifest.name}: a captionlite bundle",
        "",
        summary,
        "",
        f"    captionlite caption PHOTO --bundle {manifest.name}",
        "",
        "## Data and licence",
        "",
    ]
    lines += [
        f"- {data['name']}: {data['train']:,} photographs trained on, {data['dev']:,} to choose the best epoch. "
        + data["licence"]
        for data in facts["training"].get("datasets", ())
    ]
    lines += ["", "## Scores", "", *_scores(manifest.scores), ""]
    if "shortlist" in facts:
        lines += ["## Vocabulary", "", describe_shortlist(facts["shortlist"]), ""]
    lines += ["## Exactness", ""]
    lines += [
        f"{parity.equal_captions} of {parity.photographs} captions equal word for word those of {parity.reference}.",
        "",
        "| tensor | largest difference | relative RMS |",
        "| --- | --- | --- |",
        *(f"| {t.name} | {t.max_abs:.2e} | {t.relative_rms:.2e} |" for t in parity.tensors),
        "",
        _CONFIDENCE,
        "",
        *_confidence(manifest),
        "",
        _UNKNOWN,
        "",
        LIMITS,
        "",
    ]
    return "\n".join(lines)


def _scores(scores: dict[str, Any]) -> list[str]:
    if not scores:
        return ["Not scored yet: `captionlite evaluate --bundle BUNDLE --data DATA`."]
    lines = ["| what | photographs | " + " | ".join(METRICS) + " |", "| --- | --- |" + " --- |" * len(METRICS)]
    for what, row in scores.items():
        figures = " | ".join(f"{row[metric]:.3f}" for metric in METRICS)
        lines.append(f"| {what} | {row['n']} | {figures} |")
    return lines


def with_confidence(card: str, manifest: Manifest) -> str:
    """A card whose section on confidence says what the manifest does, whether or not it had one before."""
    section = "\n".join([_CONFIDENCE, "", *_confidence(manifest), "", ""])
    before, found, rest = card.partition(_CONFIDENCE + "\n")
    if found:
        _, heading, after = rest.partition("\n## ")
        return before + section + heading.removeprefix("\n") + after
    before, heading, after = card.partition(_UNKNOWN + "\n")
    return (before if heading else before.rstrip("\n") + "\n\n") + section + heading + after


def _confidence(manifest: Manifest) -> list[str]:
    spec = manifest.decoding.confidence
    if spec is None:
        return ["Not fitted yet: `captionlite confidence --bundle BUNDLE --data DATA`."]
    lines = [f"The chance, from the mean log-probability, that {spec.event}.", f"Fitted on {spec.fitted_on}."]
    measured = manifest.provenance.get("confidence")
    if measured is None:
        return lines
    lines += [
        f"Of those {measured['captions']:,} captions {measured['base_rate']:.0%} fit so.",
        "Fitted on one half of the photographs and measured on the other:",
        f"Brier score {measured['brier']:.3f} ({measured['brier_base_rate']:.3f} for always saying the same),",
        f"expected calibration error {measured['ece']:.3f}, AUC {measured['auc']:.2f}.",
        "",
        "| `--min-confidence` | captions left | of these fit |",
        "| --- | --- | --- |",
    ]
    for row in measured["thresholds"]:
        precision = "-" if row["precision"] is None else f"{row['precision']:.0%}"
        lines.append(f"| {row['at_least']} | {row['coverage']:.0%} | {precision} |")
    return lines
