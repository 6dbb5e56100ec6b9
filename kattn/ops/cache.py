"""Keys and values of the steps so far: what a causal layer keeps between calls of `decode`.

Caches are plain tuples of tensors, so they go through `keras.ops.while_loop`, `jax.jit` and
`tf.function`, with shapes that do not change. Heads come before steps, as the products want them:
nothing is transposed when a step is read. Only real steps are kept: padding at either side of a
piece is as if it were not there, and step p of an item is its p-th real one.
"""

from typing import Any, NamedTuple

from keras import ops

from kattn import backend
from kattn.arguments import check_integers, error
from kattn.spans import Places, Span


class KVCache(NamedTuple):
    """The keys and values of up to L steps, with the batch axis first in every tensor.

    Shapes: B batch, K key/value heads, L slots for steps, D and Dv head widths.

    Args:
        keys: Keys of the steps, float, shape `(B, K, L, D)`.
        values: Values of the steps, float, shape `(B, K, L, Dv)`.
        length: Number of real steps that each item has so far, int32, shape `(B,)`.
    """

    keys: Any
    values: Any
    length: Any


class RingCache(NamedTuple):
    """The keys and values of the last W steps, which are all that a window of W looks at.

    Step p lies in slot p mod W, so memory does not grow with the steps. The batch axis comes first
    in every tensor.

    Shapes: B batch, K key/value heads, W slots, D and Dv head widths.

    Args:
        keys: Keys of the last steps, float, shape `(B, K, W, D)`.
        values: Values of the last steps, float, shape `(B, K, W, Dv)`.
        length: Number of real steps that each item has had so far, int32, shape `(B,)`.
    """

    keys: Any
    values: Any
    length: Any


class PositionCache(NamedTuple):
    """How many real steps there were: all that a layer that adds positions to its inputs needs.

    Args:
        length: Number of real steps that each item has had so far, int32, shape `(B,)`.
    """

    length: Any


def empty_cache(kind, batch_size, size, *, heads, key_dim, value_dim, dtype):
    """A cache without steps.

    Args:
        kind: The class of the cache: `KVCache` or `RingCache`.
        batch_size: Number of sequences, B.
        size: Number of steps that the cache can hold: the longest sequence of a `KVCache`, the
            window of a `RingCache`.
        heads: Number of key/value heads, K.
        key_dim: Width of a key, D.
        value_dim: Width of a value, Dv.
        dtype: Dtype of keys and values, such as "float32".

    Returns:
        A `KVCache` or a `RingCache`.

    Raises:
        ValueError: If `batch_size`, `size`, `heads`, `key_dim` or `value_dim` is not a positive
            integer.

    Example:
        >>> cache = empty_cache(KVCache, 2, 128, heads=4, key_dim=16, value_dim=8, dtype="float32")
        >>> cache.keys.shape, cache.values.shape, cache.length
        ((2, 4, 128, 16), (2, 4, 128, 8), [0, 0])
    """
    check_integers(1, batch_size=batch_size, size=size)
    check_integers(1, heads=heads, key_dim=key_dim, value_dim=value_dim)
    shape = (batch_size, heads, size)
    return kind(
        ops.zeros((*shape, key_dim), dtype),
        ops.zeros((*shape, value_dim), dtype),
        ops.zeros((batch_size,), "int32"),
    )


def next_positions(cache, steps, real=None):
    """The positions of the next steps.

    Args:
        cache: A cache, or anything else with a `length`, int32, shape `(B,)`.
        steps: Number of steps that come, t.
        real: Bool, shape `(B, t)`; True = real step, False = padding. None if all are real.

    Returns:
        Positions, int32, shape `(B, t)`, which count real steps from 0. At padding it is the
        position of the step before it, or 0.

    Example:
        >>> cache = empty_cache(KVCache, 2, 8, heads=1, key_dim=1, value_dim=1, dtype="float32")
        >>> next_positions(cache._replace(length=keras.ops.array([3, 5])), 2)
        [[3, 4], [5, 6]]
    """
    length = cache.length[:, None]
    if real is None:
        return length + ops.arange(steps, dtype="int32")
    steps = length + ops.cumsum(ops.cast(real, "int32"), axis=1) - 1
    return ops.maximum(steps, ops.zeros_like(steps))


def check_room(room, length):
    """Raises ValueError where steps do not fit into a cache, if that can be seen without tracing.

    Args:
        room: Number of steps that the cache can hold.
        length: Number of real steps that each item will have, int32, shape `(B,)`.

    Raises:
        ValueError: If an item has more steps than there is room for.
    """
    known = backend.concrete(length)
    if known is not None and known.max(initial=0) > room:
        raise error(
            "A cache must have room for all steps", length=room, steps=[int(n) for n in known]
        )


def real_first(real):
    """The places of the real steps in their order, and of padding behind them.

    Args:
        real: Bool, shape `(B, t)`; True = real step, False = padding.

    Returns:
        `Places` of t steps.

    Example:
        >>> real_first(keras.ops.array([[False, True, False, True]])).index
        [[1, 3, 0, 2]]
    """
    steps = ops.shape(real)[1]
    index = ops.arange(steps, dtype="int32")
    order = ops.argsort(ops.where(real, index, index + steps), axis=1)
    return Places(ops.cast(order, "int32"))


def count_steps(steps, real=None):
    """How many real steps come.

    Args:
        steps: Number of steps that come, t.
        real: Bool, shape `(B, t)`; True = real step, False = padding. None if all are real.

    Returns:
        The number t, or `(B,)` int32.
    """
    return steps if real is None else ops.sum(ops.cast(real, "int32"), axis=1)


def extend(cache, key, value, real=None):
    """The cache with more steps, and what queries at these steps look at.

    Args:
        cache: A `KVCache` or a `RingCache`, or a cache of another kind, which has a method
            `extended` for it. On PyTorch its tensors are written in place, if no gradient is
            recorded.
        key: Keys of the new steps, float, shape `(B, K, t, D)`.
        value: Values of the new steps, float, shape `(B, K, t, Dv)`.
        real: Bool, shape `(B, t)`; True = real step, False = padding, which is not kept. None if
            all are real.

    Returns:
        `(cache, keys, values, places)`: the cache with the new steps; keys `(B, K, S, D)` and
        values `(B, K, S, Dv)` to look at; and their positions, a `Span` or `Places`. A position
        that is negative, or not below the length of the cache, stands for no step.

    Raises:
        ValueError: If the steps do not fit into a `KVCache` and that can be seen.

    Example:
        >>> cache = empty_cache(RingCache, 1, 4, heads=1, key_dim=2, value_dim=2, dtype="float32")
        >>> cache, keys, values, places = extend(cache, *[keras.ops.ones((1, 1, 3, 2))] * 2)
        >>> keys.shape, cache.length
        ((1, 1, 7, 2), [3])
        >>> places.index  # of four slots that are empty yet, and of the new steps
        [[-4, -3, -2, -1, 0, 1, 2]]
    """
    if hasattr(cache, "extended"):
        return cache.extended(key, value, real)
    key, value = (ops.cast(x, cache.keys.dtype) for x in (key, value))
    extend_kind = _extend_ring if isinstance(cache, RingCache) else _extend_fixed
    return extend_kind(cache, key, value, real)


def _extend_fixed(cache, key, value, real):
    slots = Span(0, cache.keys.shape[2])
    taken = count_steps(key.shape[2], real)
    rank = slots.positions()[None] - cache.length[:, None]
    check_room(cache.keys.shape[2], cache.length + taken)
    keys, values = (
        _write(old, new, cache.length, rank, taken, real)
        for old, new in ((cache.keys, key), (cache.values, value))
    )
    return KVCache(keys, values, cache.length + taken), keys, values, slots


def _extend_ring(cache, key, value, real):
    steps, window = key.shape[2], cache.keys.shape[2]
    taken = count_steps(key.shape[2], real)
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


def _write(old, new, slot, rank, taken, real):
    """`(B, K, slots, D)` with the new steps `(B, K, t, D)`.

    `slot` `(B,)` is where the first goes; `rank` `(B, slots)` is which of the real new steps goes
    into each slot, and none does where it is not in [0, taken).
    """
    if new.shape[2] == 0:
        return old
    if new.shape[2] == 1 and real is None:
        return backend.put_step(old, slot, new[:, :, 0])
    if real is not None:
        new = real_first(real).cut(new, -2)
    taken = taken if isinstance(taken, int) else taken[:, None]
    fits = ops.logical_and(rank >= 0, rank < taken)[:, None, :, None]
    return backend.overwrite(old, ops.where(fits, Places(rank).cut(new, -2), old))
