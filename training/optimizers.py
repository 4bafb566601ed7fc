"""Optimisers as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import keras
from keras import ops

from captionlite.training.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, total_steps: int) -> Any:
    """Adam or AdamW with the schedule of ``config`` over ``total_steps`` updates."""
    rate: Any = config.learning_rate
    if config.schedule == "cosine":
        rate = keras.optimizers.schedules.CosineDecay(
            initial_learning_rate=0.0 if config.warmup_steps else config.learning_rate,
            decay_steps=max(1, total_steps - config.warmup_steps),
            warmup_target=config.learning_rate if config.warmup_steps else None,
            warmup_steps=config.warmup_steps,
        )
    common: dict[str, Any] = {"learning_rate": rate, "epsilon": config.epsilon, "clipnorm": config.clipnorm}
    if config.average is not None:
        common |= {"use_ema": True, "ema_momentum": config.average}
    if config.weight_decay is None:
        return keras.optimizers.Adam(**common)
    optimizer = keras.optimizers.AdamW(weight_decay=config.weight_decay, **common)
    # Decay pulls matrices towards zero; a normalisation's scale or a bias has no business there.
    optimizer.exclude_from_weight_decay(var_names=["bias", "gamma", "beta", "embedding"])
    return optimizer


@contextmanager
def averages(optimizer: Any, variables: Sequence[Any]) -> Iterator[None]:
    """What ``optimizer`` trains with its moving averages in place of the weights, where it keeps such."""
    if not optimizer.use_ema:
        yield
        return
    own = [ops.convert_to_numpy(ops.copy(variable)) for variable in variables]
    optimizer.finalize_variable_values(list(variables))
    try:
        yield
    finally:
        for variable, value in zip(variables, own, strict=True):
            variable.assign(value)
