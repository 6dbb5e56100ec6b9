"""Models that train by optimizers of their own, as GANs do."""

import keras
import numpy as np
import pytest

from kattn import schedules
from kattn.callbacks import (
    DropoutSchedule,
    ExactResume,
    ExponentialMovingAverage,
    GradientClipping,
    GradientMonitor,
    LayerwiseLearningRates,
    LearningRate,
    LearningRateFinder,
    SpikeGuard,
    WarmupThenPlateau,
)
from tests.training import Weight, changes

BACKEND = keras.backend.backend()
RATE = 0.25
pytestmark = pytest.mark.skipif(
    BACKEND == "jax", reason="on JAX a training step of one's own has no state of other optimizers"
)


class Pair(keras.Model):
    """Two weights, each with an optimizer; the loss of each is minus the weight."""

    def __init__(self, *, built=True, optimizer=None):
        super().__init__()
        self.first, self.second = Weight(name="first"), Weight(name="second")
        self.drop = keras.layers.Dropout(0.5)
        self.loss_metric = keras.metrics.Mean(name="loss")
        self.compile()
        self.d_optimizer = optimizer or keras.optimizers.SGD(RATE)
        self.g_optimizer = keras.optimizers.SGD(2 * RATE, momentum=0.5)
        self(np.zeros((1, 1), "float32"))
        if built:
            self.d_optimizer.build(self.first.trainable_variables)
            self.g_optimizer.build(self.second.trainable_variables)

    def call(self, x, training=None):
        return self.drop(self.first(x) + self.second(x), training=training)

    @property
    def metrics(self):
        return [self.loss_metric]

    def train_step(self, data):
        x, _, _ = keras.utils.unpack_x_y_sample_weight(data)
        for part, optimizer in ((self.first, self.d_optimizer), (self.second, self.g_optimizer)):
            gradients, loss = self.gradients_of(part, x)
            optimizer.apply(gradients, part.trainable_variables)
        self.loss_metric.update_state(loss)
        return {"loss": self.loss_metric.result()}

    def gradients_of(self, part, x):
        if BACKEND == "tensorflow":
            import tensorflow as tf

            with tf.GradientTape() as tape:
                loss = -keras.ops.mean(part(x))
            return tape.gradient(loss, part.trainable_variables), loss
        self.zero_grad()
        loss = -keras.ops.mean(part(x))
        loss.backward()
        return [v.value.grad for v in part.trainable_variables], loss


class Values(keras.callbacks.Callback):
    """The first weight after each batch."""

    def __init__(self):
        super().__init__()
        self.weights = []

    def on_train_begin(self, logs=None):
        self.on_train_batch_end(0)

    def on_train_batch_end(self, batch, logs=None):
        self.weights.append([np.array(self.model.first.weight)])


def fit(model, *callbacks, steps=4, epochs=1):
    x = np.zeros((steps, 1), "float32")
    options = {"batch_size": 1, "verbose": 0, "shuffle": False, "epochs": epochs}
    return model.fit(x, x, callbacks=list(callbacks), **options).history


RULES = {
    "rate": lambda **o: LearningRate(schedules.Constant(0.1), **o),
    "clip": lambda **o: GradientClipping("value", 0.4, **o),
    "plateau": lambda **o: WarmupThenPlateau(0.1, monitor="loss", **o),
    "layers": lambda **o: LayerwiseLearningRates({"first": 0.4}, **o),
}


@pytest.mark.parametrize("how", ["by name", "itself"])
@pytest.mark.parametrize("kind", ["rate", "clip", "plateau", "layers"])
def test_rules_act_on_the_optimizer_that_is_named(kind, how):
    model, values = Pair(), Values()
    optimizer = "d_optimizer" if how == "by name" else model.d_optimizer
    fit(model, RULES[kind](optimizer=optimizer), values)
    np.testing.assert_allclose(changes(values), 0.1, rtol=1e-5)
    fit(model, values := Values())
    np.testing.assert_allclose(changes(values), RATE, rtol=1e-6)


@pytest.mark.parametrize(
    "make",
    [
        lambda: LearningRate(schedules.Constant(0.1)),
        lambda: GradientClipping(),
        lambda: GradientMonitor(),
        lambda: SpikeGuard(),
        lambda: WarmupThenPlateau(0.1, monitor="loss"),
        lambda: LayerwiseLearningRates(decay=0.5),
        lambda: ExponentialMovingAverage(),
        lambda: DropoutSchedule(schedules.Constant(0.1)),
    ],
)
def test_an_optimizer_that_makes_no_updates_is_refused(make):
    callback = make()
    with pytest.raises(
        ValueError,
        match=rf"{type(callback).__name__} must act on .*; received: optimizer='model.optimizer', "
        r"attributes=\['optimizer', 'd_optimizer', 'g_optimizer'\]",
    ):
        fit(Pair(), callback)


def test_a_model_without_an_optimizer_of_its_own(tmp_path):
    """`compile` gives a model one that nobody asked for; it may be taken away."""
    model, values = Pair(), Values()
    model.optimizer = None
    rate = LearningRate(schedules.Constant(0.1), optimizer="d_optimizer")
    fit(model, rate, values, ExactResume(tmp_path))
    np.testing.assert_allclose(changes(values), 0.1, rtol=1e-5)


def test_the_average_is_of_the_weights_of_the_optimizer():
    model = Pair()
    fit(model, ExponentialMovingAverage(0.5, warmup=False, optimizer="d_optimizer"), steps=2)
    first, second = (float(np.array(part.weight)) for part in (model.first, model.second))
    np.testing.assert_allclose(first, 0.5 * (0.5 * RATE) + 0.5 * 2 * RATE, rtol=1e-6)
    np.testing.assert_allclose(second, 2 * RATE * (1 + 1.5), rtol=1e-6)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("e_optimizer", "`optimizer` must be .*; received: optimizer='e_optimizer', attributes="),
        (3, "`optimizer` must be an optimizer, or the name .*; received: optimizer=3"),
    ],
)
def test_names_of_no_optimizer(optimizer, message):
    with pytest.raises(ValueError, match=message):
        fit(Pair(), LearningRate(schedules.Constant(0.1), optimizer=optimizer))


def test_a_further_optimizer_must_be_built():
    with pytest.raises(ValueError, match=r"must be built before fit: .*; received: .*built=False"):
        fit(Pair(built=False), GradientClipping(optimizer="d_optimizer"))


def variables(model):
    every = [*model.d_optimizer.variables, *model.g_optimizer.variables]
    return [*model.variables, *every]


def values_of(variables):
    return [np.array(variable) for variable in variables]


def test_the_finder_puts_back_all_optimizers():
    model = Pair()
    fit(model)
    every = variables(model)
    before = values_of(every)
    x = np.zeros((4, 1), "float32")
    finder = LearningRateFinder(1e-3, 1.0, 8, stop_factor=float("inf"))
    curve = finder.run(model, x, x, batch_size=1, optimizer="d_optimizer")
    assert len(curve.rates) == 8
    for one, other in zip(before, values_of(every), strict=True):
        np.testing.assert_array_equal(one, other)


class StopError(Exception):
    pass


class StopAt(keras.callbacks.Callback):
    def __init__(self, batch):
        super().__init__()
        self.batch = batch

    def on_train_batch_begin(self, batch, logs=None):
        if batch == self.batch:
            raise StopError


@pytest.mark.parametrize("built", [True, False])
def test_a_resumed_training_has_the_state_of_all_optimizers(tmp_path, built):
    """Also of those that the first step builds."""

    def model():
        keras.utils.set_random_seed(3)
        return Pair(built=built, optimizer=keras.optimizers.Adam(0.1, beta_1=0.5))

    fit(straight := model(), steps=6)
    with pytest.raises(StopError):
        fit(model(), ExactResume(tmp_path, every=2), StopAt(5), steps=6)
    resumed, resume = model(), ExactResume(tmp_path, every=2)
    fit(resumed, resume, steps=6)
    assert resume.resumed_from == (0, 4)
    for one, other in zip(*map(values_of, map(variables, (straight, resumed))), strict=True):
        np.testing.assert_array_equal(one, other)


def test_a_guard_sets_back_all_optimizers():
    class Wreck(keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            if batch == 3:
                self.model.second.weight.assign(np.nan)
                self.model.g_optimizer.variables[-1].assign(np.nan)

    model = Pair()
    guard = SpikeGuard(z_threshold=None, every=2, optimizer="d_optimizer")
    fit(model, Wreck(), guard, steps=6)
    assert guard.roll_backs
    assert all(np.isfinite(values).all() for values in values_of(variables(model)))
