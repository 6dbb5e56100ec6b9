"""Attention of a few queries at a time to a memory: what runs in each step of a recurrence.

Everything is float32, and heads come before steps. Each function is a few operations, since on
PyTorch each of them costs some microseconds in each step.
"""

from keras import ops

from kattn import backend

# Takes the place of the score of a step that may not be attended to. It is not -inf, so that the
# softmax of a row in which all steps are such has no NaN.
MASKED = -1e30


def score_products(query, key):
    """Products of queries `(B, N, T, D)` and keys `(B, N, S, D)`, `(B, N, T, S)`.

    Args:
        query: Queries, float32.
        key: Keys, float32.

    Returns:
        Scores, float32, shape `(B, N, T, S)`.
    """
    return backend.matmul(query, key, transpose_b=True)


def weights_of(scores, allowed):
    """The softmax of scores `(B, N, T, S)` over the steps that may be attended to.

    Args:
        scores: Scores, float32, shape `(B, N, T, S)`.
        allowed: Bool, broadcast to the scores; True = may be attended to. None if all may be.

    Returns:
        Weights, float32, shape `(B, N, T, S)`. They are exactly 0 where `allowed` is False, also in
        rows that may attend to nothing.
    """
    if allowed is None:
        return backend.softmax(scores)
    masked, zero = (ops.convert_to_tensor(x, "float32") for x in (MASKED, 0.0))
    weights = backend.softmax(ops.where(allowed, scores, masked))
    return ops.where(allowed, weights, zero)


def mix(weights, value):
    """The sums of values by weights, heads side by side.

    Args:
        weights: Weights, float32, shape `(B, N, T, S)`.
        value: Values, float32, shape `(B, N, S, D)`.

    Returns:
        Contexts, float32, shape `(B, T, N * D)`.
    """
    context = backend.matmul(weights, value)  # (B, N, T, D)
    batch, heads, steps, width = ops.shape(context)
    if heads == 1:
        return context[:, 0]
    return ops.reshape(ops.swapaxes(context, 1, 2), (batch, steps, heads * width))


def seen(queries, keys, *, causal, window):
    """Which keys a query may attend to, by the positions of both.

    Args:
        queries: Positions of the queries, int32, shape `(B, T)` or `(1, T)`.
        keys: Positions of the keys, int32, shape `(B, S)` or `(1, S)`.
        causal: Whether a query sees no key that comes after it.
        window: Number of keys W that a query sees, its own position included, before it and, if it
            is not causal, as many after it. None for no window.

    Returns:
        Bool, shape `(B, 1, T, S)` or `(1, 1, T, S)`; or None if all may be attended to.
    """
    if not causal and window is None:
        return None
    distance = queries[:, None, :, None] - keys[:, None, None, :]
    rules = [distance >= 0] if causal else []
    if window is not None:
        rules.append((distance if causal else ops.abs(distance)) < window)
    return rules[0] if len(rules) == 1 else ops.logical_and(*rules)


def joined(*masks):
    """Masks of the kind that are combined by `and`, of which some may be None.

    Args:
        *masks: Bool tensors that can be broadcast to each other, or None.

    Returns:
        A bool tensor, or None.
    """
    given = [mask for mask in masks if mask is not None]
    if not given:
        return None
    found = given[0]
    for mask in given[1:]:
        found = ops.logical_and(found, mask)
    return found


def count_positions(real, like, offset=None):
    """The positions of steps, counted from the first real one.

    Args:
        real: Bool, shape `(B, T)`; True = real step. None if all are real.
        like: Tensor of shape `(B, T, ...)`, for the number of steps where `real` is None.
        offset: Number of real steps before these, int32, shape `(B,)`. None for 0.

    Returns:
        Positions, int32, shape `(B, T)` or `(1, T)`. At padding it is the position of the real step
        before it.
    """
    if real is None:
        positions = ops.arange(ops.shape(like)[1], dtype="int32")[None]
    else:
        positions = ops.cumsum(ops.cast(real, "int32"), axis=1) - 1
    return positions if offset is None else positions + offset[:, None]
