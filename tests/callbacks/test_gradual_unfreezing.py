import contextlib

import keras
import numpy as np
import pytest

from kattn.callbacks import GradientClipping, GradualUnfreezing
from tests.callbacks import clip_oracle as oracle
from tests.training import Linear, Watch


def build(weights, optimizer):
    body = Linear(weights["body/kernel"], weights["body/bias"], name="body")
    head = Linear(weights["head/kernel"], name="head")
    model = keras.Sequential([keras.Input((3,)), body, head])
    model.compile(optimizer, loss="mse")
    return model


def fit(model, x, y, *callbacks, **options):
    return model.fit(x, y, verbose=0, shuffle=False, callbacks=list(callbacks), **options).history


def test_weights_join_with_their_epochs(rng):
    """With the velocity that their gradients have built up meanwhile."""
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 4)
    epochs = {"body/kernel": 2, "body/bias": 1, "head/kernel": 0}
    velocity = {n: np.zeros_like(w) for n, w in weights.items()}
    w, expected = dict(weights), [list(weights.values())]
    for step in range(16):
        part = slice(step % 4, step % 4 + 1)
        for n, g in oracle.gradients(w, x[part].astype(float), y[part].astype(float)).items():
            velocity[n] = 0.9 * velocity[n] - 0.01 * g
            w[n] = w[n] + velocity[n] * (step // 4 >= epochs[n])
        expected.append(list(w.values()))
    model, watch = build(weights, keras.optimizers.SGD(0.01, momentum=0.9)), Watch()
    freezing = GradualUnfreezing({"bias$": 1, "body/": 2})
    fit(model, x, y, freezing, watch, batch_size=1, epochs=4)
    for have, want in zip(watch.weights, expected, strict=True):
        for a, b in zip(have, want, strict=True):
            np.testing.assert_allclose(a, b, rtol=0, atol=2e-6)
    kernels = np.array([values[0] for values in watch.weights])
    np.testing.assert_array_equal(kernels[:9], np.broadcast_to(kernels[0], (9, 3, 4)))
    assert all(weight.trainable for weight in model.weights)


def test_weights_at_rest_are_left_out_of_norms(rng):
    weights, (x, y) = oracle.start(rng), oracle.data(rng, 2)
    clipping = GradientClipping(threshold=1e6)
    model = build(weights, keras.optimizers.SGD(1e-6))
    fit(model, x, y, clipping, GradualUnfreezing({"body/": 1}), batch_size=2, epochs=2)
    grads = oracle.gradients(weights, x.astype(float), y.astype(float))
    expected = [oracle.norm([grads["head/kernel"]]), oracle.norm(grads.values())]
    np.testing.assert_allclose(clipping.history["norm"], expected, rtol=1e-3)


def normalizing():
    layers = [
        keras.Input((3,)),
        keras.layers.BatchNormalization(name="first", momentum=0.5),
        keras.layers.Dense(4, bias_initializer="ones", name="between"),
        keras.layers.BatchNormalization(name="second", momentum=0.5),
        keras.layers.Dense(1, name="head"),
    ]
    model = keras.Sequential(layers)
    model.compile(keras.optimizers.SGD(0.01), loss="mse")
    return model


class Means(keras.callbacks.Callback):
    """The moving means of both normalizations after each epoch."""

    def __init__(self):
        super().__init__()
        self.values = []

    def on_epoch_end(self, epoch, logs=None):
        names = ("first", "second")
        self.values.append([np.array(self.model.get_layer(n).moving_mean) for n in names])


@pytest.mark.parametrize("policy", ["inference", "train"])
def test_batch_normalization(rng, policy):
    """At rest it neither uses nor counts the statistics of batches, unless it is told to."""
    x = rng.normal(3.0, 2.0, size=(8, 3)).astype("float32")
    y = rng.normal(size=(8, 1)).astype("float32")
    model, means = normalizing(), Means()
    first, second = (model.get_layer(n) for n in ("first", "second"))
    freezing = GradualUnfreezing({"first|between": 2}, batch_norm=policy)
    fit(model, x, y, freezing, means, batch_size=8, epochs=3)
    firsts, seconds = (np.array(values) for values in zip(*means.values, strict=True))
    batch = x.astype(float).mean(0)
    factors = np.array([0.0, 0.0, 0.5] if policy == "inference" else [0.5, 0.75, 0.875])
    np.testing.assert_allclose(firsts, factors[:, None] * batch, rtol=1e-5)
    assert (abs(np.diff(seconds, axis=0)).max(1) > 1e-6).all()  # it never rests
    assert "call" not in vars(first)
    assert "call" not in vars(second)


def test_a_fit_that_raised_leaves_nothing_behind(rng):
    class Failing(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            raise KeyboardInterrupt

    x, y = rng.normal(size=(4, 3)).astype("float32"), np.zeros((4, 1), "float32")
    model, freezing = normalizing(), GradualUnfreezing({"first": 2})
    with contextlib.suppress(KeyboardInterrupt):
        fit(model, x, y, freezing, Failing())
    assert "call" not in vars(model.get_layer("first"))
    before = np.array(model.get_layer("first").gamma)
    fit(model, x, y)
    assert abs(before - np.array(model.get_layer("first").gamma)).max() > 0
    assert np.array(model.get_layer("first").moving_mean).any()


@pytest.mark.parametrize(
    ("epochs", "options", "message"),
    [
        ({}, {}, r"`epochs` must have at least one pattern; received: epochs=\{\}"),
        ({"a": -1}, {}, r"`epochs\['a'\]` must be an integer >= 0; .*epochs\['a'\]=-1"),
        ({"a": 1.5}, {}, r"`epochs\['a'\]` must be an integer >= 0; .*epochs\['a'\]=1.5"),
        ({"(": 1}, {}, r"of `epochs` must be regular expressions.*pattern='\('"),
        (
            {"a": 1},
            {"batch_norm": "eval"},
            "`batch_norm` must be one of inference, train; received: batch_norm='eval'",
        ),
    ],
)
def test_bad_arguments(epochs, options, message):
    with pytest.raises(ValueError, match=message):
        GradualUnfreezing(epochs, **options)


def test_patterns_that_match_nothing(rng):
    x, y = oracle.data(rng, 1)
    with pytest.raises(
        ValueError, match="match the path of a trainable weight; received: pattern='tail'"
    ):
        fit(build(oracle.start(rng), "sgd"), x, y, GradualUnfreezing({"tail": 1}))
