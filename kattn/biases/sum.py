"""The sum of two biases."""

from kattn.biases.bias import Bias
from kattn.block_rule import registered_rule


@registered_rule("kattn.biases")
class Sum(Bias):
    """The sum of two biases; `left + right` makes it.

    Args:
        left: The first bias.
        right: The second bias.

    Example:
        >>> bias = kattn.biases.ALiBi([0.5]) + kattn.biases.Dense(np.ones((1, 2), "float32"))
        >>> bias[0:2, 0:2]
        [[[[1.0, 0.5], [0.5, 1.0]]]]
    """

    left: Bias
    right: Bias

    @property
    def is_stationary(self):
        return self.left.is_stationary and self.right.is_stationary

    @property
    def compares_cells(self):
        return self.left.compares_cells and self.right.compares_cells

    @property
    def is_by_query(self):
        return self.left.is_by_query or self.right.is_by_query

    def block(self, queries, keys, offset=0):
        return self.left.block(queries, keys, offset) + self.right.block(queries, keys, offset)

    def in_windows(self, grid, dilation):
        return self.map_rules(lambda rule: rule.in_windows(grid, dilation))

    def parts(self):
        return (*self.left.parts(), *self.right.parts())
