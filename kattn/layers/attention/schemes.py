"""What attention layers do with `position=` and `pattern=`, and with caches."""

from typing import Any

import keras
from keras import ops

from kattn import masks
from kattn.layers.position.position import Position
from kattn.ops import masking
from kattn.ops.cache import KVCache, RingCache, empty_cache


def read(value, name, kind):
    """An argument that is an object of a kind, or its config, or None."""
    if isinstance(value, dict):
        value = keras.saving.deserialize_keras_object(value)
    if value is not None and not isinstance(value, kind):
        raise ValueError(
            f"`{name}` must be a kattn.{kind.__module__.split('.')[1]}.{kind.__name__} or None; "
            f"received: {name}={value!r}"
        )
    return value


def check_pattern(pattern):
    """Raises ValueError for a pattern that a config cannot hold."""
    if pattern is not None and masking.arrays_of(pattern):
        raise ValueError(
            "`pattern` must be a mask without arrays, which belong into the call's `mask`; "
            f"received: pattern={pattern!r}"
        )


def write(value):
    """The config of such an argument.

    One position layer may serve several attention layers, and does so again in a model that is
    loaded: Keras reads an object with a `shared_object_id` once, but gives such a number only to
    what it serializes itself, not to what stands in a layer's config.
    """
    if value is None:
        return None
    config = keras.saving.serialize_keras_object(value)
    return {**config, "shared_object_id": id(value)} if isinstance(value, Position) else config


def step_positions(position, explicit, padding, mask, *, shifts_matter=False):
    """What `embed` and `rotate` get: positions, or None for 0 to T - 1.

    Args:
        position: The scheme, or None.
        explicit: What the caller gave, or None.
        padding: `(B, T)` bool, or None: a scheme of absolute positions counts from the first real
            step, so that padding at the left changes nothing.
        mask: A mask object or None; positions restart with each of its segments.
        shifts_matter: Whether a shift of all positions changes what the layer makes of a scheme
            that is not absolute by itself.
    """
    if explicit is not None:
        if position is None or type(position).bias is not Position.bias:
            raise ValueError(
                "`positions` are for a `position` of the inputs, or of queries and keys; a bias "
                f"goes by the order of the keys. Received: position={position!r}"
            )
        return explicit
    if position is None or not (position.is_absolute or shifts_matter):
        return None
    restarts = masking.restarts(mask)
    if restarts is not None or padding is None:
        return restarts
    first = ops.argmax(ops.cast(padding, "int32"), axis=1)[:, None]
    index = ops.arange(ops.shape(padding)[1], dtype="int32")
    return ops.maximum(index - ops.cast(first, "int32"), 0)


def new_positions(position, positions, mask):
    """The same for new steps at `positions` `(B, t)` of a cache."""
    if position is None:
        return None
    restarts = masking.restarts(mask) if position.is_absolute else None
    if restarts is None:
        return positions
    return ops.take_along_axis(restarts, positions, axis=1)


def make_cache(pattern, batch_size, length, **options):
    """The cache that a pattern needs: a ring if it has a window shorter than `length`."""
    before, after = (masks.UNBOUNDED,) * 2 if pattern is None else pattern.reach
    kind: Any = KVCache
    size = length
    if isinstance(length, int) and after <= 0 and before + 1 < length:
        kind, size = RingCache, int(before) + 1
    return empty_cache(kind, batch_size, size, **options)


def check_decodes(layer):
    """Raises ValueError unless the layer is causal, or may be by its pattern, and built."""
    if not layer.causal and layer.pattern is None:
        raise ValueError(
            "Only a causal layer can decode step by step; "
            f"received: causal={layer.causal}, pattern=None"
        )
    if not layer.built:
        raise ValueError(f"Layer {layer.name!r} must be built before it can make a cache")


def split_mask(mask):
    """A call's `mask` as padding `(B, t)` or None, and a mask object or None."""
    if mask is None or isinstance(mask, masks.Mask):
        return None, mask
    if len(getattr(mask, "shape", ())) != 2:
        raise ValueError(
            "`mask` of new steps must be bool (B, t), True = real step, or a kattn.masks.Mask over "
            f"the positions of the whole sequence; received: mask={getattr(mask, 'shape', mask)}"
        )
    return ops.cast(mask, "bool"), None
