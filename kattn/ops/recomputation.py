"""Functions that are run again for their gradient, so that nothing between is kept."""

from kattn import backend


def recomputed(function):
    """A function of which only the inputs are kept for the gradient.

    Args:
        function: Function of tensors that returns a tensor or a tuple of tensors. What it draws
            at random must be the same each time.

    Returns:
        A function with the same arguments and results.

    Example:
        >>> recomputed(keras.ops.exp)(keras.ops.zeros((2,)))
        [1.0, 1.0]

    Reference:
        Chen et al. 2016, sec. 3, https://arxiv.org/abs/1604.06174
    """
    return backend.recomputed(function)
