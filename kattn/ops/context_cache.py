"""Keys and values of a context, projected once, for cross-attention that decodes step by step."""

from typing import Any, NamedTuple

from keras import ops

from kattn.ops.attention import Call
from kattn.ops.cache import count_steps
from kattn.ops.kernels import decode as kernel
from kattn.spans import Places, Span


class ContextCache(NamedTuple):
    """The keys and values of a context, and how many steps have been decoded against it.

    Args:
        keys: Keys of the context, shape `(B, K, S, D)`.
        values: Values of the context, shape `(B, K, S, Dv)`.
        mask: Bool, shape `(B, S)`; True = real step of the context, False = padding.
        length: Number of steps that each item has decoded so far, int32, shape `(B,)`.
    """

    keys: Any
    values: Any
    mask: Any
    length: Any


def context_cache(key, value, mask=None):
    """A `ContextCache` before the first step.

    Args:
        key: Keys of the context, float, shape `(B, S, K, D)`.
        value: Values of the context, float, shape `(B, S, K, Dv)`.
        mask: Bool, shape `(B, S)`; True = real step, False = padding. None if all are real.

    Returns:
        A `ContextCache`, with the batch axis first in every tensor.

    Example:
        >>> x = keras.ops.ones((2, 9, 4, 16))
        >>> context_cache(x, x).keys.shape
        (2, 4, 9, 16)
    """
    batch, steps = ops.shape(key)[:2]
    if mask is None:
        mask = ops.ones((batch, steps), "bool")
    keys, values = ops.swapaxes(key, 1, 2), ops.swapaxes(value, 1, 2)
    return ContextCache(keys, values, mask, ops.zeros((batch,), "int32"))


def decode_context(query, cache, *, real=None, softcap=None, sinks=None):
    """Attention of new steps to the context that a cache holds.

    It equals `attention` of these queries to the keys and values of the context, of which the
    padding is masked.

    Args:
        query: Queries of the new steps, float, shape `(B, t, N, D)`.
        cache: The `ContextCache`.
        real: Bool, shape `(B, t)`; True = real step, False = padding, which is not counted. None
            if all new steps are real.
        softcap: Positive number c; the scaled scores s become c * tanh(s / c). None for no cap.
        sinks: Score of each head that takes part in the softmax and has no value, float, shape
            `(N,)`. None for no sinks.

    Returns:
        `(output, cache)`: the output, shape `(B, t, N, Dv)`, 0 where an item's context has no real
        step; and the cache for the next steps.

    Raises:
        ValueError: If shapes do not fit.

    Example:
        >>> x = keras.ops.ones((2, 9, 4, 16))
        >>> y, cache = decode_context(x[:, :1], context_cache(x, x))
        >>> y.shape
        (2, 1, 4, 16)

    Reference:
        Vaswani et al. 2017, sec. 3.2.3, https://arxiv.org/abs/1706.03762
    """
    key, value = (ops.swapaxes(x, 1, 2) for x in (cache.keys, cache.values))
    call = Call.make(query, key, value, softcap=softcap, sinks=sinks)
    steps = ops.arange(query.shape[1], dtype="int32")
    queries = Places(cache.length[:, None] + steps)
    keys = Span(0, cache.keys.shape[2])
    keep = cache.mask[:, None, None, :]  # (B, 1, 1, S)
    output = kernel.attend(call, cache.keys, cache.values, queries, keys, keep)
    taken = count_steps(query.shape[1], real)
    # `_replace` under `torch.compile` of PyTorch 2.11 gives an empty tuple.
    return output, ContextCache(cache.keys, cache.values, cache.mask, cache.length + taken)
