"""README.md of a bundle: what it is, what it was trained on, what it scores, what it does not know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from captionlite.export.shortlist_loss import describe_shortlist
from captionlite.runtime.manifest import Manifest

if TYPE_CHECKING:  # it imports Keras, and who fits a confidence need not have that
    from captionlite.export.parity import Parity

CARD_FILE = "README.md"
LIMITS = """\
It describes what its training photographs show and guesses at the rest. What it gets wrong most:

- who it is: a woman is taken for a man, a girl for a boy;
- how many there are;
- small or unusual subjects: a raft, a rope slide, what somebody holds;
- crowds and cluttered places, of which it says something that is often right of a crowd;
- colours, above all whose they are.

It repeats the biases of the people who wrote the training captions. Do not use it where a wrong description could hurt
somebody."""
SHOWN = {
    "flickr8k": "people and dogs outdoors, doing something",
    "flickr30k": "people, mostly outdoors, doing something",
    "everyday": "a little of everything: rooms, meals, vehicles, animals",
    "coco": "everyday scenes with some of 80 kinds of things",
}
"""What the photographs of data sets are of, as far as it is known here."""
METRICS = ("bleu_1", "bleu_4", "rouge_l", "cider")
_CONFIDENCE = "## Confidence"
_LABELS = "## Labels"
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
        *_labels(manifest),
        _UNKNOWN,
        "",
        *_knows(manifest),
        LIMITS,
        "",
    ]
    return "\n".join(lines)


def _knows(manifest: Manifest) -> list[str]:
    """What it was shown, and how many words it has for it."""
    datasets = manifest.provenance["training"].get("datasets", ())
    kinds = [f"- {data['train']:,} of {data['name']}{_shown(data['name'])}" for data in datasets]
    if not kinds:
        return []
    pieces = "words" if manifest.vocabulary.kind == "words" else "pieces of text"
    return [
        "The photographs it was trained on:",
        "",
        *kinds,
        "",
        f"It has {manifest.vocabulary.size:,} {pieces}, and cannot say what has none among them.",
        "",
    ]


def _shown(name: str) -> str:
    return f": {SHOWN[name.lower()]}" if name.lower() in SHOWN else ""


def _labels(manifest: Manifest) -> list[str]:
    """What the labels are, and how near they are to the classifier that they were made of."""
    spec = manifest.labels
    if spec is None:
        return []
    text = (
        f"Where a caption's confidence is below {spec.below_confidence:g}, a word of the encoder's own classifier is "
        f'offered ("maybe: ..."), if the caption does not have it and the classifier gives it a probability of '
        f"{spec.least_probability:g} or more, or {spec.least_beside_people:g} beside people. Its labels are "
        f"{spec.source}. That is not the world: what is none of them (most people, "
        "most places, what is newer than 2012) is taken for the nearest of them, sometimes surely. Labels are no "
        "captions: one thing is named, and it need not be the main one. Some, such as apes, guns and underwear, are "
        "never told."
    )
    lines = [_LABELS, "", text, ""]
    found = manifest.provenance.get("labels")
    if found is not None:
        text = (
            f"{found['classes']:,} classes have {found['names']:,} names. The classifier was reduced to rank "
            f"{found['rank']}, fitted to {found['fitted_on']:,} photographs, and stored by recipe {found['recipe']}. "
            f"Of {found['photographs']} other photographs its likeliest label is the whole classifier's in "
            f"{found['agreed']}, and in {found['sure_agreed']} of the {found['sure']} where that is sure enough to be "
            "offered."
        )
        lines += [text, ""]
    return lines


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
