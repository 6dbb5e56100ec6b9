import keras
import numpy as np
import pytest
from keras import ops

from kattn.layers import LSTMN
from tests import lstmn_oracle as oracle
from tests.checks import check_layer, shake
from tests.compute import assert_close, differentiate, quick, result, run

UNITS = 4
KEEP = np.array([[1] * 5, [0, 1, 1, 0, 1], [0] * 5, [1, 1, 0, 0, 0]], bool)
CASES = {
    "default": {},
    "short": {"memory_length": 2, "attention_units": 3},
    "longer than the sequence": {"memory_length": 9},
}


def built(rng, **options):
    layer = LSTMN(UNITS, **options)
    x = rng.normal(size=(4, 5, 6)).astype("float32")
    layer.build(x.shape)
    shake(layer)
    return layer, x


def expected(layer, x, keep, states=None):
    """Outputs, weights and last states by the layer's weights."""
    w = {
        v.path.split("/", 1)[1]: run(ops.convert_to_tensor, v).astype(float) for v in layer.weights
    }
    z = np.swapaxes(x @ w["input/kernel"] + w["input/bias"], 0, 1)
    names = ("recurrent_kernel", "previous_kernel", "key_kernel", "energy")
    weights = [w[name] for name in names]
    h, c = np.zeros((2, len(x), UNITS)) if states is None else states
    first = np.concatenate([h, c, 0 * h, h @ w["key_kernel"]], axis=-1)
    gates, scores = z[..., : 4 * UNITS], z[..., 4 * UNITS :]
    rows, maps = oracle.rows_of(
        gates, scores, first, states is not None, keep.T, weights, layer.memory_length
    )
    rows, maps = np.swapaxes(rows, 0, 1), np.moveaxis(maps, 2, 0)[:, :, 1:]
    last = np.zeros((2, len(x), UNITS))
    for b in range(len(x)):
        if keep[b].any():
            row = rows[b, np.flatnonzero(keep[b])[-1]]
            last[:, b] = row[:UNITS], row[UNITS : 2 * UNITS]
    return rows[..., :UNITS] * keep[..., None], (maps * keep[..., None])[:, None], last


@pytest.mark.parametrize("name", CASES)
def test_matches_oracle(rng, name):
    layer, x = built(rng, return_state=True, **CASES[name])
    for keep in (KEEP, KEEP | True):
        y, maps, (h, c) = expected(layer, x, keep)
        for have, want in zip(result(layer, x, mask=keep), (y, h, c), strict=True):
            assert_close(have, want)
        assert_close(result(layer.attention_weights, x, mask=keep), maps)


@pytest.mark.parametrize("name", ["default", "short"])
def test_initial_state(rng, name):
    """It is a step before the first, which the others attend to."""
    layer, x = built(rng, **CASES[name])
    states = rng.normal(size=(2, 4, UNITS)).astype("float32")
    y, maps, _ = expected(layer, x, KEEP, states)
    assert_close(result(layer, x, mask=KEEP, initial_state=list(states)), y)
    given = {"mask": KEEP, "initial_state": list(states)}
    assert_close(result(layer.attention_weights, x, **given), maps)


def test_last_output(rng):
    layer, x = built(rng, return_sequences=False)
    assert_close(result(layer, x, mask=KEEP), expected(layer, x, KEEP)[2][0])


def test_a_ring_of_constant_size(rng):
    layer, x = built(rng, memory_length=2)
    decode, cache = quick(layer.decode), layer.init_cache(4, 100)
    assert cache.rows.shape == (4, 2, 4 * UNITS)
    found, hidden = [], np.zeros((4, 1), bool)
    for t in range(5):
        _, cache = decode(x[:, :1] + 9, cache, mask=hidden)  # padding is not kept, nor overwrites
        y, cache = decode(x[:, t : t + 1], cache)
        found.append(run(lambda y=y: y))
    assert_close(np.concatenate(found, axis=1), result(layer, x))
    np.testing.assert_array_equal(run(ops.copy, cache.length), [5] * 4)


def test_gradients_through_a_thousand_steps_are_finite(rng):
    layer = LSTMN(2, memory_length=3)
    x = rng.normal(size=(1, 1000, 2)).astype("float32")
    layer.build(x.shape)
    upstream = np.zeros((1, 1000, 2))
    upstream[:, -1] = 1.0
    function = lambda x: layer(x)  # noqa: E731
    if keras.backend.backend() == "tensorflow":
        import tensorflow as tf

        function = tf.function(function, autograph=False)
    _, (gradient,) = differentiate(quick(function), [x], upstream)
    assert np.isfinite(gradient).all()
    assert np.abs(gradient[0, -1]).max() > 0


def make(**options):
    given = {
        "attention_units": 3,
        "memory_length": 4,
        "kernel_initializer": "he_normal",
        "recurrent_initializer": "orthogonal",
    }
    return LSTMN(UNITS, **{**given, **options})


def test_battery():
    x = np.random.default_rng(0).normal(size=(3, 5, 8))
    check_layer(make, [x], fixture="lstmn", causal=True, dropout=False, decodes=True)


def test_bad_input(rng):
    for name in ("units", "attention_units", "memory_length"):
        with pytest.raises(ValueError, match=rf"`{name}` must be an integer >= 1.*{name}=0"):
            LSTMN(**{"units": 3, name: 0})
    layer, x = built(rng)
    with pytest.raises(ValueError, match=r"`x` must have rank 3.*\(4, 5\)"):
        LSTMN(3)(x[:, :, 0])
    with pytest.raises(ValueError, match=r"`mask` must have rank 2"):
        layer(x, mask=KEEP[..., None])
    state = np.zeros((4, UNITS), "float32")
    for bad in ([state], [state, state[:3]], [state, state[:, :2]], [state] * 3):
        with pytest.raises(ValueError, match=r"`initial_state` must be two tensors \(B, units\)"):
            layer(x, initial_state=bad)


@pytest.mark.parametrize("steps", [0, 5])
def test_states_of_an_item_without_steps_are_those_given(rng, steps):
    layer, x = built(rng, return_state=True)
    states = rng.normal(size=(2, 4, UNITS)).astype("float32")
    y, *last = result(layer, x[:, :steps], mask=KEEP[:, :steps], initial_state=list(states))
    assert y.shape == (4, steps, UNITS)
    for found, given in zip(last, states, strict=True):
        assert_close(found[2], given[2])
        changed = np.abs(found - given).max(axis=1) > 1e-3
        np.testing.assert_array_equal(changed, KEEP.any(1) & (steps > 0))


def test_no_steps(rng):
    """Without a mask, the last output and the states are 0, or those given."""
    layer, x = built(rng, return_state=True)
    for each in result(layer, x[:, :0])[1:]:
        np.testing.assert_array_equal(each, np.zeros((4, UNITS)))
    state = rng.normal(size=(4, UNITS)).astype("float32")
    assert_close(result(layer, x[:, :0], initial_state=[state, 2 * state])[2], 2 * state)


@pytest.mark.parametrize("memory_length", [None, 9])
def test_a_cache_that_is_full(rng, device, memory_length):
    """Padding takes no room."""
    layer, x = built(rng, memory_length=memory_length)
    y, cache = layer.decode(x, layer.init_cache(4, 3), mask=np.array([[0, 1, 1, 0, 1]] * 4, bool))
    assert_close(run(lambda: y)[:, [1, 2, 4]], result(layer, x[:, [1, 2, 4]]))
    if device.startswith("cpu"):  # to read a length of a GPU would cost a step of decoding
        with pytest.raises(ValueError, match=r"room for all steps.*length=3, steps=\[4, 4, 4, 4\]"):
            layer.decode(x[:, :1], cache)
