"""Keys and values of a cache in 8 bits."""

from typing import Any, NamedTuple

import keras
from keras import ops

from kattn.ops.cache import extend

LEVELS = 127


class QuantizedCache(NamedTuple):
    """A cache whose keys and values are integers of 8 bits, with a factor for each vector.

    A vector x is kept as round(127 x / max |x|), which takes a quarter of the memory of float32,
    and 4 bytes for max |x| / 127.

    Args:
        steps: Cache of the integers, a `KVCache`, `RingCache` or `SinkCache` of int8.
        scales: Cache of the factors, of the same kind; its keys and values are float32 and have
            width 1.
    """

    steps: Any
    scales: Any

    @property
    def keys(self):
        """The integers of the keys, int8, shape `(B, K, L, D)`."""
        return self.steps.keys

    @property
    def values(self):
        """The integers of the values, int8, shape `(B, K, L, Dv)`."""
        return self.steps.values

    @property
    def length(self):
        """Number of real steps that each item has had so far, int32, shape `(B,)`."""
        return self.steps.length

    def extended(self, key, value, real=None):
        """The cache with more steps, and what queries look at, as `kattn.ops.cache.extend` has it.

        Args:
            key: Keys of the new steps, float, shape `(B, K, t, D)`.
            value: Values of the new steps, float, shape `(B, K, t, Dv)`.
            real: Bool, shape `(B, t)`; True = real step. None if all are real.
        """
        (key, key_scale), (value, value_scale) = map(_quantized, (key, value))
        steps, keys, values, places = extend(self.steps, key, value, real)
        scales, key_scales, value_scales, _ = extend(self.scales, key_scale, value_scale, real)
        keys, values = (
            ops.cast(x, "float32") * scale
            for x, scale in ((keys, key_scales), (values, value_scales))
        )
        return QuantizedCache(steps, scales), keys, values, places


def quantized_cache(cache):
    """A `QuantizedCache` without steps.

    Args:
        cache: A cache without steps, such as `empty_cache` returns.

    Returns:
        A `QuantizedCache` of the same sizes.

    Example:
        >>> cache = empty_cache(KVCache, 2, 128, heads=4, key_dim=16, value_dim=8, dtype="float32")
        >>> cache = quantized_cache(cache)
        >>> cache.keys.shape, cache.scales.keys.shape
        ((2, 4, 128, 16), (2, 4, 128, 1))
    """

    def integers(x):
        return ops.zeros(x.shape, "int8") if len(x.shape) == 4 else x

    def factors(x):
        return ops.zeros((*x.shape[:3], 1), "float32") if len(x.shape) == 4 else ops.copy(x)

    steps, scales = (keras.tree.map_structure(f, cache) for f in (integers, factors))
    return QuantizedCache(steps, scales)


def _quantized(x):
    """Vectors `(..., D)` as int8 `(..., D)` and float32 factors `(..., 1)`."""
    x = ops.cast(x, "float32")
    scale = ops.max(ops.abs(x), axis=-1, keepdims=True) / LEVELS
    scale = ops.where(scale > 0, scale, ops.ones_like(scale))
    return ops.cast(ops.round(x / scale), "int8"), scale
