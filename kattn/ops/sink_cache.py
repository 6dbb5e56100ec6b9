"""The keys and values of the first steps and of the last ones."""

from typing import Any, NamedTuple

from keras import ops

from kattn.ops.cache import KVCache, RingCache, extend, next_positions
from kattn.spans import Places


class SinkCache(NamedTuple):
    """The keys and values of the first steps and of the last ones, which are all that is seen.

    A softmax that has learned to put what it does not need on the first steps (attention sinks)
    goes wrong without them. Positions are those within the cache: to a query the first steps lie
    directly before the last ones, however many steps were between them.

    Args:
        first: Cache of the first S steps, a `KVCache`.
        recent: Cache of the last W steps, a `RingCache`.

    Reference:
        Xiao et al. 2023, sec. 3.2, https://arxiv.org/abs/2309.17453
    """

    first: Any
    recent: Any

    @property
    def keys(self):
        """Keys of the last steps, shape `(B, K, W, D)`."""
        return self.recent.keys

    @property
    def values(self):
        """Values of the last steps, shape `(B, K, W, Dv)`."""
        return self.recent.values

    @property
    def length(self):
        """Number of real steps that each item has had so far, int32, shape `(B,)`."""
        return self.recent.length

    def extended(self, key, value, real=None):
        """The cache with more steps, and what queries look at, as `kattn.ops.cache.extend` has it.

        Args:
            key: Keys of the new steps, float, shape `(B, K, t, D)`.
            value: Values of the new steps, float, shape `(B, K, t, Dv)`.
            real: Bool, shape `(B, t)`; True = real step. None if all are real.
        """
        count = self.first.keys.shape[2]
        is_first = next_positions(self, key.shape[2], real) < count
        is_first = is_first if real is None else ops.logical_and(is_first, real)
        first, *of_first, slots = extend(self.first, key, value, is_first)
        recent, *of_recent, places = extend(self.recent, key, value, real)
        # The ring holds first steps, too, as long as they are among the last.
        index = ops.where(places.index < count, -1, places.index)
        lead = ops.broadcast_to(slots.positions(), (index.shape[0], count))
        keys, values = (
            ops.concatenate(pair, axis=2) for pair in zip(of_first, of_recent, strict=True)
        )
        places = Places(ops.concatenate([lead, index], axis=1))
        return SinkCache(first, recent), keys, values, places


def sink_cache(cache, first):
    """A `SinkCache` without steps.

    Args:
        cache: A `KVCache` without steps, which has room for all steps that the other keeps.
        first: How many of these are first steps, an integer >= 1.

    Returns:
        A `SinkCache` of the same size.

    Example:
        >>> cache = empty_cache(KVCache, 2, 8, heads=4, key_dim=16, value_dim=8, dtype="float32")
        >>> cache = sink_cache(cache, first=2)
        >>> cache.first.keys.shape, cache.recent.keys.shape
        ((2, 4, 2, 16), (2, 4, 6, 16))
    """
    keys, values, length = cache
    return SinkCache(
        KVCache(keys[:, :, :first], values[:, :, :first], ops.copy(length)),
        RingCache(keys[:, :, first:], values[:, :, first:], length),
    )
