"""The masks of a query, a value and a key, as Keras's layer takes them, over any axes."""

import keras
from keras import ops

from kattn import masks
from kattn.layers.attention.flattened_axes import with_rank
from kattn.layers.attention.mask_reader import keras_mask, silence


def read_paddings(axes, inputs, explicit):
    """Which queries and which keys are real, by the Keras masks of the inputs and by explicit ones.

    A key is real if the value that belongs to it is.

    Args:
        axes: The `FlattenedAxes` of the inputs.
        inputs: Query, value and key.
        explicit: Explicit padding masks of the three, each `(B, <axes>)` or None.

    Returns:
        Pair `(B', T')` and `(B', S')` bool, True = real step; or None where all steps are real.
    """
    _, value, key = inputs
    of_query, of_value, of_key = (
        None if keep is None else axes.flatten_padding(keep, x)
        for x, keep in zip(inputs, map(joined_padding, inputs, explicit), strict=True)
    )
    has_key_mask = of_key is not None and (key is not value or explicit[2] is not None)
    if of_value is None or not has_key_mask:
        return of_query, of_key if has_key_mask else of_value
    return of_query, ops.logical_and(of_value, of_key)


def silence_inputs(axes, inputs, paddings):
    """Query, value and key with zeros at padding, where inputs may hold NaN.

    Args:
        axes: The `FlattenedAxes` of the inputs.
        inputs: Query, value and key.
        paddings: Which queries and which keys are real, as `read_paddings` gives them.
    """
    query, value, key = inputs
    of_query, of_keys = paddings
    if of_query is not None:
        query = silence(query, axes.unflatten(of_query, axes.queries, 0))
    if of_keys is None:
        return query, value, key
    of_keys = axes.unflatten(of_keys, axes.keys, 0)
    silent = silence(value, of_keys)
    return query, silent, silent if key is value else silence(key, of_keys)


def joined_padding(x, explicit):
    """The Keras mask of `x` and an explicit padding mask, combined; None if there is neither."""
    implicit, explicit = keras_mask(x), None if explicit is None else _boolean(explicit)
    if implicit is None or explicit is None:
        return explicit if implicit is None else implicit
    rank = max(len(explicit.shape), len(implicit.shape))
    return ops.logical_and(with_rank(explicit, rank), with_rank(implicit, rank))


def read_attention_mask(axes, attention_mask):
    """The mask of query by key as a mask object over flattened steps, or None.

    Args:
        axes: The `FlattenedAxes` of the inputs.
        attention_mask: Array over these axes, of booleans or of numbers; a `kattn.masks.Mask` over
            flattened steps; or None.
    """
    if attention_mask is None or isinstance(attention_mask, masks.Mask):
        return attention_mask
    return masks.Dense(axes.flatten_mask(_boolean(attention_mask)))


def _boolean(mask):
    """A mask of booleans; one of numbers is 0 where a query may not attend, as in Keras."""
    mask = mask if isinstance(mask, keras.KerasTensor) else ops.convert_to_tensor(mask)
    return mask if keras.backend.standardize_dtype(mask.dtype) == "bool" else ops.cast(mask, "bool")
