"""Masks that are arrays."""

from typing import Any

from kattn.block_rule import registered_rule
from kattn.masks.checks import bool_tensor, check_broadcast
from kattn.masks.mask import Mask
from kattn.spans import cut_block, pad_block


@registered_rule("kattn")
class Dense(Mask):
    """Query i of item b sees key j in head n if `array[b, n, i, j]` is True.

    Args:
        array: Bool array, `(T, S)` or `(B, N, T, S)`, any of whose axes may be 1. True = the
            query may attend to the key.

    Raises:
        ValueError: If `array` is a list, not boolean, or not of rank 2 or 4.

    Example:
        >>> mask = kattn.masks.Dense(np.array([[True, False], [True, True]]))
        >>> mask[0:2, 0:2]
        [[[[True, False], [True, True]]]]
        >>> additive = np.array([[0.0, -np.inf], [0.0, 0.0]])
        >>> kattn.masks.Dense(additive > -1) == mask
        True
    """

    array: Any

    array_fields = ("array",)

    def __post_init__(self):
        array = bool_tensor(self.array, "array", ("(T, S)", "(B, N, T, S)"))
        object.__setattr__(self, "array", array)

    def block(self, queries, keys, offset=0):
        array = self.array if len(self.array.shape) == 4 else self.array[None, None]
        return cut_block(array, queries, keys)

    @property
    def holds_scores(self):
        return True

    def padded(self, queries, keys):
        return self.unchecked(array=pad_block(self.array, queries, keys))

    def check(self, batch, heads, queries, keys):
        sizes = (batch, heads, queries, keys)[-len(self.array.shape) :]
        axes = "(T, S)" if len(sizes) == 2 else "(B, N, T, S)"
        check_broadcast(self.array, "array", sizes, axes)
