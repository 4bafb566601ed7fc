"""One optimiser step against the same update worked out by hand."""

from typing import Any

import keras
import numpy as np

from captionlite.training.compiled import TrainStep, compiled


class Line(keras.Model):  # type: ignore[misc]
    def __init__(self) -> None:
        super().__init__()
        self.slope = self.add_weight(name="slope", shape=(1,), initializer="ones")
        self.count = self.add_weight(name="count", shape=(1,), initializer="zeros", trainable=False)

    def call(self, x: Any, training: bool = False) -> Any:
        if training:
            self.count.assign(self.count + 1.0)
        return x * self.slope


def test_a_step_updates_weights_and_other_state() -> None:
    model = Line()
    optimizer = keras.optimizers.SGD(0.5)

    def loss(x: Any, y: Any) -> tuple[Any, dict[str, Any]]:
        error = model(x, training=True) - y
        return keras.ops.mean(error * error), {"largest": keras.ops.max(keras.ops.abs(error))}

    step = TrainStep(model, optimizer, loss)
    x, y = (keras.ops.convert_to_tensor(np.array(v, "float32")) for v in ([1.0, 2.0], [3.0, 4.0]))
    logs = step(x, y)
    step.sync()
    # errors (1 - 3, 2 - 4): loss 4; gradient mean(2 * error * x) = (-4 - 8) / 2 = -6; slope 1 + 0.5 * 6 = 4
    assert float(logs["loss"]) == 4.0
    assert float(logs["largest"]) == 2.0
    assert keras.ops.convert_to_numpy(keras.ops.copy(model.slope)).tolist() == [4.0]
    assert keras.ops.convert_to_numpy(keras.ops.copy(model.count)).tolist() == [1.0]


def test_compiled_functions_see_the_weights_of_the_moment() -> None:
    model = Line()
    function = compiled(model, model.variables)
    x = keras.ops.convert_to_tensor(np.array([2.0], "float32"))
    before = float(function(x)[0])
    model.slope.assign([5.0])
    assert (before, float(function(x)[0])) == (2.0, 10.0)
