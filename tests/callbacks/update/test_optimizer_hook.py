import keras
import numpy as np
import pytest

from kattn import schedules
from kattn.callbacks import (
    ExponentialMovingAverage,
    GradientClipping,
    GradientMonitor,
    LayerwiseLearningRates,
    LearningRate,
    SpikeGuard,
)
from kattn.callbacks.update import Rule, RuleCallback
from tests.checks import BACKENDS, FIXTURES
from tests.training import Watch, changes, train, weight_model

TRAINED = "trained_with_callbacks"


def test_models_that_no_rule_can_act_on():
    callback = LearningRate(schedules.Constant(0.5))
    x = np.zeros((2, 1), "float32")
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.MultiOptimizer(lambda variable: keras.optimizers.SGD()), "mse")
    with pytest.raises(
        ValueError, match=r"need one optimizer, .*; received: optimizer='MultiOptimizer'"
    ):
        model.fit(x, x, verbose=0, callbacks=[callback])


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others build it before")
def test_models_that_are_not_built():
    model = keras.Sequential([keras.layers.Dense(1)], name="unbuilt")
    model.compile("sgd", "mse")
    x = np.zeros((2, 1), "float32")
    with pytest.raises(
        ValueError, match=r"must be built before fit: .*; received: model='unbuilt', built=False"
    ):
        model.fit(x, x, verbose=0, callbacks=[LearningRate(schedules.Constant(0.5))])


class Faulty(RuleCallback):
    def signature(self):
        return ("faulty",)

    def make_rule(self):
        class Raises(Rule):
            def numbers(self, update):
                raise TypeError("no number")

        return Raises()


def test_a_fault_in_a_rule_leaves_the_weights():
    """On JAX the trainer has taken them by then, unless the fault is found before."""
    model = weight_model("sgd")
    train(model, 2, watch := Watch())
    with pytest.raises(TypeError, match="no number"):
        train(model, 2, Faulty())
    assert float(model.get_weights()[0]) == float(watch.weights[-1][0])


def test_two_of_a_kind_act_both():
    """Equal ones in a fit have a rule each; after it, those are taken over."""
    model = weight_model(keras.optimizers.SGD(1.0))
    first, second = GradientClipping(threshold=0.5), GradientClipping(threshold=0.25)
    train(model, 2, first, second, watch := Watch())
    np.testing.assert_allclose(changes(watch), 0.25, rtol=1e-5)
    count = len(model.optimizer.variables)
    train(model, 2, GradientClipping(threshold=0.125), watch := Watch())
    np.testing.assert_allclose(changes(watch), 0.125, rtol=1e-5)
    assert len(model.optimizer.variables) == count


def test_eager_steps():
    """Without any compilation, and batch by batch without `fit`."""
    model = weight_model(keras.optimizers.SGD(1.0), run_eagerly=True)
    rate = schedules.Linear(0.5, 0.1, 4)
    train(model, 4, LearningRate(rate), GradientClipping(threshold=0.5), watch := Watch())
    np.testing.assert_allclose(changes(watch), 0.5 * rate(np.arange(4)), rtol=1e-5)
    x = np.zeros((1, 1), "float32")
    before = float(model.get_weights()[0])
    model.train_on_batch(x, x)
    np.testing.assert_allclose(float(model.get_weights()[0]) - before, 1.0, rtol=1e-6)


@pytest.mark.parametrize("optimizer", ["adam", "loss scale"])
def test_a_copy_is_stock(optimizer, tmp_path):
    """Saved and loaded, the state is whole and nothing else is there."""
    adam = keras.optimizers.Adam(0.1)
    adam = keras.optimizers.LossScaleOptimizer(adam) if optimizer == "loss scale" else adam
    model = trained(adam)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    plain = make(type(adam).from_config(adam.get_config()))
    plain.optimizer.build(plain.trainable_variables)
    assert [v.shape for v in loaded.optimizer.variables] == [
        v.shape for v in plain.optimizer.variables
    ]
    fit(loaded)
    fit(model)
    for have, want in zip(loaded.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-6)


def make(optimizer):
    layers = [keras.Input((3,)), keras.layers.Dense(4, name="body"), keras.layers.Dense(2)]
    model = keras.Sequential(layers, name="model")
    model.compile(optimizer, "mse")
    return model


def fit(model, *callbacks):
    rng = np.random.default_rng(0)
    x, y = (rng.normal(size=(8, n)).astype("float32") for n in (3, 2))
    model.fit(x, y, batch_size=2, shuffle=False, verbose=0, callbacks=list(callbacks))


def trained(optimizer):
    """A model trained with all that keeps variables."""
    model = make(optimizer)
    schedule = schedules.WarmUp(schedules.Cosine(0.1, 0.0, 6), 2)
    callbacks = [LearningRate(schedule), GradientClipping("zclip", 1.0), GradientMonitor()]
    others = [SpikeGuard(), ExponentialMovingAverage(), LayerwiseLearningRates(decay=0.5)]
    fit(model, *callbacks, *others)
    return model


def write_trained():
    """The fixture of the backend at hand; see `tests.write_fixtures`."""
    model = trained(keras.optimizers.Adam(0.1))
    path = FIXTURES / f"{TRAINED}-{keras.backend.backend()}.keras"
    model.save(path)
    np.savez(path.with_suffix(".npz"), *stored(model))


def stored(model):
    """The weights, and what an optimizer built for them has of its own."""
    size = 2 + 2 * len(model.trainable_variables)
    values = [*model.variables, *model.optimizer.variables[:size]]
    return [keras.ops.convert_to_numpy(v) for v in values]


@pytest.mark.parametrize("backend", BACKENDS)
def test_trained_models_load_on_other_backends(backend):
    path = FIXTURES / f"{TRAINED}-{backend}.keras"
    if backend == "torch" != keras.backend.backend():
        # Keras writes down PyTorch's own class of Adam, which only PyTorch can load.
        model = make(keras.optimizers.Adam(0.1))
        model.optimizer.build(model.trainable_variables)
        model.load_weights(path)
    else:
        model = keras.saving.load_model(path)
    assert len(model.optimizer.variables) == 10
    with np.load(path.with_suffix(".npz")) as arrays:
        for have, want in zip(stored(model), arrays.values(), strict=True):
            np.testing.assert_array_equal(have, want)
    assert int(model.optimizer.iterations) == 4
