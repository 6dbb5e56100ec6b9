"""Positions of steps, on one axis or several, and the angles that they stand for."""

import math

import numpy as np
from keras import ops

from kattn import backend
from kattn.arguments import check_integers, error, is_integer
from kattn.grid import Grid
from kattn.ops.sizes import known_shape, stands_for_any

# A float32 angle of 1e5 radians is off by 4e-3. So whole strides turn by an angle that float64 has
# reduced to a turn: the error is then 1e-4 at position 1e5, below half a unit of float16.
STRIDE = 512


def check_axes(axes, grid):
    """Checks the arguments `axes` and `grid` of a position layer.

    Args:
        axes: Number of axes on which a step has a position, an integer >= 1.
        grid: Sides of the grid whose cells are the steps, one integer >= 1 for each axis; or
            None.

    Raises:
        ValueError: If `axes` is not an integer >= 1, or `grid` does not fit it.
    """
    check_integers(1, axes=axes)
    if grid is None:
        return
    if len(grid) != axes or not all(is_integer(side) and side >= 1 for side in grid):
        rule = "`grid` must be None or hold an integer >= 1 for each axis"
        raise error(rule, grid=tuple(grid), axes=axes)


def default_positions(x, axes, grid):
    """The positions of steps whose caller gives none.

    Args:
        x: Sequence, `(B, T, ...)`.
        axes: Number of axes on which a step has a position.
        grid: Sides of the grid whose cells are the steps in row-major order; or None, which only
            one axis allows.

    Returns:
        int32, shape `(T,)` on one axis, where they are 0 to T - 1, else `(T, axes)`.

    Raises:
        ValueError: If there are several axes and no grid, or the grid does not have T cells.
    """
    if grid is None:
        if axes > 1:
            rule = (
                "Steps on several axes have no default positions without `grid`: pass `positions` "
                "to the call, or `grid` to the position layer"
            )
            raise error(rule, positions=None, grid=None, axes=axes)
        return ops.arange(ops.shape(x)[1], dtype="int32")
    cells, steps = Grid(grid), known_shape(x)[1]
    if steps not in (None, cells.size):
        raise error("`x` must have as many steps as `grid` has cells", x=x, grid=grid)
    if stands_for_any(x, 1):  # shapes are inferred; a number of steps cannot be checked
        positions = ops.stack(cells.unravel(ops.arange(x.shape[1], dtype="int32")), axis=-1)
    else:
        positions = cells.coordinates()
    return positions[:, 0] if axes == 1 else positions


def by_axis(positions, x, axes):
    """The positions of the steps of `x` on each axis.

    Args:
        positions: Positions as an array, a tensor or a list: `(T,)` or `(B, T)`, where B may be 1,
            on one axis; `(T, axes)` or `(B, T, axes)` on several.
        x: Sequence, `(B, T, ...)`.
        axes: Number of axes on which a step has a position.

    Returns:
        List of `axes` float32 tensors, each `(T,)` or `(B, T)`.

    Raises:
        ValueError: If the shape of the positions does not fit `x` or `axes`.
    """
    if not hasattr(positions, "shape"):
        positions = np.asarray(positions)
    _check_shape(positions, x, axes)
    positions = ops.cast(positions, "float32")
    return [positions] if axes == 1 else [positions[..., axis] for axis in range(axes)]


def angle_steps(frequencies):
    """Splits frequencies into the two factors from which `angles` computes exact angles.

    They are made once and kept, as Python numbers: TorchDynamo breaks its graph at NumPy arrays.

    Args:
        frequencies: Angle from one step to the next, in radians, NumPy float64 `(F,)`.

    Returns:
        Tuple of two tuples of F numbers: the angle of `STRIDE` steps, reduced to [-pi, pi), and
        the angle of one step.
    """
    of_stride = (STRIDE * frequencies + math.pi) % (2 * math.pi) - math.pi
    return tuple(of_stride.tolist()), tuple(frequencies.tolist())


def angles(positions, turns):
    """The products of positions and frequencies, up to whole turns of 2 * pi.

    Args:
        positions: Positions in steps, float32, of any shape.
        turns: What `angle_steps` makes of F frequencies.

    Returns:
        Angles in radians, float32, with a last axis of size F behind those of `positions`.
    """
    of_stride, of_step = (backend.constant(numbers, positions) for numbers in turns)
    positions = ops.expand_dims(positions, -1)
    # Rounded to the nearest: the rest of a small negative position must be small, too.
    strides = ops.round(positions / STRIDE)
    rest = positions - STRIDE * strides
    return strides * of_stride + rest * of_step


def _check_shape(positions, x, axes):
    batch, steps = known_shape(x)[:2]
    shape = known_shape(positions)
    lead = shape[:-1] if axes > 1 else shape
    fits = len(lead) in (1, 2) and (axes == 1 or positions.shape[-1] == axes)
    fits = fits and (None in (lead[-1], steps) or lead[-1] == steps)
    fits = fits and (len(lead) == 1 or None in (lead[0], batch) or lead[0] in (1, batch))
    if not fits:
        last = f", {axes}" if axes > 1 else ""
        rule = f"`positions` must have shape (T{last or ','}) or (B, T{last}), where B may be 1"
        raise error(rule, positions=positions, **{"(B, T)": (batch, steps)}, axes=axes)
