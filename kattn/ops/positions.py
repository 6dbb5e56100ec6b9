"""Positions of steps, on one axis or several, and the angles that they stand for."""

import math

import numpy as np
from keras import ops

# A float32 angle of 1e5 radians is off by 4e-3. So whole strides turn by an angle that float64 has
# reduced to a turn: the error is then 1e-4 at position 1e5, below half a unit of float16.
STRIDE = 512


def check_axes(axes, grid):
    """Raises ValueError unless `grid` is None or has a side >= 1 for each of the axes."""
    if not isinstance(axes, int) or isinstance(axes, bool) or axes < 1:
        raise ValueError(f"`axes` must be an integer >= 1; received: axes={axes!r}")
    if grid is None:
        return
    if len(grid) != axes or not all(isinstance(side, int) and side >= 1 for side in grid):
        raise ValueError(
            "`grid` must be None or hold an integer >= 1 for each axis; "
            f"received: grid={tuple(grid)}, axes={axes}"
        )


def default_positions(x, axes, grid):
    """0 to T - 1 on one axis, or the cells of `grid` in row-major order.

    Args:
        x: `(B, T, ...)`.
        axes: Number of axes.
        grid: Sides of the grid, or None.

    Returns:
        `(T,)`, or `(T, axes)` on several axes, int32.

    Raises:
        ValueError: If there are several axes and no grid, or the grid has not T cells.
    """
    if grid is None:
        if axes > 1:
            raise ValueError(
                "Span on several axes have no default positions without `grid`; "
                f"received: positions=None, grid=None, axes={axes}"
            )
        return ops.arange(ops.shape(x)[1], dtype="int32")
    if x.shape[1] not in (None, math.prod(grid)):
        raise ValueError(
            "`x` must have as many steps as `grid` has cells; "
            f"received: x.shape={tuple(x.shape)}, grid={grid}"
        )
    cells = np.indices(grid, "int32").reshape(axes, -1)
    return cells[0] if axes == 1 else cells.T


def by_axis(positions, x, axes):
    """The positions of the steps of `x` on each axis.

    Args:
        positions: `(T,)`, `(B, T)` or `(1, T)`, with a last axis of size `axes` if that is not 1.
        x: `(B, T, ...)`.
        axes: Number of axes.

    Returns:
        A list of float32 `(T,)` or `(B, T)`, one for each axis.

    Raises:
        ValueError: If the positions do not fit `x` or `axes`.
    """
    if not hasattr(positions, "shape"):
        positions = np.asarray(positions)
    _check(positions.shape, x.shape, axes)
    positions = ops.cast(positions, "float32")
    return [positions] if axes == 1 else [positions[..., axis] for axis in range(axes)]


def angle_steps(frequencies):
    """What `angles` needs of frequencies, `(F,)` NumPy float64, radians a step.

    Made once and kept, as numbers of Python: TorchDynamo breaks its graph at arrays of NumPy.
    """
    of_stride = (STRIDE * frequencies + math.pi) % (2 * math.pi) - math.pi
    return tuple(of_stride.tolist()), tuple(frequencies.tolist())


def angles(positions, turns):
    """The products of positions and frequencies, but for whole turns.

    Args:
        positions: `(...)` float32.
        turns: What `angle_steps` makes of F frequencies.

    Returns:
        `(..., F)` float32.
    """
    of_stride, of_step = (ops.convert_to_tensor(numbers, dtype="float32") for numbers in turns)
    positions = ops.expand_dims(positions, -1)
    # The nearest, not the last: the rest of a small negative position must be small too.
    strides = ops.round(positions / STRIDE)
    rest = positions - STRIDE * strides
    return strides * of_stride + rest * of_step


def _check(shape, x_shape, axes):
    batch, steps = x_shape[:2]
    found = tuple(shape[:-1] if axes > 1 else shape)
    fits = len(found) in (1, 2) and (axes == 1 or shape[-1] == axes)
    fits = fits and (None in (found[-1], steps) or found[-1] == steps)
    fits = fits and (len(found) == 1 or None in (found[0], batch) or found[0] in (1, batch))
    if not fits:
        last = f", {axes}" if axes > 1 else ""
        raise ValueError(
            f"`positions` must have shape (T{last or ','}) or (B, T{last}), where B may be 1; "
            f"received: positions.shape={tuple(shape)}, (B, T)={(batch, steps)}, axes={axes}"
        )
