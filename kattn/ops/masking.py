"""Handling mask and bias objects: of arrays, joined, their arrays taken out and put back."""

from typing import Any

from kattn import biases
from kattn.masks import And, Dense, Mask, Segments


def as_mask(mask) -> Mask | None:
    """A mask object from a mask object, a bool array of rank 2 or 4, or None."""
    if mask is None or isinstance(mask, Mask):
        return mask
    if len(getattr(mask, "shape", ())) == 3:
        raise ValueError(
            "`mask` must have rank 2, (T, S), or rank 4, (B, N, T, S); rank 3 could mean either of "
            f"mask[:, None] and mask[None]; received: mask.shape={tuple(mask.shape)}"
        )
    return Dense(mask)


def intersect(left: Mask | None, right: Mask | None) -> Mask | None:
    """`left & right`, where None allows everything."""
    if left is None or right is None:
        return right if left is None else left
    return left & right


def as_bias(bias) -> biases.Bias | None:
    """A bias object from a bias object, a float array of rank 2 or 4, or None."""
    return bias if bias is None or isinstance(bias, biases.Bias) else biases.Dense(bias)


def restarts(mask) -> Any:
    """`(B, S)` positions that restart with each of the mask's segments, or None if it has none."""
    if isinstance(mask, Segments):
        return mask.positions()
    if isinstance(mask, And):
        left = restarts(mask.left)
        return restarts(mask.right) if left is None else left
    return None


def arrays_of(rule) -> list:
    """The arrays that a mask or a bias holds, in a fixed order."""
    arrays = []

    def note(array):
        arrays.append(array)
        return array

    if rule is not None:
        rule.map_arrays(note)
    return arrays


def with_arrays(rule, arrays):
    """The mask or bias with its arrays replaced, in the order of `arrays_of`."""
    remaining = iter(arrays)
    return None if rule is None else rule.map_arrays(lambda _: next(remaining))


def without_arrays(rule):
    """The mask or bias without its arrays: hashable, and equal for equal rules."""
    return None if rule is None else rule.map_arrays(lambda _: None)
