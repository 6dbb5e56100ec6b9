import functools

import keras
import numpy as np
import pytest
from keras import ops

from kattn.ops.feature_maps import elu_plus_one
from kattn.ops.linear import (
    LinearState,
    decode_linear_attention,
    initial_linear_state,
    linear_attention,
    linear_attention_weights,
)
from tests import linear_oracle as oracle
from tests.compute import assert_close, compiled, differentiate, quick, run

B, T, N, K, D, DV = 3, 11, 4, 2, 3, 5
FORMS = {
    "parallel": {"implementation": "parallel"},
    "chunks of 4": {"implementation": "chunked", "chunk": 4},
    "one chunk": {"implementation": "chunked", "chunk": 64},
    "auto": {},
}
KEEP = np.ones((B, T), bool)  # some, the first ones, and all padded
KEEP[0, [3, 4, 5, 6, 7, 10]] = False
KEEP[1, :5] = False
KEEP[2] = False


def inputs(rng, steps=T, keys=None, batch=B):
    keys = keys or steps
    shapes = ((batch, steps, N, D), (batch, keys, K, D), (batch, keys, K, DV))
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def expected(q, k, v, keep=KEEP, causal=True):
    q, k, v = (np.asarray(x, np.float64) for x in (q, k, v))
    return oracle.attention(oracle.elu_plus_one(q), oracle.elu_plus_one(k), v, keep, causal=causal)


@functools.cache
def shared(function, **options):
    """The function with these options, on JAX compiled once for all tests."""
    return quick(functools.partial(function, **options))


def attend(q, k, v, *, mask=None, state=None, **options):
    call = shared(linear_attention, feature_map=elu_plus_one, **options)
    return call(q, k, v, mask=mask, state=state)


def decode(q, k, v, state, *, mask=None, **options):
    return shared(decode_linear_attention, feature_map=elu_plus_one, **options)(
        q, k, v, state, mask=mask
    )


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", FORMS)
def test_matches_oracle(rng, form, causal):
    x = inputs(rng)
    y = run(attend, *x, mask=KEEP, causal=causal, **FORMS[form])
    assert_close(y, expected(*x, causal=causal)[0])
    assert (y[2] == 0.0).all()
    everything = np.ones_like(KEEP)
    y = run(attend, *x, causal=causal, **FORMS[form])
    assert_close(y, expected(*x, keep=everything, causal=causal)[0])


@pytest.mark.parametrize("form", ["parallel", "chunked"])
def test_more_keys_than_queries(rng, form):
    x = inputs(rng, steps=4, keys=T)
    assert_close(run(attend, *x, mask=KEEP, implementation=form), expected(*x, causal=False)[0])


@pytest.mark.parametrize("causal", [False, True])
def test_weights_match_oracle(rng, causal):
    q, k, v = inputs(rng)
    options = {"feature_map": elu_plus_one, "mask": KEEP, "causal": causal}
    weights = run(linear_attention_weights, q, k, **options)
    assert_close(weights, expected(q, k, v, causal=causal)[1])


def test_feature_maps_of_queries_and_keys_may_differ(rng):
    q, k, v = inputs(rng)
    maps = (ops.exp, lambda x: 2.0 + ops.tanh(x))
    y = run(linear_attention, q, k, v, feature_map=maps, causal=True)
    wanted, _ = oracle.attention(np.exp(q), 2.0 + np.tanh(k), v, np.ones_like(KEEP), causal=True)
    assert_close(y, wanted)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", ["parallel", "chunks of 4"])
def test_gradients_match_finite_differences(rng, form, causal):
    steps, batch = 6, 2
    x = inputs(rng, steps=steps, batch=batch)
    keep = np.ones((batch, steps), bool)
    keep[0, 2], keep[1] = False, False
    upstream = rng.normal(size=(batch, steps, N, DV))
    options = {"mask": ops.convert_to_tensor(keep), "causal": causal, **FORMS[form]}
    _, found = differentiate(lambda *x: attend(*x, **options), x, upstream)
    wanted = oracle.gradients(
        lambda *x: expected(*x, keep=keep, causal=causal)[0],
        [a.astype(np.float64) for a in x],
        upstream,
    )
    for have, want in zip(found, wanted, strict=True):
        assert_close(have, want, 1e-4)
        assert (have[1] == 0.0).all()


@pytest.mark.parametrize("form", ["parallel", "chunks of 4"])
@pytest.mark.parametrize("sizes", [[1] * T, [4, 1, 6]], ids=["steps", "pieces"])
def test_decoding_equals_the_whole(rng, sizes, form):
    x = inputs(rng)
    state, found, start = run(initial_linear_state, B, K, D, DV), [], 0
    for size in sizes:
        part = slice(start, start + size)
        new = [a[:, part] for a in x]
        y, state = run(decode, *new, state, mask=KEEP[:, part], **FORMS[form])
        assert isinstance(state, LinearState)
        found, start = [*found, y], start + size
    assert_close(np.concatenate(found, axis=1), expected(*x)[0])
    np.testing.assert_array_equal(state.length, KEEP.sum(axis=1))
    phi = oracle.elu_plus_one(x[1].astype(np.float64)) * KEEP[:, :, None, None]
    assert_close(state.normalizer, phi.sum(axis=1))
    assert_close(state.state, np.einsum("bskf,bskd->bkfd", phi, x[2]))


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("form", ["parallel", "chunked"])
def test_a_state_stands_for_keys_before(rng, form, causal):
    q, k, v = inputs(rng)
    before, after = slice(0, 4), slice(4, T)
    _, state = run(decode, q[:, before], k[:, before], v[:, before],
                   run(initial_linear_state, B, K, D, DV), mask=KEEP[:, before])  # fmt: skip
    y = run(attend, q[:, after], k[:, after], v[:, after], state=state, mask=KEEP[:, after],
            causal=causal, implementation=form, chunk=3)  # fmt: skip
    assert_close(y, expected(q, k, v, causal=causal)[0][:, after])


def test_decodes_compiled_and_in_a_loop(rng):
    """The state keeps its shapes and dtypes, so a loop can carry it."""
    x = [ops.convert_to_tensor(a) for a in inputs(rng)]
    wanted = expected(*(ops.convert_to_numpy(a) for a in x), keep=np.ones_like(KEEP))[0]
    state = initial_linear_state(B, K, D, DV)
    half = compiled(functools.partial(decode_linear_attention, feature_map=elu_plus_one, chunk=4))(
        *(a[:, :6] for a in x), state
    )[1]

    def step(t, state, y):
        new = [ops.slice(a, (0, t, 0, 0), (B, 1, *a.shape[2:])) for a in x]
        return (t + 1, *reversed(decode(*new, state)))

    first = ops.convert_to_tensor(6, dtype="int32")
    start = (first, LinearState(*half), ops.zeros((B, 1, N, DV)))
    t, state, y = keras.ops.while_loop(lambda t, *_: t < T, step, start)
    assert int(t) == T
    assert_close(run(lambda: y)[:, 0], wanted[:, -1])


@pytest.mark.parametrize(("form", "dtype"), [("parallel", "float16"), ("chunks of 4", "bfloat16")])
def test_half_precision(rng, form, dtype):
    """Sums stay in float32: sums of 3000 ones in float16 would stop at 2048."""
    ones = ops.cast(ops.ones((1, 3000, 1, 1)), dtype)
    y = attend(ones, ones, ones, causal=True, implementation="chunked")
    assert keras.backend.standardize_dtype(y.dtype) == dtype
    assert_close(run(ops.cast, y, "float32"), np.ones((1, 3000, 1, 1)), 1e-2)
    x = inputs(rng)
    half = [ops.cast(ops.convert_to_tensor(a), dtype) for a in x]
    y = run(ops.cast, attend(*half, mask=KEEP, causal=True, **FORMS[form]), "float32")
    assert_close(y, expected(*x)[0], 2e-2 if dtype == "bfloat16" else 3e-3)


def test_large_keys_do_not_overflow(rng):
    q, k, v = (30.0 * x for x in inputs(rng))
    assert_close(run(attend, q, k, v, causal=True, mask=KEEP), expected(q, k, v)[0])


BAD = {
    "rank": ({"query": np.ones((1, 4, 2))}, r"`query` must have rank 4.*write query\[None\]"),
    "heads": (
        {"query": np.ones((1, 4, 3, 3))},
        "multiple of the number of key heads.*query_heads=3, key_heads=2",
    ),
    "implementation": (
        {"implementation": "fast"},
        "`implementation` must be one of auto, parallel, chunked.*implementation='fast'",
    ),
    "chunk": ({"chunk": 0}, "`chunk` must be an integer >= 1.*chunk=0"),
    "mask dtype": (
        {"mask": np.ones((1, 4))},
        r"`mask` must be boolean, True = real step.*`~key_padding_mask`.*dtype='float",
    ),
    "list as mask": ({"mask": [[True] * 4]}, r"wrap a list as np.array\(mask, bool\)"),
    "mask shape": (
        {"mask": np.ones((1, 5), bool)},
        r"`mask` must have shape \(B, steps\)=\(1, 4\).*\(1, 5\)",
    ),
    "mask rank": (
        {"mask": np.ones((1, 4, 4), bool)},
        r"must have rank 2, \(B, steps\).*\(1, 4, 4\)",
    ),
    "steps": (
        {"query": np.ones((1, 3, 4, 3)), "causal": True},
        "as many queries as keys.*queries=3, keys=4",
    ),
    "symbolic": (
        {"query": keras.KerasTensor((1, 4, 4, 3))},
        r"takes no symbolic tensors.*query\.shape=",
    ),
}


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize("steps", [1, 4])
def test_the_batch_axis_is_first_in_every_tensor_of_the_state(rng, steps, padded):
    state = initial_linear_state(B, K, D, DV)
    assert {x.shape[0] for x in state} == {B}
    mask = KEEP[:, :steps] if padded else None
    _, state = decode_linear_attention(
        *inputs(rng, steps), state, feature_map=elu_plus_one, mask=mask
    )
    assert {x.shape[0] for x in state} == {B}
    assert keras.backend.standardize_dtype(state.length.dtype) == "int32"


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(name):
    change, message = BAD[name]
    good = {"query": np.ones((1, 4, 4, 3)), "key": np.ones((1, 4, 2, 3))}
    good["value"] = np.ones((1, 4, 2, 3))
    with pytest.raises(ValueError, match=message):
        linear_attention(**{**good, "feature_map": elu_plus_one, **change})
