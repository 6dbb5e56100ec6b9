"""Scores of queries and keys, where they are at hand as an array."""

from keras import ops

from kattn.arguments import error
from kattn.ops.sizes import known_shape
from kattn.spans import Span


def add_bias(scores, bias):
    """What `attention` adds to its scores, added to an array of them.

    Args:
        scores: Scores of queries and keys, float, shape `(B, N, T, S)`. If T is not S, the queries
            stand at the last T of the S positions.
        bias: A `kattn.biases.Bias`, whose numbers are added.

    Returns:
        The sum, shape `(B, N, T, S)`, in the dtype of `scores`. It is computed in float32.

    Raises:
        ValueError: If `scores` has another rank, or if the bias does not fit it.

    Example:
        >>> add_bias(keras.ops.zeros((1, 1, 2, 3)), kattn.biases.ALiBi([0.5]))[0, 0]
        [[-0.5, 0.0, -0.5], [-1.0, -0.5, 0.0]]
    """
    check_scores(scores.shape)
    bias.check(*known_shape(scores))
    queries, keys = ops.shape(scores)[2:]
    numbers = bias.block(Span(0, queries), Span(0, keys), keys - queries)
    return ops.cast(ops.cast(scores, "float32") + numbers, scores.dtype)


def check_scores(shape):
    """Raises ValueError unless the shape is (B, N, T, S) with a known N.

    Args:
        shape: Shape of an array of scores, a tuple of integers and None.

    Returns:
        The number of heads, N.

    Raises:
        ValueError: If the rank is not 4, or if the number of heads is None.

    Example:
        >>> check_scores((None, 4, 16, 16))
        4
    """
    if len(shape) != 4 or shape[1] is None:
        rule = (
            "`scores` must have rank 4, (batch, heads, queries, keys), and a known number of heads"
        )
        raise error(rule, **{"scores.shape": tuple(shape)})
    return shape[1]
