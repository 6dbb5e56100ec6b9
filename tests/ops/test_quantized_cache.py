"""Keys and values in 8 bits: how near they are, and what they take."""

import keras
import numpy as np
import pytest
from keras import ops

from kattn import layers
from kattn.ops import KVCache, QuantizedCache, empty_cache, quantized_cache, sink_cache
from kattn.ops.cache import extend
from tests.checks import ready
from tests.compute import quick, run

SIZES = {"heads": 2, "key_dim": 4, "value_dim": 3, "dtype": "float32"}
KINDS = {
    "all": lambda: empty_cache(KVCache, 2, 9, **SIZES),
    "first and last": lambda: sink_cache(empty_cache(KVCache, 2, 4, **SIZES), 1),
}


@pytest.mark.parametrize("kind", KINDS)
def test_vectors_are_kept_within_half_a_level(rng, kind):
    """What is looked at is what the same cache of floats holds, within max / 254 of each vector."""
    exact, near = KINDS[kind](), quantized_cache(KINDS[kind]())
    add = quick(lambda exact, near, *new: [extend(x, *new)[:3] for x in (exact, near)])
    for steps, real in ((3, None), (2, np.array([[0, 1], [1, 1]], bool)), (1, None)):
        new = [rng.normal(size=(2, 2, steps, width)).astype("float32") for width in (4, 3)]
        new[0][0, 0, 0] = 0.0  # has no largest number to divide by
        real = None if real is None else ops.convert_to_tensor(real)
        (exact, *wanted), (near, *found) = add(exact, near, *map(ops.convert_to_tensor, new), real)
        wanted, found = ([run(ops.copy, x) for x in some] for some in (wanted, found))
        for one, other in zip(found, wanted, strict=True):
            level = np.abs(other).max(axis=-1, keepdims=True) / 254
            assert (np.abs(one - other) <= level * 1.001).all()
    assert isinstance(near, QuantizedCache)
    np.testing.assert_array_equal(run(ops.copy, near.length), run(ops.copy, exact.length))


def test_outputs_are_near(rng):
    x = rng.normal(size=(2, 9, 16)).astype("float32")
    layer = ready(lambda: layers.SelfAttention(2, causal=True), [x])
    exact, decode = run(quick(layer), x), quick(layer.decode)
    found, _ = decode(x, quantized_cache(layer.init_cache(2, 9)))
    error = np.abs(run(ops.stop_gradient, found) - exact).max() / np.abs(exact).max()
    assert 1e-5 < error < 1e-2


def test_memory():
    full = empty_cache(KVCache, 2, 128, heads=2, key_dim=64, value_dim=64, dtype="float32")

    def size(cache):
        return sum(run(ops.copy, x).nbytes for x in keras.tree.flatten(cache))

    assert size(quantized_cache(full)) <= 0.27 * size(full)
