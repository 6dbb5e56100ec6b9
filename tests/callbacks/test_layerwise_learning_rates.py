import keras
import numpy as np
import pytest

from kattn.callbacks import LayerwiseLearningRates
from tests.callbacks import clip_oracle as oracle
from tests.training import Linear

OPTIMIZERS = {
    "sgd": lambda rate: keras.optimizers.SGD(rate, momentum=0.9),
    "adamw": lambda rate: keras.optimizers.AdamW(rate, weight_decay=0.1),
    "lion": lambda rate: keras.optimizers.Lion(rate, weight_decay=0.1),
    "nadam": lambda rate: keras.optimizers.Nadam(rate),
}


def build(weights, optimizer):
    """A body and a head, in a model inside of the model."""
    body = Linear(weights["body/kernel"], weights["body/bias"], name="body")
    inner = keras.Sequential([keras.Input((3,)), body], name="inner")
    head = Linear(weights["head/kernel"], name="head")
    model = keras.Sequential([keras.Input((3,)), inner, head])
    model.compile(optimizer, loss="mse")
    return model


def fit(model, x, y, *callbacks):
    model.fit(x, y, batch_size=1, verbose=0, shuffle=False, callbacks=list(callbacks))
    return [np.array(w, np.float64) for w in model.get_weights()]


def one_step(weights, optimizer, x, y, *callbacks):
    """What the first update adds to each weight."""
    before = list(weights.values())
    after = fit(build(weights, optimizer), x[:1], y[:1], *callbacks)
    return [a - b for a, b in zip(after, before, strict=True)]


@pytest.mark.parametrize("kind", OPTIMIZERS)
def test_changes_are_scaled(rng, kind):
    """Not gradients, whose size Adam and Lion do not see; weight decay with the rest."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 1)
    plain = one_step(weights, OPTIMIZERS[kind](0.1), x, y)
    rates = LayerwiseLearningRates({"bias$": 3.0}, decay=0.25)
    found = one_step(weights, OPTIMIZERS[kind](0.1), x, y, rates)
    for change, own, factor in zip(found, plain, [0.25, 3.0, 1.0], strict=True):
        np.testing.assert_allclose(change, factor * own, rtol=1e-4, atol=1e-7)
        assert abs(own).max() > 1e-3


def test_a_training(rng):
    """Of which the simulation has a rate for each weight."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 24)
    rates = {"body/kernel": 0.005, "body/bias": 0.0, "head/kernel": 0.01}
    velocity = {n: np.zeros_like(w) for n, w in weights.items()}
    w = dict(weights)
    for step in range(24):
        part = slice(step, step + 1)
        for n, g in oracle.gradients(w, x[part].astype(float), y[part].astype(float)).items():
            velocity[n] = 0.9 * velocity[n] - 0.01 * g
            w[n] = w[n] + velocity[n] * rates[n] / 0.01
    model = build(weights, OPTIMIZERS["sgd"](0.01))
    found = fit(model, x, y, LayerwiseLearningRates({"bias": 0.0, "body/": 0.5}))
    for have, want in zip(found, w.values(), strict=True):
        np.testing.assert_allclose(have, want, rtol=0, atol=2e-6)
    np.testing.assert_array_equal(found[1], weights["body/bias"])


def test_a_weight_at_rest_stays_whatever_its_gradient(rng):
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 2)
    x[1] = np.inf
    model = build(weights, OPTIMIZERS["sgd"](0.01))
    found = fit(model, x, y, LayerwiseLearningRates({"body/": 0.0}))
    np.testing.assert_array_equal(found[0], weights["body/kernel"])


def test_without_the_callback_updates_are_kerass_own(rng):
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 4)
    model = build(weights, keras.optimizers.SGD(0.3))
    fit(model, x, y, LayerwiseLearningRates(decay=0.5))
    model.set_weights(list(weights.values()))
    stock = build(weights, keras.optimizers.SGD(0.3))
    for have, want in zip(fit(model, x, y), fit(stock, x, y), strict=True):
        np.testing.assert_array_equal(have, want)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "`multipliers` must be given, or `decay` be below 1; received: multipliers=None"),
        (
            {"multipliers": {"a": -1.0}},
            r"`multipliers\['a'\]` must be a finite number >= 0; .*\['a'\]=-1.0",
        ),
        (
            {"multipliers": {"a": "b"}},
            r"`multipliers\['a'\]` must be a finite number >= 0; .*\['a'\]='b'",
        ),
        (
            {"multipliers": {"(": 1.0}},
            r"of `multipliers` must be regular expressions.*pattern='\('",
        ),
        ({"decay": 0.0}, r"`decay` must be a factor in \(0, 1\]; received: decay=0.0"),
        ({"decay": 1.5}, r"`decay` must be a factor in \(0, 1\]; received: decay=1.5"),
    ],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        LayerwiseLearningRates(**options)


def test_patterns_that_match_nothing(rng):
    model = build(oracle.start(rng), "sgd")
    x, y = oracle.data(rng, 1)
    with pytest.raises(
        ValueError, match="match the path of a trainable weight; received: pattern='tail'"
    ):
        fit(model, x, y, LayerwiseLearningRates({"tail": 0.5}))


@pytest.mark.parametrize("count", [2, 3])
def test_weights_of_equal_paths_have_rates_of_their_own(count):
    """Models in a model, whose layers have the same names."""
    x = np.ones((4, 4), "float32")

    def block(name):
        inputs = keras.Input((4,))
        return keras.Model(inputs, keras.layers.Dense(4, name="fc")(inputs), name=name)

    model = keras.Sequential([keras.Input((4,)), *[block(name) for name in "abc"[:count]]])
    model.compile("sgd", "mse")
    assert len({weight.path for weight in model.weights}) == 2
    rates = LayerwiseLearningRates({"^a/.*bias": 5.0}, decay=0.1)
    model.fit(x, x, verbose=0, callbacks=[rates])
    found = [rates.multiplier(weight) for weight in model.weights]
    expected = [0.1**depth for depth in reversed(range(count)) for _ in range(2)]
    np.testing.assert_allclose(found, [expected[0], 5.0, *expected[2:]])
