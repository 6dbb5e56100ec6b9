"""A cache of the first and the last steps, against attention to these steps alone."""

import keras
import numpy as np
import pytest
from keras import ops

from kattn import layers
from kattn.ops import KVCache, SinkCache, empty_cache, sink_cache
from tests.checks import ready
from tests.compute import assert_close, no_gradients, quick, run

FIRST, WINDOW, STEPS = 2, 3, 8
KINDS = {
    "rotary": lambda: layers.SelfAttention(2, causal=True, position=layers.RotaryEmbedding()),
    "yarn": lambda: layers.SelfAttention(
        2,
        causal=True,
        position=layers.RotaryEmbedding(scaling="yarn", factor=4.0, original_length=4),
    ),
    "alibi": lambda: layers.SelfAttention(2, causal=True, position=layers.ALiBi()),
    "none": lambda: layers.SelfAttention(2, causal=True),
    "differential": lambda: layers.DifferentialAttention(
        2, causal=True, position=layers.RotaryEmbedding()
    ),
}


def expected(layer, x):
    """Each step's output: that of the layer over the steps which are kept, as if alone."""
    call, outputs = quick(layer), []
    for step in range(STEPS):
        kept = sorted({*range(FIRST), *range(step - WINDOW + 1, step + 1)} & set(range(step + 1)))
        some = np.zeros_like(x[:, : FIRST + WINDOW])  # what is behind a step changes nothing
        some[:, : len(kept)] = x[:, kept]
        outputs.append(run(call, some)[:, len(kept) - 1])
    return np.stack(outputs, axis=1)


def shapes(cache):
    return [tuple(x.shape) for x in keras.tree.flatten(cache)]


def start(layer):
    cache = layer.init_cache(2, FIRST + WINDOW)
    assert isinstance(cache, KVCache)
    return sink_cache(cache, FIRST)


@pytest.mark.parametrize("kind", KINDS)
def test_positions_are_those_within_the_cache(rng, kind):
    """In pieces of any size."""
    x = rng.normal(size=(2, STEPS, 8)).astype("float32")
    layer = ready(KINDS[kind], [x])
    wanted, decode = expected(layer, x), quick(layer.decode)
    cache, outputs, begin = start(layer), [], 0
    with no_gradients():
        for size in (1, 1, 4, 1, 1):
            y, cache = decode(x[:, begin : begin + size], cache)
            outputs.append(run(ops.copy, y))
            begin += size
    assert isinstance(cache, SinkCache)
    assert shapes(cache) == shapes(start(layer)), "its size grows"
    assert_close(np.concatenate(outputs, axis=1), wanted)


def test_the_drop_in_layer(rng):
    x = rng.normal(size=(2, STEPS, 8)).astype("float32")
    layer = ready(
        lambda: layers.MultiHeadAttention(2, 4, position=layers.RotaryEmbedding()), [x, x]
    )
    y, _ = quick(layer.decode)(x, start(layer))
    causal = expected(lambda x: layer(x, x, use_causal_mask=True), x)
    assert_close(run(ops.stop_gradient, y), causal)


def test_padding_is_not_kept(rng):
    x = rng.normal(size=(2, STEPS, 8)).astype("float32")
    layer = ready(KINDS["rotary"], [x])
    wanted = expected(layer, x)
    longer = np.concatenate([np.full((2, 2, 8), 9.0, "float32"), x[:, :5]], axis=1)
    real = ops.convert_to_tensor(np.arange(7) >= [[2], [2]])
    decode = quick(layer.decode)
    y, cache = decode(longer, start(layer), mask=real)
    assert_close(run(ops.stop_gradient, y)[:, 2:], wanted[:, :5])
    y, _ = decode(x[:, 5:], cache)
    assert_close(run(ops.stop_gradient, y), wanted[:, 5:])


def test_sizes():
    cache = empty_cache(KVCache, 3, 6, heads=2, key_dim=4, value_dim=5, dtype="float32")
    sizes = [(3, 2, 2, 4), (3, 2, 2, 5), (3,), (3, 2, 4, 4), (3, 2, 4, 5), (3,)]
    assert shapes(sink_cache(cache, 2)) == sizes
