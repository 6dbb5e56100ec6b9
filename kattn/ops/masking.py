"""Handling mask objects: making them of arrays, joining them, taking their arrays out and back."""

from kattn.masks import Dense, Mask


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


def both(left: Mask | None, right: Mask | None) -> Mask | None:
    """`left & right`, where None allows everything."""
    if left is None or right is None:
        return right if left is None else left
    return left & right


def arrays_of(mask: Mask | None) -> list:
    """The arrays that the mask holds, in a fixed order."""
    arrays = []

    def note(array):
        arrays.append(array)
        return array

    if mask is not None:
        mask.map_arrays(note)
    return arrays


def with_arrays(mask: Mask | None, arrays) -> Mask | None:
    """The mask with its arrays replaced, in the order of `arrays_of`."""
    remaining = iter(arrays)
    return None if mask is None else mask.map_arrays(lambda _: next(remaining))


def skeleton(mask: Mask | None) -> Mask | None:
    """The mask without its arrays: hashable, and equal for equal rules."""
    return None if mask is None else mask.map_arrays(lambda _: None)
