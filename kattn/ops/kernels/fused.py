"""`fused`: the attention kernel of the framework itself, where it has one."""

import dataclasses
from typing import Any

from keras import ops

from kattn import backend
from kattn.masks import And, Causal, Prefix, Window
from kattn.spans import Span

# Keys above which a bias object is not made into an array: those of a block of `chunked`.
MANY_KEYS = 512


def unsupported(call):
    """Why it cannot serve the call, or None."""
    if call.has_unlike_dtypes:
        return "query, key and value are of unlike dtypes"
    if not call.has_fixed_scale:
        return "the scale is a tensor, where it takes a number"
    if call.bias is not None and call.is_half:
        return "it would round the bias to the half precision of the queries"
    return backend.fused_unsupported(call)


def unprofitable(call):
    """The framework's reason why another kernel is the better choice, or None."""
    keys = call.keys
    if call.bias is not None and not call.bias.holds_scores and (keys is None or keys > MANY_KEYS):
        return "it would build the bias as an array of N x T x S"
    return backend.fused_unprofitable(call)


def attend(call):
    """`(B, T, N, Dv)`."""
    queries, keys = ops.shape(call.query)[1], ops.shape(call.key)[1]
    rules = native_rules(call)
    if rules is not None:
        return _attend_by_rules(call, rules)
    whole = Span(0, queries), Span(0, keys), keys - queries
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
        return backend.fused_attention(call, None, {})
    return attend_where(call, keep)


def native_rules(call):
    """The call's mask as arguments of the framework's kernel, or None where it needs an array.

    Returns:
        A dict with none, one or more of "causal": True; "window": W, of which a query sees its
        own key and the W - 1 before it; "lengths": `(B,)`, the keys of each item.
    """
    if call.bias is not None:
        return None
    if call.mask is None:
        return {}
    rules: dict[str, Any] = {}
    for part in _joined(call.mask):
        if isinstance(part, Causal):
            rules["causal"] = True
        elif isinstance(part, Window):
            rules["window"] = min(part.size, rules.get("window", part.size))
        elif isinstance(part, Prefix) and "lengths" not in rules and not part.is_static:
            rules["lengths"] = part.length
        else:
            return None
    # A causal kernel counts from the start, and knows windows backwards only. Where lengths cut
    # a window off, a query is left without keys, and no framework says what it then gives.
    aligned = call.queries is not None and call.queries == call.keys
    served = "causal" not in rules or aligned
    served = served and ("window" not in rules or ("causal" in rules and "lengths" not in rules))
    return rules if served and set(rules) <= backend.FUSED_RULES else None


def _joined(mask):
    """The masks that `mask` joins by `&`."""
    return _joined(mask.left) + _joined(mask.right) if isinstance(mask, And) else [mask]


def _attend_by_rules(call, rules):
    lengths = rules.get("lengths")
    if lengths is None:
        return backend.fused_attention(call, None, rules)
    output = backend.fused_attention(
        call, None, {**rules, "lengths": ops.maximum(lengths, ops.ones_like(lengths))}
    )
    return ops.where(lengths[:, None, None, None] > 0, output, ops.zeros_like(output))


def attend_where(call, keep):
    """`(B, T, N, Dv)` of a call over the keys for which `keep` is True; its bias is an array."""
    # Frameworks differ in what a row without keys gives: let it see all, then take it out.
    seen = ops.any(keep, axis=-1, keepdims=True)
    keep = ops.logical_or(keep, ops.logical_not(seen))
    output = backend.fused_attention(call, keep, {})
    seen = ops.swapaxes(seen, 1, 2)  # (B, T, N, 1)
    return ops.where(seen, output, ops.zeros_like(output))
