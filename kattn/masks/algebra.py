"""Masks made of masks: `left & right`, `left | right` and `~mask`."""

from keras import ops

from kattn.block_rule import registered_rule
from kattn.masks.mask import ALL, Mask


@registered_rule("kattn")
class And(Mask):
    """A key is visible if it is visible in both masks; `left & right` makes this mask.

    Args:
        left: The first mask.
        right: The second mask.

    Example:
        >>> (kattn.masks.Causal() & kattn.masks.Window(2))[0:3, 0:3]
        [[[[True, False, False], [True, True, False], [False, True, True]]]]
    """

    left: Mask
    right: Mask

    def block(self, queries, keys, offset=0):
        left = self.left.block(queries, keys, offset)
        return ops.logical_and(left, self.right.block(queries, keys, offset))

    def coverage(self, rows, columns):
        return min(self.left.coverage(rows, columns), self.right.coverage(rows, columns))

    @property
    def reach(self):
        return tuple(min(pair) for pair in zip(self.left.reach, self.right.reach, strict=True))

    @property
    def is_band(self):
        return self.left.is_band and self.right.is_band

    @property
    def neighborhood(self):
        left = self.left.neighborhood
        return self.right.neighborhood if left is None else left


@registered_rule("kattn")
class Or(Mask):
    """A key is visible if it is visible in one of two masks; `left | right` makes this mask.

    Args:
        left: The first mask.
        right: The second mask.

    Example:
        >>> (kattn.masks.Window(1) | kattn.masks.Prefix(1))[0:3, 0:3]
        [[[[True, False, False], [True, True, False], [True, False, True]]]]
    """

    left: Mask
    right: Mask

    def block(self, queries, keys, offset=0):
        left = self.left.block(queries, keys, offset)
        return ops.logical_or(left, self.right.block(queries, keys, offset))

    def coverage(self, rows, columns):
        return max(self.left.coverage(rows, columns), self.right.coverage(rows, columns))

    @property
    def reach(self):
        return tuple(max(pair) for pair in zip(self.left.reach, self.right.reach, strict=True))


@registered_rule("kattn")
class Not(Mask):
    """A key is visible if it is not visible in `mask`; `~mask` makes this mask.

    Args:
        mask: The mask that is turned into its opposite.

    Example:
        >>> (~kattn.masks.Causal())[0:3, 0:3]
        [[[[False, True, True], [False, False, True], [False, False, False]]]]
    """

    mask: Mask

    def block(self, queries, keys, offset=0):
        return ops.logical_not(self.mask.block(queries, keys, offset))

    def coverage(self, rows, columns):
        return ALL - self.mask.coverage(rows, columns)


def intersect(left: Mask | None, right: Mask | None) -> Mask | None:
    """The mask of what two masks both allow, of which each may be missing.

    Args:
        left: A mask object, or None, which allows everything.
        right: A mask object, or None, which allows everything.

    Returns:
        `left & right`, or the one that is given, or None if both are None.

    Example:
        >>> causal = kattn.masks.Causal()
        >>> kattn.masks.intersect(causal, None) == causal
        True
        >>> kattn.masks.intersect(causal, kattn.masks.Window(2)).reach
        (1, 0)
    """
    if left is None or right is None:
        return right if left is None else left
    return left & right
