"""`dense`: softmax over the whole T x S matrix. The reference, and the only one with weights."""

from keras import ops

from kattn import backend
from kattn.ops.kernels import block, dropout
from kattn.spans import Span


def unsupported(call):
    """It serves every call."""
    return


def unprofitable(call):
    """It is the last choice: whatever the others pass over."""
    return


def attend(call):
    """`(B, T, N, Dv)`."""
    p, seen = _weights(call)
    if call.dropout_rate:
        rows, columns = dropout.counters(call)
        p = dropout.dropped(dropout.Draws(rows, columns, call.dropout_rate), p)
    o = block.weights_by_values(p, block.heads_first(call.value))
    if seen is not None:
        o = ops.where(seen, o, 0.0)
    return block.merge_heads(o, call.query.dtype)


def weights(call):
    """`(B, N, T, S)` float32, rows of sum 1, or 0 where a query may attend to nothing."""
    p, seen = _weights(call)
    if seen is not None:
        p = ops.where(seen, p, 0.0)
    batch, heads, groups, queries, keys = ops.shape(p)
    return ops.reshape(p, (batch, heads * groups, queries, keys))


def largest_logit(call):
    """The largest scaled, capped and biased score of a query and a key that it may attend to."""
    z, _, _ = _logits(call)
    return ops.max(z)


def _weights(call):
    """`(B, K, G, T, S)`, and where a query sees a key, `(B, K, G, T, 1)`, or None if all do."""
    z, keep, bias = _logits(call)
    seen = None
    if bias is not None and call.bias.holds_scores:  # which may be -inf
        seen = ops.any(z > block.FLOOR, axis=-1, keepdims=True)
    elif keep is not None:  # often the same for all heads, so cheaper than a look at z
        seen = ops.any(keep, axis=-1, keepdims=True)
    sinks = block.by_head(call)
    if sinks is None:
        return backend.softmax(z), seen
    sinks = ops.broadcast_to(sinks, (*ops.shape(z)[:-1], 1))
    return backend.softmax(ops.concatenate([z, sinks], axis=-1))[..., :-1], seen


def _logits(call):
    """`(B, K, G, T, S)`, with the mask and the bias as arrays, or None."""
    heads, groups = call.key_heads, call.groups
    queries, keys = ops.shape(call.query)[1], ops.shape(call.key)[1]
    q = block.split_heads(call.query, groups) * call.scale
    k = block.heads_first(call.key)
    whole = Span(0, queries), Span(0, keys), keys - queries
    keep = bias = None
    if call.mask is not None:
        keep = block.group_heads(call.mask.block(*whole), heads, groups)
    if call.bias is not None:
        bias = block.group_heads(call.bias.block(*whole), heads, groups)
    z, _ = block.logits(q, k, keep, bias, call.softcap)
    return z, keep, bias
