"""ALBERT (Lan et al. 2020) from keras_hub, with weights in Hugging Face form: config.json + model.safetensors.

Names and layouts are those of transformers' AlbertModel and of the models that put heads on it (AlbertForMaskedLM,
AlbertForPreTraining: prefix "albert."). PyTorch is not needed, and every tensor of the file is accounted for.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open

from captionlite.training.errors import ConfigError, WeightsError

CONFIG_FILE, WEIGHTS_FILE = "config.json", "model.safetensors"
HEADS = ("predictions.", "sop_classifier.", "classifier.")  # what stands on ALBERT in the file and is not used here
BUFFERS = ("embeddings.position_ids",)  # 0, 1, 2, ...: older versions of transformers stored it
POOLER = "pooler."  # AlbertForMaskedLM has none; the masked language model does not read it either
ACTIVATIONS = ("gelu_new", "gelu_pytorch_tanh", "gelu_fast")  # all the tanh approximation, which keras_hub uses


@dataclasses.dataclass(frozen=True)
class AlbertSizes:
    """Sizes of an ALBERT; the defaults are ALBERT-base-v2's."""

    vocabulary: int = 30000
    embedding: int = 128
    hidden: int = 768
    layers: int = 12
    heads: int = 12
    feed_forward: int = 3072
    positions: int = 512
    token_types: int = 2


# Their names in a Hugging Face config.json.
CONFIG_NAMES = {
    "vocabulary": "vocab_size",
    "embedding": "embedding_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "feed_forward": "intermediate_size",
    "positions": "max_position_embeddings",
    "token_types": "type_vocab_size",
}
SHARED_LAYERS = {"num_hidden_groups": 1, "inner_group_num": 1}  # all layers share one set of weights, as published


def build_albert(sizes: AlbertSizes, dropout: float = 0.0) -> Any:
    """A keras_hub AlbertBackbone with random weights.

    {"token_ids", "segment_ids", "padding_mask"}, each int32 (B, T) -> {"sequence_output" (B, T, hidden),
    "pooled_output"}. keras_hub is imported here and not above: no other family needs it.
    """
    try:
        from keras_hub.models import AlbertBackbone
    except ImportError as error:
        raise ConfigError(f"ALBERT needs keras-hub ({error}): `pip install 'captionlite[albert]'`") from error

    return AlbertBackbone(
        vocabulary_size=sizes.vocabulary,
        num_layers=sizes.layers,
        num_heads=sizes.heads,
        embedding_dim=sizes.embedding,
        hidden_dim=sizes.hidden,
        intermediate_dim=sizes.feed_forward,
        dropout=dropout,
        max_sequence_length=sizes.positions,
        num_segments=sizes.token_types,
        name="albert",
    )


Slot = tuple[Any, Callable[[np.ndarray], np.ndarray]]  # a Keras variable, and how to bring a tensor into its layout


def tensor_table(albert: Any) -> dict[str, Slot]:
    """Every tensor of a checkpoint by name (without the prefix "albert."), and the Keras variable that it becomes."""

    def same(tensor: np.ndarray) -> np.ndarray:
        return tensor

    table: dict[str, Slot] = {}

    def dense(name: str, layer: Any) -> None:
        """torch's Linear keeps (out, in), Keras (in, out); attention splits one of them into (heads, width)."""
        for leaf, variable, turn in (("weight", layer.kernel, np.transpose), ("bias", layer.bias, same)):
            table[f"{name}.{leaf}"] = variable, turn

    def norm(name: str, layer: Any) -> None:
        table[f"{name}.weight"], table[f"{name}.bias"] = (layer.gamma, same), (layer.beta, same)

    table["embeddings.word_embeddings.weight"] = albert.token_embedding.embeddings, same
    table["embeddings.position_embeddings.weight"] = albert.position_embedding.position_embeddings, same
    table["embeddings.token_type_embeddings.weight"] = albert.segment_embedding.embeddings, same
    norm("embeddings.LayerNorm", albert.embeddings_layer_norm)
    dense("encoder.embedding_hidden_mapping_in", albert.embeddings_projection)
    layer, where = albert.transformer_layers[0][0], "encoder.albert_layer_groups.0.albert_layers.0"
    attention = layer._self_attention_layer
    dense(f"{where}.attention.query", attention.query_dense)
    dense(f"{where}.attention.key", attention.key_dense)
    dense(f"{where}.attention.value", attention.value_dense)
    dense(f"{where}.attention.dense", attention.output_dense)
    norm(f"{where}.attention.LayerNorm", layer._self_attention_layer_norm)
    dense(f"{where}.ffn", layer._feedforward_intermediate_dense)
    dense(f"{where}.ffn_output", layer._feedforward_output_dense)
    norm(f"{where}.full_layer_layer_norm", layer._feedforward_layer_norm)
    dense("pooler", albert.pooled_dense)
    return table


def stored_shape(name: str, variable: Any) -> tuple[int, ...]:
    """The shape that a tensor has in the file: Keras splits an attention projection's width into heads, torch not."""
    shape = tuple(int(size) for size in variable.shape)
    if ".attention." in name and "LayerNorm" not in name:
        if name.endswith("dense.weight"):  # Keras (heads, width, out)
            return shape[2], shape[0] * shape[1]
        if name.endswith(".weight"):  # Keras (in, heads, width)
            return shape[1] * shape[2], shape[0]
        return (int(np.prod(shape)),)
    return shape[::-1] if name.endswith(".weight") and "embeddings." not in name and len(shape) == 2 else shape


def load_albert(albert: Any, sizes: AlbertSizes, source: str) -> list[str]:
    """Fills ``albert`` from a directory or a Hugging Face id; returns the names of the tensors that it has no use for.

    Those can only be the heads of a checkpoint. A pooler may be missing as a whole: AlbertForMaskedLM has none, and
    nothing here reads it. Raises WeightsError naming the tensor that is missing, unknown, of
    another shape or type or not finite, or the setting in config.json that differs; nothing is assigned then.
    """
    directory = find_checkpoint(source)
    check_config(directory / CONFIG_FILE, sizes)
    path = directory / WEIGHTS_FILE
    found = read_tensors(path)
    prefixed = any(name.startswith("albert.") for name in found)
    body = {n.removeprefix("albert."): t for n, t in found.items() if n.startswith("albert.") or not prefixed}
    table = tensor_table(albert)
    unused = [name for name in found if name.startswith(HEADS)]
    unknown = sorted(body.keys() - table.keys() - set(BUFFERS) - set(unused))
    unknown += sorted(n for n in found if prefixed and not n.startswith(("albert.", *HEADS)))
    if unknown:
        raise WeightsError(f"{path}: tensor {unknown[0]} is none of ALBERT's; expected an AlbertModel checkpoint")
    if not any(name.startswith(POOLER) for name in body):
        table = {name: slot for name, slot in table.items() if not name.startswith(POOLER)}
    ready = []
    for name, (variable, turn) in table.items():
        if name not in body:
            raise WeightsError(f"{path}: tensor {name} is missing; download the checkpoint again")
        tensor, expected = body[name], stored_shape(name, variable)
        if tensor.shape != expected:
            raise WeightsError(f"{path}: tensor {name} has shape {tensor.shape}, expected {expected}")
        if tensor.dtype not in (np.float32, np.float16):
            raise WeightsError(f"{path}: tensor {name} is {tensor.dtype}, expected float32 or float16")
        if not np.isfinite(tensor).all():
            raise WeightsError(f"{path}: tensor {name} has values that are no finite numbers; download it again")
        ready.append((variable, turn(tensor).reshape(variable.shape).astype(np.float32)))
    for variable, value in ready:
        variable.assign(value)
    return unused


def find_checkpoint(source: str) -> Path:
    """The local directory of a checkpoint: ``source`` itself, or the download of a Hugging Face id (into its cache)."""
    directory = Path(source).expanduser()
    if directory.is_dir():
        return directory
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(source, allow_patterns=[CONFIG_FILE, WEIGHTS_FILE]))
    except Exception as error:  # network, permissions, unknown ids: each an exception class of its own
        raise WeightsError(
            f"{source}: neither a directory nor a checkpoint that could be downloaded ({str(error).splitlines()[0]}); "
            f"give a directory with {CONFIG_FILE} and {WEIGHTS_FILE}"
        ) from error


def check_config(path: Path, sizes: AlbertSizes) -> None:
    """Refuses a config.json that describes another ALBERT than ``sizes``."""
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file; a checkpoint has {CONFIG_FILE} and {WEIGHTS_FILE}") from error
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path}: not readable as JSON ({error}); download the checkpoint again") from error
    if not isinstance(config, dict):
        raise WeightsError(f"{path}: found {type(config).__name__}, expected an object")
    expected = {theirs: getattr(sizes, ours) for ours, theirs in CONFIG_NAMES.items()} | SHARED_LAYERS
    for name, value in expected.items():
        if config.get(name, value if name in SHARED_LAYERS else None) != value:
            raise WeightsError(
                f"{path}: {name} is {config.get(name)!r}, expected {value}; change the preset's family or take "
                "another checkpoint"
            )
    if config.get("hidden_act", ACTIVATIONS[0]) not in ACTIVATIONS:
        raise WeightsError(f"{path}: hidden_act is {config['hidden_act']!r}, expected {' or '.join(ACTIVATIONS)}")


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """All tensors of a safetensors file. Raises WeightsError for a missing or damaged one."""
    found: dict[str, np.ndarray] = {}
    name = ""
    try:
        with safe_open(str(path), framework="numpy") as file:
            for name in sorted(file.keys()):
                found[name] = file.get_tensor(name)
    except FileNotFoundError as error:
        raise WeightsError(f"{path}: no such file; a checkpoint has {CONFIG_FILE} and {WEIGHTS_FILE}") from error
    except (SafetensorError, TypeError) as error:  # TypeError: bfloat16, which NumPy does not have
        at = f" at tensor {name}" if name else ""
        raise WeightsError(f"{path}: damaged or not understood{at} ({error}); download the checkpoint again") from error
    return found
