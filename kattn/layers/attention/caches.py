"""What layers that decode have in common: when they can, and which cache they need."""

from typing import Any

from kattn import arguments, masks
from kattn.ops.cache import KVCache, RingCache, empty_cache


def check_decodes(layer, batch_size, length, context, context_mask, *, causal=True):
    """Raises ValueError unless a layer that reads one sequence can make a cache of these sizes.

    Args:
        layer: The layer.
        batch_size: Number of sequences that are decoded.
        length: Number of steps that are decoded at most.
        context: Context that the layer was given; such a layer takes none.
        context_mask: Mask of a context that the layer was given; likewise.
        causal: Whether no step depends on those after it.
    """
    if not causal:
        raise ValueError(
            "Only a causal layer can decode step by step: in any other a new step changes the "
            "outputs of the steps before it. Build the layer with causal=True or with a causal "
            f"`pattern`; received: layer={layer.name!r}"
        )
    check_built(layer)
    arguments.check_integers(1, batch_size=batch_size, length=length)
    if context is not None or context_mask is not None:
        raise arguments.error(
            "This layer reads its own sequence only, and takes no `context` and no "
            "`context_mask`; use CrossAttention",
            layer=layer.name,
            context=context,
            context_mask=context_mask,
        )


def check_built(layer):
    """Raises ValueError unless the layer is built."""
    if not layer.built:
        raise ValueError(
            "A layer must be built before it can make a cache: call it, or its `build`, first; "
            f"received: layer={layer.name!r}, built=False"
        )


def empty_cache_of(pattern, batch_size, length, sizes, dtype):
    """A cache without steps: a ring if the pattern has a window shorter than `length`.

    Args:
        pattern: Mask object of the keys that a step sees, or None.
        batch_size: Number of sequences, B.
        length: Number of steps that will be decoded at most.
        sizes: `HeadSizes` of the layer.
        dtype: Dtype of keys and values.

    Returns:
        A `kattn.ops.KVCache` or a `kattn.ops.RingCache`.
    """
    before, after = (masks.UNBOUNDED,) * 2 if pattern is None else pattern.reach
    kind: Any = KVCache
    size = length
    if after <= 0 and before + 1 < length:
        kind, size = RingCache, int(before) + 1
    return empty_cache(
        kind,
        batch_size,
        size,
        heads=sizes.key_heads,
        key_dim=sizes.maps * sizes.key_dim,
        value_dim=sizes.value_dim,
        dtype=dtype,
    )
