import keras
import numpy as np
import pytest

from kattn import schedules
from kattn.callbacks import GradientClipping, HyperparameterSchedule, LearningRate
from tests.training import Watch, changes, train, weight_model

STEPS = 12


def test_momentum():
    """One cycle of both: the gradient is -1 in each step."""
    cycle = schedules.OneCycle(0.5, STEPS)
    model, watch = weight_model(keras.optimizers.SGD(0.7, momentum=0.3)), Watch()
    momentum = HyperparameterSchedule("momentum", cycle.momentum())
    logs = train(model, STEPS, LearningRate(cycle), momentum, watch)
    velocity, expected = 0.0, []
    for step in range(STEPS):
        velocity = cycle.momentum()(step) * velocity + cycle(step)
        expected.append(velocity)
    np.testing.assert_allclose(changes(watch), expected, rtol=1e-5)
    np.testing.assert_allclose(logs["momentum"], [cycle.momentum()(STEPS - 1)], rtol=1e-6)
    assert model.optimizer.momentum == 0.3
    train(model, 3, watch := Watch())
    expected = []
    for _ in range(3):
        velocity = 0.3 * velocity + 0.7
        expected.append(velocity)
    np.testing.assert_allclose(changes(watch), expected, rtol=1e-5)


def test_weight_decay():
    model, watch = weight_model(keras.optimizers.SGD(0.5, weight_decay=0.3)), Watch()
    schedule = schedules.Linear(0.4, 0.1, 4)
    train(model, 6, HyperparameterSchedule("weight_decay", schedule), watch)
    weight, expected = 0.0, []
    for step in range(6):
        weight = weight * (1.0 - 0.5 * schedule(step)) + 0.5
        expected.append(weight)
    found = [float(weights[0]) for weights in watch.weights]
    np.testing.assert_allclose(found, [0.0, *expected], rtol=1e-6)
    assert model.optimizer.weight_decay == 0.3


def test_beta_of_adam():
    """The first moment is the only thing that beta_1 changes, but for its bias correction."""
    model, watch = weight_model(keras.optimizers.Adam(0.1, beta_1=0.8)), Watch()
    schedule = schedules.Linear(0.9, 0.5, 4)
    train(model, 4, HyperparameterSchedule("beta_1", schedule), watch)
    moment, expected = 0.0, []
    for step in range(4):
        beta = schedule(step)
        moment = beta * moment + (1.0 - beta)
        expected.append(0.1 * moment / (1.0 - beta ** (step + 1)))
    np.testing.assert_allclose(changes(watch), expected, rtol=2e-4)


def test_clip_threshold():
    clipping, watch = GradientClipping(threshold=0.125), Watch()
    schedule = schedules.Step(0.5, [2, 4], factor=0.5)
    model = weight_model(keras.optimizers.SGD(1.0))
    logs = train(model, 6, clipping, HyperparameterSchedule("clip_threshold", schedule), watch)
    np.testing.assert_allclose(changes(watch), schedule(np.arange(6)), rtol=2e-5)
    assert logs["clip_threshold"] == [0.125]
    assert clipping.threshold == 0.125
    train(model, 2, clipping, watch := Watch())
    np.testing.assert_allclose(changes(watch), 0.125, rtol=2e-5)


def test_numbers_of_earlier_fits_are_gone():
    """A threshold is the callback's own again; of two schedules that of the fit is in force."""
    model = weight_model(keras.optimizers.SGD(1.0, weight_decay=0.5))
    clipping = GradientClipping(threshold=0.5)
    low = HyperparameterSchedule("clip_threshold", schedules.Constant(0.125))
    none = [HyperparameterSchedule("weight_decay", schedules.Constant(d)) for d in (0.0, 0.25)]
    train(model, 2, clipping, low, none[0], watch := Watch())
    np.testing.assert_allclose(changes(watch), 0.125, rtol=2e-5)
    train(model, 2, clipping, none[0], watch := Watch())
    np.testing.assert_allclose(changes(watch), 0.5, rtol=2e-5)
    for callbacks, decay in (([none[1]], 0.25), ([none[0]], 0.0), ([], 0.5)):
        before = float(model.get_weights()[0])
        train(model, 1, clipping, *callbacks)
        expected = before * (1.0 - decay) + 0.5
        np.testing.assert_allclose(float(model.get_weights()[0]), expected, rtol=2e-5)


def test_momentum_that_comes_to_nothing():
    """The velocity goes on being that of the last gradient."""
    model, watch = weight_model(keras.optimizers.SGD(1.0, momentum=0.5)), Watch()
    schedule = schedules.Joined([schedules.Constant(m) for m in (0.5, 0.0, 0.5)], [2, 4])
    train(model, 6, HyperparameterSchedule("momentum", schedule), watch)
    velocity, expected = 0.0, []
    for step in range(6):
        velocity = schedule(step) * velocity + 1.0
        expected.append(velocity)
    np.testing.assert_allclose(changes(watch), expected, rtol=1e-6)


def test_a_threshold_needs_clipping():
    callback = HyperparameterSchedule("clip_threshold", schedules.Constant(0.5))
    with pytest.raises(
        ValueError,
        match=r"A GradientClipping must be among the callbacks .*; received: name='clip_threshold'",
    ):
        train(weight_model("sgd"), 1, callback)


def test_functions_that_cannot_be_traced():
    def schedule(step):
        return 0.5 if step < 3 else 0.25

    model, watch = weight_model(keras.optimizers.SGD(1.0, weight_decay=0.1)), Watch()
    train(model, 5, HyperparameterSchedule("weight_decay", schedule), watch)
    found = [float(weights[0]) for weights in watch.weights]
    expected = [0.0, 1.0, 1.5, 1.75, 1.75 * 0.75 + 1, (1.75 * 0.75 + 1) * 0.75 + 1]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("name", "schedule", "message"),
    [
        (
            "learning_rate",
            schedules.Constant(1.0),
            "use `LearningRate` to .*; received: name='learning_rate'",
        ),
        (
            "dropout",
            schedules.Constant(0.5),
            "use `DropoutSchedule` to .*; received: name='dropout'",
        ),
        (
            "clipnorm",
            schedules.Constant(1.0),
            "scheduled as 'clip_threshold'; received: name='clipnorm'",
        ),
        (3, schedules.Constant(1.0), "`name` must be the name of a number .*; received: name=3"),
        ("momentum", 0.9, "`schedule` must be a function of the step.*; received: schedule=0.9"),
    ],
)
def test_bad_arguments(name, schedule, message):
    with pytest.raises(ValueError, match=message):
        HyperparameterSchedule(name, schedule)


@pytest.mark.parametrize("name", ["beta_1", "momentum", "weight_decay", "nesterov", "name"])
def test_numbers_that_the_optimizer_does_not_have(name):
    callback = HyperparameterSchedule(name, schedules.Constant(0.5))
    with pytest.raises(ValueError, match=rf"built with; received: name='{name}', SGD.{name}="):
        train(weight_model(keras.optimizers.SGD(0.1)), 1, callback)


@pytest.mark.parametrize("mode", ["value", "norm", "global_norm"])
def test_a_threshold_of_zero_is_one(mode):
    """The gradient is -1: after three thresholds above 0 nothing moves."""
    schedule = schedules.Linear(0.4, 0.0, 2)
    model, watch = weight_model(keras.optimizers.SGD(1.0)), Watch()
    train(
        model, 5, GradientClipping(mode), HyperparameterSchedule("clip_threshold", schedule), watch
    )
    np.testing.assert_allclose(changes(watch), [0.4, 0.2, 0.0, 0.0, 0.0], atol=1e-5)


def test_a_number_that_is_zero_in_the_optimizer_can_be_scheduled():
    """A weight decay of 0 has all that it needs; a momentum of 0 has no velocity."""
    model, watch = weight_model(keras.optimizers.SGD(0.5, weight_decay=0.0)), Watch()
    train(model, 2, HyperparameterSchedule("weight_decay", schedules.Constant(0.5)), watch)
    np.testing.assert_allclose(changes(watch), [0.5, 0.5 - 0.125], rtol=1e-6)
    with pytest.raises(ValueError, match="that the optimizer was built with"):
        train(model, 1, HyperparameterSchedule("momentum", schedules.Constant(0.5)))
