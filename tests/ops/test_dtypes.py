"""Scales, biases, seeds and dtypes mean the same in every kernel."""

import keras
import numpy as np
import pytest
from keras import ops

from kattn import biases, masks
from kattn.ops import attention, attention_weights, explain
from tests import oracle
from tests.compute import assert_close, compiled, differentiate, run

KERNELS = ("dense", "chunked", "banded")


def inputs(steps=12, heads=2, width=4):
    rng = np.random.default_rng(1)
    return [rng.normal(size=(2, steps, heads, width)).astype("float32") for _ in range(3)]


MASK = masks.Causal() & masks.Window(3)


@pytest.mark.parametrize("kernel", KERNELS)
def test_a_learned_scale_has_a_gradient(kernel):
    def call(q, k, v, scale):
        return attention(q, k, v, mask=MASK, scale=scale, implementation=kernel)

    arrays, upstream = inputs(), inputs()[0]
    scale = np.array(0.7, "float32")
    output, gradients = differentiate(call, [*arrays, scale], upstream)
    assert_close(output, run(attention, *arrays, mask=MASK, scale=0.7, implementation=kernel))
    step = 1e-2
    ends = [
        (upstream * run(attention, *arrays, mask=MASK, scale=0.7 + s * step)).sum(dtype="float64")
        for s in (1, -1)
    ]
    assert_close(gradients[3], (ends[0] - ends[1]) / (2 * step), 1e-3)


def test_a_learned_scale_elsewhere():
    q, k, v = inputs()
    scale = keras.Variable(0.7)
    assert "the scale is a tensor" in explain(q, k, v, scale=scale).passed_over["fused"]
    found = run(attention_weights, q, k, scale=scale)
    assert_close(found, run(attention_weights, q, k, scale=0.7))
    nodes = [keras.Input(x.shape[1:]) for x in (q, k, v)] + [keras.Input(batch_shape=())]
    model = keras.Model(nodes, attention(*nodes[:3], scale=nodes[3]))
    tensors = [ops.convert_to_tensor(x) for x in (q, k, v, np.float32(0.7))]
    assert_close(run(model, tensors), run(attention, q, k, v, scale=0.7))
    with pytest.raises(ValueError, match="`scale` must be a number or a scalar tensor"):
        attention(q, k, v, scale=np.ones(2))


@pytest.mark.parametrize("implementation", ["auto", "dense", "chunked", "banded"])
def test_unlike_dtypes_give_the_dtype_of_the_query(implementation):
    q, k, v = inputs()
    k = ops.cast(k, "bfloat16")
    found = attention(q, k, v, mask=MASK, implementation=implementation)
    assert keras.backend.standardize_dtype(found.dtype) == "float32"
    rounded = run(ops.cast, k, "float32")
    assert_close(run(ops.copy, found), run(attention, q, rounded, v, mask=MASK))


@pytest.mark.parametrize("implementation", ["auto", *KERNELS])
def test_an_integer_seed_draws_the_same_each_time(implementation):
    tensors = [ops.convert_to_tensor(x) for x in inputs()]

    def call(q, k, v):
        options = {"dropout_rate": 0.5, "seed": 3, "implementation": implementation}
        return attention(q, k, v, mask=MASK, **options)

    expected = run(call, *tensors)
    assert np.abs(expected - run(attention, *tensors, mask=MASK)).max() > 0.1
    np.testing.assert_array_equal(run(call, *tensors), expected)
    if implementation == "auto" and keras.backend.backend() != "torch":  # it takes PyTorch long
        function = compiled(call)
        for _ in range(2):
            assert_close(run(function, *tensors), expected)


def test_the_framework_is_passed_over_for_an_integer_seed():
    q, k, v = inputs()
    with pytest.raises(ValueError, match="fused"):
        attention(q, k, v, dropout_rate=0.5, seed=3, implementation="fused")


@pytest.mark.parametrize("implementation", ["auto", *KERNELS])
def test_biases_keep_float32_in_half_precision(implementation):
    """Scores of 30 that bfloat16 would round by up to 0.06, and so the weights by 6 %."""
    q, k, v = (run(ops.cast, ops.cast(x, "bfloat16"), "float32") for x in inputs())
    table = 30.0 + np.random.default_rng(2).normal(size=(2, 7)).astype("float32")
    keep = oracle.causal(12, 12) & oracle.window(12, 12, 3)
    whole = np.broadcast_to(run(lambda: biases.Clipped(table)[0:12, 0:12]), (2, 2, 12, 12))
    keep = np.broadcast_to(keep, whole.shape)
    expected, _ = oracle.attention(q, k, v, keep=keep, bias=whole)
    halves = [ops.cast(x, "bfloat16") for x in (q, k, v)]
    bias = biases.Clipped(ops.convert_to_tensor(table))
    found = attention(*halves, mask=MASK, bias=bias, implementation=implementation)
    # What is left is the rounding of the output.
    assert_close(run(ops.cast, found, "float32"), expected, 2.0**-8)


@pytest.mark.parametrize("floatx", ["float16", "bfloat16", "float64"])
@pytest.mark.parametrize("kernel", KERNELS)
def test_floatx_changes_no_kernel(kernel, floatx):
    if floatx == "float64" and keras.backend.backend() == "jax":
        return  # which has no float64 unless it is told to
    real = np.ones((2, 12), bool)
    real[1, 8:] = False
    options = {"mask": MASK & masks.Padding(real), "implementation": kernel}
    table = np.random.default_rng(3).normal(size=(2, 8)).astype("float32")

    def call(q, k, v, table):
        return attention(q, k, v, bias=biases.T5(table, 5) + biases.ALiBi((0.5, 0.1)), **options)

    arrays = [*inputs(), table]
    expected, wanted = differentiate(call, arrays, arrays[0])
    before = keras.config.floatx()
    keras.config.set_floatx(floatx)
    try:
        output, gradients = differentiate(call, arrays, arrays[0])
    finally:
        keras.config.set_floatx(before)
    assert output.dtype == "float32"
    for pair in zip((output, *gradients), (expected, *wanted), strict=True):
        assert_close(*pair)
