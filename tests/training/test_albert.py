"""ALBERT from Hugging Face files: every tensor compared, a NumPy forward pass as referee, and every fault by name."""

import json
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import harness
import keras
import numpy as np
import pytest
from safetensors.numpy import save_file
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from captionlite.training.albert import AlbertSizes, build_albert, load_albert, tensor_table
from captionlite.training.albert_vocabulary import (
    SentencePieceVocabulary,
    build_sentencepiece_vocabulary,
    load_vocabulary,
)
from captionlite.training.errors import ConfigError, VocabularyError, WeightsError
from captionlite.training.families import build_family
from captionlite.training.families.masked_lm import MaskedLM

pytest.importorskip("keras_hub")

SIZES = AlbertSizes(vocabulary=37, embedding=6, hidden=12, layers=3, heads=3, feed_forward=20, positions=16)
LAYER = "encoder.albert_layer_groups.0.albert_layers.0"
Tensors = dict[str, np.ndarray]


def checkpoint_tensors(seed: int = 0) -> Tensors:
    """What transformers' AlbertModel.state_dict() holds: names and shapes written out, (out, in) for every Linear."""
    e, h, f = SIZES.embedding, SIZES.hidden, SIZES.feed_forward
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (SIZES.vocabulary, e),
        "embeddings.position_embeddings.weight": (SIZES.positions, e),
        "embeddings.token_type_embeddings.weight": (2, e),
        "embeddings.LayerNorm.weight": (e,),
        "embeddings.LayerNorm.bias": (e,),
        "encoder.embedding_hidden_mapping_in.weight": (h, e),
        "encoder.embedding_hidden_mapping_in.bias": (h,),
        f"{LAYER}.full_layer_layer_norm.weight": (h,),
        f"{LAYER}.full_layer_layer_norm.bias": (h,),
        f"{LAYER}.attention.LayerNorm.weight": (h,),
        f"{LAYER}.attention.LayerNorm.bias": (h,),
        f"{LAYER}.ffn.weight": (f, h),
        f"{LAYER}.ffn.bias": (f,),
        f"{LAYER}.ffn_output.weight": (h, f),
        f"{LAYER}.ffn_output.bias": (h,),
        "pooler.weight": (h, h),
        "pooler.bias": (h,),
    }
    for part in ("query", "key", "value", "dense"):
        shapes[f"{LAYER}.attention.{part}.weight"] = (h, h)
        shapes[f"{LAYER}.attention.{part}.bias"] = (h,)
    rng = np.random.default_rng(seed)
    return {name: rng.normal(0, 0.5, shape).astype("float32") for name, shape in shapes.items()}


def head_tensors() -> Tensors:
    """What AlbertForPreTraining adds."""
    rng = np.random.default_rng(1)
    shapes = {
        "predictions.bias": (37,),
        "predictions.LayerNorm.weight": (6,),
        "predictions.LayerNorm.bias": (6,),
        "predictions.dense.weight": (6, 12),
        "predictions.dense.bias": (6,),
        "predictions.decoder.weight": (37, 6),
        "predictions.decoder.bias": (37,),
        "sop_classifier.classifier.weight": (2, 12),
        "sop_classifier.classifier.bias": (2,),
    }
    return {name: rng.normal(size=shape).astype("float32") for name, shape in shapes.items()}


CONFIG: dict[str, Any] = {
    "architectures": ["AlbertForMaskedLM"],
    "model_type": "albert",
    "vocab_size": 37,
    "embedding_size": 6,
    "hidden_size": 12,
    "num_hidden_layers": 3,
    "num_hidden_groups": 1,
    "inner_group_num": 1,
    "num_attention_heads": 3,
    "intermediate_size": 20,
    "max_position_embeddings": 16,
    "type_vocab_size": 2,
    "hidden_act": "gelu_new",
    "layer_norm_eps": 1e-12,
}


def numpy(tensor: Any) -> np.ndarray:
    return np.asarray(keras.ops.convert_to_numpy(tensor))


def write(directory: Path, tensors: Tensors, config: dict[str, Any] = CONFIG) -> str:
    directory.mkdir(exist_ok=True)
    save_file(tensors, directory / "model.safetensors", {"format": "pt"})
    (directory / "config.json").write_text(json.dumps(config))
    return str(directory)


def prefixed(tensors: Tensors) -> Tensors:
    return {f"albert.{name}": tensor for name, tensor in tensors.items()}


FORMS: dict[str, Callable[[], tuple[Tensors, list[str]]]] = {
    "AlbertModel": lambda: (checkpoint_tensors(), []),
    "AlbertForPreTraining": lambda: ({**prefixed(checkpoint_tensors()), **head_tensors()}, sorted(head_tensors())),
    "AlbertForMaskedLM": lambda: (
        {
            **{n: t for n, t in prefixed(checkpoint_tensors()).items() if "pooler" not in n},
            **{n: t for n, t in head_tensors().items() if n.startswith("predictions")},
        },
        sorted(n for n in head_tensors() if n.startswith("predictions")),
    ),
    "with the position buffer of older versions": lambda: (
        prefixed(checkpoint_tensors()) | {"albert.embeddings.position_ids": np.arange(16)[None]},
        [],
    ),
    "float16": lambda: ({n: t.astype("float16") for n, t in checkpoint_tensors().items()}, []),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_tensor_arrives(form: str, tmp_path: Path) -> None:
    tensors, heads = FORMS[form]()
    albert = build_albert(SIZES)
    assert load_albert(albert, SIZES, write(tmp_path / "hf", tensors)) == heads
    seen = set()
    for name, (variable, _) in tensor_table(albert).items():
        stored = tensors.get(name, tensors.get(f"albert.{name}"))
        if stored is None:
            assert name.startswith("pooler.")
            assert form == "AlbertForMaskedLM"
            continue
        value = numpy(variable)
        expected = stored.astype("float32")
        if value.ndim == 3:  # attention: (in, heads, width), or (heads, width, out)
            value = value.reshape(12, 12).T
        elif value.ndim == 2 and name.endswith(".weight") and "embeddings." not in name:
            value = value.T
        np.testing.assert_array_equal(value.reshape(expected.shape), expected, err_msg=name)
        seen.add(id(variable))
    assert len(seen) == len(albert.weights) - (2 if form == "AlbertForMaskedLM" else 0)


def reference(tensors: Tensors, tokens: np.ndarray, shown: np.ndarray) -> np.ndarray:
    """ALBERT's forward pass, as the paper and transformers' modeling_albert.py have it: (B, T) -> (B, T, hidden)."""

    def linear(name: str, x: np.ndarray) -> np.ndarray:
        return x @ tensors[f"{name}.weight"].T + tensors[f"{name}.bias"]

    def norm(name: str, x: np.ndarray) -> np.ndarray:
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12)
        return x * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]

    def split(x: np.ndarray) -> np.ndarray:
        return x.reshape(*x.shape[:2], 3, 4).transpose(0, 2, 1, 3)

    x = tensors["embeddings.word_embeddings.weight"][tokens]
    x = x + tensors["embeddings.position_embeddings.weight"][: tokens.shape[1]]
    x = norm("embeddings.LayerNorm", x + tensors["embeddings.token_type_embeddings.weight"][0])
    x = linear("encoder.embedding_hidden_mapping_in", x)
    for _ in range(SIZES.layers):
        q, k, v = (split(linear(f"{LAYER}.attention.{part}", x)) for part in ("query", "key", "value"))
        scores = q @ k.transpose(0, 1, 3, 2) / 2.0 + np.where(shown, 0, -1e9)[:, None, None]
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        attended = (weights @ v).transpose(0, 2, 1, 3).reshape(x.shape)
        x = norm(f"{LAYER}.attention.LayerNorm", x + linear(f"{LAYER}.attention.dense", attended))
        wide = linear(f"{LAYER}.ffn", x)
        wide = 0.5 * wide * (1 + np.tanh(np.sqrt(2 / np.pi) * (wide + 0.044715 * wide**3)))
        x = norm(f"{LAYER}.full_layer_layer_norm", x + linear(f"{LAYER}.ffn_output", wide))
    return x


def test_computes_what_the_checkpoint_means(tmp_path: Path) -> None:
    tensors = checkpoint_tensors()
    albert = build_albert(SIZES)
    load_albert(albert, SIZES, write(tmp_path / "hf", tensors))
    tokens = np.random.default_rng(3).integers(0, 37, (2, 9)).astype("int32")
    shown = np.array([[1] * 9, [1] * 5 + [0] * 4], "int32")
    inputs = {"token_ids": tokens, "segment_ids": np.zeros_like(tokens), "padding_mask": shown}
    found = numpy(albert(inputs)["sequence_output"])
    expected = reference(tensors, tokens, shown)
    np.testing.assert_allclose(found[shown > 0], expected[shown > 0], atol=2e-5)


def test_family_takes_the_weights_over_once_asked(tmp_path: Path) -> None:
    tensors = checkpoint_tensors()
    source = write(tmp_path / "hf", tensors)
    config = {
        "name": "masked_lm", "layers": 3, "units": 12, "heads": 3, "feed_forward": 20, "embedding": 6, "positions": 16,
        "max_length": 9, "albert_weights": source,
    }  # fmt: skip
    model = build_family(config, (2, 2, 4), 37)
    assert isinstance(model, MaskedLM)
    words = tensors["embeddings.word_embeddings.weight"]
    assert np.abs(numpy(model.embeddings()) - words).max() > 0.1
    model.load_pretrained()
    np.testing.assert_array_equal(numpy(model.embeddings()), words)


FFN = f"{LAYER}.ffn.weight"
FAULTS: dict[str, tuple[Callable[[Tensors], Any], str]] = {
    "missing": (lambda t: t.pop(FFN), rf"tensor {FFN} is missing"),
    "transposed": (
        lambda t: t.update({FFN: np.ascontiguousarray(t[FFN].T)}),
        rf"{FFN} has shape \(12, 20\), expected \(20, 12\)",
    ),
    "embeddings cut short": (
        lambda t: t.update({"embeddings.word_embeddings.weight": np.zeros((36, 6), "float32")}),
        r"embeddings.word_embeddings.weight has shape \(36, 6\), expected \(37, 6\)",
    ),
    "attention bias": (
        lambda t: t.update({f"{LAYER}.attention.key.bias": np.zeros((3, 4), "float32")}),
        r"attention.key.bias has shape \(3, 4\), expected \(12,\)",
    ),
    "half a pooler": (lambda t: t.pop("pooler.bias"), "tensor pooler.bias is missing"),
    "unknown": (lambda t: t.update({"encoder.odd": np.zeros(3, "float32")}), "encoder.odd is none of ALBERT's"),
    "NaN": (lambda t: t[FFN].__setitem__((0, 0), np.nan), f"{FFN} has values that are no finite"),
    "integers": (lambda t: t.update({FFN: np.zeros((20, 12), "int32")}), f"{FFN} is int32"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("prefix", ["", "albert."])
def test_a_wrong_tensor_is_refused_by_name_and_nothing_changes(fault: str, prefix: str, tmp_path: Path) -> None:
    tensors = checkpoint_tensors()
    change, message = FAULTS[fault]
    change(tensors)
    source = write(tmp_path / "hf", {f"{prefix}{name}": tensor for name, tensor in tensors.items()})
    albert = build_albert(SIZES)
    before = [numpy(w).copy() for w in albert.weights]
    with pytest.raises(WeightsError, match=message) as caught:
        load_albert(albert, SIZES, source)
    assert "model.safetensors" in str(caught.value)
    for weight, old in zip(albert.weights, before, strict=True):
        np.testing.assert_array_equal(numpy(weight), old)


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    source = Path(write(tmp_path / "hf", checkpoint_tensors()))
    file = source / "model.safetensors"
    whole = file.read_bytes()
    albert = build_albert(SIZES)
    file.write_bytes(whole[:-10])
    with pytest.raises(WeightsError, match=r"model\.safetensors: damaged"):
        load_albert(albert, SIZES, str(source))
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    name = next(n for n in sorted(header) if n != "__metadata__")
    header[name]["dtype"] = "BF16"
    header[name]["data_offsets"] = header[name]["data_offsets"]
    text = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(text)) + text + whole[8 + length :])
    with pytest.raises(WeightsError, match=r"model\.safetensors: damaged or not understood"):
        load_albert(albert, SIZES, str(source))
    file.unlink()
    with pytest.raises(WeightsError, match="no such file"):
        load_albert(albert, SIZES, str(source))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 12}, "num_hidden_layers is 12, expected 3"),
        ({"num_hidden_groups": 3}, "num_hidden_groups is 3, expected 1"),
        ({"hidden_act": "relu"}, "hidden_act is 'relu'"),
        ({"vocab_size": None}, "vocab_size is None, expected 37"),
    ],
)
def test_another_albert_is_refused_by_its_config(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = write(tmp_path / "hf", checkpoint_tensors(), {**CONFIG, **change})
    with pytest.raises(WeightsError, match=message):
        load_albert(build_albert(SIZES), SIZES, source)


def test_a_source_that_is_nowhere_says_what_was_expected(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def offline(*args: Any, **kwargs: Any) -> str:
        raise OSError("offline")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", offline)
    with pytest.raises(WeightsError, match=r"no/such: neither a directory .* \(offline\); give a directory"):
        load_albert(build_albert(SIZES), SIZES, "no/such")


def test_an_id_is_downloaded_to_where_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    source = write(tmp_path / "cache", checkpoint_tensors())
    asked = []

    def download(name: str, allow_patterns: list[str]) -> str:
        asked.append((name, sorted(allow_patterns)))
        return source

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert load_albert(build_albert(SIZES), SIZES, "albert/albert-base-v2") == []
    assert asked == [("albert/albert-base-v2", ["config.json", "model.safetensors"])]


def test_without_keras_hub_the_extra_is_named_and_other_families_build(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "keras_hub", None)
    monkeypatch.setitem(sys.modules, "keras_hub.models", None)
    with pytest.raises(ConfigError, match=r"keras-hub .*captionlite\[albert\]"):
        build_albert(SIZES)
    harness.build(harness.MASKED_LM)


# The vocabulary

CAPTIONS = [
    "a brown dog runs across the green grass .",
    "two children are playing in the water",
    "a man in a red shirt climbs a rock",
    "the dog jumps over the fence and runs away",
] * 3
SPECIALS = ["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"]


def trained_tokenizer(specials: list[str] = SPECIALS) -> Tokenizer:
    """A Unigram model with Metaspace and ALBERT's normalisation, trained here."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.NFKD(),
            normalizers.StripAccents(),
            normalizers.Lowercase(),
            normalizers.Replace(Regex(" {2,}"), " "),
        ]
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=120, special_tokens=specials, unk_token="<unk>", show_progress=False)
    tokenizer.train_from_iterator(CAPTIONS, trainer)
    ids = [(name, specials.index(name)) for name in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ids)
    return tokenizer


def save_tokenizer(directory: Path, tokenizer: Tokenizer) -> str:
    from transformers import PreTrainedTokenizerFast

    names = {"pad": "<pad>", "unk": "<unk>", "cls": "[CLS]", "sep": "[SEP]", "mask": "[MASK]"}
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, **{f"{role}_token": name for role, name in names.items()}
    ).save_pretrained(directory)
    return str(directory)


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tokenizer(tmp_path_factory.mktemp("tokenizer"), trained_tokenizer())


def test_tokenizer_comes_through_transformers(source: str) -> None:
    from transformers import AutoTokenizer

    theirs = AutoTokenizer.from_pretrained(source)
    vocabulary = build_sentencepiece_vocabulary(source, CAPTIONS)
    assert vocabulary.pieces[:5] == SPECIALS
    assert vocabulary.pieces == theirs.convert_ids_to_tokens(range(len(theirs)))
    assert vocabulary.suppressed_ids == (0, 1, 2, 4)
    texts = ["A brown DOG jumps", "deux garçons", "two two\u2581children", ""]
    encoded = vocabulary.encode_batch(texts)
    assert encoded == [theirs(text)["input_ids"] for text in texts]
    for text, ids in zip(texts, encoded, strict=True):
        assert vocabulary.decode(ids[1:]) == theirs.decode(ids, skip_special_tokens=True).strip(), text
    assert vocabulary.frequencies[3] == len(CAPTIONS)
    assert vocabulary.frequencies[2] == 0
    assert vocabulary.frequencies.sum() == sum(len(ids) - 1 for ids in vocabulary.encode_batch(CAPTIONS))


def test_is_saved_and_loaded_without_transformers(source: str, tmp_path: Path) -> None:
    vocabulary = build_sentencepiece_vocabulary(source, CAPTIONS)
    vocabulary.save(tmp_path / "tokenizer.json")
    again = load_vocabulary(tmp_path / "tokenizer.json")
    assert isinstance(again, SentencePieceVocabulary)
    assert again.pieces == vocabulary.pieces
    assert again.encode_batch(CAPTIONS) == vocabulary.encode_batch(CAPTIONS)
    np.testing.assert_array_equal(again.frequencies, vocabulary.frequencies)
    assert again.runtime_vocabulary()["kind"] == "sentencepiece"


def test_other_special_tokens_are_refused(tmp_path: Path) -> None:
    source = save_tokenizer(tmp_path, trained_tokenizer(["[CLS]", "<unk>", "<pad>", "[SEP]", "[MASK]"]))
    with pytest.raises(VocabularyError, match=r"special tokens are .*'pad': 2.* take its own tokenizer"):
        build_sentencepiece_vocabulary(source, CAPTIONS)


def test_a_tokenizer_that_is_nowhere_says_so(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="no tokenizer could be loaded"):
        build_sentencepiece_vocabulary(str(tmp_path), CAPTIONS)


def test_without_transformers_the_extra_is_named(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(VocabularyError, match=r"needs transformers .*captionlite\[albert\]"):
        build_sentencepiece_vocabulary(source, CAPTIONS)
