"""Every kernel, for every mask and option that it serves, against the oracle."""

import functools

import keras
import numpy as np
import pytest

from kattn import biases, masks
from kattn.ops import attention, explain
from kattn.ops.kernels import banded, frames, tiles
from kattn.spans import Span
from tests import oracle
from tests.compute import assert_close, compiled, differentiate, run

KERNELS = ("dense", "fused", "chunked", "banded")
# (T, S, N, K, D, Dv): no size divides another's blocks; more keys than queries and fewer.
SIZES = [(13, 13, 4, 2, 4, 6), (6, 11, 3, 1, 5, 2), (11, 6, 2, 2, 4, 4)]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    """Blocks of a few steps and parts of one head, so that small inputs have many."""
    monkeypatch.setattr(tiles, "BLOCK", 5)
    monkeypatch.setattr(frames, "NARROWEST", 3)
    monkeypatch.setattr(banded, "MANY", 1)


def make_mask(name, queries, keys):
    """A mask and the array `(2, 1, T, S)` that it means."""
    rng = np.random.default_rng(3)
    real = rng.random((2, keys)) > 0.3
    real[1] = False
    array = rng.random((2, 1, queries, keys)) > 0.3
    causal, window = oracle.causal(queries, keys), oracle.window(queries, keys, 3)
    lengths = np.array([0 if "lengths" in name else 2, 4])
    ids = np.array([[0] * 3 + [1] * (keys - 3), [0] * (keys - 2) + [-1] * 2])

    def each(rule):
        places = [(i + keys - queries, j) for i in range(queries) for j in range(keys)]
        found = [rule(b, i, j) for b in range(2) for i, j in places]
        return np.array(found, bool).reshape(2, 1, queries, keys)

    mask, keep = {
        "none": lambda: (None, True),
        "causal": lambda: (masks.Causal(), causal),
        "window": lambda: (masks.Window(3), window),
        "causal window": lambda: (masks.Causal() & masks.Window(3), causal & window),
        "padding": lambda: (masks.Padding(real), real[:, None, None]),
        "causal padding": lambda: (
            masks.Causal() & masks.Padding(real),
            causal & real[:, None, None],
        ),
        "window padding": lambda: (
            masks.Padding(real) & masks.Window(3),
            window & real[:, None, None],
        ),
        "dense": lambda: (masks.Dense(array), array),
        "dense window": lambda: (masks.Dense(array) & masks.Window(3), array & window),
        "dense or window": lambda: (~masks.Dense(array) | masks.Window(3), ~array | window),
        "longformer": lambda: (
            masks.Window(3) | masks.Global([7]),
            window | each(lambda b, i, j: 7 in (i, j)),
        ),
        "streaming": lambda: (
            masks.Causal() & (masks.Window(2) | masks.Prefix(1)),
            each(lambda b, i, j: j <= i and (i - j < 2 or j < 1)),
        ),
        "prefix": lambda: (
            masks.Causal() | masks.Prefix(lengths),
            each(lambda b, i, j: j <= i or j < lengths[b]),
        ),
        "dilated": lambda: (
            masks.Causal() & masks.Dilated(3, 2),
            each(lambda b, i, j: i - j in (0, 2, 4)),
        ),
        "lengths": lambda: (masks.Prefix(lengths), each(lambda b, i, j: j < lengths[b])),
        "causal lengths": lambda: (
            masks.Causal() & masks.Prefix(lengths),
            each(lambda b, i, j: j <= i and j < lengths[b]),
        ),
        "packed": lambda: (
            masks.Causal() & masks.Segments(ids),
            each(lambda b, i, j: j <= i and ids[b, i] == ids[b, j] >= 0),
        ),
    }[name]()
    return mask, np.broadcast_to(keep, (2, 1, queries, keys))


MASKS = (
    "none",
    "causal",
    "window",
    "causal window",
    "padding",
    "causal padding",
    "window padding",
    "dense",
    "dense window",
    "dense or window",
    "longformer",
    "streaming",
    "prefix",
    "dilated",
    "packed",
    "lengths",
    "causal lengths",
)


def make_options(name, queries, keys, heads):
    rng = np.random.default_rng(4)
    return {
        "plain": {},
        "softcap": {"softcap": 0.8, "scale": 0.6},
        "bias": {"bias": rng.normal(size=(1, heads, queries, keys)).astype("float32")},
        "bias of keys": {"bias": rng.normal(size=(2, 1, 1, keys)).astype("float32")},
        "sinks": {"sinks": rng.normal(size=heads).astype("float32")},
    }[name]


OPTIONS = ("plain", "softcap", "bias", "bias of keys", "sinks")


def make_bias(name, queries, keys, heads):
    """A function of arrays that gives a bias object, and these arrays."""
    rng = np.random.default_rng(8)
    shapes = {
        "alibi": [(heads,)],
        "clipped": [(heads, 7)],
        "clipped by query": [(2, heads, queries, 5)],
        "t5": [(heads, 8)],
        "grid": [(heads, (2 * queries - 1))],
        "grid by query": [(2, heads, queries, 2 * queries - 1)],
        "sum": [(heads, 7), (2, heads, queries, 5), (1, 1, queries, keys), (heads,)],
    }[name]
    make = {
        "alibi": biases.ALiBi,
        "clipped": biases.Clipped,
        "clipped by query": biases.Clipped,
        "t5": functools.partial(biases.T5, max_distance=9),
        "grid": functools.partial(biases.GridTable, sides=(queries,), axes=(0,)),
        "grid by query": functools.partial(biases.GridTable, sides=(queries,), axes=(0,)),
        "sum": lambda table, by_query, array, slopes: (
            biases.Clipped(table)
            + biases.Clipped(by_query)
            + biases.Dense(array)
            + biases.ALiBi(slopes)
        ),
    }[name]
    return make, [rng.normal(size=shape).astype("float32") for shape in shapes]


BIASES = ("alibi", "clipped", "clipped by query", "t5", "grid", "grid by query", "sum")


def make_inputs(sizes):
    queries, keys, heads, key_heads, width, value_width = sizes
    rng = np.random.default_rng(5)
    shapes = (
        (2, queries, heads, width),
        (2, keys, key_heads, width),
        (2, keys, key_heads, value_width),
    )
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def served(kernel, inputs, mask, options):
    try:
        explain(*inputs, mask=mask, implementation=kernel, **options)
    except ValueError as error:
        assert "cannot serve" in str(error)  # noqa: PT017
        return False
    return True


# Every mask with more keys than queries; some at all sizes, and with every option where T = S.
BASIC = ("none", "causal", "causal window", "padding", "window padding", "dense or window")
CASES = [(m, "plain", SIZES[1]) for m in MASKS]
CASES += [(m, "plain", size) for m in (*BASIC, "longformer") for size in (SIZES[0], SIZES[2])]
CASES += [(m, option, SIZES[0]) for m in BASIC for option in OPTIONS if option != "plain"]


@pytest.mark.parametrize(("mask_name", "option", "sizes"), CASES)
@pytest.mark.parametrize("kernel", KERNELS)
def test_output_and_gradients(kernel, mask_name, option, sizes):
    queries, keys, heads = sizes[:3]
    inputs = make_inputs(sizes)
    mask, keep = make_mask(mask_name, queries, keys)
    options = make_options(option, queries, keys, heads)
    if not served(kernel, inputs, mask, options):
        assert kernel != "dense"
        return
    whole = {name: x for name, x in options.items() if name != "bias"}
    if "bias" in options:
        whole["bias"] = np.broadcast_to(options["bias"], (2, heads, queries, keys))
    keep = np.broadcast_to(keep, (2, heads, queries, keys))
    expected, _ = oracle.attention(*inputs, keep=keep, **whole)
    upstream = np.random.default_rng(6).normal(size=expected.shape).astype("float32")

    learned = {name: x for name, x in options.items() if name in ("bias", "sinks")}
    fixed = {name: x for name, x in options.items() if name not in learned}

    def call(q, k, v, *extra, implementation=kernel):
        more = dict(zip(learned, extra, strict=True))
        return attention(q, k, v, mask=mask, implementation=kernel, **fixed, **more)

    output, gradients = differentiate(call, [*inputs, *learned.values()], upstream)
    assert_close(output, expected)
    if kernel != "dense":  # which test_gradients_match_finite_differences holds to the oracle
        reference = functools.partial(call, implementation="dense")
        _, wanted = differentiate(reference, [*inputs, *learned.values()], upstream)
        for pair in zip(gradients, wanted, strict=True):
            assert_close(*pair, 1e-4)
    unseen = ~keep.any(-1).swapaxes(1, 2)  # (B, T, N)
    assert not output[unseen].any()
    assert not gradients[0][unseen].any()


@pytest.mark.parametrize("bias_name", BIASES)
@pytest.mark.parametrize("mask_name", ["causal", "window padding"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_bias_objects(kernel, mask_name, bias_name):
    """The same as the array they stand for, and so are the gradients of all their numbers."""
    sizes = (13, 13, 4, 2, 4, 4)
    make, arrays = make_bias(bias_name, 13, 13, 4)
    inputs = make_inputs(sizes)
    mask, _ = make_mask(mask_name, 13, 13)
    if not served(kernel, inputs, mask, {"bias": make(*map(keras.ops.convert_to_tensor, arrays))}):
        assert kernel in ("banded", "fused")
        return
    upstream = np.random.default_rng(6).normal(size=(2, 13, 4, 4)).astype("float32")

    def by_object(q, k, v, *arrays):
        return attention(q, k, v, mask=mask, bias=make(*arrays), implementation=kernel)

    def by_array(q, k, v, *arrays):
        whole = make(*arrays).block(Span(0, 13), Span(0, 13))
        return attention(q, k, v, mask=mask, bias=whole, implementation="dense")

    expected, wanted = differentiate(by_array, [*inputs, *arrays], upstream)
    output, gradients = differentiate(by_object, [*inputs, *arrays], upstream)
    assert_close(output, expected)
    for pair in zip(gradients, wanted, strict=True):
        assert_close(*pair, 1e-4)


@pytest.mark.parametrize("option", ["plain", "softcap"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_gradients_match_finite_differences(kernel, option):
    sizes = (6, 7, 2, 1, 3, 2)
    inputs, options = make_inputs(sizes), make_options(option, 6, 7, 2)
    mask, keep = make_mask("window padding", 6, 7)
    if not served(kernel, inputs, mask, options):
        assert kernel == "fused"
        return
    keep = np.broadcast_to(keep, (2, 2, 6, 7))
    upstream = np.random.default_rng(6).normal(size=(2, 6, 2, 2))
    expected = oracle.gradients(*inputs, upstream, keep=keep, **options)
    _, found = differentiate(
        lambda *x: attention(*x, mask=mask, implementation=kernel, **options), inputs, upstream
    )
    for gradient, wanted in zip(found, expected, strict=True):
        assert_close(gradient, wanted, 1e-4)


@pytest.mark.parametrize("kernel", KERNELS)
def test_compiled(kernel):
    inputs = make_inputs(SIZES[0] if kernel != "fused" else (13, 13, 4, 2, 4, 4))
    mask, keep = make_mask("window padding", 13, 13)
    if not served(kernel, inputs, mask, {}):
        assert kernel == "fused"
        return
    function = compiled(lambda *x: attention(*x, mask=mask, implementation=kernel))
    tensors = [keras.ops.convert_to_tensor(x) for x in inputs]
    expected, _ = oracle.attention(*inputs, keep=np.broadcast_to(keep, (2, 4, 13, 13)))
    assert_close(run(function, *tensors), expected)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_half_precision(kernel, dtype):
    inputs = make_inputs((13, 13, 4, 2, 4, 4))
    mask, keep = make_mask("window padding", 13, 13)
    tensors = [keras.ops.cast(x, dtype) for x in inputs]
    if not served(kernel, tensors, mask, {}):
        assert kernel == "fused"
        return
    rounded = [run(keras.ops.cast, x, "float32") for x in tensors]
    expected, _ = oracle.attention(*rounded, keep=np.broadcast_to(keep, (2, 4, 13, 13)))
    found = attention(*tensors, mask=mask, implementation=kernel)
    assert keras.backend.standardize_dtype(found.dtype) == dtype
    tolerance = {"float16": 2e-3, "bfloat16": 2e-2}[dtype]
    assert_close(run(keras.ops.cast, found, "float32"), expected, tolerance)


@pytest.mark.parametrize("kernel", KERNELS)
def test_infinite_biases_mask(kernel):
    inputs = make_inputs((6, 6, 2, 2, 4, 4))
    keep = np.random.default_rng(8).random((2, 2, 6, 6)) > 0.5
    keep[0, 0, 2] = False
    bias = np.where(keep, 0.0, -np.inf).astype("float32")
    if kernel == "banded" or not served(kernel, inputs, None, {"bias": bias}):
        return
    upstream = np.ones((2, 6, 2, 4))
    output, gradients = differentiate(
        lambda *x: attention(*x, bias=bias, implementation=kernel), inputs, upstream
    )
    assert_close(output, oracle.attention(*inputs, keep=keep)[0])
    assert all(np.isfinite(x).all() for x in gradients)


@pytest.mark.parametrize("kernel", KERNELS)
@pytest.mark.parametrize("mask_name", ["causal", "causal window"])
def test_dropout(kernel, mask_name):
    """Unbiased; repeats with its seed; its gradient is the derivative of what it computed."""
    inputs = make_inputs((13, 13, 2, 2, 4, 4))
    mask, keep = make_mask(mask_name, 13, 13)
    if not served(kernel, inputs, mask, {"dropout_rate": 0.25}):
        assert kernel in ("banded", "fused")
        return
    options = {"mask": mask, "implementation": kernel, "dropout_rate": 0.25}
    expected, _ = oracle.attention(*inputs, keep=np.broadcast_to(keep, (2, 2, 13, 13)))
    generator = keras.random.SeedGenerator(7)
    drawn = [run(attention, *inputs, seed=generator, **options) for _ in range(200)]
    assert np.abs(drawn[0] - drawn[1]).max() > 0.1
    spread = np.std(drawn, axis=0).max()
    assert np.abs(np.mean(drawn, axis=0) - expected).max() < 5 * spread / np.sqrt(200)

    if kernel == "fused":
        return  # the framework's own generator, which no seed of Keras's reaches
    once = run(attention, *inputs, seed=3, **options)
    np.testing.assert_array_equal(once, run(attention, *inputs, seed=3, **options))
    # Linear in the values: the output is what the gradient for the values says it is.
    _, gradients = differentiate(
        lambda *x: attention(*x, seed=3, **options), inputs, np.ones(once.shape)
    )
    assert_close((gradients[2] * inputs[2]).sum(), once.sum(), 1e-4)
    # And a step along the gradient for the queries changes the output as it says.
    step = 1e-2 * gradients[0] / np.abs(gradients[0]).max()
    moved = [
        run(attention, inputs[0] + sign * step, *inputs[1:], seed=3, **options).sum(dtype="float64")
        for sign in (1, -1)
    ]
    assert_close((moved[0] - moved[1]) / 2, (step * gradients[0]).sum(), 1e-2)
