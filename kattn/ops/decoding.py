"""Attention of new steps to a cache of the steps before them."""

import dataclasses
from typing import Any

from keras import ops

from kattn import masks
from kattn.arguments import error
from kattn.ops import masking
from kattn.ops.attention import Call
from kattn.ops.cache import RingCache, extend, next_positions
from kattn.ops.kernels import decode as kernel
from kattn.ops.quantized_cache import QuantizedCache
from kattn.ops.sink_cache import SinkCache
from kattn.spans import Places


def decode(
    query,
    key,
    value,
    cache,
    *,
    real=None,
    mask=None,
    bias=None,
    scale=None,
    softcap=None,
    sinks=None,
    query_at=None,
):
    """Causal attention of t new steps to themselves and to all steps in the cache.

    The result equals that of `attention` over the whole sequence with `masks.Causal()`, at its last
    t steps, for any number of steps at a time. Give the cache that `decode` returns to the next
    call: the old cache is not valid any more, since on PyTorch it is written in place.

    Shapes: B batch, t new steps, N query heads, K key/value heads, D and Dv head widths.

    Args:
        query: Queries of the new steps, float, shape `(B, t, N, D)`.
        key: Keys of the new steps, float, shape `(B, t, K, D)`. N must be a multiple of K.
        value: Values of the new steps, float, shape `(B, t, K, Dv)`.
        cache: A `KVCache`; or a `RingCache` or `SinkCache`, beyond which nothing is seen; or a
            `QuantizedCache`.
        real: Bool, shape `(B, t)`; True = real step, False = padding, which is not kept. None if
            all new steps are real.
        mask: A `kattn.masks.Mask` over the positions of the whole sequence, which count real steps.
            An array in it must be as long as the whole sequence. None for `masks.Causal()`. A mask
            that is given takes its place and is not combined with it: `Causal() | Prefix(n)` lets
            the first n steps see each other, if they come in one piece.
        bias: A `kattn.biases.Bias` over the positions of the whole sequence, which count real
            steps. If it has numbers for each query, they are those of the new steps. None adds
            nothing.
        scale: Factor of the scores Q K^T. None for 1 / sqrt(D).
        softcap: Positive number c; the scaled scores s become c * tanh(s / c), before bias and mask
            are applied. None for no cap.
        sinks: Score of each head that takes part in the softmax and has no value, float, shape
            `(N,)`. None for no sinks.
        query_at: Function of positions, int32 `(B, t)`, that returns the queries of the new steps
            as they are at these, for a `SinkCache`, within which steps have other positions. None
            if they are the same at all.

    Returns:
        `(output, cache)`: the output, shape `(B, t, N, Dv)`, in the dtype of the query, 0 at
        padding; and the cache with the new steps.

    Raises:
        ValueError: If shapes do not fit, or if the steps do not fit into the cache and that can be
            seen. Under `jit` or on an accelerator it cannot be seen, and what comes after the last
            step that fits is undefined.

    Example:
        >>> cache = empty_cache(KVCache, 1, 128, heads=4, key_dim=16, value_dim=16, dtype="float32")
        >>> x = keras.random.normal((1, 2, 4, 16))  # two steps of four heads
        >>> y, cache = decode(x, x, x, cache)
        >>> y.shape, cache.length
        ((1, 2, 4, 16), [2])

    Reference:
        Shazeer 2019, sec. 2.4, https://arxiv.org/abs/1911.02150
    """
    mask = masks.Causal() if mask is None else mask
    call = Call.make(query, key, value, scale=scale, softcap=softcap, sinks=sinks)
    call = dataclasses.replace(call, bias=masking.as_bias(bias))
    queries_at = None if query_at is None else lambda positions: [query_at(positions)]
    (output,), cache = decode_maps([call], cache, real=real, mask=mask, queries_at=queries_at)
    return output, cache


def decode_maps(calls, cache, *, real, mask, queries_at=None):
    """`decode` for several maps of weights over the same values.

    Args:
        calls: List of a `Call` of the new steps for each map. The cache keeps their keys side by
            side.
        cache: A `KVCache`; or a `RingCache` or `SinkCache`, beyond which nothing is seen; or a
            `QuantizedCache`.
        real: Bool, shape `(B, t)`; True = real step, False = padding, which is not kept. None if
            all new steps are real.
        mask: A `kattn.masks.Mask` over the positions of the whole sequence, not None.
        queries_at: Function of positions, int32 `(B, t)`, that returns a list of the queries of
            each call as they are at these; or None.

    Returns:
        `(outputs, cache)`: an output `(B, t, N, Dv)` for each call, and the cache with the new
        steps.
    """
    _check_cache(calls, cache)
    steps = calls[0].query.shape[1]
    queries = Places(next_positions(cache, steps, real))
    key = calls[0].key
    if len(calls) > 1:
        key = ops.concatenate([call.key for call in calls], axis=-1)
    key, value = (ops.swapaxes(x, 1, 2) for x in (key, calls[0].value))
    cache, keys, values, places = extend(cache, key, value, real)
    index = places.along(-1)
    held = ops.logical_and(index >= 0, index < cache.length[:, None, None, None])
    keep = ops.logical_and(mask.block(queries, places), held)
    if real is not None:
        keep = ops.logical_and(keep, real[:, None, :, None])
    first, window = _sizes(cache)
    if window is not None and steps > 1:  # a later step sees less than the first of them does
        is_near = index > queries.along(-2) - window
        keep = ops.logical_and(keep, ops.logical_or(is_near, index < first))
    near: list[Any] = [None] * len(calls)
    if first:
        within = ops.minimum(queries.index, first + window - 1)
        moved = [call.query for call in calls] if queries_at is None else queries_at(within)
        near = [kernel.FirstKeys(first, query, Places(within)) for query in moved]
    parts = ops.split(keys, len(calls), axis=-1) if len(calls) > 1 else [keys]
    outputs = [
        kernel.attend(call, k, values, queries, places, keep, of_first)
        for call, k, of_first in zip(calls, parts, near, strict=True)
    ]
    return outputs, cache


def _sizes(cache):
    """How many first steps a cache keeps, and how many last ones, or None for all."""
    cache = cache.steps if isinstance(cache, QuantizedCache) else cache
    if isinstance(cache, SinkCache):
        return cache.first.keys.shape[2], cache.recent.keys.shape[2]
    return 0, cache.keys.shape[2] if isinstance(cache, RingCache) else None


def _check_cache(calls, cache):
    key, value = calls[0].key, calls[0].value
    want = (key.shape[0], key.shape[2], len(calls) * key.shape[3], value.shape[3])
    have = (*cache.keys.shape[:2], cache.keys.shape[3], cache.values.shape[3])
    if any(a != b for a, b in zip(want, have, strict=True) if None not in (a, b)):
        rule = (
            "The cache must be of the same batch, key heads and widths (B, K, D, Dv) as the steps"
        )
        raise error(rule, cache=tuple(have), steps=tuple(want))
