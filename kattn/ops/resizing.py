"""Maps with other sides, by linear interpolation."""

from keras import ops

from kattn import backend
from kattn.arguments import is_integer


def resize(x, sides):
    """A map of any rank with other sides, by linear interpolation along each of them.

    Both maps cover the same space, and a number stands at the middle of its cell. In front of the
    first middle and behind the last the numbers stay what they are there. `keras.ops.image.resize`
    gives the same for images, and knows no sequences and volumes.

    Args:
        x: Map, float, shape `(B, *sides, C)`, of which no side is 0 where the new one is not.
        sides: The new sides, one for each of the map: integers, scalar tensors or symbols.

    Returns:
        `(B, *sides, C)`, in the dtype of `x`.

    Example:
        >>> resize(keras.ops.array([[[1.0], [3.0]]]), (4,))[0, :, 0]
        [1.0, 1.5, 2.5, 3.0]
    """
    for axis, side in enumerate(sides, 1):
        x = _resize_axis(x, axis, side)
    return x


def _resize_axis(x, axis, side):
    own = ops.shape(x)[axis]
    if is_integer(own) and is_integer(side) and own == side:
        return x
    # (i + 1/2) own / side - 1/2, times 2 side: cells and fractions of them without a rounding.
    place = ops.maximum((2 * ops.arange(side, dtype="int32") + 1) * own - side, 0)
    unit = ops.zeros_like(place) + 2 * side
    below = place // unit
    above = ops.minimum(below + 1, own - 1)
    share = ops.cast(place - below * unit, "float32") / ops.cast(unit, "float32")
    share = ops.reshape(share, (-1, *(1,) * (len(x.shape) - axis - 1)))
    share = ops.cast(share, x.dtype)
    below, above = (backend.gather(x, place, axis) for place in (below, above))
    return below * (1 - share) + above * share
