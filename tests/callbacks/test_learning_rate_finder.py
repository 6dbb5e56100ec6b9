import math

import keras
import numpy as np
import pytest

from kattn.callbacks import LearningRateFinder
from kattn.callbacks.gradient_clipping import GradientClipping
from tests.training import Linear, draws, train, weight_model

BACKEND = keras.backend.backend()
STEPS = 12
LOW, HIGH = 1e-3, 2.0
RATES = np.array([LOW * (HIGH / LOW) ** (i / (STEPS - 1)) for i in range(STEPS)])


def scheduled_sgd():
    return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5))


OPTIMIZERS = {
    "float": lambda: keras.optimizers.SGD(0.7),
    "schedule": scheduled_sgd,
    "loss scale, schedule": lambda: keras.optimizers.LossScaleOptimizer(scheduled_sgd()),
    "accumulated": lambda: keras.optimizers.SGD(0.7, gradient_accumulation_steps=2),
}


def falling_losses(start=0.0):
    """What SGD makes of loss = -w: before update i, -(start + the rates so far)."""
    return -start - np.concatenate([[0.0], np.cumsum(RATES)[:-1]])


def sweep(model, batches=5, finder=None, **options):
    """Run on `batches` batches of one item."""
    x = np.zeros((batches, 1), "float32")
    finder = finder or LearningRateFinder(LOW, HIGH, STEPS)
    return finder.run(model, x, x, batch_size=1, shuffle=False, **options)


@pytest.mark.parametrize(
    ("kind", "is_trained"),
    [("float", False), ("schedule", True), ("loss scale, schedule", False), ("accumulated", True)],
)
def test_each_update_has_its_rate(kind, is_trained):
    """Each loss tells the rates before it; five batches are repeated until there are enough."""
    model, start = weight_model(OPTIMIZERS[kind]()), 0.0
    if is_trained:
        train(model, 4, shuffle=False)
        start = float(model.get_weights()[0])
        assert start > 0.5
    curve = sweep(model)
    np.testing.assert_allclose(curve.rates, RATES, rtol=1e-12)
    np.testing.assert_allclose(curve.losses, falling_losses(start), rtol=2e-6, atol=1e-7)
    assert float(model.get_weights()[0]) == start


def test_runs_again():
    """With other numbers, without a new trace."""
    model = weight_model(keras.optimizers.SGD(0.7))
    sweep(model)
    variables = len(model.optimizer.variables)
    function = model.train_function
    curve = sweep(model, finder=LearningRateFinder(0.5, 8.0, 5))
    np.testing.assert_allclose(curve.losses, [0.0, -0.5, -1.5, -3.5, -7.5], rtol=1e-6)
    assert len(model.optimizer.variables) == variables
    assert model.train_function is function


@pytest.mark.skipif(BACKEND == "torch", reason="Keras joins no steps on PyTorch")
def test_joined_steps():
    """A point for each execution: the mean of its losses, at the middle of its rates."""
    model = weight_model(keras.optimizers.SGD(0.7), steps_per_execution=4)
    curve = sweep(model, batches=8)
    np.testing.assert_allclose(curve.rates, np.exp(np.log(RATES).reshape(3, 4).mean(1)), rtol=1e-12)
    np.testing.assert_allclose(curve.losses, falling_losses().reshape(3, 4).mean(1), rtol=1e-5)


def identity(optimizer):
    """Its loss is x^2. It does not learn, where the rate is next to nothing."""
    model = keras.Sequential([keras.Input((1,)), Linear(np.ones((1, 1), "float32"))])
    model.compile(optimizer, "mse")
    return model


@pytest.mark.parametrize("accumulated", [None, 2])
def test_losses_are_of_the_batches_of_one_update(accumulated):
    optimizer = keras.optimizers.SGD(gradient_accumulation_steps=accumulated)
    batches = accumulated or 1
    x = np.arange(6.0)[:, None]
    finder = LearningRateFinder(1e-20, 1e-19, 6 // batches, smoothing=0.5, stop_factor=math.inf)
    curve = finder.run(identity(optimizer), x, 0 * x, batch_size=1, shuffle=False)
    expected = (np.arange(6.0) ** 2).reshape(-1, batches).mean(1)
    np.testing.assert_allclose(curve.losses, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("losses", "points"),
    [
        ([0.1, 1, 4.1, *[1] * 20], 23),  # the first tenth does not count
        ([1, 1, 2, 1, 7.9, 4.1, *[1] * 20], 5),
        ([1, 1, 2, 1, 3.9, 4.1, *[1] * 20], 6),
        ([2, 2, 2, 0.5, 1.9, 2.1, *[1] * 20], 6),
    ],
)
def test_stops_above_four_times_the_least_loss(losses, points):
    x = np.sqrt(np.array(losses))[:, None]
    finder = LearningRateFinder(1e-20, 1e-19, 23, smoothing=0.0)
    curve = finder.run(identity("sgd"), x, 0 * x, batch_size=1, shuffle=False)
    np.testing.assert_allclose(curve.losses, losses[:points], rtol=1e-6)


def diverging(smoothing, stop_factor, steps, high):
    """Gradient descent on (w - 3)^2 from 0, in float64, and when to stop."""
    rates = [1e-3 * (high / 1e-3) ** (i / (steps - 1)) for i in range(steps)]
    w, losses, smoothed, best = 0.0, [], [], math.inf
    for i, rate in enumerate(rates):
        losses.append((w - 3) ** 2)
        weights = [smoothing ** (i - j) for j in range(i + 1)]
        smoothed.append(sum(a * b for a, b in zip(weights, losses, strict=True)) / sum(weights))
        w -= rate * 2 * (w - 3)
        if i >= steps // 10:
            best = min(best, smoothed[-1])
            if smoothed[-1] > stop_factor * best:
                break
    return np.array(losses), np.array(smoothed)


def quadratic():
    model = keras.Sequential([keras.Input((1,)), Linear(np.zeros((1, 1), "float32"))])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    return model


@pytest.mark.parametrize(("smoothing", "stop_factor"), [(0.0, 4.0), (0.9, 4.0), (0.9, 1.5)])
def test_smooths_and_stops(smoothing, stop_factor):
    finder = LearningRateFinder(1e-3, 100.0, 40, smoothing=smoothing, stop_factor=stop_factor)
    curve = finder.run(quadratic(), np.ones((4, 1)), np.full((4, 1), 3.0), batch_size=1)
    losses, smoothed = diverging(smoothing, stop_factor, 40, 100.0)
    assert 15 < len(losses) < 40
    assert len(curve.losses) == len(curve.rates) == len(losses)
    np.testing.assert_allclose(curve.losses, losses, rtol=3e-3)  # 32 rates of float32 multiply up
    np.testing.assert_allclose(curve.smoothed, smoothed, rtol=3e-3)
    assert curve.first == 4


def test_stops_where_the_loss_is_not_finite():
    finder = LearningRateFinder(1.0, 1e30, 20, stop_factor=math.inf)
    curve = finder.run(quadratic(), np.ones((4, 1)), np.full((4, 1), 3.0), batch_size=1)
    assert 2 <= len(curve.losses) < 10
    assert np.isfinite(curve.losses).all()


def test_stops_where_updates_are_skipped():
    """Infinite gradients of finite losses: the root at 0."""

    def root(y_true, y_pred):
        return keras.ops.sqrt(keras.ops.mean(keras.ops.square(y_pred), axis=-1))

    model = keras.Sequential([keras.Input((1,)), Linear(np.ones((1, 1), "float32"))])
    model.compile(keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.1)), root)
    batches = []
    count = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: batches.append(1))
    x = np.concatenate([np.ones((3, 1)), np.zeros((200, 1))])
    finder = LearningRateFinder(1e-9, 1e-8, 30)
    curve = finder.run(model, x, x, batch_size=1, shuffle=False, callbacks=count)
    assert len(curve.losses) == 3
    assert len(batches) == 53


def test_losses_that_are_never_finite_are_refused():
    model = quadratic()
    with pytest.raises(
        ValueError, match=r"must be finite for at least two updates.*low=0\.001, losses="
    ):
        sweep(model, finder=LearningRateFinder(1e-3, 1.0, 4), sample_weight=np.full(5, np.inf))
    assert model.get_weights()[0] == 0.0


# All is put back.


def adamw():
    return keras.optimizers.AdamW(
        0.01, weight_decay=0.1, use_ema=True, ema_momentum=0.9, ema_overwrite_frequency=3
    )


LEARNERS = {
    "sgd": lambda: keras.optimizers.SGD(0.05, momentum=0.9, global_clipnorm=1.0),
    "adamw": adamw,
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.Adam(0.01)),
}
DATA = np.random.default_rng(1).normal(size=(30, 6)), np.random.default_rng(2).normal(size=(30, 1))


def learner(kind):
    keras.utils.set_random_seed(3)
    model = keras.Sequential(
        [
            keras.Input((6,)),
            keras.layers.Dense(5, name="first"),
            keras.layers.BatchNormalization(name="norm"),
            keras.layers.Dropout(0.4, name="dropout"),
            keras.layers.Dense(1, name="second"),
        ],
        name="learner",
    )
    model.compile(LEARNERS[kind](), "mse", metrics=["mae"])
    return model


def state(model):
    """All numbers of a model, but for those of rules."""
    stock = [v for v in model.optimizer.variables if not v.name.startswith(("finder_", "clip_"))]
    named = [(v.name, v) for v in [*model.variables, *stock]]
    named += [(f"{metric.name} {v.name}", v) for metric in model.metrics for v in metric.variables]
    return {
        f"{i} {name}": np.array(keras.ops.convert_to_numpy(v)) for i, (name, v) in enumerate(named)
    }


def assert_same(found, expected):
    assert set(found) == set(expected)
    different = [name for name in found if not np.array_equal(found[name], expected[name])]
    assert not different


def fit(model, *callbacks, epochs=2):
    history = model.fit(*DATA, 8, epochs, verbose=0, callbacks=list(callbacks)).history
    return history, state(model), draws()


# Keras's own EMA does not survive a second `fit` on JAX.
LEARNED = [("sgd", True), ("adamw", False), ("loss scale", False)]


@pytest.mark.parametrize(("kind", "is_trained"), LEARNED)
def test_training_after_it_is_what_it_was(kind, is_trained):
    results = []
    for is_swept in (False, True):
        model = learner(kind)
        if is_trained:
            fit(model)
        if is_swept:
            LearningRateFinder(1e-3, 1.0, 20).run(model, *DATA, batch_size=8)
        results.append(fit(model))
    (history, variables, drawn), (history_after, variables_after, drawn_after) = results
    assert history_after == history
    assert_same(variables_after, variables)
    assert drawn_after == drawn


class Interrupt(keras.callbacks.Callback):
    def on_train_batch_begin(self, batch, logs=None):
        if batch == 2:
            raise RuntimeError("interrupted")


@pytest.mark.parametrize(("is_trained", "is_interrupted"), [(False, False), (True, True)])
def test_all_is_put_back(is_trained, is_interrupted):
    model = learner("loss scale" if is_trained else "adamw")
    if is_trained:
        fit(model)
        model.evaluate(*DATA, verbose=0)
        model.stop_training = True
    else:
        model.optimizer.build(model.trainable_variables)
    before, history = state(model), getattr(model, "history", None)
    keras.utils.set_random_seed(5)
    drawn = draws()
    keras.utils.set_random_seed(5)
    finder = LearningRateFinder(1e-3, 1.0, 20)
    if is_interrupted:
        with pytest.raises(RuntimeError, match="interrupted"):
            finder.run(model, *DATA, batch_size=8, callbacks=[Interrupt()])
    else:
        finder.run(model, *DATA, batch_size=8)
    after = state(model)
    assert_same({name: after[name] for name in before}, before)
    new = [value for name, value in after.items() if name not in before]
    assert all((value == 0).all() for value in new)  # metrics that did not exist
    assert draws() == drawn
    assert getattr(model, "history", None) is history
    assert model.stop_training is is_trained
    active = [v for v in model.optimizer.variables if v.name == "finder_is_active"]
    assert [float(v) for v in active] == [0.0]


def test_callbacks_take_part_and_leave_nothing():
    """Clipped gradients give another curve; what is learned of their norms is forgotten."""
    autoclip = {"percent": 40.0, "window": 50}
    results = []
    for is_swept in (False, True):
        model, clipping = learner("sgd"), GradientClipping("autoclip", **autoclip)
        fit(model, clipping)
        if is_swept:
            options = {"batch_size": 8, "shuffle": False}
            finder = LearningRateFinder(1e-2, 1.0, 10)
            strict = GradientClipping("autoclip", 1e-9, **autoclip)
            clipped = finder.run(model, *DATA, callbacks=[strict], **options)
            free = finder.run(model, *DATA, **options)
            assert np.abs(clipped.losses - free.losses)[2:].max() > 1e-3
        results.append((fit(model, clipping), clipping.history))
    ((history, variables, _), norms), ((history_after, variables_after, _), norms_after) = results
    assert history_after == history
    assert norms_after == norms
    assert np.less(norms["clipped_norm"], norms["norm"]).any()
    assert_same(variables_after, variables)


# Errors.


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"low": 0.0}, r"`low` must be a finite number above 0; received: low=0\.0"),
        ({"low": "1"}, r"`low` must be a finite number above 0; received: low='1'"),
        (
            {"low": 1.0, "high": 1.0},
            r"`high` must be a finite number above low=1\.0; received: high=1\.0",
        ),
        ({"high": math.inf}, "`high` must be a finite number above low=1e-07; received: high=inf"),
        ({"steps": 1}, r"`steps` must be an integer >= 2; received: steps=1"),
        ({"steps": 9.0}, r"`steps` must be an integer >= 2; received: steps=9\.0"),
        (
            {"smoothing": 1.0},
            r"`smoothing` must be a fraction in \[0, 1\); received: smoothing=1\.0",
        ),
        (
            {"smoothing": None},
            r"`smoothing` must be a fraction in \[0, 1\); received: smoothing=None",
        ),
        ({"stop_factor": 1}, "`stop_factor` must be a number above 1; received: stop_factor=1"),
        (
            {"stop_factor": True},
            "`stop_factor` must be a number above 1; received: stop_factor=True",
        ),
    ],
)
def test_wrong_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        LearningRateFinder(**options)


@pytest.mark.parametrize("options", [{"epochs": 3}, {"validation_split": 0.5}])
def test_arguments_of_fit_that_it_refuses(options):
    (name,) = options
    with pytest.raises(
        ValueError, match=f"without validation: leave out {name}; received: {name}="
    ):
        sweep(weight_model("sgd"), **options)


def test_models_without_weights_or_optimizer_are_refused():
    model = keras.Sequential([keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(
        ValueError, match=r"model must be built: .*; received: model='.*', built=False"
    ):
        sweep(model)
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1)])
    with pytest.raises(
        ValueError, match=r"must be compiled with an optimizer; received: .* optimizer=None"
    ):
        sweep(model)


def test_a_training_step_without_loss_is_refused():
    class Silent(keras.Sequential):
        def train_step(self, *args):
            logs = super().train_step(*args)
            if BACKEND == "jax":
                return {"other": logs[0]["loss"]}, logs[1]
            return {"other": logs["loss"]}

    model = Silent([keras.Input((1,)), keras.layers.Dense(1)])
    model.compile("sgd", "mse")
    with pytest.raises(
        ValueError, match=r"logs of each batch must have the loss; received: logs=\['other'\]"
    ):
        sweep(model)
