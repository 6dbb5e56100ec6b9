"""What acts along the last axis only, and so on each step alone."""

import itertools

from keras import ops

from kattn import backend


def by_row(function, x):
    """The output of a function that acts on each step alone, computed in the fastest shape.

    Args:
        function: Function of a tensor `(..., C)`, of any rank from 2 on, that gives `(..., D)`.
        x: Tensor, shape `(..., C)`, of rank 2 or more.

    Returns:
        function(x), shape `(..., D)`.

    Example:
        >>> kernel = keras.ops.ones((3, 2))
        >>> by_row(lambda rows: keras.ops.matmul(rows, kernel), keras.ops.ones((1, 2, 3)))
        [[[3.0, 3.0], [3.0, 3.0]]]
    """
    return backend.by_row(function, x)


def split_channels(x, widths):
    """Parts of the last axis.

    Args:
        x: Tensor, shape `(..., C)`.
        widths: Number of channels of each part, which are C together.

    Returns:
        List of tensors `(..., width)`.

    Example:
        >>> [part.shape[-1] for part in split_channels(keras.ops.ones((2, 5)), [2, 3])]
        [2, 3]
    """
    if len(set(widths)) == 1:
        return ops.split(x, len(widths), axis=-1)
    # `ops.split` at indices makes tensors of them, which TorchDynamo cannot trace.
    ends = itertools.accumulate(widths)
    return [x[..., end - width : end] for width, end in zip(widths, ends, strict=True)]
