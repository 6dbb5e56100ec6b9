"""Numbers for differences of coordinates on a grid (Swin; Liu et al., 2021; BoTNet)."""

from typing import Any

from keras import ops

from kattn.arguments import error, is_integer
from kattn.biases.tables import Table, look_up
from kattn.block_rule import registered_rule
from kattn.grid import Grid
from kattn.spans import coordinates


@registered_rule("kattn.biases", name="Grid")
class GridTable(Table):
    """A number for each difference of coordinates on a grid, whose cells are the steps.

    Queries are the cells of a `kattn.grid.Grid`, in row-major order; keys are those of the same
    grid, or of the windows of a pooling of it.

    Args:
        values: Float, `(N or 1, R)`, the same numbers for all queries; or `(B, N, T, R)`, numbers
            of each query's own. R is the product over `axes` of 2 * side - 1, or of 2 * side, of
            which the last is not looked up, where a side is no integer. The numbers are in
            row-major order of the coordinate differences, each of which is counted as
            key - query + side - 1.
        sides: Sides of the grid of queries: integers >= 1, or scalar tensors where a side is known
            only when the model runs.
        axes: Axes of the grid on which the number depends.
        key_stride: Downsampling factor of the key grid relative to the query grid, an integer >= 1.
        window: Sides of a window that slides over the grid, integers: R is then the product of
            2 * side - 1 of the window, and keys farther away than its side count as the farthest.
            None for the sides of the grid.
        dilation: Distance of neighbouring cells of the window along each side, integers. None for
            1.

    Example:
        >>> values = np.array([[1.0, 2.0, 3.0]], "float32")  # key left of the query, same, right
        >>> bias = kattn.biases.GridTable(values, sides=(1, 2), axes=(1,))
        >>> bias[0:2, 0:2]
        [[[[2.0, 3.0], [1.0, 2.0]]]]

    Reference:
        Liu et al. 2021 (Swin), sec. 3.2, https://arxiv.org/abs/2103.14030; Srinivas et al. 2021
        (BoTNet), sec. 3, https://arxiv.org/abs/2101.11605, whose numbers are each query's own
        and which has one table for each axis.
    """

    sides: tuple[Any, ...]
    axes: tuple[int, ...]
    key_stride: int = 1
    window: tuple[int, ...] | None = None
    dilation: tuple[int, ...] | None = None

    @property
    def compares_cells(self):
        return self.key_stride == 1

    def in_windows(self, grid, dilation):
        fields = {"sides": grid.sides, "window": self.sides, "dilation": tuple(dilation)}
        return self.unchecked(values=self.values, axes=self.axes, key_stride=1, **fields)

    def block(self, queries, keys, offset=0):
        del offset  # queries and keys are cells of two grids, not steps of one axis
        grid = Grid(self.sides, self.key_stride)
        rows, columns = coordinates(queries, grid, -2), coordinates(keys, grid.keys, -1)
        index = 0
        for axis in self.axes:
            side = (self.window or self.sides)[axis]
            # Past the last cell, where a block is filled up, any number will do.
            difference = columns[axis] * self.key_stride - rows[axis]
            if self.dilation is not None:  # of cells that are not of one class, any number
                difference = difference // self.dilation[axis]
            place = ops.clip(difference + side - 1, 0, 2 * side - 2)
            index = index * numbers_of(side) + place
        return look_up(ops.cast(self.values, "float32"), ops.cast(index, "int32"))

    def check(self, batch, heads, queries, keys):
        super().check(batch, heads, queries, keys)
        grid = Grid(self.sides, self.key_stride)
        cells = (("T", queries, grid.size), ("S", keys, grid.keys.size))
        for name, have, want in cells:
            if is_integer(have) and is_integer(want) and have != want:
                rule = f"A grid of {self.sides} with key_stride {self.key_stride} has {want} steps"
                raise error(rule, **{name: have})


def numbers_of(side):
    """How many numbers a table has for an axis: one for each difference from 1 - side to side - 1.

    There is one more, which is not looked up, where the side is no integer: JAX cannot tell of two
    unknown sides that the product of 2 * side - 1 is not negative.
    """
    return 2 * side - 1 if is_integer(side) else 2 * side
