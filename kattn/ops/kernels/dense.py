"""`dense`: softmax over the whole T x S matrix. The reference, and the only one with weights."""

from keras import ops

from kattn.masks import Steps
from kattn.ops.kernels import block


def refusal(call):
    """It serves every call."""
    return


def hesitation(call):
    """It is the last choice: whatever the others pass over."""
    return


def attend(call):
    """`(B, T, N, Dv)`."""
    p = _weights(call)
    if call.dropout_rate:
        p = p * block.dropout_scale(ops.shape(p), call.dropout_rate, block.draw_seed(call.seed))
    v = block.split_heads(call.value, 1)[:, :, 0]
    return block.merge_heads(block.weights_by_values(p, v), call.query.dtype)


def weights(call):
    """`(B, N, T, S)` float32, rows of sum 1, or 0 where a query may attend to nothing."""
    p = _weights(call)
    batch, heads, groups, queries, keys = ops.shape(p)
    return ops.reshape(p, (batch, heads * groups, queries, keys))


def _weights(call):
    """`(B, K, G, T, S)`."""
    heads, groups = call.key_heads, call.groups
    queries, keys = ops.shape(call.query)[1], ops.shape(call.key)[1]
    q = block.split_heads(call.query, groups) * call.scale
    k = block.split_heads(call.key, 1)[:, :, 0]
    keep = bias = None
    if call.mask is not None:
        visible = call.mask.block(Steps(0, queries), Steps(0, keys), keys - queries)
        keep = block.group_heads(visible, heads, groups)
    if call.bias is not None:
        bias = block.group_heads(ops.cast(call.bias, "float32"), heads, groups)
    z, _ = block.logits(q, k, keep, bias, call.softcap)
    level = ops.max(z, axis=-1, keepdims=True)
    sinks = block.by_head(call)
    if sinks is not None:
        level = ops.maximum(level, sinks)
    level = ops.stop_gradient(level)
    p = block.exponentials(z, level)
    total = ops.sum(p, axis=-1, keepdims=True)
    if sinks is not None:
        total = total + ops.exp(sinks - level)
    return p / ops.where(total > 0.0, total, 1.0)
