"""The cells of a feature map of any rank: how they are counted, and where they lie."""

import dataclasses
import math
from typing import Any

import numpy as np
from keras import ops

from kattn.arguments import check_integers, error, is_integer


@dataclasses.dataclass(frozen=True)
class Grid:
    """The cells of a map, counted in row-major order: the last axis runs fastest.

    Attention over a map of any rank treats its cells as the steps of a sequence. A `Grid` says
    which step is which cell: on a grid of 2 x 3 cells, step 4 is the cell in row 1 and column 1.

    Two grids of known sides are equal if their sides are, and can be keys of a dict.

    Args:
        sides: Number of cells along each axis, for example `(H, W)`. Each side is an integer
            >= 1; or a scalar tensor, for a side that is known only when the model runs; or None,
            for a side that is not known at all (of a symbolic input).

    Raises:
        ValueError: If there is no side, or a side is neither an integer >= 1, a scalar tensor nor
            None.

    Example:
        >>> grid = kattn.grid.Grid((2, 3))
        >>> grid.rank, grid.size
        (2, 6)
        >>> grid.unravel(4)
        (1, 1)
        >>> grid.coordinates()
        [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
        >>> grid.pooled(2).sides
        (1, 2)
    """

    sides: tuple[Any, ...]

    def __post_init__(self):
        is_sequence = isinstance(self.sides, tuple | list)
        if not is_sequence or not self.sides or not all(map(_is_side, self.sides)):
            raise error("`sides` of a grid must be one or more integers >= 1", sides=self.sides)
        object.__setattr__(self, "sides", tuple(self.sides))

    @classmethod
    def of_map(cls, x):
        """The grid of a feature map.

        Args:
            x: Feature map with the channels last, for example `(B, H, W, C)`. Axes between the
                first and the last are those of the grid.

        Returns:
            The `Grid`. Its sides are integers where they are known, else scalar tensors, or None
            if `x` is symbolic.

        Raises:
            ValueError: If `x` has fewer than three axes.
        """
        if len(x.shape) < 3:
            raise error("`x` must be a map (B, ..., C) with an axis between the two", x=x)
        return cls(ops.shape(x)[1:-1])

    @property
    def rank(self):
        """Number of axes."""
        return len(self.sides)

    @property
    def is_static(self):
        """Whether all sides are known as integers."""
        return all(map(is_integer, self.sides))

    @property
    def size(self):
        """Number of cells: an integer, a scalar tensor, or None if a side is None."""
        # `None in sides` would compare tensors with None.
        return None if any(side is None for side in self.sides) else math.prod(self.sides)

    def unravel(self, index):
        """The coordinate of cells on each axis.

        Args:
            index: Numbers of the cells in row-major order, an integer or an integer tensor of any
                shape. Numbers past the last cell begin again at the first.

        Returns:
            Tuple of `rank` coordinates, each like `index`.
        """
        return tuple(
            index // math.prod(self.sides[axis + 1 :]) % side
            for axis, side in enumerate(self.sides)
        )

    def coordinates(self):
        """The coordinates of all cells, in row-major order.

        Returns:
            int32, shape `(size, rank)`: a NumPy array if the sides are integers, else a tensor.
            TorchDynamo breaks its graph where it meets this array; `window_centers(1)` gives the
            same numbers as a float32 tensor, which it can trace.
        """
        if self.is_static:
            return np.indices(self.sides, "int32").reshape(self.rank, -1).T
        return ops.stack(self.unravel(ops.arange(self.size, dtype="int32")), axis=-1)

    def pooled(self, stride):
        """The grid of the windows of a pooling with "same" padding, whose size is its stride.

        Args:
            stride: Side of a window in cells, an integer >= 1, the same on all axes.

        Returns:
            A `Grid` with ceil(side / stride) cells on each axis; None stays None.

        Raises:
            ValueError: If `stride` is not an integer >= 1.
        """
        check_integers(1, stride=stride)
        return Grid(tuple(None if n is None else -(-n // stride) for n in self.sides))

    def window_centers(self, stride):
        """Where the middles of the windows of a pooling lie on this grid.

        The pooling has "same" padding, of which half (rounded down) goes before the first cell.
        On a side of 5 cells with windows of 2, the middles are at 0.5, 2.5 and 4.5; the last
        window holds one cell of padding.

        Args:
            stride: Side and stride of the windows in cells, an integer >= 1, the same on all axes.

        Returns:
            float32 tensor, shape `(number of windows, rank)`, in row-major order of the windows.

        Raises:
            ValueError: If `stride` is not an integer >= 1.

        Example:
            >>> kattn.grid.Grid((5, 1)).window_centers(2)
            [[0.5, 0.5], [2.5, 0.5], [4.5, 0.5]]
        """
        pooled = self.pooled(stride)
        windows = pooled.unravel(ops.arange(pooled.size, dtype="int32"))
        axes = []
        for window, side, count in zip(windows, self.sides, pooled.sides, strict=True):
            padding_before = (count * stride - side) // 2
            first_cell = ops.cast(window * stride - padding_before, "float32")
            axes.append(first_cell + (stride - 1) / 2)
        return ops.stack(axes, axis=-1)

    def flatten(self, x):
        """A map as a sequence of its cells.

        Args:
            x: Map with the channels last, `(B, *sides, C)`.

        Returns:
            `(B, size, C)`, the cells in row-major order.
        """
        batch, *_, channels = ops.shape(x)
        return ops.reshape(x, (batch, self.size, channels))

    def unflatten(self, x):
        """A sequence of cells as a map: the inverse of `flatten`.

        Args:
            x: Sequence of cells in row-major order, `(B, size, C)`.

        Returns:
            `(B, *sides, C)`.
        """
        batch, _, channels = ops.shape(x)
        return ops.reshape(x, (batch, *self.sides, channels))


def _is_side(side):
    if is_integer(side):
        return side >= 1
    return side is None or getattr(side, "shape", None) == ()
