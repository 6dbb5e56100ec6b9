import math

import keras
import numpy as np
import pytest

from kattn.callbacks import WarmupThenPlateau
from tests.training import Watch, changes, train, weight_model

OPTIMIZERS = {
    "float": lambda: keras.optimizers.SGD(0.7),
    "schedule": lambda: keras.optimizers.SGD(keras.optimizers.schedules.CosineDecay(0.7, 3)),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.7)),
}


class Metric(keras.callbacks.Callback):
    """Writes given values into the logs of epochs."""

    def __init__(self, values, name="val_loss"):
        super().__init__()
        self.values, self.name = values, name

    def on_epoch_end(self, epoch, logs=None):
        logs[self.name] = self.values[epoch]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_rates(kind):
    """Warm-up over 6 steps of 4 an epoch; epoch 2 is the first that counts."""
    values = [1.0, 0.0, 2.0, 3.0, 3.0, 3.0, 1.0, 1.0, 1.0, 1.0]
    rates = [0.8] * 5 + [0.4] * 4 + [0.2]  # cut after epochs 4 (2, 3, 3) and 8 (1, 1, 1)
    watch = Watch()
    callback = WarmupThenPlateau(0.8, 6, factor=0.5, patience=2)
    model = weight_model(OPTIMIZERS[kind]())
    logs = train(model, 4, Metric(values), callback, watch, epochs=10)
    warm = np.minimum(1.0, (np.arange(40) + 1) / 6)
    np.testing.assert_allclose(changes(watch), warm * np.repeat(rates, 4), atol=2e-6)
    np.testing.assert_allclose(logs["learning_rate"], [0.8 * 4 / 6, *rates[1:]], rtol=1e-6)
    assert callback.rate == 0.2


CASES = {
    "cooldown": (
        {"cooldown": 2, "patience": 1},
        [1.0, 2.0, 2.0, 2.0, 2.0, 2.0],
        [0.8, 0.8, 0.4, 0.4, 0.4, 0.2],
    ),
    "min_rate": ({"patience": 1, "min_rate": 0.3}, [1.0, 2, 2, 2], [0.8, 0.8, 0.4, 0.3]),
    "min_delta": ({"patience": 1, "min_delta": 0.5}, [1.0, 0.6, 0.4], [0.8, 0.8, 0.4]),
    "max": ({"patience": 1, "mode": "max"}, [1.0, 2.0, 1.5, 1.5], [0.8, 0.8, 0.8, 0.4]),
    "nan": ({"patience": 1}, [1.0, math.nan, 0.5, 0.4], [0.8, 0.8, 0.4, 0.4]),
}


@pytest.mark.parametrize("case", CASES)
def test_plateaus(case):
    options, values, rates = CASES[case]
    callback = WarmupThenPlateau(0.8, factor=0.5, **options)
    metric = Metric(values, options.get("monitor", "val_loss"))
    logs = train(weight_model("sgd"), 1, metric, callback, epochs=len(values))
    np.testing.assert_allclose(logs["learning_rate"], rates, rtol=1e-6)


def test_state():
    """Taken up in the middle of a wait."""
    values = [1.0, 2.0, 2.0, 2.0, 2.0, 2.0]
    whole = WarmupThenPlateau(0.8, factor=0.5, patience=3)
    expected = train(weight_model("sgd"), 1, Metric(values), whole, epochs=6)["learning_rate"]
    first, second = (WarmupThenPlateau(0.8, factor=0.5, patience=3) for _ in range(2))
    train(weight_model("sgd"), 1, Metric(values), first, epochs=3)

    class TakeUp(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            second.set_state(first.get_state())

    metric = Metric(values[3:])
    logs = train(weight_model("sgd"), 1, metric, second, TakeUp(), epochs=3)
    np.testing.assert_allclose(logs["learning_rate"], expected[3:])


BAD = {
    "rate": (0.0, "`rate` must be a finite number above 0; received: rate=0.0"),
    "warmup_steps": (-1, "`warmup_steps` must be an integer >= 0; received: warmup_steps=-1"),
    "factor": (1.0, r"`factor` must be a fraction in \(0, 1\); received: factor=1.0"),
    "patience": (0, "`patience` must be an integer >= 1; received: patience=0"),
    "min_delta": (-1.0, "`min_delta` must be a finite number >= 0; received: min_delta=-1.0"),
    "cooldown": (0.5, "`cooldown` must be an integer >= 0; received: cooldown=0.5"),
    "min_rate": (-0.1, "`min_rate` must be a finite number >= 0; received: min_rate=-0.1"),
    "min_rate above rate": (0.2, "`min_rate` must not be above `rate`; .*min_rate=0.2, rate=0.1"),
    "mode": ("lower", "`mode` must be one of auto, min, max; received: mode='lower'"),
}


@pytest.mark.parametrize("name", ["rate", "factor", "min_delta", "min_rate"])
@pytest.mark.parametrize("value", ["much", None, True, [0.5]])
def test_what_is_no_number(name, value):
    with pytest.raises(ValueError, match=f"^`{name}` must be .*; received: {name}="):
        WarmupThenPlateau(**{"rate": 0.1, name: value})


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    value, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        WarmupThenPlateau(**{"rate": 0.1, name.split()[0]: value})


@pytest.mark.parametrize(
    ("monitor", "validated"), [("f1", False), ("val_f1", True), ("Val_loss", False)]
)
def test_a_metric_that_is_not_there(monitor, validated):
    callback, x = WarmupThenPlateau(0.1, monitor=monitor), np.zeros((1, 1), "float32")
    data = {"validation_data": (x, x)} if validated else {}
    with pytest.raises(
        ValueError, match=rf"`monitor` must be in the logs.*; received: .*'{monitor}'.*'loss'"
    ):
        train(weight_model("sgd"), 1, callback, **data)


def test_epochs_that_are_not_validated_do_not_count():
    """With `validation_freq=2` the plateau is seen in epochs 1, 3 and 5."""
    callback, x = WarmupThenPlateau(0.8, patience=1, factor=0.5), np.zeros((1, 1), "float32")
    callback.min_delta = 1e9
    options = {"epochs": 6, "validation_data": (x, x), "validation_freq": 2}
    with pytest.warns(UserWarning, match="has not seen 'val_loss' yet"):
        rates = train(weight_model("sgd"), 1, callback, **options)["learning_rate"]
    np.testing.assert_allclose(rates, [0.8, 0.8, 0.8, 0.8, 0.4, 0.4], rtol=1e-6)


METRICS = {
    "auc_1": (lambda: keras.metrics.AUC(name="auc_1"), True),
    "recall": (lambda: keras.metrics.Recall(name="recall"), True),
    "f1": (lambda: keras.metrics.F1Score(average="micro", name="f1"), True),
    "binary_accuracy": (lambda: "binary_accuracy", True),
    "mae": (lambda: "mae", False),
    "loss": (lambda: "mae", False),
}


@pytest.mark.parametrize("name", METRICS)
def test_a_metric_says_which_values_are_better(name):
    metric, is_higher_better = METRICS[name]
    model = weight_model("sgd", metrics=[metric()])
    callback, x = WarmupThenPlateau(0.8, monitor=f"val_{name}"), np.zeros((1, 1), "float32")
    train(model, 1, callback, validation_data=(x, x))
    assert callback._is_higher_better() is is_higher_better


def test_a_metric_that_does_not_say_it():
    callback = WarmupThenPlateau(0.8, monitor="score")
    with pytest.raises(
        ValueError, match=r"`mode` must be .*; received: monitor='score', mode='auto'"
    ):
        train(weight_model("sgd"), 1, Metric([1.0], "score"), callback)
