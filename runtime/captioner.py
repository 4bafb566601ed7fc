"""The face of the runtime: a bundle loaded once, then any number of photographs captioned."""

from collections.abc import Iterable, Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from captionlite.runtime.bundle import Bundle
from captionlite.runtime.decoding import Caption, DecoderLoop, DecodingOptions, greedy
from captionlite.runtime.image import ImageSource, load_image
from captionlite.runtime.interpreter import Graph, core_count


class Captioner:
    """Captions photographs with one bundle. One thread at a time: the graphs' tensors are shared between calls."""

    def __init__(self, bundle: Bundle, threads: int | None = None) -> None:
        """Load both graphs: the encoder on `threads` threads (all cores by default), the decoder on one.

        A decoder step is too small to share: more threads make it slower. Raises BundleError, InterpreterError.
        """
        self.bundle = bundle
        self._encoder = Graph.from_bundle(bundle, "encoder", threads or core_count())
        self._decoder = DecoderLoop(Graph.from_bundle(bundle, "decoder", 1), bundle.manifest)

    @classmethod
    def from_bundle(cls, path_or_name: str | Path = "default", threads: int | None = None) -> "Captioner":
        """Open a bundle directory, a bundle zip or "default", and load it. Raises BundleError, InterpreterError."""
        return cls(Bundle.open(path_or_name), threads)

    @property
    def decoder(self) -> DecoderLoop:
        """The decoder with its state, for those who feed it their own tokens (verification, evaluation)."""
        return self._decoder

    def encode(self, image: ImageSource) -> dict[str, npt.NDArray[Any]]:
        """Everything that is computed once per photograph: the encoder's outputs by name, each (1, ...).

        Raises ImageError.
        """
        return self._encode(load_image(image, self.bundle.manifest.image))

    def caption(self, image: ImageSource, options: DecodingOptions | None = None) -> Caption:
        """Caption one photograph: a path, file bytes, a Pillow image or a uint8 array.

        Raises ImageError, and OptionsError when the bundle cannot follow the options.
        """
        started = perf_counter()
        pixels = load_image(image, self.bundle.manifest.image)
        loaded = perf_counter()
        encoded = self._encode(pixels)
        encoded_at = perf_counter()
        self._decoder.begin(encoded)
        tokens, logprobs, attention, stop_reason = greedy(
            self._decoder, self.bundle.manifest, options or DecodingOptions()
        )
        text = self.bundle.vocabulary.detokenize(tokens)
        ended = perf_counter()
        return Caption(
            text=text,
            tokens=tuple(tokens),
            logprobs=tuple(logprobs),
            logprob=sum(logprobs) / len(logprobs),
            timings_ms={
                "image": (loaded - started) * 1e3,
                "encode": (encoded_at - loaded) * 1e3,
                "decode": (ended - encoded_at) * 1e3,
                "total": (ended - started) * 1e3,
            },
            stop_reason=stop_reason,
            attention=attention,
        )

    def caption_many(self, images: Iterable[ImageSource], options: DecodingOptions | None = None) -> Iterator[Caption]:
        """Caption photographs one after another, as they are asked for. Raises ImageError at the first bad one."""
        for image in images:
            yield self.caption(image, options)

    def _encode(self, pixels: npt.NDArray[np.uint8]) -> dict[str, npt.NDArray[Any]]:
        self._encoder.inputs["image"]()[0] = pixels
        self._encoder.invoke()
        return {name: view().copy() for name, view in self._encoder.outputs.items()}
