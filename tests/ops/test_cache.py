import keras
import numpy as np
import pytest
from keras import ops

from kattn.ops import KVCache, PositionCache, RingCache, empty_cache
from kattn.ops.cache import count_steps, extend, next_positions, real_first
from kattn.spans import Places
from tests.compute import run

SIZES = {"heads": 2, "key_dim": 3, "value_dim": 4, "dtype": "float32"}
REAL = np.array([[0, 1, 1, 0], [1, 1, 1, 1], [0, 0, 0, 0]], bool)


def pieces(rng, steps):
    """Keys `(3, 2, t, 3)` and values `(3, 2, t, 4)`."""
    return [rng.normal(size=(3, 2, steps, width)).astype("float32") for width in (3, 4)]


def held(cache, places):
    """For each item, position to slot, of all that the cache holds."""
    if isinstance(places, Places):
        index = run(ops.copy, places.index)
    else:
        index = np.broadcast_to(np.arange(places.size), (3, places.size))
    length = run(ops.copy, cache.length)
    return [
        {int(p): s for s, p in enumerate(row) if 0 <= p < n}
        for row, n in zip(index, length, strict=True)
    ]


@pytest.mark.parametrize(("kind", "size"), [(KVCache, 9), (RingCache, 3), (RingCache, 1)])
@pytest.mark.parametrize("parts", [[1] * 7, [4, 1, 2], [2, 4, 1]])
def test_a_cache_holds_the_real_steps_in_their_order(rng, kind, size, parts):
    """Position by position, against lists of what was real."""
    cache = empty_cache(kind, 3, size, **SIZES)
    lists = [[], [], []]
    for count in parts:
        key, value = pieces(rng, count)
        real = REAL[:, :count] if count > 1 else None
        given = None if real is None else ops.convert_to_tensor(real)
        places = run(next_positions, cache, count, given)
        for b, i in np.ndindex(3, count):
            if real is None or real[b, i]:
                assert places[b, i] == len(lists[b])
                lists[b].append((key[b, :, i], value[b, :, i]))
        cache, keys, values, where = extend(cache, *map(ops.convert_to_tensor, (key, value)), given)
        keys, values = run(ops.copy, keys), run(ops.copy, values)
        assert run(ops.copy, cache.length).tolist() == [len(x) for x in lists]
        for b, slots in enumerate(held(cache, where)):
            # All that a window ending at the first or a later new step can see.
            new = count if real is None else real[b].sum()
            since = 0 if kind is KVCache else max(len(lists[b]) - new - size + 1, 0)
            assert set(slots) >= set(range(since, len(lists[b])))
            for position, slot in slots.items():
                np.testing.assert_array_equal(keys[b, :, slot], lists[b][position][0])
                np.testing.assert_array_equal(values[b, :, slot], lists[b][position][1])


def test_positions_go_on_where_a_cache_of_positions_ends():
    """Which has nothing but its length."""
    cache = PositionCache(ops.convert_to_tensor([2, 0, 5], "int32"))
    found = run(next_positions, cache, 4, ops.convert_to_tensor(REAL))
    np.testing.assert_array_equal(found, [[1, 2, 3, 3], [0, 1, 2, 3], [4, 4, 4, 4]])
    assert run(count_steps, 4, ops.convert_to_tensor(REAL)).tolist() == [2, 4, 0]
    assert count_steps(4) == 4


def test_a_ring_stays_as_large_as_its_window(rng):
    cache = empty_cache(RingCache, 3, 4, **SIZES)
    for count in (1, 6, 1):
        cache, *_ = extend(cache, *map(ops.convert_to_tensor, pieces(rng, count)))
    assert tuple(cache.keys.shape) == (3, 2, 4, 3)
    assert tuple(cache.values.shape) == (3, 2, 4, 4)


@pytest.mark.parametrize("kind", [KVCache, RingCache])
@pytest.mark.parametrize("count", [1, 2])
@pytest.mark.parametrize("padded", [False, True])
def test_the_batch_axis_is_first_in_every_tensor(rng, kind, count, padded):
    cache = empty_cache(kind, 3, 5, **SIZES)
    assert {x.shape[0] for x in cache} == {3}
    real = ops.convert_to_tensor(REAL[:, :count]) if padded else None
    cache, *_ = extend(cache, *map(ops.convert_to_tensor, pieces(rng, count)), real)
    assert {x.shape[0] for x in cache} == {3}
    assert keras.backend.standardize_dtype(cache.length.dtype) == "int32"


def test_keys_are_kept_in_the_dtype_of_the_cache(rng):
    cache = empty_cache(KVCache, 3, 5, **{**SIZES, "dtype": "float16"})
    cache, keys, _, _ = extend(cache, *map(ops.convert_to_tensor, pieces(rng, 2)))
    assert keras.backend.standardize_dtype(keys.dtype) == "float16"


@pytest.mark.skipif(keras.backend.backend() != "torch", reason="other tensors cannot be written")
@pytest.mark.parametrize("count", [1, 3])
def test_in_place_on_torch_outside_of_gradient(rng, count):
    import torch

    key, value = map(ops.convert_to_tensor, pieces(rng, count))
    for recorded in (False, True):
        cache = empty_cache(KVCache, 3, 5, **SIZES)
        with torch.set_grad_enabled(recorded):
            new, *_ = extend(cache, key.clone().requires_grad_(recorded), value)
        assert (new.keys.data_ptr() == cache.keys.data_ptr()) == (not recorded)
        assert new.keys.requires_grad == recorded


def test_bad_input():
    with pytest.raises(ValueError, match=r"`batch_size` must be an integer >= 1.*batch_size=0"):
        empty_cache(KVCache, 0, 5, **SIZES)
    with pytest.raises(ValueError, match=r"`size` must be an integer >= 1.*size=None"):
        empty_cache(RingCache, 2, None, **SIZES)
    with pytest.raises(ValueError, match=r"`heads` must be an integer >= 1.*heads=2\.0"):
        empty_cache(KVCache, 2, 5, **{**SIZES, "heads": 2.0})


def test_real_steps_come_first_in_their_order():
    places = run(lambda: real_first(ops.convert_to_tensor(REAL)).index)
    np.testing.assert_array_equal(places, [[1, 2, 0, 3], [0, 1, 2, 3], [0, 1, 2, 3]])
