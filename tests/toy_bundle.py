"""A whole captioner small enough to compute by hand: graphs through TensorFlow's real converter, and the same in NumPy.

Its state table has a row of every kind: a constant, carried rows that start from the encoder and from zeros (one of
them an integer), and an appended row. So equal tokens mean that the decoding loop treats every kind rightly.
"""

import hashlib
import io
import json
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from captionlite.runtime.bundle import write_bundle
from captionlite.runtime.manifest import (
    FORMAT,
    AttentionSpec,
    ConfidenceSpec,
    DecodingSpec,
    GoldenSpec,
    GraphSpec,
    ImageSpec,
    LabelsSpec,
    Manifest,
    StateSpec,
    TensorSpec,
    VocabularySpec,
)

HEIGHT, WIDTH, REGIONS, DEPTH, LENGTH = 8, 12, 6, 5, 7
GRID = (2, 3)  # the regions: blocks of the image, row by row
PIECES = ["[PAD]", "[UNK]", "[START]", "[END]", "a", "dog", "runs", "on", "the", "red", "grass", "fast"]
PAD, UNKNOWN, START, END = range(4)
SUPPRESSED = (PAD, UNKNOWN, START)
V = len(PIECES)


def _weights() -> dict[str, npt.NDArray[np.float32]]:
    random = np.random.default_rng(
        390
    )  # a seed whose captions differ, and of which some end by themselves and some at the limit

    def draw(*shape: int) -> npt.NDArray[np.float32]:
        return random.normal(size=shape).astype(np.float32)

    output = draw(3 * DEPTH, V)
    output[:, :3] *= 3.0  # the suppressed ids are often the likeliest, so that forgetting them shows
    output[:, END] *= 0.5
    return {
        "project": draw(3, DEPTH) * 2,
        "initial": draw(3, DEPTH) * 2,
        "embedding": draw(V, DEPTH),
        "input": draw(DEPTH, DEPTH),
        "recurrent": draw(DEPTH, DEPTH),
        "output": output,
        "count": draw(V) * 0.7,
    }


WEIGHTS = _weights()
LABELS = ["grass", "red fox", "poodle", "terrier", "bike"]
LABEL_NAMES = ["grass", "red fox", "dog", "dog", None]  # two breeds are one label, and the last is never told
LABEL_WEIGHTS = np.random.default_rng(5).normal(size=(3, len(LABELS))).astype(np.float32) * 9


@dataclass(frozen=True)
class Decoded:
    """What the reference says of one photograph; logits are those of every step, (steps, V)."""

    tokens: list[int]
    logprobs: list[float]
    logits: npt.NDArray[np.float32]
    attention: npt.NDArray[np.float32]
    stop_reason: str


def encode(pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[np.float32]]:
    """The toy encoder in NumPy: (HEIGHT, WIDTH, 3) -> projected (1, REGIONS, DEPTH) and hidden (1, DEPTH)."""
    blocks = pixels.astype(np.float32).reshape(GRID[0], HEIGHT // GRID[0], GRID[1], WIDTH // GRID[1], 3) / 255 - 0.5
    pooled = blocks.mean(axis=(1, 3)).reshape(1, REGIONS, 3)
    return {
        "projected": pooled @ WEIGHTS["project"],
        "hidden": np.tanh(pooled.mean(axis=1) @ WEIGHTS["initial"]),
    }


def label_logits(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """What the encoder with labels says of them, (1, len(LABELS))."""
    return (pixels.astype(np.float32).mean(axis=(0, 1)) / 255 - 0.5)[None] @ LABEL_WEIGHTS


def decode(pixels: npt.NDArray[np.uint8], max_length: int = LENGTH) -> Decoded:
    """Greedy decoding in NumPy alone, written without a cache: the history is a list of everything said so far."""
    encoded = encode(pixels)
    projected, hidden = encoded["projected"][0], encoded["hidden"][0]
    history: list[npt.NDArray[np.float32]] = []
    result = Decoded([], [], np.zeros((0, V), np.float32), np.zeros((0, REGIONS), np.float32), "max_length")
    logits_rows, attention_rows, token, reason = [], [], START, "max_length"
    for position in range(max_length):
        embedded = WEIGHTS["embedding"][token]
        hidden = np.tanh(embedded @ WEIGHTS["input"] + hidden @ WEIGHTS["recurrent"] + np.float32(0.05) * position)
        history.append(embedded * hidden)
        scores = np.exp(projected @ hidden - (projected @ hidden).max())
        attention = scores / scores.sum()
        mixed = np.concatenate([hidden, np.sum(history, axis=0), attention @ projected])
        logits = mixed @ WEIGHTS["output"] + WEIGHTS["count"] * np.float32(position + 1)
        allowed = logits.astype(np.float64)
        allowed[list(SUPPRESSED)] = -np.inf
        token = int(allowed.argmax())
        result.tokens.append(token)
        result.logprobs.append(float(allowed[token] - np.log(np.exp(allowed).sum())))
        logits_rows.append(logits)
        attention_rows.append(attention)
        if token == END:
            reason = "end"
            break
    return Decoded(
        result.tokens,
        result.logprobs,
        np.stack(logits_rows).astype(np.float32),
        np.stack(attention_rows).astype(np.float32),
        reason,
    )


def photographs(count: int, seed: int = 3) -> list[npt.NDArray[np.uint8]]:
    """Images of the encoder's own size: a bright patch somewhere on a dark ground, so that they differ in the mean."""
    random = np.random.default_rng(seed)
    images = []
    for _ in range(count):
        image = random.integers(0, 90, (HEIGHT, WIDTH, 3), dtype=np.uint8)
        top, left = random.integers(0, HEIGHT - 3), random.integers(0, WIDTH - 3)
        image[top : top + 4, left : left + 5] = random.integers(90, 256, 3, dtype=np.uint8)
        images.append(image)
    return images


@cache
def convert(labelled: bool = False) -> tuple[bytes, bytes]:
    """encoder.tflite and decoder.tflite, through SavedModel with signatures, because only those keep the names."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # TensorFlow's own deprecations, none of ours
        import tensorflow as tf

        class Toy(tf.Module):  # type: ignore[misc]
            @tf.function(input_signature=[tf.TensorSpec((1, HEIGHT, WIDTH, 3), tf.uint8, "image")])  # type: ignore[misc]
            def encoder(self, image):  # type: ignore[no-untyped-def]
                pixels = tf.cast(image, tf.float32) / 255 - 0.5
                pooled = tf.nn.avg_pool2d(pixels, (HEIGHT // 2, WIDTH // 3), (HEIGHT // 2, WIDTH // 3), "VALID")
                pooled = tf.reshape(pooled, (1, REGIONS, 3))
                hidden = tf.tanh(tf.reduce_mean(pooled, axis=1) @ WEIGHTS["initial"])
                outputs = {"projected": pooled @ WEIGHTS["project"], "hidden": hidden}
                if labelled:
                    outputs["labels"] = tf.reduce_mean(pooled, axis=1) @ LABEL_WEIGHTS
                return outputs

            @tf.function(
                input_signature=[
                    tf.TensorSpec((None, 1), tf.int32, "token"),
                    tf.TensorSpec((1,), tf.int32, "position"),
                    tf.TensorSpec((None, REGIONS, DEPTH), tf.float32, "projected"),
                    tf.TensorSpec((None, DEPTH), tf.float32, "hidden"),
                    tf.TensorSpec((None, 1), tf.int32, "count"),
                    tf.TensorSpec((None, 1, LENGTH, DEPTH), tf.float32, "history"),
                ]
            )  # type: ignore[misc]
            def decoder(self, token, position, projected, hidden, count, history):  # type: ignore[no-untyped-def]
                embedded = tf.gather(WEIGHTS["embedding"], token[:, 0])
                place = tf.cast(position[0], tf.float32)
                hidden = tf.tanh(embedded @ WEIGHTS["input"] + hidden @ WEIGHTS["recurrent"] + 0.05 * place)
                said = embedded * hidden
                # No mask by position: columns that are not written yet must be zero, as the contract promises.
                past = tf.reduce_sum(history[:, 0], axis=1)
                attention = tf.nn.softmax(tf.reduce_sum(projected * hidden[:, None, :], axis=-1))
                context = tf.reduce_sum(attention[:, :, None] * projected, axis=1)
                mixed = tf.concat([hidden, past + said, context], axis=-1)
                logits = mixed @ WEIGHTS["output"] + WEIGHTS["count"] * tf.cast(count + 1, tf.float32)
                return {
                    "logits": logits,
                    "hidden": hidden,
                    "count": count + 1,
                    "history": said[:, None, None, :],
                    "attention": attention,
                }

        toy = Toy()
        with tempfile.TemporaryDirectory() as folder:
            signatures = {"encoder": toy.encoder, "decoder": toy.decoder}
            tf.saved_model.save(toy, folder, signatures=signatures)
            graphs = []
            for name in signatures:
                converter = tf.lite.TFLiteConverter.from_saved_model(folder, signature_keys=[name])
                graphs.append(converter.convert())
    return graphs[0], graphs[1]


def manifest() -> Manifest:
    """The toy's manifest, `files` still empty."""
    state = (
        StateSpec("projected", "constant", "float32", (None, REGIONS, DEPTH), None),
        StateSpec("hidden", "carried", "float32", (None, DEPTH), None),
        StateSpec("count", "carried", "int32", (None, 1), None),
        StateSpec("history", "appended", "float32", (None, 1, LENGTH, DEPTH), 2),
    )
    return Manifest(
        format=FORMAT,
        name="toy",
        family="toy",
        graphs={
            "encoder": GraphSpec(
                "encoder.tflite",
                "float32",
                (TensorSpec("image", "uint8", (1, HEIGHT, WIDTH, 3)),),
                (
                    TensorSpec("projected", "float32", (1, REGIONS, DEPTH)),
                    TensorSpec("hidden", "float32", (1, DEPTH)),
                ),
            ),
            "decoder": GraphSpec(
                "decoder.tflite",
                "float32",
                (
                    TensorSpec("token", "int32", (None, 1)),
                    TensorSpec("position", "int32", (1,)),
                    *(TensorSpec(row.name, row.dtype, row.shape) for row in state),
                ),
                (
                    TensorSpec("logits", "float32", (None, V)),
                    TensorSpec("hidden", "float32", (None, DEPTH)),
                    TensorSpec("count", "int32", (None, 1)),
                    TensorSpec("history", "float32", (None, 1, 1, DEPTH)),
                    TensorSpec("attention", "float32", (None, REGIONS)),
                ),
            ),
        },
        state=state,
        image=ImageSpec(HEIGHT, WIDTH),
        vocabulary=VocabularySpec("vocabulary.json", "words", V),
        decoding=DecodingSpec(START, END, PAD, UNKNOWN, SUPPRESSED, LENGTH),
        golden=GoldenSpec("golden.npz", 0.001),
        attention=AttentionSpec(GRID),
        provenance={"data": "drawn"},
        scores={"float32": {"cider": 0.5}},
    )


def vocabulary_json() -> bytes:
    """The toy's vocabulary.json."""
    return json.dumps({"kind": "words", "pieces": PIECES, "join": " "}).encode()


def golden_arrays(count: int = 4) -> dict[str, npt.NDArray[np.generic]]:
    """Golden vectors computed by the NumPy reference, in the layout of golden.npz."""
    images = np.stack(photographs(count))
    encoded = [encode(image) for image in images]
    decoded = [decode(image) for image in images]
    tokens = np.full((count, LENGTH), -1, np.int32)
    logits = np.zeros((count, LENGTH, V), np.float32)
    for row, result in enumerate(decoded):
        tokens[row, : len(result.tokens)] = result.tokens
        logits[row, : len(result.tokens)] = result.logits
    return {
        "images": images,
        "encoder/projected": np.concatenate([one["projected"] for one in encoded]),
        "encoder/hidden": np.concatenate([one["hidden"] for one in encoded]),
        "tokens": tokens,
        "logits": logits,
    }


def npz(arrays: dict[str, npt.NDArray[np.generic]], *, compressed: bool = False) -> bytes:
    """The bytes of an .npz file."""
    buffer = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(buffer, **arrays)  # type: ignore[arg-type]
    return buffer.getvalue()


def files() -> dict[str, bytes]:
    """Every file of the toy bundle but its manifest."""
    encoder, decoder = convert()
    return {
        "encoder.tflite": encoder,
        "decoder.tflite": decoder,
        "vocabulary.json": vocabulary_json(),
        "golden.npz": npz(golden_arrays()),
        "README.md": b"# Toy\n",
    }


def write(directory: Path) -> Manifest:
    """Write the whole toy bundle."""
    return write_bundle(directory, manifest(), files())


def labels_json(**changes: Any) -> bytes:
    """The labels.json of the toy with labels."""
    words = {"names": LABEL_NAMES, "words": {"dog": ["puppy", "puppies"]}, "people": ["man", "Men"]}
    return json.dumps(words | changes).encode()


def write_labelled(
    directory: Path, *, least_probability: float = 0.5, below_confidence: float = 0.5, slope: float = 2.0
) -> Manifest:
    """Write the toy with an encoder that classifies as well, and with a confidence: sigmoid(slope * logprob + 1)."""
    plain = manifest()
    encoder = plain.graphs["encoder"]
    output = TensorSpec("labels", "float32", (1, len(LABELS)))
    confidence = ConfidenceSpec(slope, 1.0, "it is right", "drawn pictures")
    labelled = replace(
        plain,
        graphs={**plain.graphs, "encoder": replace(encoder, outputs=(*encoder.outputs, output))},
        decoding=replace(plain.decoding, confidence=confidence),
        labels=LabelsSpec("labels.json", "labels", len(LABELS), "the toy", least_probability, 0.8, below_confidence),
    )
    arrays = golden_arrays()
    arrays["encoder/labels"] = np.concatenate([label_logits(image) for image in photographs(len(arrays["images"]))])
    changed = {"encoder.tflite": convert(labelled=True)[0], "golden.npz": npz(arrays), "labels.json": labels_json()}
    return write_bundle(directory, labelled, files() | changed)


def forge(
    directory: Path,
    edit: Callable[[dict[str, Any]], object] = lambda manifest: None,
    changed: Mapping[str, bytes] | None = None,
) -> Path:
    """Tamper with a bundle directory as an attacker would: new contents, right checksums, and any edit of the manifest.

    `changed` maps file names to contents; `edit` changes the parsed manifest in place afterwards.
    """
    path = directory / "manifest.json"
    found = json.loads(path.read_bytes())
    for name, data in (changed or {}).items():
        (directory / name).write_bytes(data)
        found["files"][name] = {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
    edit(found)
    path.write_text(json.dumps(found))
    return directory
