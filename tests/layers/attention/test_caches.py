"""Which cache a layer gets; when it gets one is in `tests.decode_checks`."""

import pytest

from kattn import masks, ops
from kattn.layers.attention.caches import empty_cache_of
from kattn.layers.attention.head_sizes import HeadSizes

CAUSAL = masks.Causal()


@pytest.mark.parametrize(
    ("pattern", "kind", "steps"),
    [
        (CAUSAL, ops.KVCache, 9),
        (CAUSAL & masks.Window(4), ops.RingCache, 4),
        (CAUSAL & masks.Window(9), ops.KVCache, 9),
        (CAUSAL & masks.Dilated(3, 2), ops.RingCache, 5),
        (CAUSAL | masks.Prefix(2), ops.KVCache, 9),
        (CAUSAL & (masks.Window(2) | masks.Prefix(1)), ops.KVCache, 9),
        (None, ops.KVCache, 9),
    ],
)
def test_a_short_window_gets_a_ring(pattern, kind, steps):
    sizes = HeadSizes(heads=4, key_heads=2, key_dim=3, value_dim=5, maps=2)
    cache = empty_cache_of(pattern, 3, 9, sizes, "float16")
    assert type(cache) is kind
    assert tuple(cache.keys.shape) == (3, 2, steps, 6)
    assert tuple(cache.values.shape) == (3, 2, steps, 5)
    assert tuple(cache.length.shape) == (3,)
    assert "float16" in str(cache.keys.dtype)
