"""Functions of a Keras model, compiled on whichever backend is active (TensorFlow or JAX)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import keras


def compiled(function: Callable[..., Any], variables: Sequence[Any]) -> Callable[..., Any]:
    """``function`` of tensors, compiled; it may read ``variables`` (their values at call time) and changes none.

    TensorFlow: tf.function without XLA, which on a CPU is several times slower than plain kernels here. JAX: jax.jit,
    with the variables' values passed in, because jit would otherwise bake them into the program as constants.
    """
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        return tf.function(function, autograph=False)  # type: ignore[no-any-return]
    if keras.backend.backend() == "jax":
        import jax

        def stateless(values: list[Any], *args: Any) -> Any:
            with keras.StatelessScope(state_mapping=list(zip(variables, values, strict=True))):
                return function(*args)

        jitted = jax.jit(stateless)
        return lambda *args: jitted([variable.value for variable in variables], *args)
    raise NotImplementedError(f"KERAS_BACKEND={keras.backend.backend()}: captionlite trains on tensorflow or jax")


class TrainStep:
    """One optimiser step: loss, gradients, update, on either backend.

    ``loss_function(*batch)`` returns (loss, a dict of scalars) and may use ``model`` with training=True. Of the model's
    variables those in ``trainable`` change, all that can be trained where it is not given. On JAX the state lives in
    ``self`` between steps (no copy to the host); call ``sync()`` before reading the model's variables. ``others`` are
    variables that the loss changes beside the model's, such as a random seed.
    """

    def __init__(
        self,
        model: Any,
        optimizer: Any,
        loss_function: Callable[..., tuple[Any, dict[str, Any]]],
        jit_compile: bool = False,
        others: Sequence[Any] = (),
        trainable: Sequence[Any] | None = None,
    ) -> None:
        self.model, self.optimizer = model, optimizer
        self._loss_function = loss_function
        self._trainable = list(model.trainable_variables if trainable is None else trainable)
        trained = {id(v) for v in self._trainable}
        self._other = [v for v in (*model.variables, *others) if id(v) not in trained]
        if not optimizer.built:
            optimizer.build(self._trainable)
        self._state: list[list[Any]] = []  # JAX: trainable, other, optimizer
        self._is_jax = keras.backend.backend() == "jax"
        if self._is_jax:
            import jax

            self._jax_step = jax.jit(self._stateless, donate_argnums=(0, 1, 2))
            self.reload()
        else:
            import tensorflow as tf

            self._tf_step = tf.function(self._eager, autograph=False, jit_compile=jit_compile)

    def __call__(self, *batch: Any) -> dict[str, Any]:
        """-> {"loss": scalar, ...} still on the device."""
        if not self._is_jax:
            return self._tf_step(*batch)  # type: ignore[no-any-return]
        *self._state, logs = self._jax_step(*self._state, *batch)
        return logs  # type: ignore[no-any-return]

    def _eager(self, *batch: Any) -> dict[str, Any]:
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss, logs = self._loss_function(*batch)
            scaled = self.optimizer.scale_loss(loss)
        # An embedding's gradient comes as slices, one each time a token occurs; Keras's optimisers would square, and
        # clipping measure, each by itself. Adam squares their sum, as it does on JAX.
        trainable = [v.value for v in self._trainable]
        gradients = [g if g is None else tf.convert_to_tensor(g) for g in tape.gradient(scaled, trainable)]
        self.optimizer.apply(gradients, self._trainable)
        return {"loss": loss, **logs}

    def _stateless(self, trainable: list[Any], other: list[Any], slots: list[Any], *batch: Any) -> tuple[Any, ...]:
        import jax

        def loss_of(values: list[Any]) -> tuple[Any, tuple[dict[str, Any], list[Any]]]:
            mapping = [*zip(self._trainable, values, strict=True), *zip(self._other, other, strict=True)]
            with keras.StatelessScope(state_mapping=mapping) as scope:
                loss, logs = self._loss_function(*batch)
                scaled = self.optimizer.scale_loss(loss)
            after = [scope.get_current_value(v) for v in self._other]
            after = [old if new is None else new for old, new in zip(other, after, strict=True)]
            return scaled, ({"loss": loss, **logs}, after)

        gradients, (logs, other) = jax.grad(loss_of, has_aux=True)(trainable)
        trainable, slots = self.optimizer.stateless_apply(slots, gradients, trainable)
        return trainable, other, slots, logs

    def sync(self) -> None:
        """Writes the state back into the model's and the optimiser's variables (nothing to do on TensorFlow)."""
        if self._is_jax:
            groups = (self._trainable, self._other, self.optimizer.variables)
            for variables, values in zip(groups, self._state, strict=True):
                for variable, value in zip(variables, values, strict=True):
                    variable.assign(value)

    def reload(self) -> None:
        """Takes the state from the variables again, after something else changed them."""
        if self._is_jax:
            import jax.numpy as jnp

            groups = (self._trainable, self._other, self.optimizer.variables)
            # A copy, because the step donates its arguments' buffers and the variables must stay readable.
            self._state = [[jnp.array(v.value, copy=True) for v in variables] for variables in groups]
