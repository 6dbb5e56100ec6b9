"""Images between their cells: bilinear interpolation at any points."""

from keras import ops

from kattn import backend


def sample_bilinear(x, points):
    """What an image is at points that need not be the middles of cells, with gradients for both.

    Each number is a mean of the four cells around the point, with weights that fall linearly with
    the distance along each side. A point beyond the edge is moved to it, and has no gradient then
    along that side.

    Args:
        x: Images, float, shape `(B, H, W, C)`, of one cell or more.
        points: Rows and columns of the points, float32, shape `(B, S, 2)`; 0.0 is the middle of the
            first cell and 1.0 that of the second.

    Returns:
        `(B, S, C)`, in the dtype of `x`.

    Example:
        >>> x = keras.ops.array([[[[1.0], [2.0]], [[5.0], [6.0]]]])
        >>> sample_bilinear(x, keras.ops.array([[[0.5, 0.0], [0.0, 0.25], [9.0, 1.0]]]))[0, :, 0]
        [3.0, 1.25, 6.0]
    """
    x, points = ops.convert_to_tensor(x), ops.convert_to_tensor(points)
    batch, height, width, channels = ops.shape(x)
    cells = ops.reshape(x, (batch * height * width, channels))
    first = ops.arange(batch, dtype="int32")[:, None] * (height * width)
    y = 0.0
    for row, of_row in _neighbours(points[..., 0], height):
        for column, of_column in _neighbours(points[..., 1], width):
            corner = backend.gather(cells, first + row * width + column, 0)  # (B, S, C)
            y = y + ops.cast(of_row * of_column, x.dtype)[..., None] * corner
    return y


def _neighbours(place, side):
    """The cells before and behind a place along a side, with their weights."""
    before = ops.cast(ops.floor(place), "int32")
    before = ops.minimum(ops.maximum(before, 0), side - 1)
    behind = ops.minimum(before + 1, side - 1)
    share = ops.clip(place - ops.cast(before, "float32"), 0.0, 1.0)
    return (before, 1.0 - share), (behind, share)
