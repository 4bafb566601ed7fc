"""Losses and metrics over the positions that count."""

from __future__ import annotations

from typing import Any

from keras import ops

Tensor = Any

IMPOSSIBLE_LOSS = 1e8  # a banned label's loss; such positions are left out, as in the published Transformer notebook


def masked_cross_entropy(
    labels: Tensor, logits: Tensor, pad_id: int, label_smoothing: float = 0.0
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean cross-entropy and accuracy over the labels that are neither padding nor banned.

    labels int32 (B, T), logits float32 (B, T, V) -> loss in nats, accuracy, number of positions (scalars).
    """
    log_probs = ops.log_softmax(logits, axis=-1)
    losses = -ops.take_along_axis(log_probs, labels[..., None], axis=-1)[..., 0]  # (B, T)
    mask = ops.cast(ops.logical_and(labels != pad_id, losses < IMPOSSIBLE_LOSS), "float32")
    count = ops.maximum(ops.sum(mask), 1.0)
    if label_smoothing:
        # Uniform over the words that are not banned, whose log-probabilities would drown everything else.
        possible = ops.cast(logits > -IMPOSSIBLE_LOSS, "float32")
        uniform = -ops.sum(log_probs * possible, axis=-1) / ops.sum(possible, axis=-1)
        losses = (1.0 - label_smoothing) * losses + label_smoothing * uniform
    loss = ops.sum(ops.where(mask > 0, losses, 0.0)) / count
    hits = ops.cast(ops.cast(ops.argmax(logits, axis=-1), "int32") == labels, "float32")
    return loss, ops.sum(hits * mask) / count, count


def weighted_cross_entropy(labels: Tensor, logits: Tensor, weights: Tensor, pad_id: int) -> Tensor:
    """Cross-entropy with a weight a caption, by the number of positions that are neither padding nor banned.

    labels int32 (B, T), logits float32 (B, T, V), weights float32 (B,), which may be negative: with advantages as
    weights its gradient is that of the policy (REINFORCE, Williams 1992). -> a scalar in nats.
    """
    losses = -ops.take_along_axis(ops.log_softmax(logits, axis=-1), labels[..., None], axis=-1)[..., 0]  # (B, T)
    counts = ops.logical_and(labels != pad_id, losses < IMPOSSIBLE_LOSS)
    total = ops.sum(ops.where(counts, losses * weights[:, None], 0.0))
    return total / ops.maximum(ops.sum(ops.cast(counts, "float32")), 1.0)
