"""`Mask`, the base class of all masks, and what a mask says of a block of the scores."""

import math
from typing import Any

from kattn.arguments import error
from kattn.block_rule import BlockRule

UNBOUNDED = math.inf
# What a rule says of a block of the scores, whatever the arrays in it hold: see `Mask.coverage`.
NONE, SOME, ALL = 0, 1, 2


class Mask(BlockRule):
    """A rule that says which keys a query may attend to (True = may attend).

    Masks are combined with `&` (both allow it), `|` (one of the two allows it) and `~` (the
    opposite). `mask[q0:q1, k0:k1]` is the block for these queries and keys of two sequences of
    equal length, as a bool tensor that broadcasts to `(B, N, q1 - q0, k1 - k0)`.

    Two masks are equal if they are of the same class and have equal fields; a mask without arrays
    can be the key of a dict.

    To write a mask of your own, derive from `Mask`, decorate the class with
    `kattn.block_rule.registered_rule("your_package")`, declare its fields as in a dataclass, and
    define `block`. Override `reach`, `is_band` and `coverage` where more is known, so that
    kernels can skip what nobody sees.

    Example:
        >>> mask = kattn.masks.Causal() & kattn.masks.Window(2)
        >>> mask[0:3, 0:3]
        [[[[True, False, False], [True, True, False], [False, True, True]]]]
        >>> mask.reach
        (1, 0)
    """

    def __and__(self, other: "Mask") -> "Mask":
        from kattn.masks.algebra import And  # which is built on this class

        return And(self, _mask(other, "&"))

    def __or__(self, other: "Mask") -> "Mask":
        from kattn.masks.algebra import Or

        return Or(self, _mask(other, "|"))

    def __invert__(self) -> "Mask":
        from kattn.masks.algebra import Not

        return Not(self)

    def __bool__(self):
        # `and`, `or` and `not` would give one of the two masks, or False, in silence.
        raise TypeError(
            "A mask has no truth value: join masks by `&` (in place of `and`) and `|` (`or`), turn "
            "one into its opposite by `~` (`not`), and ask whether there is one by `is None`; "
            f"received: {type(self).__name__}"
        )

    @property
    def reach(self) -> tuple[float, float]:
        """Largest number of keys (before, after) its own position that a query can see."""
        return UNBOUNDED, UNBOUNDED

    @property
    def is_band(self) -> bool:
        """Whether each query of each item and head sees all keys within `reach`."""
        return False

    @property
    def neighborhood(self) -> Any:
        """The `Neighborhood` of a grid of known sides in which all visible keys lie, or None."""
        return None

    def coverage(self, rows, columns):
        """What the rule alone says of a block of the scores, whatever its arrays hold.

        Args:
            rows: Positions of the first and the last query of the block on the key axis, two
                integers.
            columns: Positions of the first and the last key of the block, two integers.

        Returns:
            `NONE` if no query of the block sees a key of it, `ALL` if each query sees all of
            them, `SOME` if that depends on the query, the key or the values of an array.
        """
        return SOME

    def on_grid(self, grid):
        """The same mask for the cells of a grid, in row-major order, in place of a sequence.

        It changes only masks that compare coordinates of cells. Others go by the order of the
        cells.

        Args:
            grid: The `kattn.grid.Grid` whose cells are the queries and the keys.

        Returns:
            A mask of the same class.

        Raises:
            ValueError: If the mask does not fit the grid.
        """
        return self.map_rules(lambda rule: rule.on_grid(grid) if isinstance(rule, Mask) else rule)


def summarized(*, nothing, everything):
    """`NONE`, `ALL` or `SOME`, for a block of which nothing, everything or neither is visible."""
    return NONE if nothing else ALL if everything else SOME


def _mask(value, operator):
    if not isinstance(value, Mask):
        rule = f"Both sides of `{operator}` must be masks (wrap an array in Dense or Padding)"
        raise error(rule, type=type(value).__name__)
    return value
