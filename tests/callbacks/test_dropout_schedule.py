import keras
import numpy as np
import pytest

from kattn import schedules
from kattn.callbacks import DropoutSchedule
from kattn.layers import SelfAttention

SHARES = "shares"


class Zeros(keras.metrics.Metric):
    """The share of predictions that are 0."""

    def __init__(self):
        super().__init__(name=SHARES)
        self.zeros = self.add_weight(shape=(), initializer="zeros", name="zeros")
        self.count = self.add_weight(shape=(), initializer="zeros", name="count")

    def update_state(self, y_true, y_pred, sample_weight=None):
        is_zero = keras.ops.cast(keras.ops.equal(y_pred, 0.0), "float32")
        self.zeros.assign_add(keras.ops.sum(is_zero))
        self.count.assign_add(keras.ops.sum(keras.ops.ones_like(is_zero)))

    def result(self):
        return self.zeros / self.count

    def reset_state(self):
        self.zeros.assign(0.0)
        self.count.assign(0.0)


def dropping(*layers):
    weight = keras.layers.PReLU(shared_axes=[1])  # which leaves ones as they are
    model = keras.Sequential([keras.Input((1000,)), weight, *layers])
    model.compile(keras.optimizers.SGD(0.0), loss="mse", metrics=[Zeros()])
    return model


def fit(model, callback, epochs=3):
    x = np.ones((8, 1000), "float32")
    options = {"batch_size": 4, "epochs": epochs, "verbose": 0, "callbacks": [callback]}
    return model.fit(x, x, **options).history


def test_rates_are_those_of_the_schedule():
    """Counted in what the layer gives: 8000 numbers an epoch."""
    schedule = schedules.Step(0.6, [2, 4], factor=0.5)
    model = dropping(keras.layers.Dropout(0.9, name="drop"))
    logs = fit(model, DropoutSchedule(schedule))
    assert logs["dropout"] == [0.6, 0.3, 0.15]
    np.testing.assert_allclose(logs[SHARES], [0.6, 0.3, 0.15], atol=0.03)
    assert model.get_layer("drop").rate == 0.9
    logs = fit(model, keras.callbacks.Callback(), epochs=1)
    np.testing.assert_allclose(logs[SHARES], [0.9], atol=0.03)


def test_layers_by_pattern():
    first, second = (keras.layers.Dropout(0.5, name=name) for name in ("first", "second"))
    seen = []

    class See(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append((first.rate, second.rate))

    model = dropping(first, second)
    x = np.ones((4, 1000), "float32")
    callbacks = [DropoutSchedule(schedules.Constant(0.0), pattern="^second"), See()]
    model.fit(x, x, batch_size=2, verbose=0, callbacks=callbacks)
    assert seen == [(0.5, 0.0)] * 2
    assert (first.rate, second.rate) == (0.5, 0.5)


def test_dropout_of_attention():
    layer = SelfAttention(1, dropout=0.5)
    model = keras.Sequential([keras.Input((3, 2)), layer])
    model.compile("sgd", loss="mse")
    seen = []

    class See(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append(layer.dropout)

    x = np.ones((2, 3, 2), "float32")
    callbacks = [DropoutSchedule(schedules.Constant(0.25)), See()]
    model.fit(x, x, verbose=0, callbacks=callbacks)
    assert (seen, layer.dropout) == ([0.25], 0.5)


def test_state():
    """Taken up within an epoch, at whose start the optimizer had counted less."""
    schedule = schedules.Linear(0.5, 0.0, 10)
    callback, seen = DropoutSchedule(schedule), []
    model = dropping(keras.layers.Dropout(0.9, name="drop"))

    class TakeUp(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 1:
                callback.set_state({"rate": 0.125})
            seen.append(model.get_layer("drop").rate)

    x = np.ones((8, 1000), "float32")
    options = {"batch_size": 4, "verbose": 0, "callbacks": [callback, TakeUp()]}
    logs = model.fit(x, x, **options).history
    assert seen == [0.5, 0.125]
    assert logs["dropout"] == [0.125]
    assert callback.get_state() == {"rate": 0.125}


def test_recurrent_layers():
    """Their cells drop."""
    model = keras.Sequential([keras.Input((3, 2)), keras.layers.LSTM(4, dropout=0.5, name="lstm")])
    model.compile("sgd", loss="mse")
    seen = []

    class See(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append(model.get_layer("lstm").dropout)

    callbacks = [DropoutSchedule(schedules.Constant(0.25)), See()]
    model.fit(np.ones((2, 3, 2)), np.ones((2, 4)), verbose=0, callbacks=callbacks)
    assert (seen, model.get_layer("lstm").dropout) == ([0.25], 0.5)


@pytest.mark.parametrize(
    ("schedule", "options", "message"),
    [
        (0.5, {}, "`schedule` must be a function of the step.*; received: schedule=0.5"),
        (
            schedules.Constant(0.5),
            {"pattern": "("},
            r"`pattern` must be a regular expression .*; received: pattern='\('",
        ),
    ],
)
def test_bad_arguments(schedule, options, message):
    with pytest.raises(ValueError, match=message):
        DropoutSchedule(schedule, **options)


def test_bad_models_and_rates():
    with pytest.raises(
        ValueError, match="a dropout rate above 0 that matches `pattern`; received: pattern='x'"
    ):
        fit(dropping(keras.layers.Dropout(0.5, name="drop")), DropoutSchedule(abs, pattern="x"))
    with pytest.raises(ValueError, match="must have a layer with a dropout rate above 0"):
        fit(dropping(keras.layers.Rescaling(1.0)), DropoutSchedule(abs))
    with pytest.raises(ValueError, match=r"rates in \[0, 1\); received: schedule\(0\)=1.0"):
        fit(dropping(keras.layers.Dropout(0.5)), DropoutSchedule(schedules.Constant(1.0)))
