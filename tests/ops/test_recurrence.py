import functools

import keras
import numpy as np
import pytest
from keras import ops

from kattn.ops import recurrence
from kattn.ops.recurrence import (
    RecurrentState,
    decode_linear_recurrence,
    initial_recurrent_state,
    linear_recurrence,
)
from tests.compute import (
    assert_close,
    compiled,
    differentiate,
    quick,
    run,
    second_derivatives,
)
from tests.traced import traced_for_any_length

B, T, C = 3, 11, 4
FORMS = {
    "step": {"implementation": "step"},
    "chunks of 4": {"implementation": "chunked", "chunk": 4},
    "chunks of 1": {"chunk": 1},
    "chunked": {"implementation": "chunked"},
    "associative": {"implementation": "associative"},
    "auto": {},
}
KEEP = np.ones((B, T), bool)  # some, the first ones, and all padded
KEEP[0, [3, 4, 5, 6, 7, 10]] = False
KEEP[1, :5] = False
KEEP[2] = False
STARTS = np.zeros((B, T), bool)
STARTS[0, [0, 2, 9]] = True
STARTS[1, [2, 6]] = True  # the first of them at padding


def inputs(rng, steps=T):
    """Decays from -0.2 to 1, inputs, and a first state."""
    a, b = 1.2 * rng.random((B, steps, C)) - 0.2, rng.normal(size=(B, steps, C))
    return [x.astype("float32") for x in (a, b, rng.normal(size=(B, C)))]


def expected(a, b, first, keep=None, starts=None):
    """The equation, step by step, and the last state."""
    h, states = np.array(first, np.float64), []
    for t in range(b.shape[1]):
        for i in range(len(b)):
            if keep is None or keep[i, t]:
                before = 0.0 if starts is not None and starts[i, t] else h[i]
                h[i] = (a if a.ndim == 1 else a[i, t]) * before + b[i, t]
        states.append(h.copy())
    return np.stack(states, axis=1), h


@functools.cache
def shared(**options):
    """The function with these options, on JAX compiled once for all tests."""
    return quick(functools.partial(decode_linear_recurrence, **options))


@pytest.mark.parametrize("form", FORMS)
def test_matches_the_equation(rng, form):
    a, b, first = inputs(rng)
    decode = shared(**FORMS[form])
    for options in ({}, {"mask": KEEP}, {"mask": KEEP, "starts": STARTS}):
        h, last = run(decode, a, b, first, **options)
        wanted, end = expected(a, b, first, options.get("mask"), options.get("starts"))
        assert_close(h, wanted)
        assert_close(last, end)
    assert (h[2] == first[2]).all()  # bit for bit: it is all padding


def test_without_a_state_before(rng):
    a, b, first = inputs(rng)
    h = run(quick(linear_recurrence), a, b, mask=KEEP, starts=STARTS)
    assert_close(h, expected(a, b, 0 * first, KEEP, STARTS)[0])
    h = run(quick(linear_recurrence), a, b, initial=first)
    assert_close(h, expected(a, b, first)[0])


@pytest.mark.parametrize("form", FORMS)
def test_one_decay_for_all_steps(rng, form):
    _, b, first = inputs(rng)
    a = np.array([0.0, 0.5, 1.0, -0.5], "float32")
    assert_close(run(shared(**FORMS[form]), a, b, first)[0], expected(a, b, first)[0])


@pytest.mark.parametrize("form", FORMS)
def test_gradients(rng, form):
    """By the equation, from the last step to the first."""
    a, b, first = inputs(rng)
    upstream = rng.normal(size=(B, T, C)).astype("float32")

    def function(a, b, first):
        options = {"mask": KEEP, "starts": STARTS, **FORMS[form]}
        return decode_linear_recurrence(a, b, first, **options)[0]

    _, found = differentiate(quick(function), [a, b, first], upstream)
    h, _ = expected(a, b, first, KEEP, STARTS)
    before = np.concatenate([first[:, None], h[:, :-1]], axis=1)
    of_a, of_b, later = np.zeros_like(h), np.zeros_like(h), np.zeros((B, C))
    for t in reversed(range(T)):
        total = upstream[:, t] + later
        real, fresh = KEEP[:, t, None], STARTS[:, t, None]
        of_b[:, t] = np.where(real, total, 0.0)
        of_a[:, t] = np.where(real & ~fresh, total * before[:, t], 0.0)
        later = np.where(real, np.where(fresh, 0.0, a[:, t] * total), total)
    for have, want in zip(found, (of_a, of_b, later), strict=True):
        assert_close(have, want, 1e-5)


def test_second_derivatives(rng):
    """Those of chunks are those of the plain loop."""
    x, upstream = inputs(rng, 5), rng.normal(size=(B, 5, C))
    directions = inputs(rng, 5)
    found = {}
    for form in ("step", "chunks of 4", "associative"):
        function = functools.partial(decode_linear_recurrence, **FORMS[form])
        found[form] = second_derivatives(
            lambda a, b, c, f=function: f(a, b, c)[0], x, upstream, directions
        )
    for form in ("chunks of 4", "associative"):
        for one, other in zip(found["step"], found[form], strict=True):
            assert_close(one, other)
    assert np.abs(found["step"][0]).max() > 0.1


@pytest.mark.parametrize("form", ["step", "chunked", "associative"])
def test_long_sequences(rng, form):
    """A thousand steps, whose decays are near 1: the gradients arrive at the first one."""
    steps = 1000
    a = np.full((B, steps, C), 0.999, "float32")
    b, first = rng.normal(size=(B, steps, C)).astype("float32"), np.ones((B, C), "float32")
    upstream = np.zeros((B, steps, C), "float32")
    upstream[:, -1] = 1.0
    h, (of_a, of_b, of_first) = differentiate(
        quick(lambda *x: decode_linear_recurrence(*x, **FORMS[form])[0]), [a, b, first], upstream
    )
    assert_close(h, expected(a, b, first)[0], 1e-5)
    wanted = 0.999 ** np.arange(steps - 1, -1, -1.0)
    assert_close(of_b, np.broadcast_to(wanted[None, :, None], of_b.shape), 1e-4)
    assert_close(of_first, np.full((B, C), 0.999**steps), 1e-4)
    assert np.isfinite(of_a).all()


def test_strong_decays(rng):
    """Decays of 0 in the midst of others, which quotients of products could not tell."""
    a, b, first = inputs(rng)
    a = np.where(rng.random(a.shape) < 0.4, 0.0, a).astype("float32")
    for form in FORMS:
        assert_close(run(shared(**FORMS[form]), a, b, first)[0], expected(a, b, first)[0])


@pytest.mark.parametrize("cuts", [(4, 1, 6), (1,) * T])
def test_in_pieces(rng, cuts):
    a, b, state = inputs(rng)
    wanted, end = expected(a, b, state, KEEP, STARTS)
    found, start = [], 0
    for size in cuts:
        part = slice(start, start + size)
        options = {"mask": KEEP[:, part], "starts": STARTS[:, part]}
        h, state = run(shared(), a[:, part], b[:, part], state, **options)
        found, start = [*found, h], start + size
    assert_close(np.concatenate(found, axis=1), wanted)
    assert_close(state, end)


def test_the_state_of_a_layer():
    state = initial_recurrent_state(2, 3)
    assert isinstance(state, RecurrentState)
    np.testing.assert_array_equal(run(lambda: state.state), np.zeros((2, 3)))
    np.testing.assert_array_equal(run(lambda: state.length), [0, 0])


def test_no_steps(rng):
    a, b, first = inputs(rng, 0)
    for form in FORMS:
        h, last = run(functools.partial(decode_linear_recurrence, **FORMS[form]), a, b, first)
        assert h.shape == (B, 0, C)
        np.testing.assert_array_equal(last, first)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_sums_in_float32(dtype):
    """3,000 ones, which a half cannot count up to one by one."""
    ones = ops.ones((1, 3000, 1), dtype)
    h, last = decode_linear_recurrence(ones, ones, ops.zeros((1, 1)))
    assert keras.backend.standardize_dtype(h.dtype) == dtype
    assert run(ops.cast, last, "float32").item() == 3000.0


def test_compiled(rng):
    a, b, first = (ops.convert_to_tensor(x) for x in inputs(rng))
    for form in FORMS:
        function = compiled(functools.partial(decode_linear_recurrence, **FORMS[form]))
        wanted = expected(*(run(ops.copy, x) for x in (a, b, first)))
        for have, want in zip(run(function, a, b, first), wanted, strict=True):
            assert_close(have, want)


def test_auto_takes_chunks_where_there_is_a_gpu(rng, monkeypatch):
    """Where each step of a loop waits for its kernels to start."""
    sizes = []
    monkeypatch.setattr(recurrence, "_recur", lambda size, a, b, first: (sizes.append(size), b)[1])
    a, b, first = (ops.convert_to_tensor(x) for x in inputs(rng))
    for has_gpu in (False, True):
        monkeypatch.setattr(recurrence.backend, "is_on_gpu", lambda x, has_gpu=has_gpu: has_gpu)
        decode_linear_recurrence(a, b, first)
    assert sizes == [None, 4]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="others know the number")
def test_an_unknown_number_of_steps(rng):
    import tensorflow as tf

    a, b, first = inputs(rng)
    signature = [
        tf.TensorSpec((None, None, C)),
        tf.TensorSpec((None, None, C)),
        tf.TensorSpec((B, C)),
    ]
    for form in ("step", "chunks of 4", "chunked", "auto"):
        call = functools.partial(decode_linear_recurrence, **FORMS[form])
        function = tf.function(call, input_signature=signature)
        for steps in (T, 1, 0):
            wanted = expected(a[:, :steps], b[:, :steps], first) if steps else (b[:, :0], first)
            found = run(function, a[:, :steps], b[:, :steps], first)
            for have, want in zip(found, wanted, strict=True):
                assert_close(have, want)
    call = functools.partial(decode_linear_recurrence, implementation="associative")
    with pytest.raises(ValueError, match='must not be "associative" for an unknown number'):
        tf.function(call, input_signature=signature).get_concrete_function()


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="it has tensors for sizes")
@pytest.mark.parametrize("form", ["step", "chunked", "associative", "auto"])
def test_traced_for_any_length(rng, form):
    """Also longer than the sequence that PyTorch traces it with, and than a chunk."""
    if keras.backend.backend() == "jax" and form != "auto":
        pytest.skip("JAX knows no quotient of a symbol, nor when it has done all pairs")
    shapes = [(B, "T", C), (B, "T", C), (B, C)]

    def function(a, b, first):
        return decode_linear_recurrence(a, b, first, **FORMS[form])[0]

    traced = traced_for_any_length(function, inputs(rng, 5), shapes)
    for steps in (7, 70):
        a, b, first = inputs(rng, steps)
        assert_close(run(traced, a, b, first), expected(a, b, first)[0])


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="others have loops in programs")
def test_a_traced_program_holds_no_copies_of_steps(rng):
    """With 500 steps it has some operations for each of the 9 rounds, and not for each step."""
    from torch.fx.experimental.proxy_tensor import make_fx

    arrays = inputs(rng, 500)
    tensors = [ops.convert_to_tensor(x) for x in arrays]
    traced = make_fx(lambda a, b, h: decode_linear_recurrence(a, b, h), tracing_mode="fake")(
        *tensors
    )
    assert_close(run(traced, *tensors)[0], expected(*arrays)[0])
    assert len(traced.graph.nodes) < 200


BAD = {
    "x": (lambda a, b, s: (a, b[0], s, {}), r"`x` must have rank 3, \(B, T, C\); .*\(11, 4\)"),
    "decay": (
        lambda a, b, s: (a[:, :3], b, s, {}),
        r"`decay` must have shape .*decay.shape=\(3, 3",
    ),
    "state": (lambda a, b, s: (a, b, s[:2], {}), r"`state` must have shape \(B, C\).*\(2, 4\)"),
    "mask": (
        lambda a, b, s: (a, b, s, {"mask": KEEP[:, :4]}),
        r"`mask` must have shape \(B, T\)=\(3, 11\).*\(3, 4\)",
    ),
    "starts": (
        lambda a, b, s: (a, b, s, {"starts": STARTS.astype("float32")}),
        r"`starts` must be boolean",
    ),
    "implementation": (
        lambda a, b, s: (a, b, s, {"implementation": "fast"}),
        "`implementation` must be one of auto, associative, chunked, step.*'fast'",
    ),
    "chunk": (lambda a, b, s: (a, b, s, {"chunk": 0}), "`chunk` must be an integer >= 1.*chunk=0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_arguments(rng, name):
    make, message = BAD[name]
    *arrays, options = make(*(ops.convert_to_tensor(x) for x in inputs(rng)))
    with pytest.raises(ValueError, match=message):
        decode_linear_recurrence(*arrays, **options)


def test_messages_name_the_argument(rng):
    a, b, first = (ops.convert_to_tensor(x) for x in inputs(rng))
    with pytest.raises(ValueError, match=r"`initial` must have shape \(B, C\).*\(2, 4\)"):
        linear_recurrence(a, b, initial=first[:2])
    for call in (linear_recurrence, lambda a, b: decode_linear_recurrence(a, b, first)):
        with pytest.raises(ValueError, match="takes no symbolic tensors; call it in a layer"):
            call(keras.Input((T, C)), keras.Input((T, C)))
        with pytest.raises(ValueError, match="`x` must have rank 3"):
            call(a, b[0])
