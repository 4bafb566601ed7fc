"""A preset: everything that defines a training run, as one JSON file read into frozen dataclasses."""

from __future__ import annotations

import dataclasses
import importlib.resources
import json
import types
import typing
from pathlib import Path
from typing import Any, Literal

from captionlite.training.batches import Draw
from captionlite.training.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class EncoderConfig:
    """Which convolutional network looks at the photograph; weights: "imagenet", a file, or null for random ones."""

    name: str = "efficientnet_lite0"
    weights: str | None = "imagenet"


@dataclasses.dataclass(frozen=True)
class VocabularyConfig:
    """Which words a decoder knows: those seen at least ``min_count`` times, the ``max_size`` most frequent ones.

    ``standardization``: what a word is, see `captionlite.training.vocabulary`. ``mask`` adds the piece [MASK].
    ``sentencepiece``: a Hugging Face tokenizer, directory or id, instead of words.
    """

    min_count: int = 1
    max_size: int | None = None
    standardization: Literal["plain_words", "word_split", "tutorial_top_k", "keras_text_vectorization"] = "plain_words"
    mask: bool = False
    sentencepiece: str | None = None


@dataclasses.dataclass(frozen=True)
class OptimizerConfig:
    """Adam (AdamW when ``weight_decay`` is given); "cosine" falls from ``learning_rate`` to 0 over all epochs."""

    learning_rate: float = 1e-4
    schedule: Literal["constant", "cosine"] = "constant"
    warmup_steps: int = 0
    epsilon: float = 1e-7
    clipnorm: float | None = None
    weight_decay: float | None = None
    average: float | None = None  # decay a step of a moving average of the weights, which is what is judged and kept


@dataclasses.dataclass(frozen=True)
class FineTuningConfig:
    """Training of the encoder's last ``blocks`` and all that follows them, after the plain epochs and in what comes
    then; without this block the whole encoder is frozen. What stands before those blocks stays as it is.
    """

    blocks: int
    epochs: int = 5
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-4, schedule="cosine", warmup_steps=100, weight_decay=0.02, clipnorm=1.0, average=0.998
    )


@dataclasses.dataclass(frozen=True)
class SelfCriticalConfig:
    """Training on the scores of the model's own captions, after the plain epochs (`captionlite.training.rewards`).

    Of each photograph ``samples`` captions are drawn; each counts by how much better it scores than the mean of the
    others (Rennie et al. 2017; the mean as baseline, Luo 2020). ``captions`` of its true captions, counting
    ``cross_entropy`` each, keep the model's language from narrowing to what scores well.
    """

    epochs: int = 6
    photographs: int = 32  # a batch
    samples: int = 5
    captions: int = 1
    cross_entropy: float = 0.2
    bleu: float = 0.5  # weight of smoothed BLEU-4 beside CIDEr-D, which weighs 1
    repetition: float = 0.1  # what a caption loses for each pair of words that it says twice
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-4, schedule="cosine", warmup_steps=50, clipnorm=1.0, average=0.99
    )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """A data set ("kind:path") and how often an epoch takes each of its photographs."""

    spec: str
    weight: float = 1.0


@dataclasses.dataclass(frozen=True)
class RunConfig:
    """One training run."""

    name: str
    family: dict[str, Any]
    encoder: EncoderConfig = EncoderConfig()
    vocabulary: VocabularyConfig = VocabularyConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: tuple[DataConfig, ...] = ()
    description: str = ""
    batch_size: int = 64  # captions
    captions_per_photo: int = 1  # captions of one photograph that stand together in a batch and share its encoding
    draw: Draw = "every_caption"
    epochs: int = 10
    steps_per_epoch: int | None = None  # null: all the data once
    flip: bool = False  # photographs mirrored too
    views: int = 0  # so many views of each photograph beside (cropped, in another light): see augmentation
    label_smoothing: float = 0.0
    feature_noise: float = 0.0  # Gaussian, as a share of the features' RMS: what a quantized encoder will add anyway
    monitor: Literal["cider", "loss"] = "loss"  # which dev figure chooses the best weights and stops early
    patience: int = 5  # epochs without a better figure before stopping
    keep_every_epochs: int = 0  # keep a checkpoint every so many epochs (0: only the last)
    keep_newest: int = 5
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    jit_compile: bool = False  # XLA on the TensorFlow backend; slower than plain kernels on a CPU
    fine_tuning: FineTuningConfig | None = None
    self_critical: SelfCriticalConfig | None = None
    length_penalty: float | None = None  # how an exported bundle ranks its beams, chosen on dev photographs; null: 1
    members: int = 1  # captioners in one: an ensemble, made of runs by `captionlite ensemble`, not trained
    start: str | None = None  # a run directory whose vocabulary and best weights this one starts from
    seed: int = 0
    # What a published system reported about itself, for `captionlite presets`: its vocabulary_size, source, figures.
    published: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def trained_blocks(self) -> int:
        """The encoder's last so many blocks are part of what is trained."""
        return self.fine_tuning.blocks if self.fine_tuning is not None else 0

    def encoder_facts(self) -> dict[str, Any]:
        """The encoder as a bundle's provenance states it."""
        trained = {"trained_blocks": self.trained_blocks} if self.trained_blocks else {}
        return dataclasses.asdict(self.encoder) | trained

    def to_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)


def from_json(cls: type[Any], obj: Any, where: str) -> Any:
    """A (nested) frozen dataclass from JSON; what does not fit is refused by its path."""
    if not isinstance(obj, dict):
        raise ConfigError(f"{where}: found {type(obj).__name__}, expected an object")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls)}
    for key in obj:
        if key not in fields:
            raise ConfigError(f"{where}.{key}: no such setting; there are {', '.join(fields)}")
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if required and name not in obj:
            raise ConfigError(f"{where}.{name}: missing")
    return cls(**{key: _value(hints[key], value, f"{where}.{key}") for key, value in obj.items()})


def _value(hint: Any, value: Any, where: str) -> Any:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if origin is Literal:
        if value not in arguments:
            raise ConfigError(f"{where}: found {value!r}, expected one of {', '.join(map(repr, arguments))}")
        return value
    if origin is tuple:
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where}: found {type(value).__name__}, expected a list")
        return tuple(_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return from_json(typing.cast("type[Any]", hint), value, where)
    expected = origin or hint
    if expected is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, expected) or (isinstance(value, bool) and expected is not bool):
        raise ConfigError(f"{where}: found {value!r}, expected {expected.__name__}")
    return value


OUR_FIGURES = "ours.json"  # beside the presets: by preset, the best figures measured with captionlite


def parse_data(item: str) -> DataConfig:
    """ "KIND:PATH@2" -> that data set with weight 2; without "@" and a number behind it, weight 1."""
    spec, at, weight = item.rpartition("@")
    is_weight = bool(at) and weight.replace(".", "", 1).isdigit()
    return DataConfig(spec, float(weight)) if is_weight else DataConfig(item)


def preset_names() -> list[str]:
    """The presets inside the package."""
    folder = importlib.resources.files("captionlite.training.presets")
    names = (entry.name for entry in folder.iterdir())
    return sorted(name.removesuffix(".json") for name in names if name.endswith(".json") and name != OUR_FIGURES)


def our_figures() -> dict[str, dict[str, Any]]:
    """By preset, the best figures that captionlite itself has reached with it, each with the data it was reached on."""
    folder = importlib.resources.files("captionlite.training.presets")
    figures: dict[str, dict[str, Any]] = json.loads((folder / OUR_FIGURES).read_text())
    return figures


def load_config(name_or_path: str, settings: tuple[str, ...] = ()) -> RunConfig:
    """A preset by name, or a JSON file, with ``settings`` such as "optimizer.learning_rate=3e-4" laid over it."""
    if name_or_path in preset_names():
        where = name_or_path
        text = (importlib.resources.files("captionlite.training.presets") / f"{where}.json").read_text()
    else:
        path = Path(name_or_path)
        if not path.is_file():
            raise ConfigError(f"{name_or_path}: neither a file nor a preset; presets are {', '.join(preset_names())}")
        where, text = str(path), path.read_text()
    try:
        obj = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{where}: not JSON: {error}") from error
    for setting in settings:
        apply_setting(obj, setting)
    config: RunConfig = from_json(RunConfig, obj, where)
    return config


def apply_setting(obj: dict[str, Any], setting: str) -> None:
    """Lays "a.b=value" over a JSON object; value is JSON, or a string where it is not."""
    path, equals, text = setting.partition("=")
    if not equals or not path:
        raise ConfigError(f"--set {setting}: expected KEY=VALUE, for example optimizer.learning_rate=3e-4")
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        value = text
    *parents, leaf = path.split(".")
    for parent in parents:
        obj = obj.setdefault(parent, {})
        if not isinstance(obj, dict):
            raise ConfigError(f"--set {setting}: {parent} is not an object")
    obj[leaf] = value
