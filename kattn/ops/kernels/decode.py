"""`decode`: a few queries against the keys of a cache, which are neither copied nor transposed."""

from typing import Any, NamedTuple

from keras import ops

from kattn import backend
from kattn.ops.kernels import block
from kattn.spans import Places


class FirstKeys(NamedTuple):
    """How the first keys of a cache are looked at, if otherwise than the others.

    Args:
        size: Number of these keys.
        query: The queries as they are to these keys, `(B, t, N, D)`.
        queries: `Places` of the queries as seen from these keys.
    """

    size: int
    query: Any
    queries: Any


def attend(call, keys, values, queries, places, keep, first=None):
    """`(B, t, N, Dv)`.

    Args:
        call: Checked arguments; its key and value are those of the new steps.
        keys: `(B, K, S, D)`, from the cache.
        values: `(B, K, S, Dv)`.
        queries: `Places` of the queries.
        places: `Span` or `Places` of the keys.
        keep: bool, broadcasts to `(B, N, t, S)`.
        first: `FirstKeys`, or None.
    """
    if first is None and call.bias is None and call.softcap is None and call.sinks is None:
        o = _attend_natively(call, keys, values, keep)
        if o is not None:
            return o
    k, v = (ops.cast(x, "float32") for x in (keys, values))
    z = _logits(call, call.query, k, queries, places, keep)
    if first is not None:
        n = first.size
        lead = Places(places.index[:, :n])
        some = _logits(call, first.query, k[:, :, :n], first.queries, lead, keep[..., :n])
        z = ops.concatenate([some, z[..., n:]], axis=-1)
    if call.bias is not None and call.bias.holds_scores:  # which may be -inf
        seen = ops.any(z > block.FLOOR, axis=-1, keepdims=True)
    else:
        seen = ops.any(block.group_heads(keep, call.key_heads, call.groups), axis=-1, keepdims=True)
    sinks = block.by_head(call)
    if sinks is not None:
        z = ops.concatenate([z, ops.broadcast_to(sinks, (*ops.shape(z)[:-1], 1))], axis=-1)
    p = backend.softmax(z)
    p = p if sinks is None else p[..., :-1]
    o = block.weights_by_values(p, v)
    o = ops.where(seen, o, 0.0)
    return block.merge_heads(o, call.query.dtype)


def _attend_natively(call, keys, values, keep):
    """`(B, t, N, Dv)` by the framework's own kernel, or None."""
    query = ops.swapaxes(call.query, 1, 2)
    o = backend.step_attention(query, keys, values, keep, call.scale)
    if o is None:
        return None
    o = ops.where(ops.any(keep, axis=-1, keepdims=True), o, 0.0)
    return ops.swapaxes(o, 1, 2)


def _logits(call, query, k, queries, places, keep):
    """`(B, K, G, t, S)`: the scores of queries `(B, t, N, D)` and keys `(B, K, S, D)`."""
    heads, groups = call.key_heads, call.groups
    q = block.split_heads(query, groups) * call.scale
    bias = None
    if call.bias is not None:
        bias = block.group_heads(call.bias.block(queries, places), heads, groups)
    return block.logits(q, k, block.group_heads(keep, heads, groups), bias, call.softcap)[0]
