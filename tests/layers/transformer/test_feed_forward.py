import math

import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import FeedForward
from tests.checks import check_layer, ready
from tests.compute import assert_close, run

FULL = {
    "hidden_dim": 10,
    "activation": "swiglu",
    "dropout": 0.4,
    "seed": 1,
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "output_initializer": "he_uniform",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
}


def sigmoid(x):
    return 1.0 / (1.0 + np.exp(-x))


def gelu(x):
    """Hendrycks and Gimpel 2016, sec. 2: x times the normal distribution function."""
    return x * 0.5 * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0)))


def gelu_tanh(x):
    return 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3)))


PLAIN = {
    "gelu": gelu,
    "gelu_tanh": gelu_tanh,
    "relu": lambda x: np.maximum(x, 0.0),
    "relu_squared": lambda x: np.maximum(x, 0.0) ** 2,
    "tanh": np.tanh,
}
# Shazeer 2020, eq. 5
GATED = {
    "glu": sigmoid,
    "reglu": lambda x: np.maximum(x, 0.0),
    "geglu": gelu,
    "geglu_tanh": gelu_tanh,
    "swiglu": lambda x: x * sigmoid(x),
}


@keras.saving.register_keras_serializable("tests")
def softened(x):
    return x * ops.tanh(x)


def expected_output(layer, x):
    """From the layer's weights by name."""
    w = {weight.path.split("/", 1)[1]: run(ops.convert_to_tensor, weight).astype(float)
         for weight in layer.trainable_weights}  # fmt: skip
    h = x @ w["hidden/kernel"] + w.get("hidden/bias", 0.0)
    if layer.activation in GATED:
        gate, h = np.split(h, 2, axis=-1)
        h = GATED[layer.activation](gate) * h
    else:
        h = PLAIN.get(layer.activation, lambda x: x * np.tanh(x))(h)
    return h @ w["output/kernel"] + w.get("output/bias", 0.0)


@pytest.mark.parametrize("activation", [*PLAIN, *GATED, softened])
def test_matches_oracle(rng, activation):
    x = rng.normal(size=(3, 5, 4)).astype("float32")
    use_bias = activation != "geglu"
    options = {"hidden_dim": 6, "use_bias": use_bias}
    layer = ready(lambda: FeedForward(activation=activation, **options), [x])
    assert len(layer.weights) == (4 if use_bias else 2)
    assert_close(run(layer, x), expected_output(layer, x))


@pytest.mark.parametrize(("activation", "hidden"), [("gelu", 40), ("swiglu", 32)])
def test_default_width(activation, hidden):
    layer = FeedForward(activation=activation)
    layer.build((None, 10))
    assert layer.weights[2].shape == (hidden, 10)


def test_a_gate_has_as_many_weights():
    layers = [FeedForward(activation=name, use_bias=False) for name in ("relu", "reglu")]
    for layer in layers:
        layer.build((None, 768))
    assert layers[0].count_params() == layers[1].count_params()
    assert layers[1].weights[1].shape == (2048, 768)  # Shazeer 2020, sec. 3.1


def test_projections_are_initialised_apart():
    """Gate and values as Glorot matrices of their own, of other numbers."""
    layer = FeedForward(64, "reglu", kernel_initializer=keras.initializers.GlorotUniform(seed=3))
    layer.build((None, 64))
    gate, values = np.split(run(ops.convert_to_tensor, layer.weights[0]), 2, axis=-1)
    limit = np.sqrt(6 / (64 + 64))
    for part in (gate, values):
        assert 0.95 * limit < np.abs(part).max() <= limit
    assert np.abs(gate - values).max() > 0.1


def test_the_last_projection_may_start_otherwise():
    layer = FeedForward(3, output_initializer="ones")
    layer.build((None, 5))
    first, _, last, _ = (run(ops.copy, weight) for weight in layer.weights)
    np.testing.assert_array_equal(last, 1.0)
    assert (first != 1.0).all()


def test_dropout_is_that_of_hidden_channels():
    """Those that stay are made larger; the output bias is not dropped."""
    layer = FeedForward(512, "relu", dropout=0.25, seed=3, kernel_initializer="ones")
    layer.build((None, 1))
    output = run(layer, np.ones((64, 1), "float32"), training=True)
    kept = output * 0.75  # how many of 512 channels of 1 stayed
    assert np.abs(kept - np.round(kept)).max() < 1e-3
    assert abs(kept.mean() / 512 - 0.75) < 0.02
    assert kept.std() > 1.0


def make(**options):
    return FeedForward(**{**FULL, **options})


def test_all_checks(rng):
    check_layer(make, [rng.normal(size=(3, 5, 8))], masked=False, equivariant=True)


def test_a_function_is_saved(rng):
    layer = ready(lambda: FeedForward(3, softened), [np.ones((2, 4), "float32")])
    again = FeedForward.from_config(layer.get_config())
    assert again.activation is softened


BAD = {
    "width": ({"hidden_dim": 0}, r"`hidden_dim` must be an integer >= 1.*hidden_dim=0"),
    "dropout": ({"dropout": 1.0}, r"`dropout` must be a fraction in \[0, 1\).*dropout=1\.0"),
    "activation": (
        {"activation": "swishglu"},
        r"`activation` must be one of gelu_tanh, .*swiglu, a Keras activation.*'swishglu'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        FeedForward(**options)


def test_unknown_width():
    with pytest.raises(ValueError, match=r"`x` must have a known width.*\(2, None\)"):
        FeedForward().build((2, None))
