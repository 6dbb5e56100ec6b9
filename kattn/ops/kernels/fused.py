"""`fused`: the attention kernel of the framework itself, where it has one."""

import dataclasses

from keras import ops

from kattn import backend
from kattn.masks import Causal
from kattn.steps import Steps

# Keys above which a bias object is not made into an array: those of a block of `chunked`.
MANY_KEYS = 512


def refusal(call):
    """The framework's reason, or None."""
    return backend.fused_refusal(call)


def hesitation(call):
    """The framework's reason why another kernel is the better choice, or None."""
    keys = call.key.shape[1]
    if call.bias is not None and not call.bias.holds_scores and (keys is None or keys > MANY_KEYS):
        return "it would build the bias as an array of N x T x S"
    return backend.fused_hesitation(call)


def attend(call):
    """`(B, T, N, Dv)`."""
    queries, keys = ops.shape(call.query)[1], ops.shape(call.key)[1]
    causal = isinstance(call.mask, Causal) and call.bias is None and queries == keys
    if causal or (call.mask is None and call.bias is None):
        return backend.fused_attention(call, None, causal=causal)
    whole = Steps(0, queries), Steps(0, keys), keys - queries
    keep = None if call.mask is None else call.mask.block(*whole)
    if call.bias is None:
        return attend_where(call, keep)
    bias = call.bias.block(*whole)
    if call.bias.holds_scores:  # where -inf masks
        finite = bias > float("-inf")
        keep = finite if keep is None else ops.logical_and(keep, finite)
        bias = ops.where(finite, bias, 0.0)
    call = dataclasses.replace(call, bias=bias)
    if keep is None:
        return backend.fused_attention(call, None, causal=False)
    return attend_where(call, keep)


def attend_where(call, keep):
    """`(B, T, N, Dv)` of a call over the keys for which `keep` is True; its bias is an array."""
    # Frameworks differ in what a row without keys gives: let it see all, then take it out.
    seen = ops.any(keep, axis=-1, keepdims=True)
    keep = ops.logical_or(keep, ops.logical_not(seen))
    output = backend.fused_attention(call, keep, causal=False)
    seen = ops.swapaxes(seen, 1, 2)  # (B, T, N, 1)
    return ops.where(seen, output, ops.zeros_like(output))
