"""Cross-attention from a cache against the oracle."""

import numpy as np
import pytest
from keras import ops

from kattn.ops.context_cache import ContextCache, context_cache, decode_context
from tests import oracle
from tests.compute import assert_close, run

REAL = np.array([[1, 1, 0, 1], [0, 1, 1, 1], [0] * 4], bool)


@pytest.mark.parametrize("masked", [False, True])
def test_matches_oracle(rng, masked):
    q, k = rng.normal(size=(3, 2, 4, 5)), rng.normal(size=(3, 4, 2, 5))
    v, sinks = rng.normal(size=(3, 4, 2, 3)), rng.normal(size=4)
    tensors = [ops.convert_to_tensor(x.astype("float32")) for x in (q, k, v, sinks)]
    mask = ops.convert_to_tensor(REAL) if masked else None
    cache = context_cache(*tensors[1:3], mask)
    y, cache = decode_context(tensors[0], cache, softcap=2.0, sinks=tensors[3])
    keep = np.broadcast_to(REAL[:, None, None] if masked else True, (3, 4, 2, 4))
    expected, _ = oracle.attention(q, k, v, keep=keep, softcap=2.0, sinks=sinks)
    assert_close(run(ops.copy, y), expected)
    np.testing.assert_array_equal(run(ops.copy, cache.length), [2, 2, 2])


def test_real_steps_are_counted():
    x = ops.ones((2, 3, 2, 4))
    cache = context_cache(x, x)
    real = ops.convert_to_tensor(np.array([[1, 0, 1], [0, 0, 1]], bool))
    for _ in range(2):
        _, cache = decode_context(x, cache, real=real)
    assert isinstance(cache, ContextCache)
    np.testing.assert_array_equal(run(ops.copy, cache.length), [4, 2])


def test_the_batch_comes_first():
    cache = context_cache(ops.ones((2, 3, 4, 5)), ops.ones((2, 3, 4, 6)))
    shapes = [tuple(leaf.shape) for leaf in cache]
    assert shapes == [(2, 4, 3, 5), (2, 4, 3, 6), (2, 3), (2,)]


def test_shapes_that_do_not_fit():
    cache = context_cache(ops.ones((2, 3, 4, 5)), ops.ones((2, 3, 4, 5)))
    with pytest.raises(ValueError, match="widths of query and key heads must be equal"):
        decode_context(ops.ones((2, 1, 4, 6)), cache)
