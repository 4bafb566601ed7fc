"""The stages of a run: plain cross-entropy, then, where the preset asks for them, the encoder's last blocks along with
the decoder, and self-critical training.

A stage knows its batches, its optimiser and what one step does; the trainer knows epochs, checkpoints and dev figures.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from keras import ops

from captionlite.training.batches import BUCKET, Batch, BatchPlan
from captionlite.training.compiled import TrainStep
from captionlite.training.config import OptimizerConfig, RunConfig
from captionlite.training.data import RunData
from captionlite.training.errors import ConfigError
from captionlite.training.families.base import DecoderFamily
from captionlite.training.losses import weighted_cross_entropy
from captionlite.training.noise import FeatureNoise
from captionlite.training.optimizers import build_optimizer
from captionlite.training.rewards import CaptionReward
from captionlite.training.sampling import Sampler
from captionlite.training.vocabulary import END_ID, PAD_ID, START_ID, WordVocabulary


class Stage:
    """``logged`` are the figures of a step that the trainer averages over an epoch; ``variables`` what it trains of the
    model, ``seeds`` variables of its own.
    """

    name: ClassVar[str]
    logged: ClassVar[tuple[str, ...]]

    def __init__(
        self,
        config: RunConfig,
        model: DecoderFamily,
        data: RunData,
        plan: BatchPlan,
        optimizer: OptimizerConfig,
        epochs: int,
        variables: Sequence[Any] | None = None,
    ) -> None:
        self._config, self._model, self._data = config, model, data
        self.variables = list(model.trainable_variables if variables is None else variables)
        self.plan, self.epochs = plan, epochs
        self._noise = FeatureNoise(config.feature_noise) if config.feature_noise > 0 else None
        self.seeds: Sequence[Any] = [] if self._noise is None else self._noise.variables
        self.optimizer = build_optimizer(optimizer, plan.batches_per_epoch * epochs)
        self.optimizer.build(self.variables)

    def begin(self) -> None:
        """Compile the step, once the variables hold what training goes on from."""
        self._step = TrainStep(
            self._model, self.optimizer, self._loss, self._config.jit_compile, self.seeds, self.variables
        )

    def sync(self) -> None:
        """Write the step's state back into the variables."""
        self._step.sync()

    def run(self, batch: Batch, number: int) -> Mapping[str, Any]:
        """Step ``number`` of the stage (from 0): its figures, perhaps still on the device."""
        raise NotImplementedError

    def _loss(self, features: Any, *batch: Any) -> tuple[Any, dict[str, Any]]:
        raise NotImplementedError

    def _noisy(self, features: Any) -> Any:
        return features if self._noise is None else self._noise(features)


class CrossEntropy(Stage):
    """Teacher forcing on the true captions."""

    name: ClassVar[str] = "cross_entropy"
    logged: ClassVar[tuple[str, ...]] = ("loss", "accuracy")

    def __init__(
        self,
        config: RunConfig,
        model: DecoderFamily,
        data: RunData,
        vocabulary: WordVocabulary,
        optimizer: OptimizerConfig,
        epochs: int,
        variables: Sequence[Any] | None = None,
    ) -> None:
        plan = BatchPlan(
            data.sources(config, vocabulary),
            batch_size=config.batch_size,
            captions_per_photo=config.captions_per_photo,
            max_length=model.max_length,
            pad_id=PAD_ID,
            seed=config.seed,
            flip=config.flip,
            views=config.views,
            draw=config.draw,
            steps=config.steps_per_epoch,
        )
        super().__init__(config, model, data, plan, optimizer, epochs, variables)

    def run(self, batch: Batch, number: int) -> Mapping[str, Any]:
        features = ops.convert_to_tensor(self._data.features(batch))
        return self._step(features, ops.convert_to_tensor(batch.tokens))

    def _loss(self, features: Any, tokens: Any) -> tuple[Any, dict[str, Any]]:
        loss, accuracy, _ = self._model.objective(
            self._noisy(features), tokens, pad_id=PAD_ID, label_smoothing=self._config.label_smoothing, training=True
        )
        return loss, {"accuracy": accuracy}


class FineTuning(CrossEntropy):
    """The same with the encoder's last blocks, which were frozen till then."""

    name: ClassVar[str] = "fine_tuning"


class SelfCritical(Stage):
    """Self-critical sequence training: samples weighed by how much better they score than the photograph's others."""

    name: ClassVar[str] = "self_critical"
    logged: ClassVar[tuple[str, ...]] = ("loss", "reward", "cider", "bleu_4", "words")

    def __init__(self, config: RunConfig, model: DecoderFamily, data: RunData, vocabulary: WordVocabulary) -> None:
        assert config.self_critical is not None
        if model.refines:
            raise ConfigError(
                f"{config.name}.self_critical: the family {model.family} predicts masked words, and a caption's "
                f"probability under it is no product of its steps'; set self_critical=null"
            )
        self.settings = config.self_critical
        if self.settings.samples < 2:
            raise ConfigError(f"{config.name}.self_critical.samples: found {self.settings.samples}, expected 2 or more")
        self._vocabulary, self._true = vocabulary, max(self.settings.captions, 1)
        plan = BatchPlan(
            data.sources(config, vocabulary),
            batch_size=self.settings.photographs * self._true,
            captions_per_photo=self._true,
            max_length=model.max_length,
            pad_id=PAD_ID,
            seed=config.seed,
            flip=config.flip,
            views=config.views,
            draw="random_caption",
        )
        super().__init__(config, model, data, plan, self.settings.optimizer, self.settings.epochs)
        self._reward = CaptionReward(
            {
                (number, example.id): example.captions
                for number in range(len(data.datasets))
                for example in data.examples(number, "train")
            },
            self.settings,
        )
        self._sampler = Sampler(
            model, start_id=START_ID, end_id=END_ID, pad_id=PAD_ID, suppressed_ids=vocabulary.suppressed_ids
        )

    def run(self, batch: Batch, number: int) -> Mapping[str, Any]:
        samples, photographs = self.settings.samples, len(batch.rows)
        features = ops.convert_to_tensor(self._data.features(batch))
        self._step.sync()  # the sampler reads the model's variables
        rng = np.random.default_rng([self._config.seed, number])
        uniform = rng.random((self._model.max_length, photographs * samples), np.float32)
        drawn = self._sampler(features, uniform)
        rewards = [
            self._reward.score(batch.rows[i // samples][:2], self._vocabulary.decode(row[1:]), END_ID in row)
            for i, row in enumerate(drawn)
        ]
        total = np.array([reward.total for reward in rewards], np.float32).reshape(photographs, samples)
        # Against the mean of a photograph's other samples, which is its own mean stretched.
        advantage = (total - total.mean(axis=1, keepdims=True)) * (samples / (samples - 1))
        tokens, weights = self._together(drawn, advantage, batch.tokens)
        logs = self._step(features, ops.convert_to_tensor(tokens), ops.convert_to_tensor(weights))
        figures = {name: float(np.mean([getattr(r, name) for r in rewards])) for name in ("cider", "bleu_4")}
        words = float(np.mean((drawn > END_ID).sum(axis=1)))
        return {**logs, "reward": float(total.mean()), **figures, "words": words}

    def _together(self, drawn: np.ndarray, advantage: np.ndarray, true: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Samples, then true captions of each photograph: tokens int32 (P * (S + K), T + 1), weights float32."""
        samples, photographs = self.settings.samples, len(advantage)
        longest = max(int((rows != PAD_ID).sum(axis=1).max()) for rows in (drawn, true)) - 1
        width = min(-(-longest // BUCKET) * BUCKET, self._model.max_length) + 1
        parts = [_cut(drawn, width).reshape(photographs, samples, width)]
        weights = [advantage]
        if self.settings.cross_entropy:
            parts.append(_cut(true, width).reshape(photographs, self._true, width))
            weights.append(np.full((photographs, self._true), self.settings.cross_entropy, np.float32))
        tokens = np.concatenate(parts, axis=1).reshape(-1, width)
        return tokens, np.concatenate(weights, axis=1).reshape(-1).astype(np.float32)

    def _loss(self, features: Any, tokens: Any, weights: Any) -> tuple[Any, dict[str, Any]]:
        logits = self._model(self._noisy(features), tokens[:, :-1], training=True)
        return weighted_cross_entropy(tokens[:, 1:], logits, weights, PAD_ID), {}


def _cut(tokens: np.ndarray, width: int) -> np.ndarray:
    cut = tokens[:, :width]
    return np.pad(cut, ((0, 0), (0, width - cut.shape[1])), constant_values=PAD_ID)


def build_stages(config: RunConfig, model: DecoderFamily, data: RunData, vocabulary: WordVocabulary) -> list[Stage]:
    """The run's stages in their order. Raises ConfigError when there is nothing to train."""
    stages: list[Stage] = []
    tuning = config.fine_tuning
    if config.epochs > 0:
        plain = (config.optimizer, config.epochs, model.decoder_alone.trainable_variables)
        stages.append(CrossEntropy(config, model, data, vocabulary, *plain))
    if tuning is not None and tuning.epochs > 0:
        stages.append(FineTuning(config, model, data, vocabulary, tuning.optimizer, tuning.epochs))
    if config.self_critical is not None and config.self_critical.epochs > 0:
        stages.append(SelfCritical(config, model, data, vocabulary))
    if not stages:
        raise ConfigError(
            f"{config.name}.epochs: found {config.epochs}, expected at least 1 without fine_tuning or self_critical"
        )
    return stages
