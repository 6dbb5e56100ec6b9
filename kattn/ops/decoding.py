"""Attention of new steps to a cache of the steps before them."""

import dataclasses

from keras import ops

from kattn import masks
from kattn.ops import masking
from kattn.ops.attention import Call
from kattn.ops.cache import extend, next_positions
from kattn.ops.kernels import decode as kernel
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
):
    """Causal attention of t new steps to themselves and to all steps in the cache.

    The same as `attention` over the whole sequence with `masks.Causal()`, at its last t steps,
    for any number of steps at a time. What `decode` returns must be given to the next call: the
    old cache is not valid any more, since on PyTorch it is written in place.

    Shapes: B batch, t new steps, N query heads, K key/value heads, D and Dv head widths.

    Args:
        query: `(B, t, N, D)` float.
        key: `(B, t, K, D)` float.
        value: `(B, t, K, Dv)` float.
        cache: A `KVCache` or, where the mask's window is no longer than it, a `RingCache`.
        real: `(B, t)` bool, True = real step, False = padding, which is not kept; None for all.
        mask: A `kattn.masks.Mask` over the positions of the whole sequence, which count real
            steps: its arrays are as long as that. None for `masks.Causal()`. Another is not
            joined with it: `Causal() | Prefix(n)` lets the first n steps see each other,
            if they come in one piece.
        bias: A `kattn.biases.Bias` over these positions; one that is by query holds the numbers
            of the new steps.
        scale: See `attention`.
        softcap: See `attention`.
        sinks: See `attention`.

    Returns:
        `(output, cache)`: `(B, t, N, Dv)` of the query's dtype, 0 at padding, and the cache with
        the new steps.

    Raises:
        ValueError: If shapes do not fit, or if the steps do not fit into the cache and that can
            be seen: under `jit`, or on an accelerator, what comes after that is undefined.

    Example:
        >>> cache = empty_cache(KVCache, 1, 128, heads=4, key_dim=16, value_dim=16, dtype="float32")
        >>> y, cache = decode(q, k, v, cache)  # of (1, 1, 4, 16) each

    Reference:
        Shazeer 2019, sec. 2.4, https://arxiv.org/abs/1911.02150
    """
    mask = masks.Causal() if mask is None else mask
    call = Call.make(query, key, value, scale=scale, softcap=softcap, sinks=sinks)
    call = dataclasses.replace(call, bias=masking.as_bias(bias))
    (output,), cache = decode_maps([call], cache, real=real, mask=mask)
    return output, cache


def decode_maps(calls, cache, *, real, mask):
    """`decode` for several maps of weights over the same values.

    Args:
        calls: A `Call` for each map, of the new steps. The cache keeps their keys side by side.
        cache: As in `decode`.
        real: As in `decode`.
        mask: As in `decode`; not None.

    Returns:
        `(outputs, cache)`, an output `(B, t, N, Dv)` for each call.
    """
    _check_cache(calls, cache)
    queries = Places(next_positions(cache, calls[0].query.shape[1], real))
    key = ops.concatenate([call.key for call in calls], axis=-1)
    key, value = (ops.swapaxes(x, 1, 2) for x in (key, calls[0].value))
    cache, keys, values, places = extend(cache, key, value, real)
    index = places.along(-1)
    held = ops.logical_and(index >= 0, index < cache.length[:, None, None, None])
    keep = ops.logical_and(mask.block(queries, places), held)
    if real is not None:
        keep = ops.logical_and(keep, real[:, None, :, None])
    parts = ops.split(keys, len(calls), axis=-1)
    pairs = zip(calls, parts, strict=True)
    return [kernel.attend(call, k, values, queries, places, keep) for call, k in pairs], cache


def _check_cache(calls, cache):
    key, value = calls[0].key, calls[0].value
    want = (key.shape[0], key.shape[2], len(calls) * key.shape[3], value.shape[3])
    have = (*cache.keys.shape[:2], cache.keys.shape[3], cache.values.shape[3])
    if any(a != b for a, b in zip(want, have, strict=True) if None not in (a, b)):
        raise ValueError(
            "The cache must be of the same batch, key heads and widths (B, K, D, Dv) as the new "
            f"steps; received: cache={tuple(have)}, steps={tuple(want)}"
        )
