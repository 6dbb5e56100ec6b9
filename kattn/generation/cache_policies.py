"""Which steps a cache keeps, and how exactly: chosen for a generation, whatever the model."""

import dataclasses
from typing import Any

import keras

from kattn import arguments, backend
from kattn.ops.cache import KVCache, RingCache
from kattn.ops.quantized_cache import quantized_cache
from kattn.ops.sink_cache import SinkCache, sink_cache


@dataclasses.dataclass(frozen=True)
class FullCache:
    """Keeps all steps as they are.

    Example:
        >>> FullCache()
        FullCache()
    """

    def new_cache(self, decoder, batch_size, length, context=None, context_mask=None):
        """The cache of a model, without steps.

        Args:
            decoder: Model, or another object that decodes.
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most.
            context: Context of the model, or None.
            context_mask: Padding of the context, bool, shape `(B, S)`, or None.

        Returns:
            A tree of tensors, the batch axis first in each.
        """
        return decoder.init_cache(batch_size, length, context=context, context_mask=context_mask)


@dataclasses.dataclass(frozen=True)
class WindowCache:
    """Keeps the last `window` steps, as if all attention had a window: memory does not grow.

    Args:
        window: Number of steps that a step can look at, its own included, an integer >= 1.

    Example:
        >>> WindowCache(256)
        WindowCache(window=256)

    Reference:
        Beltagy et al. 2020, sec. 3.1, https://arxiv.org/abs/2004.05150
    """

    window: int

    def __post_init__(self):
        arguments.check_integers(1, window=self.window)

    def new_cache(self, decoder, batch_size, length, context=None, context_mask=None):
        """The cache of a model, without steps; for the arguments see `FullCache`."""
        size = min(self.window, length)
        cache = _shorter_cache(decoder, size, batch_size, length, context, context_mask)
        return _replaced(cache, KVCache, lambda full: RingCache(*full))


@dataclasses.dataclass(frozen=True)
class StreamingCache:
    """Keeps the first steps and the last `window` ones: texts without end in constant memory.

    Models put the attention that they do not need on the first steps, and go wrong if a window
    loses them. Positions are those within the cache, so that they do not outgrow those that the
    model was trained with. Positions that are added to the inputs cannot be changed in a cache;
    they go on.

    Args:
        first: Number of first steps, an integer >= 1.
        window: Number of last steps, an integer >= 1.

    Example:
        >>> StreamingCache(first=4, window=252)
        StreamingCache(first=4, window=252)

    Reference:
        Xiao et al. 2023, sec. 3.2, https://arxiv.org/abs/2309.17453
    """

    first: int
    window: int

    def __post_init__(self):
        arguments.check_integers(1, first=self.first, window=self.window)

    def new_cache(self, decoder, batch_size, length, context=None, context_mask=None):
        """The cache of a model, without steps; for the arguments see `FullCache`."""
        size = self.first + self.window
        if length <= size:
            return FullCache().new_cache(decoder, batch_size, length, context, context_mask)
        cache = _shorter_cache(decoder, size, batch_size, length, context, context_mask)
        return _replaced(cache, KVCache, lambda full: sink_cache(full, self.first))


@dataclasses.dataclass(frozen=True)
class Int8Cache:
    """Keeps keys and values as integers of 8 bits, in about a quarter of the memory of float32.

    Each vector has a factor of its own, float32: with heads of width 64 that makes 0.27 of it.

    Args:
        policy: Which steps are kept, such as `WindowCache(256)`; all by default.

    Example:
        >>> Int8Cache(WindowCache(256))
        Int8Cache(policy=WindowCache(window=256))

    Reference:
        Dettmers et al. 2022, sec. 2.1 (absmax, by vector), https://arxiv.org/abs/2208.07339
    """

    policy: Any = FullCache()

    def new_cache(self, decoder, batch_size, length, context=None, context_mask=None):
        """The cache of a model, without steps; for the arguments see `FullCache`."""
        cache = self.policy.new_cache(decoder, batch_size, length, context, context_mask)
        return _replaced(cache, (SinkCache, KVCache, RingCache), quantized_cache)


def _shorter_cache(decoder, size, batch_size, length, context, context_mask):
    """A cache with room for `size` steps; ValueError if the decoder cannot decode `length`."""
    new_cache = FullCache().new_cache
    if size < length:
        args = decoder, batch_size, length, context, context_mask
        backend.try_shapes(lambda: new_cache(*args))
    return new_cache(decoder, batch_size, size, context, context_mask)


def _replaced(cache, kinds, function):
    """A tree of caches with a function of each cache of these kinds in its place."""

    def replace(node):
        return function(node) if isinstance(node, kinds) else None

    return keras.tree.traverse(replace, cache)
