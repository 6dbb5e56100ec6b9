"""`fused`: the attention kernel of the framework itself, where it has one."""

import dataclasses

from keras import ops

from kattn import backend
from kattn.masks import Causal, Steps


def refusal(call):
    """The framework's reason, or None."""
    return backend.fused_refusal(call)


def hesitation(call):
    """The framework's reason why another kernel is the better choice, or None."""
    return backend.fused_hesitation(call)


def attend(call):
    """`(B, T, N, Dv)`."""
    queries, keys = ops.shape(call.query)[1], ops.shape(call.key)[1]
    causal = isinstance(call.mask, Causal) and call.bias is None and queries == keys
    if causal or (call.mask is None and call.bias is None):
        return backend.fused_attention(call, None, causal=causal)
    keep = None
    if call.mask is not None:
        keep = call.mask.block(Steps(0, queries), Steps(0, keys), keys - queries)
    if call.bias is not None:  # a bias of -inf masks
        finite = call.bias > float("-inf")
        keep = finite if keep is None else ops.logical_and(keep, finite)
        call = dataclasses.replace(call, bias=ops.where(finite, call.bias, 0.0))
    return attend_where(call, keep)


def attend_where(call, keep):
    """`(B, T, N, Dv)` of a call without a mask, over the keys for which `keep` is True."""
    # Frameworks differ in what a row without keys gives: let it see all, then take it out.
    seen = ops.any(keep, axis=-1, keepdims=True)
    keep = ops.logical_or(keep, ops.logical_not(seen))
    output = backend.fused_attention(call, keep, causal=False)
    seen = ops.swapaxes(seen, 1, 2)  # (B, T, N, 1)
    return ops.where(seen, output, ops.zeros_like(output))
