"""The training loop: resumable at any moment, with progress, dev figures, sample captions and curves."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from filelock import FileLock, Timeout
from keras import ops

from captionlite.training.albert_vocabulary import build_sentencepiece_vocabulary, load_vocabulary
from captionlite.training.batches import BatchPlan
from captionlite.training.checkpoints import load_variables, save_variables
from captionlite.training.compiled import TrainStep
from captionlite.training.config import RunConfig
from captionlite.training.curves import draw_curves
from captionlite.training.data import load_data
from captionlite.training.errors import ConfigError, RunError
from captionlite.training.evaluation import DevEvaluator
from captionlite.training.files import write_bytes_atomically, write_text_atomically
from captionlite.training.noise import FeatureNoise
from captionlite.training.optimizers import build_optimizer
from captionlite.training.progress import progress
from captionlite.training.run import BEST, CONFIG, HISTORY, LAST, VOCABULARY, Run, build_model, read_config, write_json
from captionlite.training.vocabulary import PAD_ID, STANDARDIZATIONS, WordVocabulary, build_word_vocabulary

CHECKPOINT_SECONDS = 60.0
SAMPLES = 3  # dev photographs captioned after each epoch, of each data set
HIGHER_IS_BETTER = {"cider": True, "loss": False}


class Interrupted(Exception):  # noqa: N818 - not an error
    """Ctrl-C or SIGTERM: the state is saved, ``--resume`` goes on."""


def train(
    config: RunConfig,
    directory: Path,
    cache_dir: Path,
    *,
    resume: bool = False,
    report: Callable[[str], None] = lambda line: None,
) -> dict[str, Any]:
    """Trains ``config`` into ``directory`` and returns the summary that `captionlite train --json` prints.

    ``resume`` continues the run in ``directory`` exactly where its last checkpoint stands. ``report`` takes a line of
    text an epoch. Raises RunError when the directory holds a run already (and not ``resume``) or is in use,
    ConfigError for an impossible preset, and Interrupted when a signal stopped it after saving.
    """
    directory.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(directory / ".lock", timeout=0):
            if (directory / CONFIG).exists():
                if not resume:
                    raise RunError(f"{directory}: holds a run already; give --resume to continue it or another --out")
                config = read_config(directory)
            elif not config.data:
                raise ConfigError("no data; give --data KIND:PATH, for example --data flickr8k:/data/flickr8k")
            return _Trainer(config, directory, cache_dir, report).run()
    except Timeout as error:
        raise RunError(f"{directory}: another process is training there") from error


class _Trainer:
    def __init__(self, config: RunConfig, directory: Path, cache_dir: Path, report: Callable[[str], None]) -> None:
        self.config, self.directory, self.report = config, directory, report
        keras.mixed_precision.set_dtype_policy(config.precision)
        self.data = load_data(config, cache_dir)
        self.vocabulary = self._vocabulary()
        # Keras draws the seeds of its initializers and dropouts from here, on every backend. After the data, because
        # extracting features builds an encoder, which draws too, and a resumed run finds them in the cache.
        random.seed(config.seed)
        self.model = build_model(config, self.vocabulary)
        self.noise = FeatureNoise(config.feature_noise) if config.feature_noise > 0 else None
        if not (directory / LAST).exists():
            self.model.load_pretrained()
        bias = self.model.output_bias_layer()
        if bias is not None:
            bias.set_from_frequencies(self.vocabulary.frequencies, self.vocabulary.suppressed_ids)
        self.plan = BatchPlan(
            self.data.sources(config, self.vocabulary),
            batch_size=config.batch_size,
            captions_per_photo=config.captions_per_photo,
            max_length=self.model.max_length,
            pad_id=PAD_ID,
            seed=config.seed,
            flip=config.flip,
            draw=config.draw,
            steps=config.steps_per_epoch,
        )
        steps = self.plan.batches_per_epoch
        self.optimizer = build_optimizer(config.optimizer, steps * config.epochs)
        self.optimizer.build(self.model.trainable_variables)
        seeds = [] if self.noise is None else self.noise.variables
        self.groups = {"model": self.model.variables, "optimizer": self.optimizer.variables, "noise": seeds}
        self.position = {"epoch": 0, "step": 0}  # the next batch
        self.sums = {"loss": 0.0, "accuracy": 0.0, "seconds": 0.0}  # over the epoch so far
        self.history: list[dict[str, Any]] = []
        self._restore()
        self.step = TrainStep(self.model, self.optimizer, self._loss, config.jit_compile, seeds)
        write_json(directory / CONFIG, config.to_json())

    def _vocabulary(self) -> WordVocabulary:
        path = self.directory / VOCABULARY
        if not path.exists():
            wanted = self.config.vocabulary
            captions = self.data.train_captions()
            if not captions:
                raise ConfigError(f"{', '.join(d.spec for d in self.config.data)}: no training captions")
            if wanted.sentencepiece is not None:
                build_sentencepiece_vocabulary(wanted.sentencepiece, captions).save(path)
            else:
                build_word_vocabulary(
                    captions,
                    min_count=wanted.min_count,
                    max_size=wanted.max_size,
                    standardization=STANDARDIZATIONS[wanted.standardization],
                    mask=wanted.mask,
                ).save(path)
        return load_vocabulary(path)

    def _loss(self, features: Any, tokens: Any) -> tuple[Any, dict[str, Any]]:
        if self.noise is not None:
            features = self.noise(features)
        loss, accuracy, _ = self.model.objective(
            features, tokens, pad_id=PAD_ID, label_smoothing=self.config.label_smoothing, training=True
        )
        return loss, {"accuracy": accuracy}

    def run(self) -> dict[str, Any]:
        run = Run(self.directory, self.config, self.vocabulary, self.model)
        evaluator = DevEvaluator(self.model, run.generator, self.data, self.vocabulary)
        self.report(
            f"{self.config.name}: {self.model.count_params():,} parameters, {len(self.vocabulary.pieces):,} words, "
            f"{self.plan.batches_per_epoch} batches an epoch"
        )
        for line in self.data.report():
            self.report(line)
        with _stop_signals() as stopped:
            while self.position["epoch"] < self.config.epochs and not self._exhausted():
                self._epoch(stopped)
                self._finish_epoch(evaluator)
        return self.summary()

    def _epoch(self, stopped: list[int]) -> None:
        epoch, first = self.position["epoch"], self.position["step"]
        total = self.plan.batches_per_epoch
        saved = began = time.monotonic()
        spent = self.sums["seconds"]
        pending: list[dict[str, Any]] = []
        with progress(total, f"epoch {epoch + 1}/{self.config.epochs}", done=first) as advance:
            for batch in self.plan.epoch(epoch, first):
                features = ops.convert_to_tensor(self.data.features(batch))
                pending.append(self.step(features, ops.convert_to_tensor(batch.tokens)))
                self.position["step"] += 1
                advance(1)
                due = time.monotonic() - saved > CHECKPOINT_SECONDS
                if due or stopped or len(pending) == 50 or self.position["step"] == total:
                    self._collect(pending)  # reading a scalar waits for the device: not after every step
                    self.sums["seconds"] = spent + time.monotonic() - began
                if stopped:
                    self._save()
                    raise Interrupted(
                        f"stopped in epoch {epoch + 1} after {self.position['step']} batches; state saved"
                    )
                if due:
                    self._save()
                    saved = time.monotonic()
        self.step.sync()

    def _collect(self, pending: list[dict[str, Any]]) -> None:
        for logs in pending:
            for key in ("loss", "accuracy"):
                self.sums[key] += float(logs[key])
        pending.clear()
        if not np.isfinite(self.sums["loss"]):
            raise RunError(
                f"{self.directory}: the loss is not finite in epoch {self.position['epoch'] + 1}; "
                f"the last checkpoint is kept; lower optimizer.learning_rate or set optimizer.clipnorm"
            )

    def _finish_epoch(self, evaluator: DevEvaluator) -> None:
        began = time.monotonic()
        total = self.plan.batches_per_epoch
        figures = evaluator.evaluate()
        self.history.append(
            {
                "epoch": self.position["epoch"] + 1,
                "train": {key: round(self.sums[key] / total, 5) for key in ("loss", "accuracy")},
                "dev": figures,
                "train_seconds": round(self.sums["seconds"], 1),
                "dev_seconds": round(time.monotonic() - began, 1),
                "samples": evaluator.samples(SAMPLES, self.position["epoch"]),
            }
        )
        if self.best_epoch() == len(self.history):
            metadata = {"epoch": len(self.history), "dev": figures, "datasets": self.data.facts()}
            save_variables(self.directory / BEST, {"model": self.model.weights}, metadata)
        self.position = {"epoch": self.position["epoch"] + 1, "step": 0}
        self.sums = dict.fromkeys(self.sums, 0.0)
        self._save()
        self._publish()
        self._rotate()

    def best_epoch(self) -> int:
        """The number (from 1) of the epoch with the best monitored dev figure; the last one where there is no dev
        split.
        """
        monitor = self.config.monitor
        figures = [record["dev"].get(monitor) for record in self.history]
        if not figures or None in figures:
            return len(figures)
        choose = np.argmax if HIGHER_IS_BETTER[monitor] else np.argmin
        return int(choose(figures)) + 1

    def _exhausted(self) -> bool:
        return len(self.history) - self.best_epoch() >= self.config.patience

    def _save(self) -> None:
        self.step.sync()
        save_variables(
            self.directory / LAST,
            self.groups,
            {"position": self.position, "sums": self.sums, "history": self.history},
        )

    def _restore(self) -> None:
        if (self.directory / LAST).exists():
            metadata = load_variables(self.directory / LAST, self.groups)
            self.position, self.sums, self.history = (metadata[key] for key in ("position", "sums", "history"))

    def _publish(self) -> None:
        """Everything that people look at, made anew from the history: a kill in between costs nothing."""
        record = self.history[-1]
        write_json(self.directory / HISTORY, self.history)
        draw_curves(self.history, self.config.name, self.directory / "curves.png")
        samples = "\n".join(line for r in self.history for line in (f"epoch {r['epoch']}", *r["samples"]))
        write_text_atomically(self.directory / "samples.txt", samples + "\n")
        self._tensorboard(record)
        best = " (best)" if self.best_epoch() == record["epoch"] else ""
        dev = record["dev"]
        shown = "  ".join(f"dev {key} {dev[key]:.4f}" for key in ("loss", "accuracy", "cider") if key in dev)
        self.report(
            f"epoch {record['epoch']}: loss {record['train']['loss']:.4f}  {shown}  "
            f"{record['train_seconds']:.0f} + {record['dev_seconds']:.0f} s{best}"
        )

    def _tensorboard(self, record: dict[str, Any]) -> None:
        from tensorboardX import SummaryWriter

        with SummaryWriter(str(self.directory / "tensorboard")) as writer:
            for part in ("train", "dev"):
                for key, value in record[part].items():
                    if isinstance(value, float):
                        writer.add_scalar(f"{key}/{part}", value, record["epoch"])
            writer.add_text("samples", "\n\n".join(record["samples"]), record["epoch"])

    def _rotate(self) -> None:
        every, epoch = self.config.keep_every_epochs, self.position["epoch"]
        if not every or epoch % every:
            return
        folder = (self.directory / LAST).parent
        write_bytes_atomically(folder / f"epoch-{epoch:04d}.safetensors", (self.directory / LAST).read_bytes())
        for old in sorted(folder.glob("epoch-*.safetensors"))[: -self.config.keep_newest]:
            old.unlink()

    def summary(self) -> dict[str, Any]:
        best = self.best_epoch()
        return {
            "run": str(self.directory),
            "preset": self.config.name,
            "epochs": len(self.history),
            "best_epoch": best,
            "best": self.history[best - 1]["dev"] if self.history else {},
            "parameters": int(self.model.count_params()),
            "words": len(self.vocabulary.pieces),
            "train_seconds": round(sum(r["train_seconds"] for r in self.history), 1),
            "seconds_per_epoch": round(float(np.median([r["train_seconds"] for r in self.history])), 1),
        }


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """Collects SIGINT and SIGTERM so that the step under way ends and the state is saved; a second one acts at once."""
    received: list[int] = []

    def note(number: int, frame: Any) -> None:
        received.append(number)
        signal.signal(number, previous[number])

    previous: dict[int, Any] = {}
    try:
        for stop in (signal.SIGINT, signal.SIGTERM):
            previous[stop] = signal.signal(stop, note)
    except ValueError:  # not the main thread: whoever owns it handles signals
        previous.clear()
    try:
        yield received
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
