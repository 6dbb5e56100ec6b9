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
            >= 0; or a scalar tensor or a symbol of a framework, for a side that is known only when
            the model runs; or None, for a side that is not known at all (of a symbolic input).
        key_stride: Downsampling factor of the grid of keys relative to this grid, which is that of
            the queries: an integer >= 1.

    Raises:
        ValueError: If there is no side, or a side is neither an integer >= 0, a scalar tensor nor
            None; or if `key_stride` is not an integer >= 1.

    Example:
        >>> grid = kattn.grid.Grid((2, 3))
        >>> grid.rank, grid.size
        (2, 6)
        >>> grid.unravel(4)
        (1, 1)
        >>> grid.coordinates()
        [[0, 0], [0, 1], [0, 2], [1, 0], [1, 1], [1, 2]]
        >>> kattn.grid.Grid((2, 3), key_stride=2).keys.sides
        (1, 2)
    """

    sides: tuple[Any, ...]
    key_stride: int = 1

    def __post_init__(self):
        is_sequence = isinstance(self.sides, tuple | list)
        if not is_sequence or not self.sides or not all(map(_is_side, self.sides)):
            raise error("`sides` of a grid must be one or more integers >= 0", sides=self.sides)
        check_integers(1, key_stride=self.key_stride)
        object.__setattr__(self, "sides", tuple(self.sides))

    @classmethod
    def of_map(cls, x, key_stride=1):
        """The grid of a feature map.

        Args:
            x: Feature map with the channels last, for example `(B, H, W, C)`. Axes between the
                first and the last are those of the grid.
            key_stride: Downsampling factor of the grid of keys relative to that of the queries.

        Returns:
            The `Grid`. Its sides are integers where they are known, else scalar tensors, or None
            if `x` is symbolic.

        Raises:
            ValueError: If `x` has fewer than three axes.
        """
        if len(x.shape) < 3:
            raise error("`x` must be a map (B, ..., C) with an axis between the two", x=x)
        return cls(ops.shape(x)[1:-1], key_stride)

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
            TorchDynamo breaks its graph where it meets this array; it can trace `cells()`.
        """
        if self.is_static:
            return np.indices(self.sides, "int32").reshape(self.rank, -1).T
        return ops.stack(self.unravel(ops.arange(self.size, dtype="int32")), axis=-1)

    def cells(self):
        """The coordinates of all cells as a tensor.

        Returns:
            int32 tensor, shape `(size, rank)`, in row-major order.
        """
        return ops.stack(self.unravel(ops.arange(self.size, dtype="int32")), axis=-1)

    @property
    def keys(self):
        """The grid of the keys: that of the windows of a pooling with "same" padding.

        It has ceil(side / key_stride) cells on each axis; None stays None.
        """
        stride = self.key_stride
        # Not -(-n // stride): in ONNX negative quotients are rounded towards 0.
        return Grid(tuple(None if n is None else (n + stride - 1) // stride for n in self.sides))

    def key_positions(self):
        """Where the keys stand on this grid: at the middles of the windows that they are of.

        The pooling has "same" padding, of which half (rounded down) goes before the first cell.
        On a side of 5 cells with `key_stride` 2, the middles are at 0.5, 2.5 and 4.5; the last
        window holds one cell of padding.

        Returns:
            Tensor, shape `(number of keys, rank)`, in row-major order of the windows: float32, or
            int32 where each key is of one cell.

        Example:
            >>> kattn.grid.Grid((5, 1), key_stride=2).key_positions()
            [[0.5, 0.5], [2.5, 0.5], [4.5, 0.5]]
        """
        if self.key_stride == 1:
            return self.cells()
        keys, stride = self.keys, self.key_stride
        windows = keys.unravel(ops.arange(keys.size, dtype="int32"))
        axes = []
        for window, side, count in zip(windows, self.sides, keys.sides, strict=True):
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
        return side >= 0
    is_other = isinstance(side, bool | float | str)
    return not is_other and getattr(side, "shape", ()) == ()
