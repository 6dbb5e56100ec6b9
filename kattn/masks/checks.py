"""Reading the arrays of masks: conversion, and messages that say what to write instead."""

import keras
from keras import ops

from kattn.arguments import error, infers_shapes, is_integer

# What a value of a mask means, as messages say it.
MAY_ATTEND = "True = may attend"
REAL_STEP = (
    "True = real step (PyTorch's `key_padding_mask` means the opposite: pass `~key_padding_mask`)"
)


def bool_tensor(array, name, shapes, meaning=MAY_ATTEND):
    """A boolean array as a tensor.

    Args:
        array: Bool array or tensor, possibly symbolic.
        name: Name of the argument, for messages.
        shapes: The shapes that it may have, of different ranks, as text: `("(B, S)",)`.
        meaning: What True means, for messages: `MAY_ATTEND` or `REAL_STEP`.

    Returns:
        The bool tensor.

    Raises:
        ValueError: If it is a list, not boolean or of another rank. The message says how to make
            a mask of a list, of integers and of what is added to scores.
    """
    rule = f"`{name}` must be boolean, {meaning}"
    if isinstance(array, list | tuple):
        raise error(f"{rule}; wrap a list as np.array({name}, bool)", type=type(array).__name__)
    array = _tensor(array)
    dtype = keras.backend.standardize_dtype(array.dtype)
    if dtype != "bool" and infers_shapes():
        array = ops.cast(array, "bool")
    elif dtype != "bool":
        received = {name: array, "dtype": dtype}
        raise error(f"{rule}; {_instead(name, dtype)}", **received)
    ranks = {text.count(",") + 1: text for text in shapes}
    if len(array.shape) not in ranks:
        allowed = " or ".join(f"rank {rank}, {text}" for rank, text in ranks.items())
        raise error(f"`{name}` must have {allowed}; {meaning}", **{name: array})
    return array


def int_tensor(array, name, shape):
    """An array of integers as an int32 tensor.

    Args:
        array: Array, tensor or list of integers, possibly symbolic.
        name: Name of the argument, for messages.
        shape: The shape that it must have, as text: "(B, S)". A shape of one axis is "(B,)".

    Returns:
        The int32 tensor.

    Raises:
        ValueError: If it does not hold integers or is of another rank.
    """
    array = _tensor(array)
    dtype = keras.backend.standardize_dtype(array.dtype)
    rank = len([axis for axis in shape.strip("()").split(",") if axis])
    is_integral = "int" in dtype or infers_shapes()
    if not is_integral or len(array.shape) != rank:
        rule = f"`{name}` of a mask must be integers of rank {rank}, {shape}"
        raise error(rule, **{name: array, "dtype": dtype})
    return ops.cast(array, "int32")


def check_broadcast(array, name, sizes, axes):
    """Checks that an array of a mask broadcasts to the sizes of a call.

    Args:
        array: The array.
        name: Name of the argument, for messages.
        sizes: Size of each axis of the array in the call; None if it is not known.
        axes: The shape in words, for messages: "(B, S)".

    Raises:
        ValueError: If an axis has another size, and that is not 1.
    """
    for have, need in zip(array.shape, sizes, strict=True):
        if is_integer(have) and is_integer(need) and have not in (1, need):
            rule = f"`{name}` of a mask must broadcast to {axes}={tuple(sizes)}"
            raise error(rule, **{name: array})


def _instead(name, dtype):
    """What to write instead of an array of numbers."""
    if "float" not in dtype:
        return f"write `{name} != 0` if it holds 1 and 0"
    return (
        f"numbers that are added to the scores are a bias: pass them as `bias`, or write "
        f"`{name} > -1` if they are 0 and -inf (or -1e9), `{name} != 0` if they are 1 and 0"
    )


def _tensor(array):
    return array if isinstance(array, keras.KerasTensor) else ops.convert_to_tensor(array)
