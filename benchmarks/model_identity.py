"""Which trained model a bundle or a run is: what its float, quantized and GPU versions share, and what tells it apart.

Two results may be compared when both are of one trained model. The export rounds weights, and a recipe changes them, so
no file is the same in all versions; what made the weights is: family, vocabulary, encoder, decoder and training run.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING, Any

import numpy as np

from captionlite.benchmarks.evaluation import describe_recipe
from captionlite.benchmarks.results import Model
from captionlite.runtime.bundle import Bundle

if TYPE_CHECKING:
    from captionlite.training.run import Run


def model_id(family: str, vocabulary: bytes, encoder: Any, decoder: Any, training: Any) -> str:
    """SHA-256 over canonical JSON of these; `vocabulary` is the content of vocabulary.json, the rest as in provenance.

    Licences and weights of the data sets are left out: `export --licence` and the import of weights from another
    machine state them anew without changing the model.
    """
    if isinstance(training, dict):
        training = {name: value for name, value in training.items() if name != "weights"}
        if isinstance(training.get("datasets"), list):
            datasets = [{k: v for k, v in data.items() if k != "licence"} for data in training["datasets"]]
            training["datasets"] = datasets
    return _digest([family, hashlib.sha256(vocabulary).hexdigest(), encoder, decoder, training])


def describe_bundle(bundle: Bundle) -> Model:
    """The model in a bundle. `bundle_sha256` is over canonical JSON of the SHA-256 by name of all files it lists."""
    manifest = bundle.manifest
    parts = (manifest.provenance.get(name) for name in ("encoder", "decoder", "training"))
    sizes = {name: manifest.files[graph.file].size_bytes for name, graph in manifest.graphs.items()}
    return Model(
        id=model_id(manifest.family, bundle.read(manifest.vocabulary.file), *parts),
        name=manifest.name,
        family=manifest.family,
        recipe=describe_recipe(manifest),
        bundle_sha256=_digest({name: file.sha256 for name, file in manifest.files.items()}),
        size_bytes=bundle.size_bytes,
        graphs_bytes=sizes,
        scores=manifest.scores,
    )


def describe_run(run: Run) -> Model:
    """The model of a training run, as Keras has it: sizes are those of its variables. The id is its bundles'."""
    config = run.config
    # What export/exporter.py writes into the manifest's provenance.
    training = {"epochs_at_most": config.epochs, **run.best}
    vocabulary = json.dumps(run.vocabulary.runtime_vocabulary(), ensure_ascii=False).encode()
    sizes = {"encoder": _bytes(run.encoder), "decoder": _bytes(run.model)}
    return Model(
        id=model_id(run.model.family, vocabulary, config.encoder_facts(), dict(config.family), training),
        name=config.name,
        family=run.model.family,
        recipe="float32",
        bundle_sha256=None,
        size_bytes=sum(sizes.values()),
        graphs_bytes=sizes,
        scores={},
    )


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def _bytes(model: Any) -> int:
    return sum(int(np.prod(variable.shape)) * np.dtype(variable.dtype).itemsize for variable in model.weights)
