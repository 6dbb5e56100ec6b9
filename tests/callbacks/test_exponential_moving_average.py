import keras
import numpy as np
import pytest

from kattn.callbacks.exponential_moving_average import ExponentialMovingAverage
from kattn.callbacks.gradient_clipping import GradientClipping
from kattn.callbacks.learning_rate import LearningRate
from kattn.callbacks.stochastic_weight_average import StochasticWeightAverage
from tests.training import Linear, Watch, weight_model

BACKEND = keras.backend.backend()
RNG = np.random.default_rng(7)
KERNEL, BIAS = RNG.normal(size=(3, 2)), RNG.normal(size=2)
X, Y = RNG.normal(size=(24, 3)), RNG.normal(size=(24, 2))
RATE, BATCH = 0.2, 2


def linear_model(optimizer=None, **options):
    layer = Linear(KERNEL.astype("float32"), BIAS.astype("float32"), name="linear")
    model = keras.Sequential([keras.Input((3,)), layer], name="model")
    model.compile(optimizer or keras.optimizers.SGD(RATE), "mse", **options)
    return model


def fit(model, *callbacks, epochs=1, x=X, **options):
    return model.fit(
        x, Y, BATCH, epochs, verbose=0, callbacks=list(callbacks), shuffle=False, **options
    ).history


def simulated(decay, warmup, *, epochs=1, accumulated=1, skipped=()):
    """Weights and averages after each update of gradient descent on the mean squared error."""
    weights = [KERNEL.copy(), BIAS.copy()]
    averages = [w.copy() for w in weights]
    found, gradients, updates = [], [], 0
    for step in range(epochs * len(X) // BATCH):
        at = step * BATCH % len(X)
        x, y = X[at : at + BATCH], Y[at : at + BATCH]
        error = 2 * (x @ weights[0] + weights[1] - y) / y.size
        gradients.append([x.T @ error, error.sum(0)])
        if len(gradients) == accumulated and step not in skipped:
            d = min(decay, (1 + updates) / (10 + updates)) if warmup else decay
            for i in range(2):
                weights[i] = weights[i] - RATE * np.mean([g[i] for g in gradients], axis=0)
                averages[i] = d * averages[i] + (1 - d) * weights[i]
            updates += 1
        gradients = gradients if len(gradients) < accumulated else []
        found.append(([w.copy() for w in weights], [a.copy() for a in averages]))
    return found


def loss(weights):
    return np.mean((X @ weights[0] + weights[1] - Y) ** 2)


def assert_near(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


OPTIMIZERS = {
    "plain": lambda: keras.optimizers.SGD(RATE),
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(RATE)),
    "accumulated": lambda: keras.optimizers.SGD(RATE, gradient_accumulation_steps=3),
}


@pytest.mark.parametrize(
    ("kind", "decay", "warmup"),
    [
        ("plain", 0.9, False),
        ("plain", 0.35, True),  # which 3.5 updates reach
        ("plain", 0.0, False),
        ("loss scale", 0.99, True),
        ("accumulated", 0.7, True),
    ],
)
def test_training_ends_with_the_average(kind, decay, warmup):
    model = linear_model(OPTIMIZERS[kind]())
    fit(model, ExponentialMovingAverage(decay, warmup=warmup), epochs=2)
    accumulated = 3 if kind == "accumulated" else 1
    weights, averages = simulated(decay, warmup, epochs=2, accumulated=accumulated)[-1]
    assert_near(model.get_weights(), averages)
    assert decay == 0.0 or np.abs(averages[0] - weights[0]).max() > 1e-3


@pytest.mark.skipif(BACKEND == "torch", reason="Keras joins no steps on PyTorch")
def test_joined_and_compiled_steps():
    model = linear_model(steps_per_execution=4, jit_compile=True)
    fit(model, ExponentialMovingAverage(0.9), epochs=2)
    assert_near(model.get_weights(), simulated(0.9, True, epochs=2)[-1][1])


def test_skipped_updates_do_not_count():
    x = X.copy()
    x[[2, 14]] = np.inf  # in steps 1 and 7
    model = linear_model()
    fit(model, GradientClipping("norm", None), ExponentialMovingAverage(0.9), x=x)
    assert_near(model.get_weights(), simulated(0.9, True, skipped=(1, 7))[-1][1])


class Look(keras.callbacks.Callback):
    """What other callbacks find in the model, and in `averaged`."""

    def __init__(self, average):
        super().__init__()
        self.average = average
        self.plain, self.averaged, self.tested, self.after_test = [], [], [], []
        self.seen = []

    def on_epoch_end(self, epoch, logs=None):
        self.seen.append(self.model.get_weights())
        with self.average.as_trained():
            self.plain.append(self.model.get_weights())
        with self.average.averaged():
            self.averaged.append(self.model.get_weights())

    def on_test_batch_end(self, batch, logs=None):
        with self.average.averaged():
            self.tested.append(self.model.get_weights())
        self.after_test.append(self.model.get_weights())


def test_validation_has_the_average_and_training_goes_on_without():
    """Two fits of one callback: the second average starts anew."""
    model, average = linear_model(), ExponentialMovingAverage(0.8, at_end="last")
    stock = linear_model()
    for _ in range(2):
        start = model.get_weights()
        watch, look, stock_watch = Watch(), Look(average), Watch()
        history = fit(model, average, look, watch, epochs=3, validation_data=(X, Y))
        fit(stock, stock_watch, epochs=3)
        for one, other in zip(watch.weights, stock_watch.weights, strict=True):
            np.testing.assert_array_equal(one[0], other[0])
            np.testing.assert_array_equal(one[1], other[1])
        averages = start
        for t, weights in enumerate(watch.weights[1:]):
            d = min(0.8, (1 + t) / (10 + t))
            averages = [d * a + (1 - d) * w for a, w in zip(averages, weights, strict=True)]
            epoch, step = divmod(t + 1, len(X) // BATCH)
            if step == 0:
                assert_near(look.averaged[epoch - 1], averages)
                assert_near(look.seen[epoch - 1], averages)
                assert_near(look.plain[epoch - 1], weights)
                np.testing.assert_allclose(
                    history["val_loss"][epoch - 1], loss(averages), rtol=1e-5
                )
        assert_near(look.tested[-1], averages)
        assert_near(look.after_test[-1], averages)
        assert_near(model.get_weights(), watch.weights[-1])
        with average.averaged(), average.averaged():
            assert_near(model.get_weights(), averages)
        assert_near(model.get_weights(), watch.weights[-1])


def test_nothing_is_left_when_it_is_not_used():
    """After a training with it, one without it, which traces nothing anew."""
    model, average = linear_model(), ExponentialMovingAverage(0.8, at_end="last")
    fit(model, average)
    with average.averaged():
        before = model.get_weights()
    counts = [int(v) for v in model.optimizer.variables if v.name == "average_count"]
    assert counts == [12]
    history = fit(model, validation_data=(X, Y))
    assert [int(v) for v in model.optimizer.variables if v.name == "average_count"] == counts
    np.testing.assert_allclose(history["val_loss"], loss(model.get_weights()), rtol=1e-5)
    with average.averaged():
        assert_near(model.get_weights(), before)
    assert_near(model.get_weights(), simulated(0.8, True, epochs=2)[-1][0])


def test_evaluation_outside_of_training_has_the_models_weights():
    model, average = linear_model(), ExponentialMovingAverage(0.8, at_end="last")
    fit(model, average)
    found = model.evaluate(X, Y, verbose=0, callbacks=[average])
    np.testing.assert_allclose(found, loss(model.get_weights()), rtol=1e-5)


def test_a_state_saved_in_validation_has_the_weights_as_trained():
    average = ExponentialMovingAverage(0.8, at_end="last")
    states = []

    class Save(keras.callbacks.Callback):
        def on_test_batch_end(self, batch, logs=None):
            states.append(average.get_state())

        def on_train_end(self, logs=None):
            states.append(average.get_state())

    model = linear_model()
    fit(model, average, Save(), validation_data=(X, Y))
    assert states[0]
    assert states[-1] == {}
    trained = model.get_weights()

    class Resume(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            average.set_state(states[0])
            assert_near(self.model.get_weights(), trained)
            assert average.get_state() == {}

    other = linear_model()
    fit(other, average, Resume())


def test_saves_a_stock_model(tmp_path):
    model = linear_model(keras.optimizers.Adam(0.1))
    fit(model, ExponentialMovingAverage(0.9))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras", {"Linear": Stock}, compile=True)
    assert_near(loaded.get_weights(), model.get_weights())
    plain = linear_model(keras.optimizers.Adam(0.1))
    fit(plain)
    assert type(loaded.optimizer) is type(plain.optimizer)
    assert len(loaded.optimizer.variables) == len(plain.optimizer.variables)
    for one, other in zip(loaded.optimizer.variables, plain.optimizer.variables, strict=True):
        np.testing.assert_array_equal(
            keras.ops.convert_to_numpy(one), keras.ops.convert_to_numpy(other)
        )


class Stock(Linear):
    """A layer that can be loaded."""

    def __init__(self, **kwargs):
        super().__init__(KERNEL.astype("float32"), BIAS.astype("float32"), **kwargs)


def test_averages_of_half_precision_are_of_single():
    """Of a weight that goes from 1 by steps of 1 / 128: bfloat16 would round the average."""
    model = keras.Sequential([keras.Input((1,), dtype="bfloat16")])
    model.add(Linear(np.ones((1, 1), "float32"), dtype="bfloat16"))
    model.compile(keras.optimizers.SGD(1 / 128), lambda y, prediction: prediction)
    average = ExponentialMovingAverage(0.75, warmup=False)
    seen = []

    class Read(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.extend(average.rule.values())

    model.fit(np.ones((3, 1)), np.ones((3, 1)), 1, verbose=0, callbacks=[average, Read()])
    expected = 1.0
    for t in range(1, 4):
        expected = 0.75 * expected + 0.25 * (1 - t / 128)
    np.testing.assert_allclose(seen[0], [[expected]], rtol=1e-7)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"decay": 1.0}, r"`decay` must be a fraction in \[0, 1\); received: decay=1\.0"),
        ({"decay": -0.1}, r"`decay` must be a fraction in \[0, 1\); received: decay=-0\.1"),
        ({"decay": True}, r"`decay` must be a fraction in \[0, 1\); received: decay=True"),
        ({"decay": "0.9"}, r"`decay` must be a fraction in \[0, 1\); received: decay='0\.9'"),
        ({"warmup": 10}, "`warmup` must be True or False; received: warmup=10"),
        ({"at_end": "best"}, "`at_end` must be one of average, last; received: at_end='best'"),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        ExponentialMovingAverage(**options)


def test_there_is_no_average_before_training():
    with (
        pytest.raises(
            ValueError, match=r"`fit` must have been called before .*; received: average=None"
        ),
        ExponentialMovingAverage().averaged(),
    ):
        pass


def keeping(kind, tmp_path):
    """A callback that keeps the best weights of a validation."""
    if kind == "stopping":
        return keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)
    return keras.callbacks.ModelCheckpoint(
        tmp_path / "best.weights.h5", save_best_only=True, save_weights_only=True
    )


@pytest.mark.parametrize("kind", ["stopping", "checkpoint"])
def test_the_best_average_is_kept(kind, tmp_path):
    """The rate grows so much that the average of a later epoch is far worse."""
    x = np.zeros((4, 1), "float32")
    y = x + 2.0
    model = weight_model(keras.optimizers.SGD(1.0))
    model.compile(model.optimizer, "mse")
    average = ExponentialMovingAverage(0.5, warmup=False)
    rate = LearningRate(lambda t: 0.15 * 2.0 ** min(t, 20))
    callback = keeping(kind, tmp_path)
    data = {"validation_data": (x[:1], y[:1]), "epochs": 12, "verbose": 0, "batch_size": 4}
    history = model.fit(x, y, callbacks=[average, rate, callback], **data).history
    if kind == "checkpoint":
        model.load_weights(tmp_path / "best.weights.h5")
    best = min(history["val_loss"])
    assert history["val_loss"][-1] > best
    found = (float(model.get_weights()[0]) - 2.0) ** 2
    np.testing.assert_allclose(found, best, rtol=1e-5)


@pytest.mark.parametrize("kind", ["stopping", "checkpoint"])
def test_what_keeps_the_best_weights_must_come_behind(kind, tmp_path):
    callback, average = keeping(kind, tmp_path), ExponentialMovingAverage()
    with pytest.raises(
        ValueError, match=rf"must come after ExponentialMovingAverage.*\['{type(callback).__name__}"
    ):
        fit(linear_model(), callback, average, validation_data=(X, Y))
    plain = keras.callbacks.ModelCheckpoint(tmp_path / "each.keras")
    fit(linear_model(), plain, average, validation_data=(X, Y))


def test_what_needs_the_weights_as_trained_must_come_before(tmp_path):
    backup = keras.callbacks.BackupAndRestore(tmp_path)
    with pytest.raises(ValueError, match=r"must come before .*\['BackupAndRestore'\]"):
        fit(linear_model(), ExponentialMovingAverage(), backup)
    swa = StochasticWeightAverage(0)
    for order in ([swa, ExponentialMovingAverage()], [ExponentialMovingAverage(), swa]):
        with pytest.raises(ValueError, match=r"Only one callback .*\['StochasticWeightAverage'\]"):
            fit(linear_model(), *order)
