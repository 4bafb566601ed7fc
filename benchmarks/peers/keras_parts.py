"""What the two compiled Keras peers share: one step with its state, and the encoder, as TensorFlow graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from captionlite.benchmarks.peers.base import PeerUnavailable, Task, suppression

NO_CACHE = "masked_lm has no cache of keys and values: its state is the tokens so far, all read again at every step"


def require_tensorflow() -> None:
    """Raises PeerUnavailable when Keras runs on another backend."""
    import keras

    if keras.backend.backend() != "tensorflow":
        raise PeerUnavailable(f"it needs Keras on TensorFlow; KERAS_BACKEND is {keras.backend.backend()}")


def encoder_function(task: Task) -> Callable[[Any], dict[str, Any]]:
    """tf.function: uint8 (1, H, W, 3) -> the whole first state."""
    import tensorflow as tf

    encoder, model = task.run.encoder, task.run.model
    image = task.manifest.image

    @tf.function(  # type: ignore[untyped-decorator]
        autograph=False, input_signature=[tf.TensorSpec((1, image.height, image.width, 3), tf.uint8)]
    )
    def encode(pixels: Any) -> dict[str, Any]:
        state: dict[str, Any] = model.full_state(encoder(tf.cast(pixels, tf.float32), training=False))
        return state

    return encode  # type: ignore[no-any-return]


def greedy_step(task: Task) -> Callable[[Any, Any, dict[str, Any]], tuple[Any, dict[str, Any]]]:
    """token (1, 1), position (1,), state -> the likeliest next token (1, 1) and the state after it; not compiled."""
    import tensorflow as tf

    model, added = task.run.model, suppression(task.manifest)

    def step(token: Any, position: Any, state: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        logits, updates, _ = model.step(token, position, state)
        following = tf.argmax(logits + added, axis=-1, output_type=tf.int32)[:, tf.newaxis]
        return following, model.advance(state, updates, position)

    return step
