"""A run directory: what a training run leaves behind, and how it is read again.

config.json            the preset with everything the command line changed
vocabulary/            the tokenizer
best.safetensors       weights of the best epoch by the monitored dev figure
checkpoints/           last.safetensors: weights, optimiser, position; what --resume continues
history.json curves.png samples.txt tensorboard/
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from captionlite.runtime.image import load_image
from captionlite.runtime.manifest import ImageSpec
from captionlite.training.albert_vocabulary import load_vocabulary
from captionlite.training.checkpoints import load_variables
from captionlite.training.config import RunConfig, from_json
from captionlite.training.datasets import load_dataset
from captionlite.training.datasets.photos import Photo
from captionlite.training.encoders import build_encoder, build_trained_blocks, encoder_spec, front_name
from captionlite.training.errors import RunError
from captionlite.training.families import build_family
from captionlite.training.families.base import DecoderFamily
from captionlite.training.families.ensemble import EnsembleDecoder
from captionlite.training.families.tuned import TunedDecoder
from captionlite.training.files import write_text_atomically
from captionlite.training.generate import KerasGenerator
from captionlite.training.vocabulary import END_ID, START_ID, WordVocabulary

CONFIG, VOCABULARY, BEST, HISTORY = "config.json", "tokenizer.json", "best.safetensors", "history.json"
LAST = "checkpoints/last.safetensors"


class Run:
    """A trained captioner: config, vocabulary, decoder weights, and the encoder when asked for."""

    def __init__(
        self,
        directory: Path,
        config: RunConfig,
        vocabulary: WordVocabulary,
        model: DecoderFamily,
        best: dict[str, Any] | None = None,
    ) -> None:
        self.directory, self.config, self.vocabulary, self.model = directory, config, vocabulary, model
        self.best = best or {}  # of the loaded weights: epoch, dev figures, data sets with photographs and licences
        self._encoder: Any = None
        self._generator: KerasGenerator | None = None

    @property
    def image_spec(self) -> ImageSpec:
        height, width = encoder_spec(self.config.encoder.name).image_size
        return ImageSpec(height, width)

    @property
    def encoder(self) -> Any:
        """The frozen part of the Keras encoder: float32 pixels 0..255 (B, H, W, 3) -> features (B, h, w, C)."""
        if self._encoder is None:
            frozen = front_name(self.config.encoder.name, self.config.trained_blocks)
            self._encoder = build_encoder(frozen, self.config.encoder.weights)
        return self._encoder

    @property
    def generator(self) -> KerasGenerator:
        if self._generator is None:
            self._generator = KerasGenerator(
                self.model, start_id=START_ID, end_id=END_ID, suppressed_ids=self.vocabulary.suppressed_ids
            )
        return self._generator

    def with_decoder(self, vocabulary: WordVocabulary, model: DecoderFamily) -> Run:
        """This run with another vocabulary and decoder behind the same encoder."""
        other = Run(self.directory, self.config, vocabulary, model, self.best)
        other._encoder = self.encoder
        return other

    def training_photographs(self, count: int = 200) -> list[Photo]:
        """A seeded sample of the training photographs, if the data still stands where the run found it."""
        datasets = [load_dataset(data.spec) for data in self.config.data]
        paths = [example.image for dataset in datasets for example in dataset.splits.get("train", ())]
        order = np.random.default_rng(self.config.seed).permutation(len(paths))
        return [paths[i] for i in order[:count]]

    def features(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) -> float32 features (B, h, w, C)."""
        import keras

        features = self.encoder(pixels.astype(np.float32), training=False)
        return np.asarray(keras.ops.convert_to_numpy(features))

    def grids(self, pixels: np.ndarray) -> np.ndarray:
        """uint8 (B, H, W, 3) -> what the decoder looks at, behind trained blocks too: float32 (B, h, w, C)."""
        import keras

        return np.asarray(keras.ops.convert_to_numpy(self.model.state_and_grid(self.features(pixels))[1]))

    def caption(self, image: str | Path | bytes) -> str:
        """One photograph through Keras, greedily: what the exported bundle must reproduce."""
        pixels = load_image(image, self.image_spec)[None]
        return self.vocabulary.decode(self.generator.generate(self.features(pixels))[0])


def write_json(path: Path, obj: Any) -> None:
    write_text_atomically(path, json.dumps(obj, indent=1, ensure_ascii=False) + "\n")


def read_config(directory: Path) -> RunConfig:
    path = directory / CONFIG
    if not path.is_file():
        raise RunError(f"{path}: no such file; {directory} is not a run directory (captionlite train --out makes one)")
    config: RunConfig = from_json(RunConfig, json.loads(path.read_text()), str(path))
    return config


def build_model(config: RunConfig, vocabulary_size: int) -> DecoderFamily:
    """The run's decoder and, before it, those of the encoder's blocks that are trained, with the encoder's weights; as
    often as the run has members.
    """
    encoder = config.encoder
    features = encoder_spec(encoder.name).feature_shape

    def member() -> DecoderFamily:
        decoder = build_family(config.family, features, vocabulary_size, f"{config.name}.family")
        if not config.trained_blocks:
            return decoder
        return TunedDecoder(build_trained_blocks(encoder.name, encoder.weights, config.trained_blocks), decoder)

    if config.members == 1:
        return member()
    return EnsembleDecoder([member() for _ in range(config.members)])


def load_start(directory: Path, model: DecoderFamily) -> None:
    """Gives a model the best weights of the run in ``directory`` to start from.

    A run with a wholly frozen encoder has none of the blocks that are trained now: these start as they are.
    """
    started = model if read_config(directory).trained_blocks else model.decoder_alone
    load_variables(directory / BEST, {"model": started.weights})


def load_run(directory: str | Path) -> Run:
    """The run in ``directory`` with the weights of its best epoch.

    Raises RunError or WeightsError naming the file that is missing, damaged or does not fit.
    """
    directory = Path(directory)
    config = read_config(directory)
    vocabulary = load_vocabulary(directory / VOCABULARY)
    model = build_model(config, len(vocabulary.pieces))
    best = load_variables(directory / BEST, {"model": model.weights})
    return Run(directory, config, vocabulary, model, best)
