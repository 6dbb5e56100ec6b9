"""Attention with linear biases (Press et al., 2021)."""

from typing import Any

import numpy as np
from keras import ops

from kattn.arguments import error
from kattn.biases.bias import Bias, check_heads
from kattn.block_rule import registered_rule


@registered_rule("kattn.biases")
class ALiBi(Bias):
    """-slope[n] * |i + (S - T) - j|: the farther a key is from the query, the lower its score.

    Args:
        slopes: Decrease of the score for each step of distance, one number >= 0 for each of N
            heads: a tuple, list or NumPy array of N numbers, which are constants; or a float
            tensor `(N,)`, through which gradients flow.

    Raises:
        ValueError: If `slopes` is not one number for each head.

    Example:
        >>> kattn.biases.ALiBi([0.5])[0:3, 0:3]
        [[[[0.0, -0.5, -1.0], [-0.5, 0.0, -0.5], [-1.0, -0.5, 0.0]]]]

    Reference:
        Press et al. 2021, sec. 3, https://arxiv.org/abs/2108.12409
    """

    slopes: Any

    array_fields = ("slopes",)

    def __post_init__(self):
        is_constant = isinstance(self.slopes, tuple | list | np.ndarray)
        shape = np.shape(self.slopes) if is_constant else getattr(self.slopes, "shape", ())
        if len(shape) != 1:
            rule = "`slopes` must be numbers (N,), one for each head"
            raise error(rule, slopes=self.slopes)
        if is_constant:
            object.__setattr__(self, "slopes", tuple(float(x) for x in self.slopes))

    @property
    def is_stationary(self):
        return True

    def block(self, queries, keys, offset=0):
        distance = queries.along(-2) + offset - keys.along(-1)
        is_constant = isinstance(self.slopes, tuple)
        slopes = ops.convert_to_tensor(self.slopes, "float32") if is_constant else self.slopes
        return -ops.reshape(slopes, (-1, 1, 1)) * ops.cast(ops.abs(distance), "float32")

    def check(self, batch, heads, queries, keys):
        is_constant = isinstance(self.slopes, tuple)
        count = len(self.slopes) if is_constant else self.slopes.shape[0]
        check_heads(count, heads, slopes=self.slopes)
