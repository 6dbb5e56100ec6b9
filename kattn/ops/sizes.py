"""Sizes of axes: those that are known, and what holds for those that are not.

A size is an integer where it is known. A model that is traced for any size has other kinds: None
(of a symbolic input of Keras, and in `x.shape` on TensorFlow), a scalar tensor (in `ops.shape(x)`
on TensorFlow), and symbols (symbolic dimensions of JAX, `torch.SymInt`). Symbols can be added and
multiplied. But whether one is less than another has no answer, so that nothing may branch on them,
and no sequence can be cut into blocks of a size that depends on one.
"""

from keras import ops

from kattn import backend


def known_shape(x):
    """The sizes of a tensor that are known.

    Args:
        x: Tensor or array, possibly symbolic.

    Returns:
        Tuple of an integer for each axis, or None where the size is not known. While Keras infers
        shapes on PyTorch no size is known: those of its tensors are made up.

    Example:
        >>> known_shape(keras.KerasTensor((None, 5)))
        (None, 5)
    """
    if backend.is_made_up(x):
        return (None,) * len(x.shape)
    return tuple(size if isinstance(size, int) else None for size in x.shape)


def has_shape(x, shape):
    """Whether a tensor may have a shape, as far as sizes are known.

    Args:
        x: Tensor or array, possibly symbolic.
        shape: Tuple of an integer for each axis, or None for a size that is not known.

    Returns:
        False if the ranks differ, or two sizes that are known.

    Example:
        >>> has_shape(keras.ops.ones((2, 5)), (None, 5)), has_shape(keras.ops.ones((2, 5)), (2, 4))
        (True, False)
    """
    sizes = known_shape(x)
    return len(sizes) == len(shape) and all(
        have == need or None in (have, need) for have, need in zip(sizes, shape, strict=True)
    )


def stands_for_any(x, axis):
    """Whether a size of a tensor stands for any size.

    Args:
        x: Tensor or array, possibly symbolic.
        axis: The axis.

    Returns:
        True where `x.shape` holds a symbol, or a size that was made up to infer shapes.

    Example:
        >>> stands_for_any(keras.ops.ones((2, 5)), 1)
        False
    """
    return x.shape[axis] is not None and known_shape(x)[axis] is None


def is_symbol(size):
    """Whether a size, of `x.shape` or of `ops.shape(x)`, is a symbol.

    Args:
        size: Integer, None, scalar tensor or symbol.

    Returns:
        True for a symbol, else False.

    Example:
        >>> is_symbol(5), is_symbol(None)
        (False, False)
    """
    return not (size is None or isinstance(size, int) or backend.is_computed(size))


def ceil_divide(size, by):
    """The size divided by an integer, rounded up.

    It is not -(-size // by), whose quotient is negative: in ONNX files such quotients of tensors
    are rounded towards 0, not down.

    Args:
        size: Integer, scalar tensor or symbol.
        by: Integer >= 1, or a scalar tensor or a symbol.

    Returns:
        A size of the same kind.

    Example:
        >>> ceil_divide(5, 2), ceil_divide(0, 2)
        (3, 0)
    """
    return (size + by - 1) // by


def at_least_one(size):
    """The size, but 1 in place of 0: a sequence without steps is cut into blocks of padding.

    Args:
        size: Integer, scalar tensor or symbol. Symbols are not 0.

    Returns:
        A size of the same kind.

    Example:
        >>> at_least_one(0), at_least_one(5)
        (1, 5)
    """
    if isinstance(size, int):
        return max(size, 1)
    return size if is_symbol(size) else ops.maximum(size, 1)
