"""Sizes of zero and sizes that are not known, in the functions."""

import keras
import numpy as np
import pytest
from keras import ops

from kattn import backend, biases, masks
from kattn.ops import (
    KVCache,
    RingCache,
    attention,
    attention_weights,
    decode,
    empty_cache,
    explain,
    gated_linear_attention,
    linear_attention,
    linear_attention_weights,
)
from kattn.ops.feature_maps import elu_plus_one
from kattn.ops.sizes import (
    at_least_one,
    ceil_divide,
    has_shape,
    is_symbol,
    known_shape,
    stands_for_any,
)
from tests.compute import assert_close, differentiate, run
from tests.traced import traced_for_any_length

KERNELS = ("dense", "fused", "chunked", "banded")
# (B, T, S): no items, no queries, no keys, nothing at all.
EMPTY = [(0, 5, 5), (2, 0, 5), (2, 5, 0), (2, 0, 0)]


def inputs(batch, queries, keys, heads=2, width=4):
    rng = np.random.default_rng(0)
    shapes = [(batch, steps, heads, width) for steps in (queries, keys, keys)]
    return [rng.normal(size=shape).astype("float32") for shape in shapes]


def test_sizes():
    assert known_shape(np.zeros((2, 0))) == (2, 0)
    assert known_shape(keras.KerasTensor((None, 3))) == (None, 3)
    assert not any(map(is_symbol, (0, 3, None)))
    # A loop over a size that is a tensor is exported by TensorFlow alone.
    assert is_symbol(ops.convert_to_tensor(3)) == (keras.backend.backend() != "tensorflow")
    assert [ceil_divide(n, 3) for n in (0, 1, 3, 4)] == [0, 1, 1, 2]
    assert [at_least_one(n) for n in (0, 1, 7)] == [1, 1, 7]
    assert not stands_for_any(keras.KerasTensor((None, 3)), 0)


@pytest.mark.parametrize("sizes", EMPTY)
@pytest.mark.parametrize("kernel", KERNELS)
def test_attention_to_nothing(kernel, sizes):
    """Zeros where there are queries; gradients of zero, for a table of distances, too."""
    mask = masks.Window(2) & masks.Padding(np.ones((sizes[0], sizes[2]), bool))
    table = np.ones((2, 5), "float32")
    biased = not (kernel == "fused" and frozenset() == backend.FUSED_RULES)

    def call(q, k, v, table):
        bias = biases.Clipped(table) if biased else None
        return attention(q, k, v, mask=mask, bias=bias, implementation=kernel)

    arrays = inputs(*sizes)
    if kernel == "fused" and not biased:
        with pytest.raises(ValueError, match="cannot serve"):
            call(*arrays, table)
        return
    output, gradients = differentiate(call, [*arrays, table], arrays[0])
    np.testing.assert_array_equal(output, np.zeros_like(arrays[0]))
    for gradient, array in zip(gradients, [*arrays, table], strict=True):
        np.testing.assert_array_equal(gradient, np.zeros_like(array))


def test_weights_of_nothing():
    for sizes in EMPTY:
        q, k, _ = inputs(*sizes)
        shape = (sizes[0], 2, *sizes[1:])
        assert run(attention_weights, q, k, mask=masks.Causal()).shape == shape
        assert run(linear_attention_weights, q, k, feature_map=elu_plus_one).shape == shape
        assert explain(q, k, k, mask=masks.Causal() & masks.Window(2)).implementation


def test_an_array_as_bias_for_no_keys():
    bias = np.zeros((1, 1, 5, 0), "float32")
    assert not run(attention, *inputs(2, 5, 0), bias=bias).any()


@pytest.mark.parametrize("implementation", ["parallel", "chunked"])
@pytest.mark.parametrize("sizes", EMPTY)
def test_linear_attention_to_nothing(sizes, implementation):
    arrays, same = inputs(*sizes), sizes[1] == sizes[2]
    options = {"feature_map": elu_plus_one, "implementation": implementation}
    for causal in (False, True) if same else (False,):
        output = run(linear_attention, *arrays, causal=causal, **options)
        np.testing.assert_array_equal(output, np.zeros_like(arrays[0]))
    if same:
        for decay in (arrays[1], arrays[1][..., 0], np.zeros(2, "float32")):
            output = run(gated_linear_attention, *arrays, -abs(decay), implementation="parallel")
            assert output.shape == arrays[0].shape


@pytest.mark.parametrize("kind", [KVCache, RingCache])
def test_no_new_steps_leave_a_cache_as_it_is(kind):
    cache = empty_cache(kind, 2, 4, heads=2, key_dim=4, value_dim=4, dtype="float32")
    window = masks.Causal() & masks.Window(4)
    _, cache = decode(*inputs(2, 3, 3), cache, mask=window)
    held = run(ops.copy, cache.keys)
    output, cache = decode(*inputs(2, 0, 0), cache, mask=window)
    assert tuple(output.shape) == (2, 0, 2, 4)
    np.testing.assert_array_equal(run(ops.copy, cache.keys), held)
    np.testing.assert_array_equal(run(ops.copy, cache.length), [3, 3])


@pytest.mark.skipif(keras.backend.backend() == "tensorflow", reason="TensorFlow has no symbols")
def test_a_symbol_cannot_be_cut_into_blocks():
    """`dense` serves such a call; blocks that are asked for are refused in words."""
    taken = []

    def call(q, k, v):
        taken.append(explain(q, k, v, mask=masks.Causal()))
        with pytest.raises(ValueError, match="traced for any T and S, which cannot be cut"):
            attention(q, k, v, mask=masks.Causal(), implementation="chunked")
        return attention(q, k, v, mask=masks.Causal() & masks.Window(3))

    shapes = [(2, "T", 2, 4)] * 3
    function = traced_for_any_length(call, inputs(2, 5, 5), shapes)
    arrays = inputs(2, 9, 9)
    expected = run(attention, *arrays, mask=masks.Causal() & masks.Window(3))
    assert_close(run(function, *arrays), expected)
    assert "any T and S" in taken[0].passed_over["chunked"]


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="XLA of TensorFlow")
def test_gated_linear_attention_trains_on_several_lengths_under_xla():
    import tensorflow as tf

    def gradients(q, k, v):
        with tf.GradientTape() as tape:
            tape.watch((q, k, v))
            y = gated_linear_attention(q, k, v, -tf.abs(k), chunk=4)
            loss = tf.reduce_sum(y * y)
        return tape.gradient(loss, (q, k, v))

    signature = [tf.TensorSpec((None, None, 2, 4))] * 3
    compiled = tf.function(gradients, input_signature=signature, jit_compile=True, autograph=False)
    for steps in (9, 5):
        tensors = [tf.convert_to_tensor(x) for x in inputs(2, steps, steps)]
        for found, wanted in zip(compiled(*tensors), gradients(*tensors), strict=True):
            assert_close(found, wanted, 1e-4)


@pytest.mark.parametrize(
    ("shape", "wanted"),
    [((2, 5), True), ((None, 5), True), ((2, 4), False), ((2,), False), ((2, 5, 1), False)],
)
def test_shapes_are_compared_as_far_as_they_are_known(shape, wanted):
    assert has_shape(ops.ones((2, 5)), shape) == wanted
    if shape[0] is not None:
        assert has_shape(keras.KerasTensor((None, 5)), shape) == wanted
