"""`Bias`, the base class of all biases, and checks that several of them share."""

from kattn.arguments import error
from kattn.block_rule import BlockRule


class Bias(BlockRule):
    """A rule that says what is added to the score of a query and a key.

    `bias[q0:q1, k0:k1]` is the block for these queries and keys of two sequences of equal length,
    as a float32 tensor that broadcasts to `(B, N, q1 - q0, k1 - k0)`. `a + b` is a bias, too.

    Two biases are equal if they are of the same class and their fields, arrays included, are
    equal.

    To write a bias of your own, derive from `Bias`, decorate the class with
    `kattn.block_rule.registered_rule("your_package")`, declare its fields as in a dataclass, name
    those that hold arrays in `array_fields`, and define `block`.

    Example:
        >>> bias = kattn.biases.ALiBi([0.5]) + kattn.biases.ALiBi([1.5])
        >>> bias[0:2, 0:2]
        [[[[0.0, -2.0], [-2.0, 0.0]]]]
    """

    @property
    def is_stationary(self) -> bool:
        """Whether a block depends only on how far its first key is from its first query."""
        return False

    @property
    def compares_cells(self) -> bool:
        """Whether a number depends only on the differences of the coordinates of two cells."""
        return False

    @property
    def is_by_query(self) -> bool:
        """Whether each query has numbers of its own: arrays `(B, N, T, numbers)`."""
        return False

    def in_windows(self, grid, dilation):
        """A bias of the cells of a window as one of the cells of a map that it slides over.

        Args:
            grid: `kattn.grid.Grid` of the map.
            dilation: Distance of neighbouring cells of the window along each side, integers.

        Returns:
            A `Bias` of the cells of `grid`.

        Raises:
            ValueError: If the bias does not go by the differences of coordinates.
        """
        raise error(
            "The bias must go by the differences of coordinates, as that of RelativeTable does, to "
            "serve windows that slide over a map",
            type=type(self).__name__,
        )

    def parts(self) -> tuple["Bias", ...]:
        """The biases whose sum this bias is; the bias alone if it is no sum."""
        return (self,)

    def __add__(self, other: "Bias") -> "Bias":
        from kattn.biases.sum import Sum  # which is built on this class

        if not isinstance(other, Bias):
            rule = "Both sides of `+` must be biases (wrap an array in Dense)"
            raise error(rule, type=type(other).__name__)
        return Sum(self, other)


def check_heads(count, heads, **values):
    """Checks the number of heads that an array of a bias has rows for.

    Args:
        count: Rows of the array; None if it is not known.
        heads: N, the heads of the call; None if they are not known.
        **values: The array, by the name of its argument.

    Raises:
        ValueError: If `count` is neither 1 nor N.
    """
    if None not in (count, heads) and count not in (1, heads):
        (name,) = values
        rule = f"`{name}` of a bias must have one row for each head, N={heads}, or one for all"
        raise error(rule, **values)
