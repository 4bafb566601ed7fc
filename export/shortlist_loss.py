"""What a vocabulary shortlist costs: captions of the dev photographs with every word and without the words left out.

The same recipe, the same photographs, greedily, through the device runtime, compared photograph by photograph.
"""

from __future__ import annotations

import dataclasses
import math
from typing import TYPE_CHECKING, Any

import numpy as np

from captionlite.runtime.captioner import Captioner
from captionlite.runtime.errors import ImageError
from captionlite.training.datasets import load_dataset
from captionlite.training.datasets.base import Example
from captionlite.training.errors import DatasetError
from captionlite.training.scoring import score_photographs

if TYPE_CHECKING:
    from captionlite.training.run import Run


DevCaptions = dict[str, dict[str, str]]
"""Captions by data set and photograph's id."""


@dataclasses.dataclass(frozen=True)
class DevSplits:
    """The dev splits of a run's data sets, by data set, and why those that are not there are not."""

    examples: dict[str, tuple[Example, ...]]
    missing: tuple[str, ...] = ()

    @classmethod
    def of_run(cls, run: Run) -> DevSplits:
        """As far as the data still stands where the run found it."""
        examples: dict[str, tuple[Example, ...]] = {}
        missing = []
        for data in run.config.data:
            try:
                dataset = load_dataset(data.spec)
            except DatasetError as error:
                missing.append(str(error))
                continue
            found = dataset.splits.get("dev", ())
            if not found:
                missing.append(f"{data.spec}: has no dev split")
                continue
            name = dataset.name if dataset.name not in examples else f"{dataset.name}_{len(examples) + 1}"
            examples[name] = found
        return cls(examples, tuple(missing))

    @property
    def photographs(self) -> int:
        return sum(map(len, self.examples.values()))

    def captions(self, captioner: Captioner) -> DevCaptions:
        """A greedy caption of every photograph that can be read."""
        said: DevCaptions = {}
        for name, examples in self.examples.items():
            found = captioner.caption_many(example.image for example in examples)
            said[name] = {
                example.id: caption.text
                for example, caption in zip(examples, found, strict=True)
                if not isinstance(caption, ImageError)
            }
        return said


def shortlist_loss(splits: DevSplits, full: DevCaptions, short: DevCaptions) -> dict[str, Any] | None:
    """CIDEr with every word and with the shortlist, for the manifest; None where there is no photograph.

    Each data set is scored by itself, as in training, and a figure is the mean over all photographs. The interval is of
    the mean of the photographs' differences: 1.96 standard errors to each side, None for a single photograph.
    """
    before: list[float] = []
    after: list[float] = []
    changed = 0
    counts = {}
    for name, examples in splits.examples.items():
        references = {example.id: example.captions for example in examples}
        ids = sorted(full[name].keys() & short[name].keys())
        if not ids:
            continue
        _, scores = score_photographs({i: full[name][i] for i in ids}, references)
        _, scores_short = score_photographs({i: short[name][i] for i in ids}, references)
        before += [scores[i].cider for i in ids]
        after += [scores_short[i].cider for i in ids]
        changed += sum(full[name][i] != short[name][i] for i in ids)
        counts[name] = len(ids)
    if not before:
        return None
    differences = np.subtract(after, before)
    mean, interval = float(differences.mean()), None
    if len(differences) > 1:
        margin = 1.96 * float(differences.std(ddof=1)) / math.sqrt(len(differences))
        interval = [round(mean - margin, 5), round(mean + margin, 5)]
    return {
        "split": "dev",
        "photographs": counts,
        "cider_all_words": round(float(np.mean(before)), 5),
        "cider": round(float(np.mean(after)), 5),
        "difference": round(mean, 5),
        "interval_95": interval,
        "changed_captions": changed,
    }


def describe_shortlist(facts: dict[str, Any]) -> str:
    """The manifest's `provenance.shortlist` in two sentences, for people."""
    kept = (
        f"Of the {facts['all_words']:,} words it was trained with it keeps {facts['words']:,}, {facts['rule']}: "
        f"{facts['share_of_training_words']:.1%} of what the training captions say."
    )
    loss = facts["loss"]
    if loss is None:
        return f"{kept} What that costs in CIDEr was not measured: the dev photographs were not at hand."
    count = sum(loss["photographs"].values())
    where = ", ".join(f"{name} {photographs:,}" for name, photographs in loss["photographs"].items())
    interval = loss["interval_95"]
    difference = f"{loss['difference']:+.4f}"
    if interval is not None:
        difference += f", 95 % interval {interval[0]:+.4f} to {interval[1]:+.4f}"
    return (
        f"{kept} On {count:,} dev photographs ({where}), greedily and both by the recipe {facts['recipe']}, CIDEr is "
        f"{loss['cider']:.4f} against {loss['cider_all_words']:.4f} with all words: {difference}. "
        f"{loss['changed_captions']:,} captions differ."
    )
