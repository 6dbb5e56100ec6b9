import itertools

import keras
import numpy as np
import pytest

from kattn.callbacks.stochastic_weight_average import StochasticWeightAverage
from tests.training import Linear, draws

RNG = np.random.default_rng(7)
KERNEL, BIAS = RNG.normal(size=(3, 2)), RNG.normal(size=2)
X, Y = RNG.normal(size=(10, 3)), RNG.normal(size=(10, 2))
RATE, BATCH = 0.2, 4


def linear_model():
    layer = Linear(KERNEL.astype("float32"), BIAS.astype("float32"))
    model = keras.Sequential([keras.Input((3,)), layer])
    model.compile(keras.optimizers.SGD(RATE), "mse")
    return model


def fit(model, *callbacks, epochs, **options):
    return model.fit(
        X, Y, BATCH, epochs, verbose=0, callbacks=list(callbacks), shuffle=False, **options
    ).history


def simulated(epochs):
    """The weights at the end of each epoch of gradient descent on the mean squared error."""
    weights, found = [KERNEL.copy(), BIAS.copy()], []
    for _ in range(epochs):
        for at in range(0, len(X), BATCH):
            x, y = X[at : at + BATCH], Y[at : at + BATCH]
            error = 2 * (x @ weights[0] + weights[1] - y) / y.size
            weights = [weights[0] - RATE * x.T @ error, weights[1] - RATE * error.sum(0)]
        found.append(weights)
    return found


def mean_of(epochs, places):
    found = simulated(epochs)
    return [np.mean([found[place][i] for place in places], axis=0) for i in range(2)]


def assert_near(found, expected):
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("start", "every", "epochs", "places"),
    [
        (0, 1, 3, [0, 1, 2]),
        (2, 1, 5, [2, 3, 4]),
        (1, 2, 7, [1, 3, 5]),
        (4, 3, 5, [4]),
        (0.75, 1, 6, [4, 5]),
        (0.58, 20, 50, [29, 49]),  # 0.58 * 50 is less than 29
    ],
)
def test_training_ends_with_the_mean(start, every, epochs, places):
    model, average = linear_model(), StochasticWeightAverage(start, every=every)
    fit(model, average, epochs=epochs)
    assert average.count == len(places)
    assert_near(model.get_weights(), mean_of(epochs, places))


def test_training_itself_is_not_changed():
    histories = []
    for callbacks in ([], [StochasticWeightAverage(1)]):
        histories.append(fit(linear_model(), *callbacks, epochs=4, validation_data=(X, Y)))
    assert histories[0] == histories[1]


def test_a_second_training_starts_anew():
    model, average = linear_model(), StochasticWeightAverage(1)
    fit(model, average, epochs=3)
    model.set_weights([KERNEL, BIAS])
    fit(model, average, epochs=2)
    assert average.count == 1
    assert_near(model.get_weights(), mean_of(2, [1]))


def test_training_that_is_stopped_before_keeps_its_weights():
    class Stop(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            self.model.stop_training = epoch == 1

    model, average = linear_model(), StochasticWeightAverage(3)
    fit(model, average, Stop(), epochs=9)
    assert average.count == 0
    assert_near(model.get_weights(), simulated(2)[-1])


def test_resumes_from_a_state():
    model, average = linear_model(), StochasticWeightAverage(1)
    states = []

    class Save(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            states.append((average.get_state(), self.model.get_weights()))

    fit(model, average, Save(), epochs=5)
    state, weights = states[2]
    assert state["count"] == 2
    average = StochasticWeightAverage(1)

    class Resume(keras.callbacks.Callback):
        def on_train_begin(self, logs=None):
            average.set_state(state)

    model = linear_model()
    model.set_weights(weights)
    fit(model, average, Resume(), epochs=5, initial_epoch=3)
    assert average.count == 4
    assert_near(model.get_weights(), mean_of(5, [1, 2, 3, 4]))


# Batch normalization.

EPSILON = 1e-3


def deep_model(**options):
    """Two normalizations, the second of what the first gives in training, with dropout after."""
    keras.utils.set_random_seed(1)
    model = keras.Sequential(
        [
            keras.Input((3,)),
            keras.layers.Dense(4, name="dense"),
            keras.layers.BatchNormalization(epsilon=EPSILON, name="norm_1", **options),
            keras.layers.Dense(2, name="dense_2"),
            keras.layers.BatchNormalization(epsilon=EPSILON, name="norm_2", momentum=0.7),
            keras.layers.Dropout(0.3),
        ]
    )
    model.compile(keras.optimizers.Adam(0.05), "mse")
    return model


def weights_of(model):
    return {
        (layer.name, v.name): np.array(keras.ops.convert_to_numpy(v), np.float64)
        for layer in model.layers
        for v in layer.weights
    }


def statistics(weights, batches):
    """Means over batches of what each normalization sees in training mode."""
    found = []
    for x in batches:
        seen = []
        for dense, norm in (("dense", "norm_1"), ("dense_2", "norm_2")):
            x = x @ weights[dense, "kernel"] + weights[dense, "bias"]
            mean, variance = x.mean(0), x.var(0)
            seen += [mean, variance]
            x = (x - mean) / np.sqrt(variance + EPSILON)
            x = x * weights[norm, "gamma"] + weights[norm, "beta"]
        found.append(seen)
    return [np.mean([seen[i] for seen in found], axis=0) for i in range(4)]


STATISTICS = list(itertools.product(("norm_1", "norm_2"), ("moving_mean", "moving_variance")))


def slices():
    return [X[0:4], X[4:8], X[8:10]]


def test_statistics_are_estimated_anew():
    model = deep_model()
    average = StochasticWeightAverage(1, batch_norm_data=X, batch_size=4)
    ends = []

    class Note(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            ends.append(weights_of(self.model))

        def on_train_end(self, logs=None):
            self.rest = rest_of(self.model)
            keras.utils.set_random_seed(4)
            self.drawn = draws()
            keras.utils.set_random_seed(4)

    note = Note()
    fit(model, note, average, epochs=3)
    assert draws() == note.drawn
    weights = weights_of(model)
    for name, value in weights.items():
        if name not in STATISTICS:
            np.testing.assert_allclose(
                value, np.mean([end[name] for end in ends[1:]], axis=0), rtol=1e-5, atol=1e-6
            )
    expected = statistics(weights, slices())
    assert_near([weights[name] for name in STATISTICS], expected)
    assert np.abs(ends[-1]["norm_1", "moving_mean"] - expected[0]).max() > 1e-2
    assert [layer.momentum for layer in model.layers if hasattr(layer, "momentum")] == [0.99, 0.7]
    np.testing.assert_array_equal(rest_of(model), note.rest)


def rest_of(model):
    """Seeds and all of the optimizer."""
    seeds = [v for v in model.non_trainable_variables if "moving" not in v.name]
    assert seeds
    found = [keras.ops.convert_to_numpy(v) for v in [*seeds, *model.optimizer.variables]]
    return np.concatenate([np.ravel(x).astype(np.float64) for x in found])


def norm_model():
    model = keras.Sequential([keras.Input((3,)), keras.layers.BatchNormalization()])
    model.compile("sgd", mean_output)
    return model


def mean_output(y_true, y_pred):
    return keras.ops.mean(y_pred, axis=-1)


def norm_statistics(batches):
    found = [(x.mean(0), x.var(0)) for x in batches]
    return np.mean(found, axis=0)


class Batches(keras.utils.PyDataset):
    def __len__(self):
        return 3

    def __getitem__(self, index):
        return slices()[index], None


DATA = {
    "tensor": lambda: keras.ops.convert_to_tensor(X.astype("float32")),
    "list": slices,
    "pairs": lambda: [[x, None] for x in slices()],
    "dataset": Batches,
}


@pytest.mark.parametrize("kind", DATA)
def test_kinds_of_data(kind):
    model = norm_model()
    fit(model, StochasticWeightAverage(0, batch_norm_data=DATA[kind](), batch_size=4), epochs=1)
    assert_near(model.get_weights()[2:], norm_statistics(slices()))


def test_no_more_batches_than_it_needs():
    batches, model = iter(slices()), norm_model()
    fit(model, StochasticWeightAverage(0, batch_norm_data=batches, batch_norm_steps=2), epochs=1)
    assert_near(model.get_weights()[2:], norm_statistics(slices()[:2]))
    assert len(list(batches)) == 1


def test_normalization_that_is_frozen_stays():
    model = deep_model(trainable=False)
    before = weights_of(model)
    fit(model, StochasticWeightAverage(0, batch_norm_data=X), epochs=1)
    after = weights_of(model)
    for name, value in after.items():
        assert np.array_equal(value, before[name]) == (name[0] == "norm_1"), name


def test_normalization_that_is_frozen_needs_no_data():
    model = keras.Sequential([norm_model(), keras.layers.Dense(2)])
    model.layers[0].trainable = False
    model.compile("sgd", "mse")
    fit(model, StochasticWeightAverage(0), epochs=1)


class Nested(keras.Model):
    """A normalization within a layer."""

    def __init__(self, inner):
        super().__init__()
        self.inner = inner

    def call(self, x, training=False):
        return self.inner(x, training=training)


class Untrained(Nested):
    """`fit` does not tell it that it trains."""

    def call(self, x):
        return self.inner(x)


@pytest.mark.parametrize("kind", [Nested, Untrained])
def test_models_of_models(kind):
    inner = norm_model()
    model = kind(inner)
    model.compile("sgd", mean_output)
    fit(model, StochasticWeightAverage(0, batch_norm_data=X, batch_size=5), epochs=1)
    expected = norm_statistics([X[:5], X[5:]]) if kind is Nested else (np.zeros(3), np.ones(3))
    assert_near(inner.get_weights()[2:], expected)


def test_saves_a_stock_model(tmp_path, device):
    model, plain = deep_model(), deep_model()
    keras.utils.set_random_seed(2)
    fit(model, StochasticWeightAverage(0, batch_norm_data=X), epochs=2)
    keras.utils.set_random_seed(2)
    fit(plain, epochs=2)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert [type(layer) for layer in loaded.layers] == [type(layer) for layer in plain.layers]
    assert [layer.momentum for layer in loaded.layers if hasattr(layer, "momentum")] == [0.99, 0.7]
    assert_near(loaded.get_weights(), model.get_weights())
    assert len(loaded.optimizer.variables) == len(plain.optimizer.variables)
    for one, other in zip(loaded.optimizer.variables, plain.optimizer.variables, strict=True):
        # On a GPU two equal trainings may differ in the last bit.
        np.testing.assert_allclose(
            *map(keras.ops.convert_to_numpy, (one, other)),
            rtol=0 if device.startswith("cpu") else 1e-5,
        )


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start": -1}, r"`start` must be an integer >= 0 or a fraction .*; received: start=-1"),
        ({"start": 1.0}, r"`start` must be an integer >= 0 or a fraction .*; received: start=1\.0"),
        (
            {"start": True},
            r"`start` must be an integer >= 0 or a fraction .*; received: start=True",
        ),
        ({"every": 0}, r"`every` must be an integer >= 1; received: every=0"),
        ({"every": 1.5}, r"`every` must be an integer >= 1; received: every=1\.5"),
        ({"batch_size": 0}, "`batch_size` must be an integer >= 1; received: batch_size=0"),
        (
            {"batch_norm_steps": 0},
            "`batch_norm_steps` must be an integer >= 1; received: batch_norm_steps=0",
        ),
        (
            {"batch_norm_data": (X, Y)},
            "must be an array or yield batches; .*batch_norm_data='tuple'",
        ),
        (
            {"batch_norm_data": {"x": X}},
            "must be an array or yield batches; .*batch_norm_data='dict'",
        ),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        StochasticWeightAverage(**{"start": 0, **options})


def test_training_that_ends_before_the_start_is_refused():
    with pytest.raises(ValueError, match="before the end of training; received: start=3, epochs=3"):
        fit(linear_model(), StochasticWeightAverage(3), epochs=3)


def test_normalization_needs_data():
    message = (
        r"`batch_norm_data` must be given .*batch_norm_data=None, layers=\['norm_1', 'norm_2'\]"
    )
    with pytest.raises(ValueError, match=message):
        fit(deep_model(), StochasticWeightAverage(0), epochs=1)


def test_renormalization_is_refused():
    with pytest.raises(ValueError, match=r"no batch renormalization.*: layers=\['norm_1'\]"):
        fit(deep_model(renorm=True), StochasticWeightAverage(0, batch_norm_data=X), epochs=1)


def test_data_without_batches_are_refused():
    model = norm_model()
    with pytest.raises(ValueError, match=r"`batch_norm_data` must yield batches .*: batches=0"):
        fit(model, StochasticWeightAverage(0, batch_norm_data=[]), epochs=1)
    assert model.layers[0].momentum == 0.99
