"""What every kind of data set can be asked for behind its path: "coco2014:~/coco?captions=30000&dev=0.2".

`captions=N`  the first N captions of the train split after shuffling; photographs none of whose captions is among them
              are left out. The other splits stay whole.
`dev=SHARE`   that share of the (remaining) train photographs becomes the dev split, in place of the data set's own.
`seed=N`      of both shuffles; 1 unless said.

So "captions=30000&dev=0.2" is what TensorFlow's tutorial after "Show, Attend and Tell" trains on, but for one thing:
the tutorial splits captions, so that most dev photographs are also trained on; here photographs are split.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from urllib.parse import parse_qsl

from captionlite.training.datasets.base import Dataset, Example
from captionlite.training.errors import DatasetError


@dataclass(frozen=True)
class Options:
    """The options of one data set, as the module's docstring explains them."""

    captions: int | None = None
    dev: float | None = None
    seed: int = 1

    def apply(self, dataset: Dataset) -> Dataset:
        """The data set as asked for.

        Raises:
            DatasetError: it has no train split, or no photograph would be left in one of the two.
        """
        if self.captions is None and self.dev is None:
            return dataset
        train = dataset.split("train")
        notes = []
        if self.captions is not None:
            before = sum(len(example.captions) for example in train)
            train = _first_captions(train, self.captions, self.seed)
            kept = sum(len(example.captions) for example in train)
            notes.append(f"{kept} of {before} training captions taken, of {len(train)} photographs")
        splits = {**dataset.splits, "train": train}
        if self.dev is not None:
            order = list(range(len(train)))
            random.Random(f"dev {self.seed}").shuffle(order)
            chosen = set(order[: round(self.dev * len(train))])
            if not 0 < len(chosen) < len(train):
                raise DatasetError(f"{dataset.name}, option dev={self.dev}: of {len(train)} photographs {len(chosen)}.")
            splits["train"] = tuple(example for i, example in enumerate(train) if i not in chosen)
            splits["dev"] = tuple(example for i, example in enumerate(train) if i in chosen)
            notes.append(f"{len(chosen)} training photographs set apart as dev")
        report = replace(dataset.report, notes=(*dataset.report.notes, *notes))
        return replace(dataset, splits=splits, report=report)


def parse_options(text: str, spec: str) -> Options:
    """ "captions=30000&dev=0.2" -> Options. `spec` is for messages.

    Raises:
        DatasetError: an unknown option, or a value out of range.
    """
    values: dict[str, int | float] = {}
    for key, value in parse_qsl(text, keep_blank_values=True):
        if key not in ("captions", "dev", "seed"):
            raise DatasetError(f"{spec}: {key!r} is not an option; the options are captions=N, dev=SHARE and seed=N.")
        try:
            number = float(value) if key == "dev" else int(value)
        except ValueError:
            number = -1
        if not (0 < number < 1 if key == "dev" else number >= (key == "captions")):
            expected = "a share between 0 and 1" if key == "dev" else "a whole number"
            raise DatasetError(f"{spec}, option {key!r}: expected {expected}, found {value!r}.")
        values[key] = number
    return Options(**values)  # type: ignore[arg-type]


def _first_captions(examples: Sequence[Example], count: int, seed: int) -> tuple[Example, ...]:
    order = [(i, j) for i, example in enumerate(examples) for j in range(len(example.captions))]
    random.Random(f"captions {seed}").shuffle(order)
    kept: dict[int, list[int]] = {}
    for i, j in order[:count]:
        kept.setdefault(i, []).append(j)
    return tuple(
        replace(example, captions=tuple(example.captions[j] for j in sorted(kept[i])))
        for i, example in enumerate(examples)
        if i in kept
    )
