"""The one reader of masks: what a layer's mask argument and Keras's own mask say together.

The call of a layer, its `attention_weights`, its `decode` and the contexts it is given all read
their masks here, so that an implicit mask (of `Embedding(mask_zero=True)` or `Masking`) and an
explicit one mean the same everywhere.
"""

from typing import Any, NamedTuple

import keras
from keras import ops

from kattn import arguments, masks
from kattn.masks.checks import REAL_STEP, bool_tensor

PADDING = "(B, T)"
SHAPES = (PADDING, "(B, T, S)", "(B, N, T, S)")


class MaskedInput(NamedTuple):
    """An input, and what its masks say.

    Args:
        x: The input with zeros at padding, whatever stood there. A weight of 0 would not do: NaN
            or infinity at a masked key times 0 is NaN, in the output and in the gradients.
        padding: `(B, T)` bool, True = real step, False = padding; None if all steps are real.
        allowed: Mask object of the keys that a query may attend to, the padding included; None
            if it may attend to all of them.
    """

    x: Any
    padding: Any
    allowed: masks.Mask | None


def read_masks(x, mask, name="mask"):
    """`x` with zeros at padding; and its Keras mask and an explicit mask, combined.

    Args:
        x: Input sequence, shape `(B, T, C)`, as the layer got it. A cast drops its Keras mask.
        mask: Explicit mask: bool array `(B, T)`, `(B, T, S)` or `(B, N, T, S)`, a
            `kattn.masks.Mask`, or None.
        name: Name of the argument that the mask came in, for messages.

    Returns:
        A `MaskedInput`.

    Raises:
        ValueError: If `mask` is neither a mask object nor a boolean array of rank 2 to 4.
    """
    padding = read_padding(x, mask, name, query_by_key=True)
    x, allowed = silence(x, padding), None if padding is None else masks.Padding(padding)
    if mask is None or _rank(mask) == 2:
        return MaskedInput(x, padding, allowed)
    if not isinstance(mask, masks.Mask):
        mask = bool_tensor(mask, name, SHAPES)
        mask = masks.Dense(mask[:, None] if len(mask.shape) == 3 else mask)
    return MaskedInput(x, padding, masks.intersect(mask, allowed))


def read_padded(x, mask, name="mask"):
    """`x` with zeros at padding; and which of its steps are real, as `read_padding` has it."""
    padding = read_padding(x, mask, name)
    return silence(x, padding), padding


def read_padding(x, mask, name="mask", *, query_by_key=False):
    """Which steps of `x` are real, by its Keras mask and by an explicit mask of rank 2.

    Args:
        x: Input, shape `(B, T, ...)`, as the layer got it.
        mask: Explicit mask or None. One of rank 2 is joined with the Keras mask.
        name: Name of the argument that the mask came in, for messages.
        query_by_key: Whether the argument may also be a mask object or a mask of query by key,
            which say nothing about padding.

    Returns:
        `(B, T)` bool, True = real step, or None if all steps are real.

    Raises:
        ValueError: If `mask` is of another kind than the argument allows.
    """
    implicit = keras_mask(x)
    if mask is None or mask is implicit:  # Keras hands a layer the mask that it keeps
        return implicit
    if query_by_key and (isinstance(mask, masks.Mask) or _rank(mask) in (3, 4)):
        return implicit
    if isinstance(mask, masks.Mask):
        raise arguments.error(
            f"`{name}` must be a bool array {PADDING}, {REAL_STEP}, and no mask object",
            **{name: mask},
        )
    mask = bool_tensor(mask, name, SHAPES if query_by_key else (PADDING,), REAL_STEP)
    _check_padding(x, mask, name, query_by_key=query_by_key)
    return mask if implicit is None else ops.logical_and(mask, implicit)


def read_new_masks(x, mask, name="mask"):
    """New steps that are decoded with zeros at padding; their padding; and a mask object.

    Args:
        x: The new steps, shape `(B, t, C)`, as the layer got them.
        mask: Bool array `(B, t)`, True = real step; a `kattn.masks.Mask` over the positions of the
            whole sequence; or None.
        name: Name of the argument that the mask came in, for messages.

    Returns:
        A `MaskedInput`, whose `allowed` says nothing about the padding.

    Raises:
        ValueError: If `mask` is a mask of query by key, or of another kind.
    """
    if isinstance(mask, masks.Mask):
        x, padding = read_padded(x, None, name)
        return MaskedInput(x, padding, mask)
    if _rank(mask) in (3, 4):
        raise arguments.error(
            f"`{name}` of new steps must be a bool array (B, t), True = real step, or a "
            "kattn.masks.Mask over the positions of the whole sequence",
            **{name: mask},
        )
    x, padding = read_padded(x, mask, name)
    return MaskedInput(x, padding, None)


def read_map(x, mask, channel_axis, name="mask"):
    """A map with zeros at padding; and which of its cells are real, as `read_map_padding` has it.

    What stands at padding, be it NaN, is gone. The channels may lie on any axis.
    """
    padding = read_map_padding(x, mask, channel_axis, name)
    return silence(x, padding, channel_axis), padding


def read_map_padding(x, mask, channel_axis, name="mask"):
    """Which cells of a map are real, by its Keras mask and by an explicit mask.

    Args:
        x: Map of 1 to 3 sides as the layer got it, `(B, *sides, C)` or `(B, C, *sides)`.
        mask: Explicit mask, bool `(B, *sides)`, or None. It is joined with the Keras mask.
        channel_axis: Axis of the channels of `x`, 1 or -1.
        name: Name of the argument that the mask came in, for messages.

    Returns:
        `(B, *sides)` bool, True = real cell, or None if all cells are real.

    Raises:
        ValueError: If a mask is not boolean, or has other sides than the map.
    """
    implicit = keras_mask(x)
    given = [mask] if mask is implicit else [mask, implicit]
    read = [_map_mask(each, x, channel_axis, name) for each in given if each is not None]
    if len(read) == 2:
        return ops.logical_and(*read)
    return read[0] if read else None


def keras_mask(x):
    """The mask that Keras keeps for a tensor, or None.

    There is no public function for it; but Keras hands the mask of its input to a layer.
    """
    if isinstance(x, keras.KerasTensor) or keras.backend.backend() != "jax":
        return getattr(x, "_keras_mask", None)
    answer = _READER(x)  # an array of JAX takes no attribute
    # Tokens `(B, T)` have the rank of their mask.
    is_mask = _rank(answer) < _rank(x) or keras.backend.standardize_dtype(answer.dtype) == "bool"
    return answer if is_mask else None


def set_keras_mask(x, mask):
    """`x`, for which Keras keeps this mask, if any, from now on."""
    return x if mask is None else _WRITER(x, mask=mask)


def silence(y, padding, channel_axis=-1):
    """A sequence or map with exact zeros at padding.

    Args:
        y: Sequence `(B, T, C)` or map `(B, *sides, C)`; the channels may lie on another axis.
        padding: Bool, the shape of `y` without the channels, True = real; or None.
        channel_axis: Axis of the channels of `y`.
    """
    if padding is None:
        return y
    zero = ops.convert_to_tensor(0.0, y.dtype)
    return ops.where(ops.expand_dims(padding, channel_axis), y, zero)


def silence_weights(weights, padding):
    """Weights `(B, N, T, S)` with exact zeros in the rows of queries that are padding."""
    if padding is None:
        return weights
    return ops.where(padding[:, None, :, None], weights, ops.zeros_like(weights))


class _Reader(keras.layers.Layer):
    """Returns the Keras mask of its input, or, if there is none, the input."""

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.built = True

    def call(self, x, mask=None):
        return x if mask is None else mask

    def compute_mask(self, x, previous_mask):
        return None


class _Writer(keras.layers.Layer):
    """Returns its input; Keras keeps the argument `mask` as the mask of the output."""

    def __init__(self, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.supports_masking = True
        self.built = True

    def call(self, x, mask=None):
        return x


# They have no state, so one of each serves all layers, and no layer has them as parts.
_READER = _Reader(name="mask_reader")
_WRITER = _Writer(name="mask_writer")


def _check_padding(x, mask, name, *, query_by_key):
    """Raises ValueError unless a mask of rank 2 is one of the steps of `x`."""
    pairs = zip(mask.shape, x.shape, strict=False)
    known = [pair for pair in pairs if all(map(arguments.is_integer, pair))]
    if all(have in (1, need) for have, need in known):
        return
    steps = tuple(x.shape[:2])
    rule = f"`{name}` must have shape {PADDING}={steps}, as a mask of rank 2 means padding"
    if query_by_key:
        rule = f"{rule}; write {name}[None] for a mask of query by key, (T, S), of all items"
    raise arguments.error(rule, **{name: mask})


def _map_mask(mask, x, channel_axis, name):
    """A mask of the cells of a map as a bool tensor; ValueError unless its sides are the map's."""
    sides = list(x.shape)
    del sides[channel_axis]
    words = ("(B, T)", "(B, H, W)", "(B, D, H, W)")[len(sides) - 2]
    if isinstance(mask, masks.Mask):
        raise arguments.error(
            f"`{name}` must be a bool array {words}, {REAL_STEP}, and no mask object",
            **{name: mask},
        )
    mask = bool_tensor(mask, name, (words,), REAL_STEP)
    pairs = list(zip(mask.shape, sides, strict=True))
    known = [all(map(arguments.is_integer, pair)) for pair in pairs]
    batch, *others = [have == need for have, need in pairs]
    fits = [batch or mask.shape[0] == 1, *others]
    if not all(fit for fit, is_known in zip(fits, known, strict=True) if is_known):
        rule = f"`{name}` must have the sides of the map, {words}={tuple(sides)}"
        raise arguments.error(rule, **{name: mask})
    return mask


def _rank(mask):
    return len(getattr(mask, "shape", ()))
