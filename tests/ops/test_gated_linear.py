import functools

import keras
import numpy as np
import pytest
from keras import ops

from kattn.ops.gated_linear import (
    GatedLinearState,
    decode_gated_linear_attention,
    gated_linear_attention,
    initial_gated_linear_state,
)
from tests import linear_oracle as oracle
from tests.compute import assert_close, compiled, differentiate, quick, run

B, T, N, K, D, DV = 3, 11, 4, 2, 3, 5
FORMS = {
    "parallel": {"implementation": "parallel"},
    "chunks of 4": {"implementation": "chunked", "chunk": 4},
    "auto": {},
}
SHAPES = {"by channel": (B, T, K, D), "by head": (B, T, K), "fixed": (K,)}
KEEP = np.ones((B, T), bool)  # some, the first ones, and all padded
KEEP[0, [3, 4, 5, 6, 7, 10]] = False
KEEP[1, :5] = False
KEEP[2] = False


def inputs(rng, decay="by channel", strength=1.0):
    """Queries, keys, values, and log decays between -strength and 0, most of them near 0."""
    shapes = ((B, T, N, D), (B, T, K, D), (B, T, K, DV))
    x = [rng.normal(size=shape) for shape in shapes]
    return [a.astype("float32") for a in (*x, -strength * rng.random(SHAPES[decay]) ** 3)]


def whole(log_decay, shape=(B, T, K, D)):
    """Decays `(B, T, K, D)` from log decays of any form."""
    if log_decay.ndim == 3:
        log_decay = log_decay[..., None]
    elif log_decay.ndim == 1:
        log_decay = log_decay[:, None]
    return np.broadcast_to(np.exp(log_decay.astype(np.float64)), shape)


def expected(q, k, v, log_decay, keep=KEEP):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    return oracle.gated(q, k, v, whole(log_decay, k.shape), keep)


@functools.cache
def shared(function, **options):
    """The function with these options, on JAX compiled once for all tests."""
    return quick(functools.partial(function, **options))


def attend(q, k, v, log_decay, *, mask=None, state=None, **options):
    call = shared(gated_linear_attention, **options)
    return call(q, k, v, log_decay, mask=mask, state=state)


def decode(q, k, v, log_decay, state, *, mask=None, **options):
    return shared(decode_gated_linear_attention, **options)(q, k, v, log_decay, state, mask=mask)


@pytest.mark.parametrize("decay", SHAPES)
@pytest.mark.parametrize("form", FORMS)
def test_matches_oracle(rng, form, decay):
    x = inputs(rng, decay)
    y = run(attend, *x, mask=KEEP, **FORMS[form])
    assert_close(y, expected(*x)[0])
    assert (y[2] == 0.0).all()
    y = run(attend, *x, **FORMS[form])
    assert_close(y, expected(*x, keep=np.ones_like(KEEP))[0])


@pytest.mark.parametrize("decay", SHAPES)
@pytest.mark.parametrize("strength", [30.0, np.inf])
def test_strong_decays(rng, strength, decay):
    """One strong decay beside weak ones, which a difference of running sums would round away."""
    x = inputs(rng, decay)
    x[3] = np.where(rng.random(x[3].shape) < 0.3, -strength, x[3]).astype("float32")
    for form in ("parallel", "chunks of 4"):
        y = run(attend, *x, mask=KEEP, **FORMS[form])
        assert_close(y, expected(*x)[0], 2e-6)


@pytest.mark.parametrize("decay", ["by channel", "by head"])
def test_gradients_of_strong_decays_are_finite(rng, decay):
    x = inputs(rng, decay, strength=3000.0)
    x[3] = np.where(rng.random(x[3].shape) < 0.3, -np.inf, x[3]).astype("float32")
    _, found = differentiate(
        lambda *x: attend(*x, chunk=4),
        x,
        rng.normal(size=(B, T, N, DV)),
    )
    for gradient in found:
        assert np.isfinite(gradient).all()


@pytest.mark.parametrize("decay", SHAPES)
@pytest.mark.parametrize("form", ["parallel", "chunks of 4"])
def test_gradients_match_finite_differences(rng, form, decay):
    x, keep = inputs(rng, decay), KEEP[:, :6]
    x = [a[:, :6] if a.ndim > 1 else a for a in x]
    upstream = rng.normal(size=(B, 6, N, DV))
    options = {"mask": ops.convert_to_tensor(keep), **FORMS[form]}
    _, found = differentiate(lambda *x: attend(*x, **options), x, upstream)
    wanted = oracle.gradients(
        lambda *x: expected(*x, keep=keep)[0], [a.astype(np.float64) for a in x], upstream
    )
    for have, want in zip(found, wanted, strict=True):
        assert_close(have, want, 1e-4)
    for have in found[:3]:
        assert (have[2] == 0.0).all()


@pytest.mark.parametrize("decay", SHAPES)
@pytest.mark.parametrize("sizes", [[1] * T, [4, 1, 6]], ids=["steps", "pieces"])
def test_decoding_equals_the_whole(rng, sizes, decay):
    x = inputs(rng, decay)
    state, found, start = run(initial_gated_linear_state, B, K, D, DV), [], 0
    for size in sizes:
        part = slice(start, start + size)
        new = [a[:, part] if a.ndim > 1 else a for a in x]
        y, state = run(decode, *new, state, mask=KEEP[:, part], chunk=4)
        assert isinstance(state, GatedLinearState)
        found, start = [*found, y], start + size
    output, last = expected(*x)
    assert_close(np.concatenate(found, axis=1), output)
    assert_close(state.state, last)
    np.testing.assert_array_equal(state.length, KEEP.sum(axis=1))


@pytest.mark.parametrize("decay", SHAPES)
def test_a_last_chunk_that_is_filled_up_leaves_the_state(rng, decay):
    x = inputs(rng, decay)
    y, state = run(decode, *x, run(initial_gated_linear_state, B, K, D, DV), chunk=4)
    output, last = expected(*x, keep=np.ones_like(KEEP))
    assert_close(y, output)
    assert_close(state.state, last)
    np.testing.assert_array_equal(state.length, [T] * B)


@pytest.mark.parametrize("decay", ["by channel", "fixed"])
def test_a_state_stands_for_steps_before(rng, decay):
    x = inputs(rng, decay)
    before, after = ([a[:, part] if a.ndim > 1 else a for a in x] for part in
                     (slice(0, 4), slice(4, T)))  # fmt: skip
    state = run(initial_gated_linear_state, B, K, D, DV)
    _, state = run(decode, *before, state, mask=KEEP[:, :4], chunk=4)
    y = run(attend, *after, state=state, mask=KEEP[:, 4:], chunk=4)
    assert_close(y, expected(*x)[0][:, 4:])


@pytest.mark.parametrize("decay", SHAPES)
def test_decodes_compiled_and_in_a_loop(rng, decay):
    """The state keeps its shapes and dtypes, so a loop can carry it."""
    x = [ops.convert_to_tensor(a) for a in inputs(rng, decay)]
    wanted = expected(*(ops.convert_to_numpy(a) for a in x), keep=np.ones_like(KEEP))[0]
    state = initial_gated_linear_state(B, K, D, DV)
    prompt = [a[:, :6] if len(a.shape) > 1 else a for a in x]
    half = compiled(lambda *x: decode_gated_linear_attention(*x, chunk=4))(*prompt, state)[1]

    def cut(a, t):
        return ops.slice(a, (0, t, *[0] * (len(a.shape) - 2)), (B, 1, *a.shape[2:]))

    def step(t, state, y):
        new = [cut(a, t) if len(a.shape) > 1 else a for a in x]
        return (t + 1, *reversed(decode_gated_linear_attention(*new, state)))

    first = ops.convert_to_tensor(6, dtype="int32")
    start = (first, GatedLinearState(*half), ops.zeros((B, 1, N, DV)))
    t, state, y = keras.ops.while_loop(lambda t, *_: t < T, step, start)
    assert int(t) == T
    assert_close(run(lambda: y)[:, 0], wanted[:, -1])


@pytest.mark.parametrize(("decay", "dtype"), [("by channel", "float16"), ("by head", "bfloat16")])
def test_half_precision(rng, decay, dtype):
    """Sums stay in float32: sums of ones in float16 would stop at 2048."""
    x = inputs(rng, decay)
    half = [ops.cast(ops.convert_to_tensor(a), dtype) for a in x]
    y = attend(*half, mask=KEEP, chunk=4)
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    y = run(ops.cast, y, "float32")
    assert_close(y, expected(*x)[0], 3e-2 if dtype == "bfloat16" else 4e-3)
    ones = ops.cast(ops.ones((1, 3000, 1, 1)), dtype)
    state = initial_gated_linear_state(1, 1, 1, 1)
    _, state = decode(ones, ones, ones, ops.zeros((1,)), state)
    assert_close(run(lambda: state.state), np.full((1, 1, 1, 1), 3000.0))


BAD = {
    "decay": (
        {"log_decay": np.ones((1, 4, 4))},
        r"`log_decay` must have shape.*log_decay.shape=\(1, 4, 4\), key.shape=\(1, 4, 2, 3\)",
    ),
    "rank of decay": ({"log_decay": np.ones((1, 2))}, "`log_decay` must have shape"),
    "implementation": (
        {"implementation": "fast"},
        "`implementation` must be one of auto, parallel, chunked.*implementation='fast'",
    ),
    "chunk": ({"chunk": 1.5}, "`chunk` must be an integer >= 1.*chunk=1.5"),
    "mask": ({"mask": np.ones((1, 4))}, "`mask` must be boolean.*dtype='float"),
    "steps": ({"query": np.ones((1, 3, 4, 3))}, "as many queries as keys.*queries=3, keys=4"),
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_batch_axis_is_first_in_every_tensor_of_the_state(rng, steps, padded):
    q, k, v, log_decay = inputs(rng)
    state = initial_gated_linear_state(B, K, k.shape[-1], v.shape[-1])
    assert {x.shape[0] for x in state} == {B}
    mask = KEEP[:, :steps] if padded else None
    pieces = [x[:, :steps] for x in (q, k, v, log_decay)]
    _, state = decode_gated_linear_attention(*pieces, state, mask=mask)
    assert {x.shape[0] for x in state} == {B}
    assert keras.backend.standardize_dtype(state.length.dtype) == "int32"


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    change, message = BAD[name]
    good = {"query": np.ones((1, 4, 4, 3)), "key": np.ones((1, 4, 2, 3))}
    good |= {"value": np.ones((1, 4, 2, 3)), "log_decay": -np.ones((1, 4, 2))}
    with pytest.raises(ValueError, match=message):
        gated_linear_attention(**{**good, **change})
