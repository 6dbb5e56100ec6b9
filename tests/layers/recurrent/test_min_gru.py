import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import MinGRU
from kattn.ops import RecurrentState
from tests.checks import check_layer
from tests.compute import assert_close, differentiate, quick, run
from tests.recurrent_oracle import KEEP, NO_STARTS, STARTS, build, sigmoid, through, weights_of

FULL = {
    "units": 6,
    "activation": "tanh",
    "implementation": "chunked",
    "kernel_initializer": "he_normal",
    "bias_initializer": "ones",
    "kernel_regularizer": "l2",
    "bias_regularizer": "l1",
}
CASES = {
    "default": {"units": 7},
    "linear": {"units": 5, "activation": None, "use_bias": False},
    "all": FULL,
}


def activated(x, name):
    """Feng et al. 2024, app. B.2.1, listing 6, where the name is "positive"."""
    return {
        "positive": np.where(x >= 0, x + 0.5, sigmoid(x)),
        "tanh": np.tanh(x),
        None: x,
    }[name]


def expected_output(layer, x, keep, starts):
    """Feng et al. 2024, sec. 3.1: one step after the other."""
    w, units = weights_of(layer), layer.units
    flat = x @ w["inputs/kernel"] + w.get("inputs/bias", 0.0)
    z, candidate = sigmoid(flat[..., :units]), flat[..., units:]
    name = layer.activation if isinstance(layer.activation, str) else layer.activation.__name__
    new = activated(candidate, None if name == "linear" else name)
    return through(
        lambda i, t, h, _: (1 - z[i, t]) * h + z[i, t] * new[i, t], x, keep, starts, units
    )


@pytest.mark.parametrize("case", CASES)
def test_matches_oracle(rng, case):
    layer, x = build(MinGRU(**CASES[case]), rng)
    call = quick(layer)
    assert_close(run(call, x), expected_output(layer, x, np.ones_like(KEEP), NO_STARTS))
    assert_close(run(call, x, mask=KEEP), expected_output(layer, x, KEEP, NO_STARTS))
    found = run(call, x, mask=KEEP, starts=STARTS)
    assert_close(found, expected_output(layer, x, KEEP, STARTS))


@pytest.mark.parametrize("name", ["step", "associative"])
def test_implementations_agree(rng, name):
    layer, x = build(MinGRU(**{**FULL, "implementation": name}), rng)
    assert_close(run(quick(layer), x, mask=KEEP), expected_output(layer, x, KEEP, NO_STARTS))


def test_gradients_through_a_thousand_steps(rng):
    """They are finite, and an open gate lets what comes last reach the first step."""
    layer, _ = build(MinGRU(4, activation=None), rng)
    kernel, bias = layer.get_weights()
    layer.set_weights([0.01 * kernel, np.concatenate([np.full(4, -7.0), bias[4:]])])
    x = rng.normal(size=(2, 1000, 8)).astype("float32")
    upstream = np.zeros((2, 1000, 4))
    upstream[:, -1] = 1.0
    _, (gradient,) = differentiate(quick(lambda x: layer(x)), [x], upstream)
    assert np.isfinite(gradient).all()
    sizes = np.abs(gradient).max(axis=(0, 2))
    assert 0.1 < sizes[0] / sizes[-1] < 1.0  # (1 - sigmoid(-7))^999 = 0.40


@pytest.mark.parametrize("dtype", ["mixed_float16", "mixed_bfloat16"])
def test_half_precision_keeps_the_state_in_float32(rng, dtype):
    layer = MinGRU(4, dtype=dtype)
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    layer.build(x.shape)
    y, cache = layer.decode(x, layer.init_cache(3, 9))
    assert isinstance(cache, RecurrentState)
    assert [keras.backend.standardize_dtype(a.dtype) for a in cache] == ["float32", "int32"]
    assert keras.backend.standardize_dtype(y.dtype) == dtype.removeprefix("mixed_")


def make(**options):
    return MinGRU(**{**FULL, **options})


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="min_gru", causal=True, dropout=False, decodes=True)


BAD = {
    "units": ({"units": 0}, "`units` must be an integer >= 1.*units=0"),
    "implementation": (
        {"implementation": "parallel"},
        "`implementation` must be one of auto, associative, chunked, step.*'parallel'",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    options, message = BAD[name]
    with pytest.raises(ValueError, match=message):
        MinGRU(**{"units": 2, **options})


def test_bad_input(rng):
    x = rng.normal(size=(3, 5, 8)).astype("float32")
    with pytest.raises(ValueError, match=r"`x` must have rank 3.*\(3, 5\)"):
        MinGRU(2)(x[:, :, 0])
    with pytest.raises(ValueError, match=r"`mask` must be boolean.*float32"):
        MinGRU(2)(x, mask=KEEP.astype("float32"))
    with pytest.raises(ValueError, match=r"`starts` must have shape .*\(3, 5\).*\(3, 4\)"):
        MinGRU(2)(x, starts=ops.convert_to_tensor(STARTS[:, :4]))
    with pytest.raises(ValueError, match=r"must be built before it can make a cache"):
        MinGRU(2).init_cache(3, 5)
