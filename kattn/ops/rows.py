"""What acts along the last axis only, and so on each step alone."""

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
