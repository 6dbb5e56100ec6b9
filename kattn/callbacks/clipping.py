"""How gradients are clipped: pure functions, and the state that two of them carry.

A group is a set of weights that share a threshold; `members` are indices of its gradients.
"""

import math

from keras import ops

from kattn import backend

NORM_FLOOR = 1e-6  # of a gradient, against division by 0
WEIGHT_FLOOR = 1e-3  # of a unit of weights: Brock et al. 2021, eps


def clip_values(gradients, threshold):
    """Each number between -threshold and threshold."""
    return [
        ops.clip(g, ops.cast(-threshold, g.dtype), ops.cast(threshold, g.dtype)) for g in gradients
    ]


def clip_norms(gradients, norms, threshold):
    """The norm of each gradient at most `threshold`: Pascanu et al. 2013, weight by weight."""
    factors = _factor(norms, threshold)
    return backend.scaled(gradients, [factors[i] for i in range(len(gradients))])


def clip_joint_norm(gradients, norm, threshold):
    """The norm of all together, `norm`, at most `threshold`: Pascanu et al. 2013, algorithm 1."""
    return backend.scaled(gradients, [_factor(norm, threshold)] * len(gradients))


def clip_units(gradients, weights, axes, threshold):
    """Each unit's gradient at most `threshold` times its weights: Brock et al. 2021, eq. 3.

    Args:
        axes: For each weight, those that one unit's numbers lie along; see `unit_axes`.
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
    """Of all tensors together, from the norm of each."""
    return ops.sqrt(ops.sum(ops.square(norms)))


def percentile(values, count, percent):
    """Of the first `count` of `values`, `(H,)`, by linear interpolation; count >= 1."""
    values = ops.where(ops.arange(values.shape[0], dtype="int32") < count, values, math.inf)
    ordered = ops.sort(values)
    place = ops.cast(count - 1, "float32") * (percent / 100.0)
    below = ops.cast(ops.floor(place), "int32")
    above = ops.minimum(below + 1, count - 1)
    low, high = ops.take(ordered, below), ops.take(ordered, above)
    return low + (high - low) * (place - ops.cast(below, "float32"))


def zclip_target(norm, mean, variance, most):
    """The norm that a gradient of norm `norm` is brought to: Kumar et al. 2025, eq. 4 to 6."""
    deviation = ops.sqrt(variance)
    z = (norm - mean) / (deviation + NORM_FLOOR)
    lower = mean + most * deviation * (most / ops.maximum(z, most))
    return ops.where(z > most, lower, norm)


def _factor(norm, threshold):
    return ops.where(norm > threshold, threshold / (norm + NORM_FLOOR), 1.0)
