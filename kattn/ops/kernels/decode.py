"""`decode`: a few queries against the keys of a cache, which are neither copied nor transposed."""

from keras import ops

from kattn import backend
from kattn.ops.kernels import block


def attend(call, keys, values, queries, places, keep):
    """`(B, t, N, Dv)`.

    Args:
        call: Checked arguments; its key and value are those of the new steps.
        keys: `(B, K, S, D)`, from the cache.
        values: `(B, K, S, Dv)`.
        queries: `Places` of the queries.
        places: `Span` or `Places` of the keys.
        keep: bool, broadcasts to `(B, N, t, S)`.
    """
    heads, groups = call.key_heads, call.groups
    q = block.split_heads(call.query, groups) * call.scale
    keep, bias = block.group_heads(keep, heads, groups), None
    if call.bias is not None:
        bias = block.group_heads(call.bias.block(queries, places), heads, groups)
    k, v = (ops.cast(x, "float32") for x in (keys, values))
    z, _ = block.logits(q, k, keep, bias, call.softcap)
    if bias is not None and call.bias.holds_scores:  # which may be -inf
        seen = ops.any(z > block.FLOOR, axis=-1, keepdims=True)
    else:
        seen = ops.any(keep, axis=-1, keepdims=True)
    sinks = block.by_head(call)
    if sinks is not None:
        z = ops.concatenate([z, ops.broadcast_to(sinks, (*ops.shape(z)[:-1], 1))], axis=-1)
    p = backend.softmax(z)
    p = p if sinks is None else p[..., :-1]
    o = block.weights_by_values(p, v)
    o = ops.where(seen, o, 0.0)
    return block.merge_heads(o, call.query.dtype)
