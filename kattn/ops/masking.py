"""Mask and bias objects of what a caller gives, and their arrays apart from them.

A kernel is compiled for a rule without its arrays, which can be hashed, and gets the arrays as
tensors; inside it puts the two together again.
"""

from typing import Any

from keras import ops

from kattn import biases
from kattn.arguments import error
from kattn.masks import And, Dense, Mask, Segments
from kattn.masks.checks import bool_tensor
from kattn.spans import Span


def as_mask(mask) -> Mask | None:
    """The mask object for the argument `mask` of a function.

    Args:
        mask: A mask object; or a bool array `(T, S)` or `(B, N, T, S)`, any of whose axes may be
            1, True = may attend; or None, which allows everything.

    Returns:
        A mask object, or None for None.

    Raises:
        ValueError: If it is an array that is not boolean or not of rank 2 or 4, or a list.
    """
    if mask is None or isinstance(mask, Mask):
        return mask
    if len(getattr(mask, "shape", ())) == 3:
        rule = (
            "`mask` must have rank 2, (T, S), or rank 4, (B, N, T, S); of rank 3 write "
            "`mask[:, None]` if its first axis is the batch, `mask[None]` if it is the heads"
        )
        raise error(rule, mask=mask)
    return Dense(bool_tensor(mask, "mask", ("(T, S)", "(B, N, T, S)")))


def as_bias(bias) -> biases.Bias | None:
    """The bias object for the argument `bias` of a function.

    Args:
        bias: A bias object; or a float array `(T, S)` or `(B, N, T, S)`, any of whose axes may be
            1; or None, which adds nothing.

    Returns:
        A bias object, or None for None.

    Raises:
        ValueError: If it is an array that is not float or not of rank 2 or 4.
    """
    return bias if bias is None or isinstance(bias, biases.Bias) else biases.Dense(bias)


def array_of(mask, queries, keys):
    """A mask as one array, which takes the memory of all scores.

    Args:
        mask: A mask object.
        queries: Number of queries T, an integer or a scalar tensor.
        keys: Number of keys S, likewise.

    Returns:
        Bool tensor `(B or 1, N or 1, T, S)`, True = may attend.
    """
    array = mask.block(Span(0, queries), Span(0, keys), keys - queries)
    return ops.broadcast_to(array, (*ops.shape(array)[:2], queries, keys))


def restarts(mask) -> Any:
    """The positions of steps in a mask of packed sequences.

    Args:
        mask: A mask object, or None.

    Returns:
        `(B, S)` int32, positions that start again at 0 with each segment of `Segments`; None if
        the mask has no segments.
    """
    if isinstance(mask, Segments):
        return mask.positions()
    if isinstance(mask, And):
        left = restarts(mask.left)
        return restarts(mask.right) if left is None else left
    return None


def positions_in_segments(mask, positions):
    """The positions of steps, counted anew in each segment of packed sequences.

    Args:
        mask: A mask object over the positions of the whole sequence, or None.
        positions: Positions of steps in the whole sequence, int32, shape `(B, t)`.

    Returns:
        `(B, t)` int32; `positions` if the mask has no segments.
    """
    anew = restarts(mask)
    return positions if anew is None else ops.take_along_axis(anew, positions, axis=1)


def arrays_of(rule) -> list:
    """The arrays that a mask or a bias holds.

    Args:
        rule: A mask object, a bias object, or None.

    Returns:
        List of the arrays, in the order in which `map_arrays` visits them.
    """
    arrays = []

    def note(array):
        arrays.append(array)
        return array

    if rule is not None:
        rule.map_arrays(note)
    return arrays


def with_arrays(rule, arrays):
    """A mask or a bias with other arrays.

    Args:
        rule: A mask object, a bias object, or None.
        arrays: The new arrays, in the order of `arrays_of`.

    Returns:
        The rule with these arrays; None for None.
    """
    remaining = iter(arrays)
    return None if rule is None else rule.map_arrays(lambda _: next(remaining))


def without_arrays(rule):
    """A mask or a bias whose arrays are taken out.

    Args:
        rule: A mask object, a bias object, or None.

    Returns:
        The rule with None in place of each array, which can be hashed, and is equal for equal
        rules; None for None.
    """
    return None if rule is None else rule.map_arrays(lambda _: None)
