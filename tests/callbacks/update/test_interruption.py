"""What an interrupted `fit` leaves: nothing, also for those who never call a callback again."""

import gc

import keras
import numpy as np
import pytest

from kattn import schedules
from kattn.callbacks import (
    DropoutSchedule,
    ExponentialMovingAverage,
    GradientClipping,
    GradualUnfreezing,
    LayerwiseLearningRates,
    LearningRate,
    SpikeGuard,
    WarmupThenPlateau,
)
from tests.training import Watch, changes, train, weight_model


class Interrupt(keras.callbacks.Callback):
    """Ctrl-C at a place."""

    def __init__(self, place="on_train_batch_end"):
        super().__init__()
        setattr(self, place, self.interrupt)

    def interrupt(self, *args, **kwargs):
        raise KeyboardInterrupt


def interrupted(model, *callbacks, place="on_train_batch_end", **options):
    """A fit that is interrupted; what the exception held is let go, as a script lets it go."""
    try:
        train(model, 3, *callbacks, Interrupt(place), **options)
    except KeyboardInterrupt:
        return
    raise AssertionError("it was not interrupted")


ACTING = {
    "rate": lambda: LearningRate(schedules.Constant(0.1)),
    "plateau": lambda: WarmupThenPlateau(0.1, monitor="loss"),
    "clip": lambda: GradientClipping("value", 0.1),
    "unfreezing": lambda: GradualUnfreezing({"only": 5}),
    "layers": lambda: LayerwiseLearningRates({"only": 0.1}),
}


@pytest.mark.parametrize("kind", ACTING)
def test_updates_are_those_of_the_optimizer_again(kind):
    model = weight_model(keras.optimizers.SGD(0.75))
    interrupted(model, ACTING[kind]())
    train(model, 2, watch := Watch())
    np.testing.assert_allclose(changes(watch), 0.75, rtol=1e-6)
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == 0.75


@pytest.mark.parametrize("again", ["fit", "train_on_batch"])
def test_a_traceback_that_is_kept(again):
    """As a notebook keeps it: put right when the model is trained again."""
    model = weight_model(keras.optimizers.SGD(0.75))
    with pytest.raises(KeyboardInterrupt) as kept:
        train(model, 3, LearningRate(schedules.Constant(0.1)), Interrupt())
    before = float(model.get_weights()[0])
    x = np.zeros((1, 1), "float32")
    if again == "fit":
        model.fit(x, x, verbose=0)
    else:
        model.train_on_batch(x, x)
    assert float(model.get_weights()[0]) - before == pytest.approx(0.75)
    del kept


@pytest.mark.parametrize("place", ["on_train_batch_end", "on_test_batch_end", "on_epoch_end"])
def test_the_average_is_not_left_in_the_model(place):
    model = weight_model(keras.optimizers.SGD(1.0))
    x = np.zeros((2, 1), "float32")
    average = ExponentialMovingAverage(0.5, warmup=False)
    interrupted(model, average, place=place, validation_data=(x, x))
    steps = 1 if place == "on_train_batch_end" else 3
    assert float(model.get_weights()[0]) == steps


def test_layers_have_their_dropout_again():
    layer = keras.layers.Dropout(0.5)
    model = keras.Sequential([keras.Input((1,)), layer, keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    interrupted(model, DropoutSchedule(schedules.Constant(0.25)))
    assert layer.rate == 0.5


def test_evaluate_is_that_of_the_model_again():
    model = weight_model("sgd")
    interrupted(model, SpikeGuard(every=1))
    assert "evaluate" not in vars(model)


@pytest.mark.parametrize("ends", ["well", "badly"])
def test_nothing_stays_on_the_model(ends):
    model = weight_model("sgd")
    callbacks = [LearningRate(schedules.Constant(0.1)), GradientClipping()]
    if ends == "well":
        train(model, 2, *callbacks)
    else:
        interrupted(model, *callbacks)
    assert not {"make_train_function", "_kattn_fit", "evaluate"} & set(vars(model))


@pytest.mark.parametrize("kind", ACTING)
def test_a_callback_can_be_released_that_was_never_used(kind):
    ACTING[kind]().release()


def test_what_others_have_put_on_the_model_stays():
    model = weight_model("sgd")
    stock = model.make_train_function
    made = []

    def counting(*args, **kwargs):
        made.append(args)
        return stock(*args, **kwargs)

    object.__setattr__(model, "make_train_function", counting)
    train(model, 2, LearningRate(schedules.Constant(0.1)))
    assert made
    assert vars(model)["make_train_function"] is counting


def test_another_trace_within_the_fit_releases_nothing():
    class Retrace(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.model.make_train_function(force=True)
            self.model.make_train_function()

    model = weight_model(keras.optimizers.SGD(0.75))
    train(model, 2, LearningRate(schedules.Constant(0.5)), Retrace(), watch := Watch(), epochs=2)
    np.testing.assert_allclose(changes(watch), 0.5, rtol=1e-6)


def test_the_garbage_collector_releases_nothing():
    """It may run while a program is traced; the next `fit` does it."""
    model = weight_model(keras.optimizers.SGD(0.75))
    gc.disable()
    try:
        with pytest.raises(KeyboardInterrupt) as caught:
            train(model, 3, LearningRate(schedules.Constant(0.1)), Interrupt())
        cycle = [caught]
        cycle.append(cycle)
        del caught, cycle
        assert "_kattn_fit" in vars(model)
        gc.collect()
        assert "_kattn_fit" in vars(model)
    finally:
        gc.enable()
    train(model, 2, watch := Watch())
    np.testing.assert_allclose(changes(watch), 0.75, rtol=1e-6)
