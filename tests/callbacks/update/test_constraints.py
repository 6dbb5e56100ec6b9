"""Constraints of weights are part of the update that rules see."""

import keras
import numpy as np
import pytest

from kattn import schedules
from kattn.callbacks import (
    ExponentialMovingAverage,
    GradientClipping,
    GradientMonitor,
    GradualUnfreezing,
    LearningRate,
)
from tests.training import Watch


def dense(constraint, start=1.0, **compiled):
    """One weight w with a constraint; the loss of x = 1 is (w + 5)^2."""
    layer = keras.layers.Dense(
        1,
        use_bias=False,
        kernel_initializer=keras.initializers.Constant(start),
        kernel_constraint=constraint,
        name="only",
    )
    model = keras.Sequential([keras.Input((1,)), layer])
    model.compile(keras.optimizers.SGD(1.0), "mse", **compiled)
    return model


def fit(model, *callbacks, steps=8, target=-5.0):
    x = np.ones((steps, 1), "float32")
    history = model.fit(
        x, target * x, batch_size=1, shuffle=False, verbose=0, callbacks=list(callbacks)
    )
    return history.history


def test_the_average_is_of_weights_that_meet_them():
    """The weight is 1 at first, and 0 from the first update on."""
    model = dense(keras.constraints.NonNeg())
    fit(model, ExponentialMovingAverage(0.5, warmup=False))
    np.testing.assert_allclose(model.get_weights()[0], [[0.5**8]], rtol=1e-6)


def test_the_monitor_sees_weights_that_meet_them():
    monitor = GradientMonitor()
    fit(dense(keras.constraints.MaxNorm(1.0)), monitor, steps=3)
    np.testing.assert_allclose(monitor.history["weight_norm"], 1.0, rtol=1e-5)
    np.testing.assert_allclose(monitor.history["update_norm"], [2.0, 0.0, 0.0], atol=1e-5)


@pytest.mark.parametrize("accumulated", [None, 2])
def test_they_hold_as_in_a_stock_training(accumulated):
    """The weights after each batch, with an optimizer that has a hook and one that has none."""
    found = []
    for callbacks in ([], [LearningRate(schedules.Constant(0.3))]):
        model = dense(keras.constraints.MaxNorm(2.0))
        model.optimizer = keras.optimizers.SGD(0.3, gradient_accumulation_steps=accumulated)
        fit(model, *callbacks, watch := Watch(), target=4.0)
        found.append(watch.weights)
    np.testing.assert_allclose(found[0], found[1], rtol=1e-6)
    assert np.max(found[0]) == pytest.approx(2.0, rel=1e-5)
    assert model.layers[0].kernel.constraint is not None


def test_a_weight_at_rest_stays_as_it_is():
    model = dense(keras.constraints.MaxNorm(1.0), start=3.0)
    fit(model, GradualUnfreezing({"only": 1}))
    np.testing.assert_array_equal(model.get_weights()[0], [[3.0]])


def test_a_skipped_step_leaves_the_weights_as_they_are():
    model = dense(keras.constraints.MaxNorm(1.0), start=3.0)
    history = fit(model, GradientClipping(), steps=2, target=np.inf)
    assert history["skipped_steps"] == [2]
    np.testing.assert_array_equal(model.get_weights()[0], [[3.0]])
