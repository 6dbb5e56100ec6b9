"""How gradients are clipped, as functions of tensors without any state."""

import math

from keras import ops

from kattn import backend

NORM_FLOOR = 1e-6  # added to norms of gradients, against division by 0
WEIGHT_FLOOR = 1e-3  # least norm of a unit's weights: eps of Brock et al. 2021


def clip_values(gradients, threshold):
    """Return gradients whose numbers are clipped to [-threshold, threshold]."""
    return [
        ops.clip(g, ops.cast(-threshold, g.dtype), ops.cast(threshold, g.dtype)) for g in gradients
    ]


def clip_norms(gradients, norms, threshold):
    """Return gradients scaled to a norm of at most `threshold` each (Pascanu et al. 2013)."""
    factors = _factor(norms, threshold)
    return backend.scaled(gradients, [factors[i] for i in range(len(gradients))])


def clip_joint_norm(gradients, norm, threshold):
    """Return gradients scaled by one factor, to a joint norm of at most `threshold`.

    `norm` is the joint norm of the gradients before. Pascanu et al. 2013, algorithm 1.
    """
    return backend.scaled(gradients, [_factor(norm, threshold)] * len(gradients))


def clip_units(gradients, weights, axes, threshold):
    """Return gradients whose units have at most `threshold` times the norm of their weights.

    Brock et al. 2021, eq. 3.

    Args:
        gradients: List of gradients.
        weights: List of weights, one for each gradient.
        axes: For each weight, the axes along which the numbers of one unit lie, as `unit_axes`
            returns them.
        threshold: Scalar tensor.
    """
    clipped = []
    for gradient, weight, axis in zip(gradients, weights, axes, strict=True):
        g, w = ops.cast(gradient, "float32"), ops.cast(weight, "float32")
        norm = ops.sqrt(ops.sum(ops.square(g), axis=axis, keepdims=True))
        most = threshold * ops.maximum(
            ops.sqrt(ops.sum(ops.square(w), axis=axis, keepdims=True)), WEIGHT_FLOOR
        )
        # At most the gradient's own norm, so that no threshold means no change: inf / inf is none.
        factor = ops.where(norm > most, most / ops.maximum(norm, NORM_FLOOR), 1.0)
        clipped.append(ops.cast(g * factor, gradient.dtype))
    return clipped


def joint_norm(norms):
    """Return the norm of all tensors together, given the norm of each."""
    return ops.sqrt(ops.sum(ops.square(norms)))


def percentile(values, count, percent):
    """Return a percentile of the first `count` of `values`, by linear interpolation.

    Args:
        values: Float tensor, shape `(H,)`.
        count: How many of the values count, int32 scalar from 1 to H.
        percent: Which percentile, a number in (0, 100].
    """
    values = ops.where(ops.arange(values.shape[0], dtype="int32") < count, values, math.inf)
    ordered = ops.sort(values)
    place = ops.cast(count - 1, "float32") * (percent / 100.0)
    below = ops.cast(ops.floor(place), "int32")
    above = ops.minimum(below + 1, count - 1)
    low, high = ops.take(ordered, below), ops.take(ordered, above)
    return low + (high - low) * (place - ops.cast(below, "float32"))


def zclip_target(norm, mean, variance, most):
    """Return the norm to which a gradient of norm `norm` is scaled (Kumar et al. 2025, eq. 4 to 6).

    Args:
        norm: Norm of the gradient, scalar.
        mean: Running mean of the norms before.
        variance: Running variance of the norms before.
        most: Standard deviations above the mean from which on a norm is brought down.
    """
    deviation = ops.sqrt(variance)
    z = (norm - mean) / (deviation + NORM_FLOOR)
    lower = mean + most * deviation * (most / ops.maximum(z, most))
    return ops.where(z > most, lower, norm)


def _factor(norm, threshold):
    return ops.where(norm > threshold, threshold / (norm + NORM_FLOOR), 1.0)
