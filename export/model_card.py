"""README.md of a bundle: what it is, what it was trained on, what it scores, what it does not know."""

from __future__ import annotations

from typing import Any

from captionlite.export.parity import Parity
from captionlite.runtime.manifest import Manifest

LIMITS = """\
It describes what its training photographs show and guesses at the rest. It misses small objects, miscounts, mistakes
sexes and colours, and repeats the biases of the people who wrote the training captions. Do not use it where a wrong
description could hurt somebody."""
METRICS = ("bleu_1", "bleu_4", "rouge_l", "cider")


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
    lines += ["", "## Scores", "", *_scores(manifest.scores), "", "## Exactness", ""]
    lines += [
        f"{parity.equal_captions} of {parity.photographs} captions equal word for word those of the Keras model.",
        "",
        "| tensor | largest difference | relative RMS |",
        "| --- | --- | --- |",
        *(f"| {t.name} | {t.max_abs:.2e} | {t.relative_rms:.2e} |" for t in parity.tensors),
        "",
        "## What it does not know",
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
