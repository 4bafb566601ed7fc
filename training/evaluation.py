"""Dev figures of a model in training: loss, masked accuracy and caption scores, by data set and together."""

from __future__ import annotations

from typing import Any

import numpy as np
from keras import ops

from captionlite.training.batches import Batch, Group, make_batch
from captionlite.training.compiled import compiled
from captionlite.training.data import RunData
from captionlite.training.families.base import DecoderFamily
from captionlite.training.generate import KerasGenerator
from captionlite.training.scoring import score_captions
from captionlite.training.vocabulary import PAD_ID, WordVocabulary

EVALUATION_BATCH = 250  # captions
GENERATION_BATCH = 100  # photographs


class DevEvaluator:
    """Scores a model on the dev splits of a run's data sets."""

    def __init__(
        self, model: DecoderFamily, generator: KerasGenerator, data: RunData, vocabulary: WordVocabulary
    ) -> None:
        self._generator, self._data, self._vocabulary = generator, data, vocabulary
        self._examples = [data.examples(i, "dev") for i in range(len(data.datasets))]
        self._batches = [self._teacher_forced(model, number) for number in range(len(data.datasets))]

        def figures(features: Any, tokens: Any) -> tuple[Any, Any, Any]:
            return model.objective(features, tokens, pad_id=PAD_ID)

        self._figures = compiled(figures, model.variables)

    def _teacher_forced(self, model: DecoderFamily, number: int) -> list[Batch]:
        by_count: dict[int, list[Group]] = {}  # a batch holds photographs with equally many captions
        for example in self._examples[number]:
            captions = self._vocabulary.encode_batch(list(example.captions))
            by_count.setdefault(len(captions), []).append(((number, example.id, False), captions))
        batches = []
        for count, groups in sorted(by_count.items()):
            groups.sort(key=lambda group: max(map(len, group[1])))  # little padding
            photos = max(1, EVALUATION_BATCH // count)
            for start in range(0, len(groups), photos):
                batches.append(make_batch(groups[start : start + photos], model.max_length, PAD_ID))
        return batches

    def evaluate(self) -> dict[str, Any]:
        """-> {"loss", "accuracy", "cider", "bleu_4", "by_dataset": {name: the same}}; together = weighted by
        photographs.
        """
        by_dataset = {}
        for number, name in enumerate(self._data.names):
            if self._examples[number]:
                by_dataset[name] = {**self._loss(number), **self._captions(number)}
        photos = [len(e) for e in self._examples if e]
        together = {
            key: round(float(np.average([d[key] for d in by_dataset.values()], weights=photos)), 5)
            for key in ("loss", "accuracy", "cider", "bleu_4")
            if by_dataset
        }
        return {**together, "by_dataset": by_dataset}

    def _loss(self, number: int) -> dict[str, float]:
        rows = []
        for batch in self._batches[number]:
            features = ops.convert_to_tensor(self._data.features(batch))
            rows.append([float(x) for x in self._figures(features, ops.convert_to_tensor(batch.tokens))])
        loss, accuracy, count = np.array(rows).T
        return {
            "loss": round(float(np.average(loss, weights=count)), 5),
            "accuracy": round(float(np.average(accuracy, weights=count)), 5),
        }

    def _captions(self, number: int) -> dict[str, float]:
        examples = self._examples[number]
        tokens: list[list[int]] = []
        for start in range(0, len(examples), GENERATION_BATCH):
            ids = [e.id for e in examples[start : start + GENERATION_BATCH]]
            tokens += self._generator.generate(self._data.plain[number].rows(ids))
        candidates = {e.id: self._vocabulary.decode(t) for e, t in zip(examples, tokens, strict=True)}
        scores = score_captions(candidates, {e.id: list(e.captions) for e in examples})
        return {"cider": round(scores.cider, 5), "bleu_4": round(scores.bleu_4, 5)}

    def samples(self, count: int, epoch: int) -> list[str]:
        """Captions of the first dev photographs of each data set at temperatures 0, 0.5 and 1."""
        lines = []
        for number, examples in enumerate(self._examples):
            chosen = examples[:count]
            if not chosen:
                continue
            features = self._data.plain[number].rows([e.id for e in chosen])
            drawn = {t: self._generator.generate(features, temperature=t, seed=epoch) for t in (0.0, 0.5, 1.0)}
            for i, example in enumerate(chosen):
                lines.append(f"{self._data.names[number]}/{example.id}")
                lines += [f"  {t:.1f}  {self._vocabulary.decode(tokens[i])}" for t, tokens in drawn.items()]
        return lines
