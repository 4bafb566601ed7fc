"""Golden vectors: what this bundle's graphs computed where they were made, so that a device can check itself."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np

from captionlite.runtime.captioner import Captioner
from captionlite.runtime.masked import golden_pass


def golden_vectors(captioner: Captioner, photographs: Sequence[np.ndarray]) -> bytes:
    """The content of golden.npz for photographs uint8 (H, W, 3); its layout is read by captionlite.runtime.verify.

    ``images`` (N, H, W, 3); ``encoder/NAME`` (N, ...); ``tokens`` int32 (N, T), -1 after the end token; ``logits``
    float32 (N, T, V) along those tokens; where there is a graph of parallel passes, ``refine`` (N, V) of one of them.
    """
    manifest = captioner.bundle.manifest
    length, size = manifest.decoding.max_length, manifest.vocabulary.size
    count = len(photographs)
    tokens = np.full((count, length), -1, np.int32)
    logits = np.zeros((count, length, size), np.float32)
    encoded = [captioner.encode(pixels) for pixels in photographs]
    for i, pixels in enumerate(photographs):
        caption = captioner.caption(pixels).tokens
        tokens[i, : len(caption)] = caption
        loop = captioner.decoder
        loop.begin(encoded[i])
        token = manifest.decoding.start_id
        for t, following in enumerate(caption):
            loop.step(token, t)
            logits[i, t] = loop.logits[0]
            if t + 1 < len(caption):
                loop.advance(t)
            token = following
    longest = int((tokens >= 0).sum(axis=1).max())
    arrays: dict[str, Any] = {f"encoder/{name}": np.concatenate([e[name] for e in encoded]) for name in encoded[0]}
    if manifest.decoding.mask_id is not None:
        refine = captioner.refiner("golden vectors")
        arrays["refine"] = np.zeros((count, size), np.float32)
        for i, constants in enumerate(encoded):
            refine.begin(constants)
            words = [int(token) for token in tokens[i] if token >= 0 and token != manifest.decoding.end_id]
            arrays["refine"][i] = golden_pass(refine, manifest.decoding, words)
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=np.stack(photographs),
        tokens=tokens[:, :longest],
        logits=logits[:, :longest],
        **arrays,
    )
    return buffer.getvalue()


def drawn_photographs(height: int, width: int, count: int = 2) -> list[np.ndarray]:
    """Pictures free of anybody's rights: seeded smooth colour noise, uint8 (H, W, 3)."""
    from PIL import Image

    pictures = []
    for seed in range(count):
        small = np.random.default_rng(seed).integers(0, 256, (6, 6, 3), dtype=np.uint8)
        large = Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)
        pictures.append(np.asarray(large, np.uint8))
    return pictures
