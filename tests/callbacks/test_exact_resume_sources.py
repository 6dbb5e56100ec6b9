"""States that Keras's lists leave out, and random numbers of other libraries."""

import sys
import types

import keras
import numpy as np
import pytest

from kattn.callbacks import ExactResume, LearningRateFinder
from kattn.callbacks.backup import training_state

STEPS, BATCH = 6, 4
BACKEND = keras.backend.backend()


class StopError(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    def __init__(self, epoch, batch):
        super().__init__()
        self.at, self.epoch = (epoch, batch), None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        if (self.epoch, batch) == self.at:
            raise StopError


def dense_model():
    keras.utils.set_random_seed(7)
    model = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    return model


def stateful_model():
    keras.utils.set_random_seed(7)
    layers = [keras.layers.GRU(3, stateful=True), keras.layers.Dense(2)]
    model = keras.Sequential([keras.Input((5, 3), batch_size=BATCH), *layers])
    model.compile(keras.optimizers.Adam(0.1), "mse")
    return model


def values(model):
    states = [state for layer in model.layers for state in getattr(layer, "states", None) or []]
    return [np.array(variable) for variable in [*model.variables, *states]]


def fit(model, data, *callbacks, **options):
    model.fit(*data, epochs=2, verbose=0, callbacks=list(callbacks), **options)
    return values(model)


def check_resumes(folder, make, data, **options):
    """A training that is interrupted in its second epoch ends as one that is not."""
    expected = fit(make(), data(), **options)
    with pytest.raises(StopError):
        fit(make(), data(), ExactResume(folder, every=2), StopAt(1, 5), **options)
    resume = ExactResume(folder, every=2)
    found = fit(make(), data(), resume, **options)
    assert resume.resumed_from == (1, 4)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)
    return found


is_stateful_trained = pytest.mark.skipif(
    BACKEND == "torch", reason="Keras cannot train stateful layers on PyTorch"
)


@is_stateful_trained
def test_states_of_a_recurrent_layer(tmp_path):
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(STEPS * BATCH, 5, 3)), rng.normal(size=(STEPS * BATCH, 2))
    options = {"batch_size": BATCH, "shuffle": False}
    found = check_resumes(tmp_path, stateful_model, lambda: (x, y), **options)
    if BACKEND != "jax":  # whose training step loses these states, with Keras alone too
        assert np.abs(found[-1]).max() > 0.01


@is_stateful_trained
def test_the_finder_puts_states_back():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(STEPS * BATCH, 5, 3)), rng.normal(size=(STEPS * BATCH, 2))
    model = stateful_model()
    model.fit(x, y, batch_size=BATCH, shuffle=False, verbose=0)
    before = values(model)
    LearningRateFinder(1e-3, 1.0, 8).run(model, x, y, batch_size=BATCH, shuffle=False)
    for one, other in zip(values(model), before, strict=True):
        np.testing.assert_array_equal(one, other)


def loader():
    """PyTorch's loader, which shuffles by PyTorch's global generator."""
    torch = pytest.importorskip("torch")
    torch.manual_seed(3)  # Keras seeds it on PyTorch only
    rng = np.random.default_rng(0)
    arrays = rng.normal(size=(STEPS * BATCH, 3)), rng.normal(size=(STEPS * BATCH, 2))
    data = torch.utils.data.TensorDataset(*[torch.tensor(a.astype("float32")) for a in arrays])
    return (torch.utils.data.DataLoader(data, batch_size=BATCH, shuffle=True),)


def test_the_order_of_a_loader_of_pytorch(tmp_path):
    check_resumes(tmp_path, dense_model, loader, shuffle=False)


def test_the_finder_leaves_the_generator_of_pytorch():
    torch = pytest.importorskip("torch")
    model, data = dense_model(), loader()
    before = torch.get_rng_state()
    LearningRateFinder(1e-3, 1.0, 8).run(model, *data, shuffle=False)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.skipif(BACKEND == "torch", reason="has the generator as its own")
def test_a_generator_of_pytorch_beside_another_framework(monkeypatch):
    """Only where PyTorch is loaded, which kattn does not do."""
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert training_state.random_state()["backend"] == []
    now = [np.arange(4, dtype="uint8")]
    module = types.SimpleNamespace(
        get_rng_state=lambda: types.SimpleNamespace(numpy=lambda: now[0]),
        set_rng_state=lambda state: now.__setitem__(0, state),
        from_numpy=lambda array: array,
    )
    monkeypatch.setitem(sys.modules, "torch", module)
    state = training_state.random_state()
    now[0] = np.zeros(4, "uint8")
    training_state.set_random_state(state)
    np.testing.assert_array_equal(now[0], np.arange(4))
