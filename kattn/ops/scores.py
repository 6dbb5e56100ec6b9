"""Scores of queries and keys, where they are at hand as an array."""

from keras import ops

from kattn.spans import Span


def add_bias(scores, bias):
    """What `attention` adds to its scores, added to an array of them.

    Args:
        scores: `(B, N, T, S)` float.
        bias: A `kattn.biases.Bias`.

    Returns:
        `(B, N, T, S)` of the dtype of `scores`; the sum is made in float32.

    Raises:
        ValueError: If `scores` has another rank, or the bias does not fit it.

    Example:
        >>> add_bias(keras.ops.zeros((1, 1, 2, 3)), kattn.biases.ALiBi([0.5]))[0, 0]
        [[-0.5, 0.0, -0.5], [-1.0, -0.5, 0.0]]
    """
    check_scores(scores.shape)
    bias.check(*scores.shape)
    queries, keys = ops.shape(scores)[2:]
    found = bias.block(Span(0, queries), Span(0, keys), keys - queries)
    return ops.cast(ops.cast(scores, "float32") + found, scores.dtype)


def check_scores(shape):
    """Raises ValueError unless the shape is (B, N, T, S) with a known N.

    Args:
        shape: Of an array of scores.

    Returns:
        N.

    Raises:
        ValueError: If it is not.

    Example:
        >>> check_scores((None, 4, 16, 16))
        4
    """
    if len(shape) != 4 or shape[1] is None:
        raise ValueError(
            "`scores` must have rank 4, (batch, heads, queries, keys), and a known number of "
            f"heads; received: scores.shape={tuple(shape)}"
        )
    return shape[1]
