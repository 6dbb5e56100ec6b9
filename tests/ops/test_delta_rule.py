import functools

import numpy as np
import pytest
from keras import ops

from kattn.ops import GatedLinearState, decode_gated_delta_rule, gated_delta_rule
from tests.compute import assert_close, differentiate, quick, run, second_derivatives
from tests.traced import traced_for_any_length

B, T, N, K, D, E = 2, 11, 4, 2, 3, 5
KEEP = np.ones((B, T), bool)
KEEP[0, [0, 3, 4, 9]] = False
FORMS = {
    "parallel": {"implementation": "parallel"},
    "chunks of 4": {"chunk": 4},
    "chunks of 1": {"implementation": "chunked", "chunk": 1},
    "auto": {},
}


def inputs(rng, steps=T, heads=N):
    """Queries, keys of length 1, values, log decays, rates, and a first state."""
    key = rng.normal(size=(B, steps, K, D))
    arrays = (
        rng.normal(size=(B, steps, heads, D)),
        key / np.linalg.norm(key, axis=-1, keepdims=True),
        rng.normal(size=(B, steps, K, E)),
        -rng.random((B, steps, K)),
        rng.random((B, steps, K)),
        rng.normal(size=(B, K, D, E)),
    )
    return [x.astype("float32") for x in arrays]


def expected(query, key, value, log_decay, rate, state, keep=None):
    """Yang et al. 2024, eq. 10, one step and one head after the other; and the last state."""
    state = np.array(state, np.float64)
    groups = query.shape[2] // key.shape[2]
    y = np.zeros((*query.shape[:3], value.shape[-1]))
    for i, t, k in np.ndindex(key.shape[:3]):
        if keep is None or keep[i, t]:
            decay = np.exp(np.float64(log_decay[k] if log_decay.ndim == 1 else log_decay[i, t, k]))
            old = decay * state[i, k]
            error = value[i, t, k] - key[i, t, k] @ old
            state[i, k] = old + rate[i, t, k] * np.outer(key[i, t, k], error)
        for n in range(k * groups, (k + 1) * groups):
            y[i, t, n] = query[i, t, n] @ state[i, k]
    return y, state


def function(*arrays, mask=None, **options):
    """The output and the state, of arrays."""
    *arrays, state = arrays
    state = GatedLinearState(state, ops.zeros((B,), "int32"))
    y, after = decode_gated_delta_rule(*arrays, state, mask=mask, **options)
    return y, after.state


@functools.cache
def shared(**options):
    return quick(functools.partial(function, **options))


@pytest.mark.parametrize("form", FORMS)
def test_matches_the_equation(rng, form):
    arrays = inputs(rng)
    for mask in (None, KEEP):
        y, state = run(shared(**FORMS[form]), *arrays, mask=mask)
        wanted, after = expected(*arrays, mask)
        real = np.ones_like(KEEP) if mask is None else mask
        assert_close(y[real], wanted[real])
        assert_close(state, after)


def test_one_decay_for_all_steps(rng):
    arrays = inputs(rng)
    arrays[3] = np.array([-0.5, -np.inf], "float32")
    y, state = run(shared(chunk=4), *arrays)
    wanted, after = expected(*arrays)
    assert_close(y, wanted)
    assert_close(state, after)
    y = run(quick(gated_delta_rule), *arrays[:5])
    assert_close(y, expected(*arrays[:5], 0 * arrays[5])[0])


def test_in_pieces(rng):
    arrays = inputs(rng)
    wanted, end = expected(*arrays, KEEP)
    *arrays, state = arrays
    cache, found, start = GatedLinearState(state, np.zeros(B, "int32")), [], 0
    decode = quick(decode_gated_delta_rule)
    for size in (4, 1, 6):
        part = slice(start, start + size)
        pieces = (x[:, part] for x in arrays)
        y, cache = decode(*pieces, cache, mask=ops.convert_to_tensor(KEEP[:, part]))
        found, start = [*found, run(lambda y=y: y)], start + size
    assert_close(np.concatenate(found, axis=1)[KEEP], wanted[KEEP])
    assert_close(run(lambda: cache.state), end)
    np.testing.assert_array_equal(run(lambda: cache.length), KEEP.sum(1))


def test_gradients(rng):
    """By differences of the equation in float64, at some places of each input."""
    arrays, upstream = inputs(rng), rng.normal(size=(B, T, N, E))
    _, found = differentiate(quick(lambda *x: function(*x, chunk=4)[0]), arrays, upstream)
    for place, array in enumerate(arrays):
        scale = np.abs(found[place]).max()
        for flat in rng.choice(array.size, 8, replace=False):
            j, ends = np.unravel_index(flat, array.shape), []
            for move in (1e-5, -1e-5):
                moved = [np.array(a, np.float64) for a in arrays]
                moved[place][j] += move
                ends.append((expected(*moved)[0] * upstream).sum())
            assert abs(found[place][j] - (ends[0] - ends[1]) / 2e-5) < 1e-4 * scale


def test_second_derivatives(rng):
    """Those of chunks are those of all pairs at once."""
    arrays, directions = inputs(rng, 5), inputs(rng, 5)
    upstream = rng.normal(size=(B, 5, N, E))
    found = [
        second_derivatives(lambda *x, o=options: function(*x, **o)[0], arrays, upstream, directions)
        for options in ({"chunk": 2}, {"implementation": "parallel"})
    ]
    for one, other in zip(*found, strict=True):
        assert_close(one, other, 1e-4)
    assert np.abs(found[0][1]).max() > 0.1


def test_keys_that_are_alike(rng):
    """The last value is read back: a series for the inverse would lose it in sums of 1e18."""
    arrays = inputs(rng, 150)
    arrays[1][:] = arrays[1][:1, :1, :1]
    arrays[3][:], arrays[4][:] = 0.0, 1.0
    y, _ = run(shared(chunk=75), *arrays)
    assert_close(y, expected(*arrays)[0])


@pytest.mark.parametrize("options", [{}, {"implementation": "parallel"}, {"chunk": 64}])
def test_traced_for_any_length(rng, options):
    arrays = inputs(rng, 6, K)
    shapes = [(B, "T", *x.shape[2:]) for x in arrays[:5]]
    traced = traced_for_any_length(
        lambda *x: function(*x, **options)[0], arrays, [*shapes, arrays[5].shape]
    )
    for steps in (40, 100):
        arrays = inputs(rng, steps, K)
        assert_close(run(traced, *arrays), expected(*arrays)[0])


def test_no_steps(rng):
    arrays = inputs(rng, 0)
    y, state = run(function, *arrays)
    assert y.shape == (B, 0, N, E)
    np.testing.assert_array_equal(state, arrays[5])


def test_what_stands_at_padding_is_without_effect(rng):
    arrays = inputs(rng)
    wanted = run(shared(chunk=4), *arrays, mask=KEEP)
    for array in arrays[:5]:
        array[~KEEP] = np.nan
    y, state = run(shared(chunk=4), *arrays, mask=KEEP)
    assert_close(y[KEEP], wanted[0][KEEP])
    assert_close(state, wanted[1])


BAD = {
    "state": (5, lambda x: x[:1], r"`state` must have shape \(B, K, D, Dv\).*\(1, 2, 3, 5\)"),
    "rate": (4, lambda x: x[:, :3], r"`rate` must have shape \(B, T, K\).*\(2, 3, 2\)"),
    "log_decay": (
        3,
        lambda x: np.stack([x] * D, axis=-1),
        r"`log_decay` must have shape \(B, T, K\) or \(K,\).*\(2, 11, 2, 3\)",
    ),
    "query": (0, lambda x: x[:, :, :3], r"multiple"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(rng, name):
    place, change, message = BAD[name]
    arrays = inputs(rng)
    arrays[place] = change(arrays[place])
    with pytest.raises(ValueError, match=message):
        function(*map(ops.convert_to_tensor, arrays))
