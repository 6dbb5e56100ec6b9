import math

import keras
import numpy as np
import pytest

from kattn import schedules
from kattn.callbacks import GradientClipping, GradientMonitor, LearningRate, WarmupThenPlateau
from kattn.callbacks.update import step_function
from tests.training import Watch, changes, train, weight_model

BACKEND = keras.backend.backend()
STEPS = 6  # of each schedule
ALL = {
    "constant": schedules.Constant(0.3),
    "linear": schedules.Linear(0.5, 0.1, 4),
    "polynomial": schedules.Polynomial(0.5, 0.1, 5, power=2.0),
    "exponential": schedules.Exponential(0.5, 0.5, 2),
    "step": schedules.Step(1.0, [2, 4], factor=0.5),
    "inverse square root": schedules.InverseSquareRoot(0.5, 3),
    "noam": schedules.Noam(64, 3),
    "cosine": schedules.Cosine(0.5, 0.1, 5),
    "warm restarts": schedules.WarmRestarts(0.5, 2, growth=2.0),
    "one cycle": schedules.OneCycle(0.5, 6),
    "Smith's one cycle": schedules.SmithOneCycle(0.1, 0.5, 2, steps=6),
    "triangular": schedules.Cyclical(0.1, 0.5, 2),
    "triangular2": schedules.Cyclical(0.1, 0.5, 1, shape="triangular2"),
    "exp_range": schedules.Cyclical(0.1, 0.5, 2, shape="exp_range", gamma=0.9),
    "stable": schedules.WarmupStableDecay(0.5, 6, warmup_steps=2, decay_steps=2, shape="sqrt"),
    "flat cosine": schedules.FlatCosine(0.5, 6, flat=0.5),
    "warm-up": schedules.WarmUp(schedules.Cosine(0.5, 0.1, 3), 3),
    "keras": keras.optimizers.schedules.PolynomialDecay(0.5, 4, 0.1),
    "function": lambda step: 0.1 + 0.05 * step,
}
JOINED = schedules.Joined(list(ALL.values()), [STEPS * i for i in range(1, len(ALL))])
TOTAL = STEPS * len(ALL)
RATES = np.concatenate([[float(s(float(t))) for t in range(STEPS)] for s in ALL.values()])


def scheduled_sgd():
    return keras.optimizers.SGD(keras.optimizers.schedules.ExponentialDecay(1.0, 1, 0.5))


OPTIMIZERS = {
    "float": lambda: keras.optimizers.SGD(0.7),
    "schedule": scheduled_sgd,
    "loss scale": lambda: keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.7)),
    "loss scale, schedule": lambda: keras.optimizers.LossScaleOptimizer(scheduled_sgd()),
    "loss_scale_factor": lambda: keras.optimizers.SGD(0.7, loss_scale_factor=8.0),
    "accumulated": lambda: keras.optimizers.SGD(0.7, gradient_accumulation_steps=2),
}


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_each_update_has_the_schedules_rate(kind):
    """Every schedule, one after the other, recovered from what the weight gains."""
    watch, each = Watch(), 2 if kind == "accumulated" else 1
    history = train(
        weight_model(OPTIMIZERS[kind]()), each * TOTAL, LearningRate(JOINED), watch, shuffle=False
    )
    gained = changes(watch).reshape(TOTAL, each)
    assert np.all(gained[:, :-1] == 0.0)
    np.testing.assert_allclose(gained[:, -1], RATES, atol=5e-6)  # of a weight of some 30
    np.testing.assert_allclose(history["learning_rate"], RATES[-1:], rtol=1e-6)


@pytest.mark.skipif(BACKEND == "torch", reason="Keras joins no steps on PyTorch")
def test_joined_steps():
    watch = Watch()
    model = weight_model(keras.optimizers.SGD(0.7), steps_per_execution=3)
    train(model, TOTAL, LearningRate(JOINED), watch)
    np.testing.assert_allclose(changes(watch), RATES.reshape(-1, 3).sum(1), atol=1e-5)


@pytest.mark.skipif(BACKEND == "torch", reason="minutes of C++ compilation")
def test_compiled():
    watch = Watch()
    model = weight_model(keras.optimizers.SGD(0.7), jit_compile=True)
    train(model, TOTAL, LearningRate(JOINED), watch)
    np.testing.assert_allclose(changes(watch), RATES, atol=5e-6)


def test_functions_that_cannot_be_traced(monkeypatch):
    """They are tabulated, and again before the table ends."""
    monkeypatch.setattr(step_function, "TABLE", 8)
    monkeypatch.setattr(LearningRate, "synchronize_every", 4)

    def schedule(step):
        return 0.1 if step < 5 else 0.01 * math.sqrt(step)

    watch = Watch()
    history = train(weight_model("sgd"), 30, LearningRate(schedule), watch)
    expected = [schedule(t) for t in range(30)]
    np.testing.assert_allclose(changes(watch), expected, atol=1e-6)
    np.testing.assert_allclose(history["learning_rate"], expected[-1:], rtol=1e-6)


BRANCHES = {
    "equal": lambda step: 0.5 if step == 1 else 0.25,
    "remainder": lambda step: 0.5 if step % 2 == 0 else 0.25,
    "among": lambda step: 0.5 if step in (0, 3) else 0.25,
    "table": lambda step: {0: 0.5, 2: 0.75}.get(step, 0.25),
    "list": lambda step: [0.5, 0.25, 0.75, 0.5][min(step, 3)],
    "int": lambda step: 0.25 * (1 + int(step)),
}


@pytest.mark.parametrize("kind", BRANCHES)
def test_functions_that_ask_for_the_value_of_the_step(kind):
    """Some of which a symbolic tensor, or a hash of it, answers wrongly instead of refusing."""
    train(weight_model("sgd"), 4, LearningRate(BRANCHES[kind]), watch := Watch())
    np.testing.assert_allclose(changes(watch), [BRANCHES[kind](t) for t in range(4)], rtol=1e-6)


def test_two_that_set_the_rate_are_refused():
    """In one fit; one after the other each is in force."""
    model = weight_model(keras.optimizers.SGD(0.75))
    first, second = (LearningRate(schedules.Constant(rate)) for rate in (0.5, 0.25))
    plateau = WarmupThenPlateau(0.125, monitor="loss")
    for callback, rate in ((first, 0.5), (plateau, 0.125), (second, 0.25), (first, 0.5)):
        train(model, 2, callback, watch := Watch())
        np.testing.assert_allclose(changes(watch), rate, rtol=1e-6)
    with pytest.raises(
        ValueError, match=r"number='learning_rate', callbacks=\['LearningRate', 'Warmup"
    ):
        train(model, 2, first, plateau)
    train(model, 2, watch := Watch())
    np.testing.assert_allclose(changes(watch), 0.75, rtol=1e-6)


def test_a_resumed_training_goes_on():
    """The step is the optimizer's own count, in a second `fit` and in a model that was loaded."""
    schedule = schedules.Linear(0.5, 0.1, 6)
    model, watch = weight_model("sgd"), Watch()
    train(model, 3, LearningRate(schedule), watch)
    train(model, 3, LearningRate(schedule), watch)
    gained = np.delete(changes(watch), 3)  # the one between the two
    np.testing.assert_allclose(gained, schedule(np.arange(6)), rtol=1e-6)


def test_the_optimizers_own_rate_is_back_and_nothing_is_traced_again():
    traces = []

    def schedule(step):
        if keras.ops.is_tensor(step):
            traces.append(step)
        return 0.1 + 0.1 * step

    model, watch = weight_model(keras.optimizers.SGD(0.75)), Watch()
    callback, other = LearningRate(schedule), LearningRate(schedule)
    train(model, 2, callback)
    before, function = len(traces), model.train_function
    assert float(model.optimizer.learning_rate) == 0.75
    train(model, 3, watch)
    np.testing.assert_allclose(changes(watch), 0.75, rtol=1e-6)
    train(model, 2, callback)
    train(model, 2, other)
    assert model.train_function is function
    if BACKEND != "torch":
        assert len(traces) == before


def test_a_fit_that_raised_leaves_no_rate_behind():
    class Failing(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    model, watch = weight_model(keras.optimizers.SGD(0.75)), Watch()
    with pytest.raises(KeyboardInterrupt):
        train(model, 2, LearningRate(schedules.Constant(0.1)), Failing())
    train(model, 2, LearningRate(schedules.Constant(0.5)), watch)
    np.testing.assert_allclose(changes(watch), 0.5, rtol=1e-6)
    with pytest.raises(KeyboardInterrupt):
        train(model, 2, LearningRate(schedules.Constant(0.1)), Failing())
    train(model, 2, watch := Watch())
    np.testing.assert_allclose(changes(watch), 0.75, rtol=1e-6)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (0.1, "`schedule` must be a function of the step.*; received: schedule=0.1"),
        (lambda step: None, r"`schedule` must return one number.*; received: schedule\(0\)=None"),
        (
            lambda step: [1.0, 2.0],
            r"`schedule` must return one number.*; received: schedule\(0\)=\[1.0, 2.0\]",
        ),
        (
            lambda step: "fast",
            r"`schedule` must return one number.*; received: schedule\(0\)='fast'",
        ),
    ],
)
def test_bad_schedules(schedule, message):
    with pytest.raises(ValueError, match=message):
        LearningRate(schedule)


def branching(step):
    """It cannot be traced."""
    return 1.0 if step < 10000 else 0.001


class Jump(keras.callbacks.Callback):
    """Sets the number of updates at a place."""

    def __init__(self, place):
        super().__init__()
        setattr(self, place, self.jump)

    def jump(self, *args, **kwargs):
        if getattr(self, "done", None) is None:
            self.done = True
            self.model.optimizer.iterations.assign(20000)


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("on_train_begin", [0.001] * 4),
        ("on_epoch_begin", [0.001] * 4),
        ("on_train_batch_end", [1.0, 0.001, 0.001, 0.001]),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_another_number_of_updates(place, expected, order):
    """As by a callback that restores a training, wherever it stands in the list."""
    model, watch = weight_model(keras.optimizers.SGD(0.5)), Watch()
    train(model, 4, *[LearningRate(branching), Jump(place)][::order], watch)
    np.testing.assert_allclose(changes(watch), expected, rtol=1e-2)


def rate_of(model):
    return float(keras.ops.convert_to_numpy(model.optimizer.learning_rate))


@pytest.mark.parametrize(
    "schedule", [schedules.Linear(0.5, 0.1, 4), lambda t: 0.5 if t < 2 else 0.1]
)
@pytest.mark.parametrize("dtype", ["float32", "mixed_float16"])
def test_the_optimizer_shows_the_rate_of_the_next_update(schedule, dtype):
    """To TensorBoard, for example; and after `fit` its own again."""
    seen = []

    class See(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            seen.append(rate_of(self.model))

    optimizer = keras.optimizers.SGD(0.75)
    if dtype == "mixed_float16":
        optimizer = keras.optimizers.LossScaleOptimizer(optimizer, initial_scale=2.0)
    model = weight_model(optimizer)
    train(model, 4, LearningRate(schedule), See())
    np.testing.assert_allclose(seen, [float(schedule(t)) for t in range(4)], rtol=1e-6)
    assert rate_of(model) == 0.75


@pytest.mark.parametrize(
    "rival",
    [
        lambda: keras.callbacks.ReduceLROnPlateau("loss"),
        lambda: keras.callbacks.LearningRateScheduler(lambda epoch: 0.1),
    ],
)
@pytest.mark.parametrize("order", [1, -1])
def test_rivals_of_keras_are_refused_by_name(rival, order):
    model = weight_model(keras.optimizers.SGD(0.75))
    callbacks = [LearningRate(schedules.Constant(0.1)), rival()]
    name = type(callbacks[1]).__name__
    with pytest.raises(
        ValueError, match=rf"LearningRate sets the learning rate.*; received: .*'{name}'"
    ):
        train(model, 1, *callbacks[::order])
    train(model, 1, callbacks[1], watch := Watch())  # which is welcome without
    np.testing.assert_allclose(changes(watch), 0.1 if "Scheduler" in name else 0.75, rtol=1e-6)


def test_epochs_without_an_update():
    """Gradients of four batches, in epochs of three: columns are there from the first one on."""
    model = weight_model(keras.optimizers.SGD(0.75, gradient_accumulation_steps=4))
    callbacks = [LearningRate(schedules.Constant(0.5)), GradientClipping(), GradientMonitor()]
    logs = train(model, 3, *callbacks, epochs=4)
    np.testing.assert_allclose(logs["learning_rate"], [np.nan, 0.5, 0.5, 0.5], rtol=1e-6)
    for name in ("grad_norm", "grad_norm_max", "weight_norm", "update_norm"):
        assert np.isnan(logs[name]).tolist() == [True, False, False, False], name
    assert np.isnan(logs["clipped_fraction"]).tolist() == [True, False, False, False]


def test_epochs_without_an_update_in_between():
    model = weight_model(keras.optimizers.SGD(0.75, gradient_accumulation_steps=4))
    logs = train(model, 2, LearningRate(lambda t: 0.5 + t), GradientClipping(), epochs=5)
    np.testing.assert_allclose(logs["learning_rate"], [np.nan, 0.5, 0.5, 1.5, 1.5], rtol=1e-6)
    assert np.isnan(logs["grad_norm"]).tolist() == [True, False, True, False, True]
    assert len(logs["skipped_steps"]) == 5
