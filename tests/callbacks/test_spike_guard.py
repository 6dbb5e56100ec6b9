import keras
import numpy as np
import pytest

from kattn.callbacks import (
    ExponentialMovingAverage,
    GradientClipping,
    GradualUnfreezing,
    LearningRate,
    SpikeGuard,
)
from kattn.callbacks.update import hook_of, step_function
from tests.callbacks import clip_oracle as oracle
from tests.training import Linear, train, weight_model

STEPS = 40


def build(weights, optimizer=None, **options):
    body = Linear(weights["body/kernel"], weights["body/bias"], name="body")
    head = Linear(weights["head/kernel"], name="head")
    model = keras.Sequential([keras.Input((3,)), body, head])
    model.compile(optimizer or keras.optimizers.SGD(0.01), loss="mse", **options)
    return model


def fit(model, x, y, *callbacks, **options):
    options = {"batch_size": 1, "verbose": 0, "shuffle": False, **options}
    return model.fit(x, y, callbacks=list(callbacks), **options).history


class Judge:
    """Skips norms far above the running mean, as the guard's docstring says."""

    def __init__(self, z=3.0, smoothing=0.9, warmup=5, patience=3):
        self.z, self.smoothing, self.warmup, self.patience = z, smoothing, warmup, patience
        self.seen, self.row, self.mean, self.variance = 0, 0, 0.0, 0.0

    def __call__(self, norm):
        """Whether to update."""
        limit = self.mean + self.z * (np.sqrt(self.variance) + 1e-6)
        is_spike = self.seen >= self.warmup and norm > limit
        if is_spike and self.row >= self.patience:
            self.seen, is_spike = 0, False
        if is_spike or not np.isfinite(norm):
            self.row += 1
            return False
        self.row = 0
        a = self.smoothing if self.seen >= self.warmup else self.seen / (self.seen + 1)
        self.variance = a * (self.variance + (1 - a) * (norm - self.mean) ** 2)
        self.mean = a * self.mean + (1 - a) * norm
        self.seen += 1
        return True


def simulate(weights, x, y, judge):
    """Updates (counted without those skipped) at which one was skipped, and the final weights."""
    w, updates, skipped = dict(weights), 0, []
    for step in range(len(x)):
        part = slice(step, step + 1)
        grads = oracle.gradients(w, x[part].astype(float), y[part].astype(float))
        if judge(oracle.norm(grads.values())):
            w = {n: w[n] - 0.01 * g for n, g in grads.items()}
            updates += 1
        else:
            skipped.append(updates)
    return skipped, w


def test_spikes_are_skipped(rng):
    """Single ones, one that is not finite, and a row that becomes the new normal."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, STEPS, [9, 14])
    x[17, 0] = np.nan
    y[25:] *= 40.0
    skipped, final = simulate(weights, x, y, Judge())
    guard = SpikeGuard(z_threshold=3.0, smoothing=0.9, warmup=5, patience=3)
    model = build(weights)
    logs = fit(model, x, y, guard)
    assert guard.skipped == skipped
    assert 5 < len(skipped) < 12
    assert logs["skipped_spikes"] == [len(skipped)]
    for have, want in zip(model.get_weights(), final.values(), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-4, atol=1e-5)
    assert int(model.optimizer.iterations) == STEPS - len(skipped)


def test_the_mean_is_that_of_what_was_accepted(rng):
    """Exact while it warms up: the mean and variance of the first norms."""
    judge, norms = Judge(warmup=8), rng.uniform(1.0, 2.0, size=8)
    assert all(judge(norm) for norm in norms)
    np.testing.assert_allclose(judge.mean, norms.mean())
    np.testing.assert_allclose(judge.variance, norms.var())


def wrecked(rng):
    """Data whose batches 21 and 22 send the weights far off."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, STEPS)
    x[21:23] *= 30.0
    return weights, x, y


def test_a_run_away_loss_is_taken_back(rng):
    """To the look before the last, at step 15: as if batches 15 to 24 had not been."""
    weights, x, y = wrecked(rng)
    guard = SpikeGuard(z_threshold=None, every=5, loss_factor=20.0)
    model = build(weights, keras.optimizers.Adam(0.01))
    logs = fit(model, x, y, guard)
    assert guard.roll_backs == [25]
    assert logs["roll_backs"] == [1]
    rest = np.r_[0:15, 25:STEPS]
    clean = build(weights, keras.optimizers.Adam(0.01))
    fit(clean, x[rest], y[rest])
    for have, want in zip(model.get_weights(), clean.get_weights(), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5)
    assert int(model.optimizer.iterations) == STEPS - 10


def test_a_loss_that_is_not_a_number_is_taken_back(rng):
    weights, x, y = wrecked(rng)
    y[22] = np.nan
    guard = SpikeGuard(z_threshold=None, every=5, loss_factor=1e9)
    model = build(weights)
    logs = fit(model, x, y, guard)
    assert guard.roll_backs == [25]
    assert all(np.isfinite(w).all() for w in model.get_weights())
    assert np.isfinite(logs["loss"]).all()


def test_validation_is_not_taken_for_training(rng):
    """Its loss, which is far higher here, passes through the same metric."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 12)
    guard = SpikeGuard(z_threshold=None, every=4, loss_factor=3.0)
    stock = build(weights)
    fit(stock, x, y, epochs=4)
    fit(model := build(weights), x, y, guard, epochs=4, validation_data=(x, 100 * y))
    assert guard.roll_backs == []
    for have, want in zip(model.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_array_equal(have, want)
    y[10] = np.nan  # after the last look within the epoch
    fit(model, x, y, guard, validation_data=(x, 100 * y))
    assert len(guard.roll_backs) == 1
    assert all(np.isfinite(w).all() for w in model.get_weights())


class Evaluate(keras.callbacks.Callback):
    """Evaluates within an epoch, as some do to draw a curve."""

    def __init__(self, x, y):
        super().__init__()
        self.data = x, y

    def on_train_batch_end(self, batch, logs=None):
        if batch % 3 == 1:
            self.model.evaluate(*self.data, verbose=0)


@pytest.mark.parametrize("factor", [100.0, np.nan])
def test_an_evaluation_within_an_epoch_is_not_taken_for_training(rng, factor):
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 12)
    guard = SpikeGuard(z_threshold=None, every=4, loss_factor=3.0)
    fit(build(weights), x, y, Evaluate(x, factor * y), guard, epochs=3)
    assert guard.roll_backs == []
    # What was learnt before the evaluation counts: at a rate of almost 0 one step alone is far off.
    guard = SpikeGuard(z_threshold=None, every=4, loss_factor=3.0)
    y[4] *= 100.0
    fit(build(weights, keras.optimizers.SGD(1e-9)), x, y, Evaluate(x, factor * y), guard)
    assert len(guard.roll_backs) == 1


def test_the_average_of_weights_is_not_taken_for_them(rng):
    """A guard behind an average, which is in the model when an epoch ends."""
    weights, x, y = wrecked(rng)
    average = ExponentialMovingAverage(0.9, at_end="last")
    guard = SpikeGuard(z_threshold=None, every=20, loss_factor=20.0)
    alone = SpikeGuard(z_threshold=None, every=20, loss_factor=20.0)
    data = {"epochs": 2, "validation_data": (x[:4], y[:4])}
    fit(model := build(weights), x, y, average, guard, **data)
    fit(stock := build(weights), x, y, alone, **data)
    assert guard.roll_backs == alone.roll_backs != []
    for have, want in zip(model.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_allclose(have, want, rtol=1e-5)


def test_a_schedule_that_is_not_traced_goes_back_with_the_updates(rng, monkeypatch):
    """The rate of each update is that of its number, however often it is made."""
    monkeypatch.setattr(step_function, "TABLE", 4)  # so that it goes back behind the table
    weights, x, y = wrecked(rng)
    rates = {}

    def rate(step):
        return 0.01 + 1e-5 * step if step >= 0 else 0.0

    class See(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            optimizer = self.model.optimizer
            step = int(keras.ops.convert_to_numpy(optimizer.iterations))
            seen = float(keras.ops.convert_to_numpy(optimizer.learning_rate))
            rates.setdefault(step, set()).add(round(seen, 6))

    guard = SpikeGuard(z_threshold=None, every=5, loss_factor=20.0)
    schedule = LearningRate(rate)
    schedule.synchronize_every = 2
    assert not schedule._function.is_traced
    fit(build(weights), x, y, schedule, guard, See(), epochs=2)
    assert guard.roll_backs
    assert rates == {step: {round(rate(step), 6)} for step in rates}


def test_a_fit_is_judged_by_itself(rng):
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 12)
    guard = SpikeGuard(z_threshold=None, every=4, loss_factor=20.0)
    fit(build(weights), x, y, guard, epochs=2)
    fit(build(weights, keras.optimizers.SGD(1e-6)), x, 100 * y, guard, epochs=1)
    assert guard.roll_backs == []


def test_what_the_host_has_set_is_not_taken_back(rng):
    """Rates, thresholds and weights that have joined stay as they are."""
    weights, x, y = wrecked(rng)
    unfreezing, clipping = GradualUnfreezing({"body/": 1}), GradientClipping(threshold=1e9)
    guard = SpikeGuard(z_threshold=None, every=20, loss_factor=20.0)

    class Change(keras.callbacks.Callback):
        def on_epoch_begin(self, epoch, logs=None):
            if epoch == 1:
                _ = self.model
                clipping.set(threshold=1e8)

    seen = {}

    class See(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            hook = hook_of(self.model)
            seen["threshold"] = float(hook.rule_of(clipping).thresholds[0])
            seen["factors"] = np.array(hook.rule_of(unfreezing)._values).tolist()

    first = np.concatenate([x[:10], x[:10]]), np.concatenate([y[:10], y[:10]])
    second = np.concatenate([x[:10], x[20:30]]), np.concatenate([y[:10], y[20:30]])
    data = [np.concatenate(pair) for pair in zip(first, second, strict=True)]

    class Epochs(keras.utils.PyDataset):
        """Twenty steps an epoch: good ones, then ones that run away."""

        def __init__(self):
            super().__init__()
            self.epoch = 0

        def __len__(self):
            return 20

        def __getitem__(self, index):
            at = min(20 * self.epoch + index, 39)
            return data[0][at : at + 1], data[1][at : at + 1]

        def on_epoch_end(self):
            self.epoch += 1

    model = build(weights, keras.optimizers.SGD(0.01))
    callbacks = [unfreezing, clipping, Change(), guard, See()]
    model.fit(Epochs(), epochs=2, verbose=0, shuffle=False, callbacks=callbacks)
    assert len(guard.roll_backs) == 1
    assert (seen["threshold"], seen["factors"]) == (1e8, [1.0, 1.0])


def test_too_many_roll_backs_stop_the_training(rng):
    weights, (x, y) = oracle.start(rng), oracle.data(rng, STEPS)
    y[10:] = np.nan
    guard = SpikeGuard(z_threshold=None, every=5, max_roll_backs=2)
    model = build(weights)
    with pytest.warns(UserWarning, match="the loss has run away 3 times, last to inf"):
        logs = fit(model, x, y, guard, epochs=3)
    assert len(logs["loss"]) == 1
    assert len(guard.roll_backs) == 3
    assert all(np.isfinite(w).all() for w in model.get_weights())


def test_without_spikes_nothing_changes(rng):
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 10)
    model, stock = build(weights), build(weights)
    guard = SpikeGuard(z_threshold=100.0, every=2, loss_factor=1e6)
    logs = fit(model, x, y, guard, epochs=2)
    fit(stock, x, y, epochs=2)
    assert (guard.skipped, guard.roll_backs) == ([], [])
    assert (logs["skipped_spikes"], logs["roll_backs"]) == ([0, 0], [0, 0])
    for have, want in zip(model.get_weights(), stock.get_weights(), strict=True):
        np.testing.assert_array_equal(have, want)


def test_state(rng):
    weights, x, y = wrecked(rng)
    whole = SpikeGuard(z_threshold=None, every=5, loss_factor=20.0)
    fit(build(weights), x, y, whole)
    state = whole.get_state()
    other = SpikeGuard(z_threshold=None, every=5, loss_factor=20.0)
    other.set_state(state)
    assert other.get_state().keys() == state.keys()
    assert (other.roll_backs, other.skipped) == (whole.roll_backs, whole.skipped)


BAD = [
    (
        {"z_threshold": None},
        "`z_threshold` or `every` must be given.*; received: z_threshold=None, every",
    ),
    (
        {"z_threshold": 0.0},
        "`z_threshold` must be a finite number above 0; received: z_threshold=0.0",
    ),
    ({"smoothing": 1.0}, r"`smoothing` must be a fraction in \(0, 1\); received: smoothing=1.0"),
    (
        {"loss_factor": 1.0},
        "`loss_factor` must be a finite number above 1; received: loss_factor=1.0",
    ),
    ({"warmup": 1}, "`warmup` must be an integer >= 2; received: warmup=1"),
    ({"patience": 0}, "`patience` must be an integer >= 1; received: patience=0"),
    ({"every": 0}, "`every` must be an integer >= 1; received: every=0"),
    (
        {"max_roll_backs": -1},
        "`max_roll_backs` must be an integer >= 0; received: max_roll_backs=-1",
    ),
]


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        SpikeGuard(**options)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras joins no steps on PyTorch")
def test_looks_fall_between_joined_steps():
    model = weight_model("sgd", steps_per_execution=4)
    with pytest.raises(
        ValueError, match=r"`every` must be a multiple .*; received: every=6, steps_per_execution=4"
    ):
        train(model, 8, SpikeGuard(every=6))
