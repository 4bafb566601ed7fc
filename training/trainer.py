"""The training loop: resumable at any moment, with progress, dev figures, sample captions and curves."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import keras
import numpy as np
from filelock import FileLock, Timeout

from captionlite.training.albert_vocabulary import build_sentencepiece_vocabulary, load_vocabulary
from captionlite.training.checkpoints import load_variables, read_metadata, save_variables
from captionlite.training.config import RunConfig
from captionlite.training.curves import draw_curves
from captionlite.training.data import load_data
from captionlite.training.errors import ConfigError, RunError
from captionlite.training.evaluation import DevEvaluator
from captionlite.training.files import write_bytes_atomically, write_text_atomically
from captionlite.training.optimizers import averages
from captionlite.training.progress import progress
from captionlite.training.run import (
    BEST,
    CONFIG,
    HISTORY,
    LAST,
    VOCABULARY,
    Run,
    build_model,
    load_start,
    read_config,
    write_json,
)
from captionlite.training.stages import Stage, build_stages
from captionlite.training.vocabulary import STANDARDIZATIONS, WordVocabulary, build_word_vocabulary

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
            if config.members != 1:
                raise ConfigError(
                    f"{config.name}.members: found {config.members}; an ensemble is not trained: train its members and "
                    "put them together with `captionlite ensemble`"
                )
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
        self.model = build_model(config, len(self.vocabulary.pieces))
        bias = self.model.output_bias_layer()
        if bias is not None:
            bias.set_from_frequencies(self.vocabulary.frequencies, self.vocabulary.suppressed_ids)
        if not (directory / LAST).exists():
            if config.start is None:
                self.model.load_pretrained()
            else:
                load_start(Path(config.start), self.model)
        self.stages = build_stages(config, self.model, self.data, self.vocabulary)
        self.position = {"stage": 0, "epoch": 0, "step": 0}  # the next batch
        self.sums: dict[str, float] = {}  # over the epoch so far, by figure, and "seconds"
        self.history: list[dict[str, Any]] = []
        self._restore()
        self.stage.begin()
        write_json(directory / CONFIG, config.to_json())

    @property
    def stage(self) -> Stage:
        return self.stages[self.position["stage"]]

    @property
    def groups(self) -> dict[str, Any]:
        """What a checkpoint holds."""
        stage = self.stage
        return {"model": self.model.variables, "optimizer": stage.optimizer.variables, "noise": stage.seeds}

    def _vocabulary(self) -> WordVocabulary:
        path = self.directory / VOCABULARY
        if not path.exists() and self.config.start is not None:
            load_vocabulary(Path(self.config.start) / VOCABULARY).save(path)
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

    def run(self) -> dict[str, Any]:
        run = Run(self.directory, self.config, self.vocabulary, self.model)
        evaluator = DevEvaluator(self.model, run.generator, self.data, self.vocabulary)
        self.report(
            f"{self.config.name}: {self.model.count_params():,} parameters, {len(self.vocabulary.pieces):,} words, "
            f"{' then '.join(f'{s.plan.batches_per_epoch} batches an epoch' for s in self.stages)}"
        )
        for line in self.data.report():
            self.report(line)
        with _stop_signals() as stopped:
            while True:
                while self.position["epoch"] < self.stage.epochs and not self._exhausted():
                    self._epoch(stopped)
                    self._finish_epoch(evaluator)
                if self.position["stage"] + 1 == len(self.stages):
                    break
                self._next_stage()
        return self.summary()

    def _next_stage(self) -> None:
        """From the best weights so far, with an optimiser of its own."""
        self.stage.sync()
        if self.history:
            load_variables(self.directory / BEST, {"model": self.model.weights})
        self.position = {"stage": self.position["stage"] + 1, "epoch": 0, "step": 0}
        self.stage.begin()
        self._save()

    def _epoch(self, stopped: list[int]) -> None:
        stage, epoch, first = self.stage, self.position["epoch"], self.position["step"]
        total = stage.plan.batches_per_epoch
        saved = began = time.monotonic()
        spent = self.sums.get("seconds", 0.0)
        pending: list[Mapping[str, Any]] = []
        with progress(total, f"{stage.name} epoch {epoch + 1}/{stage.epochs}", done=first) as advance:
            for batch in stage.plan.epoch(epoch, first):
                pending.append(stage.run(batch, epoch * total + self.position["step"]))
                self.position["step"] += 1
                advance(1)
                due = time.monotonic() - saved > CHECKPOINT_SECONDS
                if due or stopped or len(pending) == 50 or self.position["step"] == total:
                    self._collect(pending)  # reading a scalar waits for the device: not after every step
                    self.sums["seconds"] = spent + time.monotonic() - began
                if stopped:
                    self._save()
                    raise Interrupted(
                        f"stopped in epoch {len(self.history) + 1} after {self.position['step']} batches; state saved"
                    )
                if due:
                    self._save()
                    saved = time.monotonic()
        stage.sync()

    def _collect(self, pending: list[Mapping[str, Any]]) -> None:
        for logs in pending:
            for key in self.stage.logged:
                self.sums[key] = self.sums.get(key, 0.0) + float(logs[key])
        pending.clear()
        if not np.isfinite(self.sums["loss"]):
            raise RunError(
                f"{self.directory}: the loss is not finite in epoch {len(self.history) + 1}; "
                f"the last checkpoint is kept; lower optimizer.learning_rate or set optimizer.clipnorm"
            )

    def _finish_epoch(self, evaluator: DevEvaluator) -> None:
        began = time.monotonic()
        number, total = len(self.history) + 1, self.stage.plan.batches_per_epoch
        with averages(self.stage.optimizer, self.stage.variables):
            figures = evaluator.evaluate()
            self.history.append(
                {
                    "epoch": number,
                    "stage": self.stage.name,
                    "train": {key: round(self.sums[key] / total, 5) for key in self.stage.logged},
                    "dev": figures,
                    "train_seconds": round(self.sums["seconds"], 1),
                    "dev_seconds": round(time.monotonic() - began, 1),
                    "samples": evaluator.samples(SAMPLES, number - 1),
                }
            )
            if self.best_epoch() == number:
                metadata = {"epoch": number, "dev": figures, "datasets": self.data.facts()}
                save_variables(self.directory / BEST, {"model": self.model.weights}, metadata)
        self.position = {**self.position, "epoch": self.position["epoch"] + 1, "step": 0}
        self.sums = {}
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
        """No better figure for ``patience`` epochs of this stage."""
        return min(len(self.history) - self.best_epoch(), self.position["epoch"]) >= self.config.patience

    def _save(self) -> None:
        self.stage.sync()
        metadata = {"position": self.position, "sums": self.sums, "history": self.history}
        save_variables(self.directory / LAST, self.groups, metadata)

    def _restore(self) -> None:
        if (self.directory / LAST).exists():
            metadata = read_metadata(self.directory / LAST)
            self.position, self.sums, self.history = (metadata[key] for key in ("position", "sums", "history"))
            self.position.setdefault("stage", 0)  # runs from before there were stages
            load_variables(self.directory / LAST, self.groups)

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
        train = "  ".join(f"{key} {value:.4f}" for key, value in record["train"].items() if key != "accuracy")
        self.report(
            f"epoch {record['epoch']}: {train}  {shown}  "
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
        every, epoch = self.config.keep_every_epochs, len(self.history)
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
