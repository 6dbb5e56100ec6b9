"""Keys and values of the steps so far: what a causal layer keeps between calls of `decode`.

Caches are plain tuples of tensors, so they go through `keras.ops.while_loop`, `jax.jit` and
`tf.function`, with shapes that do not change. Heads come before steps, as the products want them:
nothing is transposed when a step is read. Only real steps are kept: padding at either side of a
piece is as if it were not there, and step p of an item is its p-th real one.
"""

from typing import Any, NamedTuple

from keras import ops

from kattn import backend
from kattn.spans import Places, Span


class KVCache(NamedTuple):
    """The keys and values of up to L steps.

    Args:
        keys: `(B, K, L, D)`.
        values: `(B, K, L, Dv)`.
        length: `(B,)` int32, how many steps each item has so far.
    """

    keys: Any
    values: Any
    length: Any


class RingCache(NamedTuple):
    """The keys and values of the last W steps, all that a window of W looks at.

    Step p lies in slot p mod W: memory does not grow with the steps.

    Args:
        keys: `(B, K, W, D)`.
        values: `(B, K, W, Dv)`.
        length: `(B,)` int32, how many steps each item has had so far.
    """

    keys: Any
    values: Any
    length: Any


def empty_cache(kind, batch_size, size, *, heads, key_dim, value_dim, dtype):
    """A cache without steps.

    Args:
        kind: `KVCache` or `RingCache`.
        batch_size: B.
        size: L, the steps that it can hold, or W, the window.
        heads: K.
        key_dim: D.
        value_dim: Dv.
        dtype: Of keys and values.

    Returns:
        A `KVCache` or a `RingCache`.

    Raises:
        ValueError: If `batch_size` or `size` is not a positive integer.

    Example:
        >>> empty_cache(KVCache, 2, 128, heads=4, key_dim=16, value_dim=16, dtype="float32")
    """
    for name, value in (("batch_size", batch_size), ("length", size)):
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ValueError(f"`{name}` must be an integer >= 1; received: {name}={value!r}")
    shape = (batch_size, heads, size)
    return kind(
        ops.zeros((*shape, key_dim), dtype),
        ops.zeros((*shape, value_dim), dtype),
        ops.zeros((batch_size,), "int32"),
    )


def next_positions(cache, steps, real=None):
    """The positions of the next steps.

    Args:
        cache: Anything with a `length`, `(B,)`.
        steps: t, how many steps come.
        real: `(B, t)` bool, True = real step, or None for all.

    Returns:
        `(B, t)` int32, counting real steps from 0; at padding, that of the step before it, or 0.

    Example:
        >>> next_positions(KVCache(keys, values, length=[3, 5]), 2)
        [[3, 4], [5, 6]]
    """
    length = cache.length[:, None]
    if real is None:
        return length + ops.arange(steps, dtype="int32")
    return ops.maximum(length + ops.cumsum(ops.cast(real, "int32"), axis=1) - 1, 0)


def extend(cache, key, value, real=None):
    """The cache with more steps, and what queries at these steps look at.

    Args:
        cache: A `KVCache` or a `RingCache`. On PyTorch its tensors are written in place, where
            no gradient is recorded.
        key: `(B, K, t, D)`.
        value: `(B, K, t, Dv)`.
        real: `(B, t)` bool, True = real step, or None for all.

    Returns:
        `(cache, keys, values, places)`: keys `(B, K, S, D)`, values `(B, K, S, Dv)`, and their
        positions, `Span` or `Places`; negative where there is none. Positions from the cache's
        length on are of no step, either.

    Example:
        >>> cache, keys, values, places = extend(cache, key, value)
    """
    key, value = (ops.cast(x, cache.keys.dtype) for x in (key, value))
    extend_kind = _extend_ring if isinstance(cache, RingCache) else _extend_fixed
    return extend_kind(cache, key, value, real)


def _extend_fixed(cache, key, value, real):
    slots = Span(0, cache.keys.shape[2])
    taken = _count(key, real)
    rank = slots.positions()[None] - cache.length[:, None]
    _check_room(cache, taken)
    keys, values = (
        _write(old, new, cache.length, rank, taken, real)
        for old, new in ((cache.keys, key), (cache.values, value))
    )
    return KVCache(keys, values, cache.length + taken), keys, values, slots


def _extend_ring(cache, key, value, real):
    steps, window = key.shape[2], cache.keys.shape[2]
    taken = _count(key, real)
    length = cache.length + taken
    held = _held(length, window)
    pairs = ((cache.keys, key), (cache.values, value))
    # Several steps look at the ring as it was before them, and at each other.
    beside = None if steps == 1 else [ops.concatenate(pair, axis=2) for pair in pairs]
    keys, values = (
        _write(old, new, cache.length % window, held - cache.length[:, None], taken, real)
        for old, new in pairs
    )
    ring = RingCache(keys, values, length)
    if beside is None:
        return ring, keys, values, Places(held)
    fresh = next_positions(cache, steps, real)
    fresh = fresh if real is None else ops.where(real, fresh, -1)
    return ring, *beside, Places(ops.concatenate([_held(cache.length, window), fresh], axis=1))


def _held(length, window):
    """`(B, W)`: the position whose key each slot of a ring holds; negative: none."""
    last = length[:, None] - 1
    return last - (last - ops.arange(window, dtype="int32")) % window


def _count(key, real):
    """How many real steps come, a number or `(B,)`."""
    return key.shape[2] if real is None else ops.sum(ops.cast(real, "int32"), axis=1)


def _write(old, new, slot, rank, taken, real):
    """`(B, K, slots, D)` with the new steps `(B, K, t, D)`.

    `slot` `(B,)` is where the first goes; `rank` `(B, slots)` is which of the real new steps goes
    into each slot, and none does where it is not in [0, taken).
    """
    if new.shape[2] == 1 and real is None:
        return backend.put_step(old, slot, new[:, :, 0])
    if real is not None:  # real steps first
        index = ops.arange(new.shape[2], dtype="int32")
        order = ops.argsort(ops.where(real, index, index + new.shape[2]), axis=1)
        new = Places(ops.cast(order, "int32")).cut(new, -2)
    taken = taken if isinstance(taken, int) else taken[:, None]
    fits = ops.logical_and(rank >= 0, rank < taken)[:, None, :, None]
    return backend.overwrite(old, ops.where(fits, Places(rank).cut(new, -2), old))


def _check_room(cache, taken):
    """Raises ValueError where steps do not fit, if that can be seen without tracing."""
    room, length = cache.keys.shape[2], backend.concrete(cache.length + taken)
    if length is not None and length.max() > room:
        raise ValueError(
            "A cache must have room for all steps; received: "
            f"length={room}, steps={[int(n) for n in length]}"
        )
