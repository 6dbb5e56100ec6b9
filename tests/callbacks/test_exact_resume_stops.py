"""How a training came to an end decides how it goes on."""

import keras
import numpy as np
import pytest

from kattn.callbacks import ExactResume
from kattn.callbacks.backup import files

STEPS, EPOCHS = 6, 3


def small_model():
    keras.utils.set_random_seed(7)
    layers = [keras.Input((5,)), keras.layers.Dropout(0.3), keras.layers.Dense(3)]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.Adam(0.1), "mse", metrics=["mae"])
    return model


class Stop(keras.callbacks.Callback):
    """Sets `stop_training` at a place, and counts the updates that are made."""

    def __init__(self, place=None, epoch=1, batch=2):
        super().__init__()
        self.place, self.at, self.epoch = place, (epoch, batch), None

    def on_train_begin(self, logs=None):
        self.first = None

    def on_epoch_begin(self, epoch, logs=None):
        self.epoch = epoch

    def on_train_batch_begin(self, batch, logs=None):
        self.stop("begin", batch)

    def on_train_batch_end(self, batch, logs=None):
        self.stop("end", batch)

    def on_epoch_end(self, epoch, logs=None):
        self.stop("epoch", self.at[1])

    def stop(self, place, batch):
        if place == self.place and (self.epoch, batch) == self.at:
            self.model.stop_training = True


def fit(folder, stop=None, *, epochs=EPOCHS, validate=True, callbacks=(), y_scale=1.0):
    rng = np.random.default_rng(3)
    x, y = rng.normal(size=(STEPS * 4, 5)), rng.normal(size=(STEPS * 4, 3)) * y_scale
    model, stop = small_model(), stop or Stop()
    more = [] if folder is None else [ExactResume(folder, every=4)]
    data = {"validation_data": (x[:8], y[:8])} if validate else {}
    listed = [stop, *callbacks, *more]
    model.fit(x, y, batch_size=4, epochs=epochs, verbose=0, callbacks=listed, **data)
    resumed = more[0].resumed_from if more else None
    return model, resumed


def updates(model):
    return int(keras.ops.convert_to_numpy(model.optimizer.iterations))


def check_same(one, other):
    for a, b in zip(one.variables, other.variables, strict=True):
        np.testing.assert_array_equal(np.array(a), np.array(b))
    assert one.history.epoch == other.history.epoch
    assert one.history.history == other.history.history


@pytest.mark.parametrize("place", ["begin", "end"])
@pytest.mark.parametrize("validate", [True, False])
def test_a_stop_within_an_epoch_goes_on_with_the_next_step(tmp_path, place, validate):
    stopped, _ = fit(tmp_path, Stop(place), validate=validate)
    assert updates(stopped) == STEPS + 3
    assert files.paths(tmp_path)[-1].name == "backup-000001-000000003.kattn"
    found, resumed = fit(tmp_path, validate=validate)
    assert resumed == (1, 3)
    check_same(found, fit(None, validate=validate)[0])


def test_a_stop_in_a_step_that_is_skipped_changes_nothing(tmp_path):
    fit(tmp_path, Stop("end"))
    found, resumed = fit(tmp_path, Stop("end", batch=1))
    assert (resumed, updates(found)) == ((1, 3), STEPS + 3)
    assert files.paths(tmp_path)[-1].name == "backup-000001-000000003.kattn"
    check_same(fit(tmp_path)[0], fit(None)[0])


def test_a_stop_at_the_end_of_an_epoch_is_the_end(tmp_path):
    stopped, _ = fit(tmp_path, Stop("epoch"))
    assert updates(stopped) == 2 * STEPS
    found, resumed = fit(tmp_path)
    assert (resumed, updates(found)) == ((2, 0), 2 * STEPS)
    check_same(found, stopped)
    check_same(fit(tmp_path, epochs=EPOCHS + 1)[0], fit(None, epochs=EPOCHS + 1)[0])


def test_early_stopping_goes_on_with_more_epochs(tmp_path):
    def stopping():
        return [keras.callbacks.EarlyStopping("loss", min_delta=1e9, patience=1)]

    assert updates(fit(tmp_path, callbacks=stopping())[0]) == 2 * STEPS
    assert updates(fit(tmp_path, callbacks=stopping())[0]) == 2 * STEPS
    assert updates(fit(tmp_path, callbacks=stopping(), epochs=EPOCHS + 2)[0]) == 4 * STEPS


@pytest.mark.parametrize("validate", [True, False])
@pytest.mark.parametrize("batch", [3, STEPS - 1])
def test_a_state_with_a_fault_is_not_saved(tmp_path, validate, batch):
    """The loss is not a number, for which training is stopped, within an epoch or at its end."""

    class Break(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            self.epoch = epoch

        def on_train_batch_begin(self, at, logs=None):
            if (self.epoch, at) == (1, batch):
                _, bias = self.model.layers[-1].get_weights()
                self.model.layers[-1].set_weights([_, bias * np.nan])

    broken = [Break(), keras.callbacks.TerminateOnNaN()]
    fit(tmp_path, callbacks=broken, validate=validate)
    newest = files.paths(tmp_path)[-1].name
    assert newest == f"backup-000001-{4 if batch > 4 else 0:09d}.kattn"
    found, resumed = fit(tmp_path, validate=validate)
    assert resumed == (1, 4 if batch > 4 else 0)
    check_same(found, fit(None, validate=validate)[0])


def test_the_next_fit_is_whole(tmp_path):
    fit(tmp_path, Stop("end"))
    model, _ = fit(tmp_path)
    x, y = np.zeros((8, 5)), np.zeros((8, 3))
    before = updates(model)
    model.fit(x, y, batch_size=4, epochs=2, verbose=0)
    assert updates(model) == before + 4


def test_a_folder_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    fit("~/backups", epochs=1)
    assert [path.name for path in files.paths(tmp_path / "backups")]
