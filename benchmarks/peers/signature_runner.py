"""The same .tflite files as LiteRT's documentation runs them: `get_signature_runner`, called with named arrays."""

from __future__ import annotations

from typing import Any

import numpy as np

from captionlite.benchmarks.peers.base import Peer, Pixels, Task, Weights, first_state
from captionlite.runtime.bundle import Bundle
from captionlite.runtime.interpreter import core_count, find_backend


class SignatureLoop(Peer):
    """Every call copies the inputs into the interpreter and the outputs out of it."""

    title = "SignatureRunner loop, same files"
    packages = ("ai-edge-litert",)

    def __init__(self, weights: Weights, task: Task) -> None:
        super().__init__(weights)
        bundle = task.captioner(weights).bundle
        self._manifest = bundle.manifest
        self._suppressed = list(bundle.manifest.decoding.suppressed_ids)
        self.facts.threads = {"encoder": core_count(), "decoder": 1}
        self._encoder = _runner(bundle, "encoder", core_count())
        self._decoder = _runner(bundle, "decoder", 1)

    def encode(self, pixels: Pixels) -> Any:
        return self._encoder(image=pixels[None])

    def decode(self, encoded: Any) -> list[int]:
        decoding, rows = self._manifest.decoding, self._manifest.state
        state = first_state(rows, encoded)
        token, tokens = decoding.start_id, []
        for position in range(decoding.max_length):
            outputs = self._decoder(
                token=np.array([[token]], np.int32), position=np.array([position], np.int32), **state
            )
            logits = outputs["logits"][0]
            logits[self._suppressed] = -np.inf
            token = int(logits.argmax())
            tokens.append(token)
            if token == decoding.end_id:
                break
            for row in rows:
                if row.kind == "carried":
                    state[row.name] = outputs[row.name]
                elif row.axis is not None:
                    column = (slice(None),) * row.axis + (slice(position, position + 1),)
                    state[row.name][column] = outputs[row.name]
        return tokens


def _runner(bundle: Bundle, graph: str, threads: int) -> Any:
    content = bundle.read(bundle.manifest.graphs[graph].file)
    interpreter: Any = find_backend().interpreter(model_content=content, num_threads=threads)
    return interpreter.get_signature_runner()


def prepare(task: Task, weights: Weights) -> Peer:
    return SignatureLoop(weights, task)
