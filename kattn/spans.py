"""The queries and keys that a block of scores is about, and what arrays say of them.

A mask or a bias is a rule over positions. A `Span` is a run of positions (one block of a kernel),
or several runs of one length (all blocks at once). `Places` are positions that differ from item to
item (those of a cache). `Cells` are blocks of a map. Masks and biases are written once, in terms of
`along` and `cut`, which these classes share.
"""

from typing import Any, NamedTuple

from keras import ops

from kattn import backend


class Span(NamedTuple):
    """A run of consecutive steps, or several runs of the same length.

    Args:
        start: First step of the run, an integer or a scalar tensor; or the first steps of n runs,
            an integer tensor `(n,)`. Results for n runs have a leading axis of size n.
        size: Number of steps in a run.

    Example:
        >>> kattn.spans.Span(2, 3).positions()
        [2, 3, 4]
    """

    start: Any
    size: Any

    @property
    def is_several(self):
        """Whether these are n runs (`start` is a vector) and not one."""
        return len(getattr(self.start, "shape", ())) == 1

    def positions(self):
        """The positions of the steps.

        Returns:
            int32, `(size,)`; `(n, size)` for n runs.
        """
        index = ops.arange(self.size, dtype="int32")
        return (ops.expand_dims(self.start, -1) if self.is_several else self.start) + index

    def along(self, axis):
        """The positions, shaped to broadcast along one axis of the scores.

        Args:
            axis: -2 for the axis of queries, -1 for the axis of keys.

        Returns:
            int32, `(1, 1, size, 1)` for queries or `(1, 1, 1, size)` for keys; with a leading
            axis of size n for n runs.
        """
        return _along(self.positions(), axis)

    def shift(self, offset):
        """The same run, `offset` steps later.

        Args:
            offset: Number of steps, an integer or a scalar tensor.

        Returns:
            A `Span`.
        """
        return Span(self.start + offset, self.size)

    def cut(self, array, axis):
        """The entries of an array at these steps.

        Args:
            array: Array with an axis of steps that is not its first axis.
            axis: That axis, negative.

        Returns:
            The array with `size` entries on the axis. For n runs it has a leading axis of size n,
            and steps outside of the array give its first or its last entry.
        """
        axis %= len(array.shape)
        if self.is_several:
            index = ops.clip(self.positions(), 0, ops.shape(array)[axis] - 1)
            return ops.moveaxis(ops.take(array, index, axis=axis), axis, 0)
        starts, sizes = [0] * len(array.shape), list(ops.shape(array))
        starts[axis], sizes[axis] = self
        return ops.slice(array, starts, sizes)


class Places(NamedTuple):
    """Positions that differ from item to item, as those of the keys in a cache.

    Args:
        index: Positions of each item, int32 `(B, size)`; negative for a place that holds no step.

    Example:
        >>> kattn.spans.Places(keras.ops.array([[3, 4], [0, 1]])).along(-1)
        [[[[3, 4]]], [[[0, 1]]]]
    """

    index: Any

    def along(self, axis):
        """The positions, shaped to broadcast along one axis of the scores.

        Args:
            axis: -2 for the axis of queries, -1 for the axis of keys.

        Returns:
            int32, `(B, 1, size, 1)` for queries or `(B, 1, 1, size)` for keys.
        """
        return self.index[:, None, :, None] if axis == -2 else self.index[:, None, None, :]

    def shift(self, offset):
        """The same places, `offset` steps later.

        Args:
            offset: Number of steps, an integer or an integer tensor.

        Returns:
            `Places`.
        """
        return Places(self.index + offset)

    def cut(self, array, axis):
        """The entries of an array at these places, item by item.

        Args:
            array: Array `(B or 1, ...)` with an axis of steps that is not its first axis.
            axis: That axis, negative.

        Returns:
            `(B, ...)`, the array with `size` entries on the axis. Places outside of the array give
            its first or its last entry.
        """
        axis %= len(array.shape)
        index = ops.clip(self.index, 0, ops.shape(array)[axis] - 1)
        lead = ops.broadcast_to(array, (ops.shape(index)[0], *ops.shape(array)[1:]))
        for _ in range(axis - 1):
            index = ops.expand_dims(index, 1)
        for _ in range(len(array.shape) - 1 - axis):
            index = ops.expand_dims(index, -1)
        shape = list(ops.shape(lead))
        shape[axis] = ops.shape(self.index)[1]
        return ops.take_along_axis(lead, ops.broadcast_to(index, shape), axis=axis)


class Cells(NamedTuple):
    """Cells of a map, in n blocks of the same number of cells, some of them outside of the map.

    Args:
        coordinates: Tuple with the coordinates of the cells on each axis of the map, int32
            `(n, size)` each. Results have a leading axis of size n.
        sides: Sides of the map, integers or scalar tensors.

    Example:
        >>> cells = kattn.spans.Cells((np.array([[0, 1]]), np.array([[2, -1]])), sides=(2, 3))
        >>> cells.index, cells.is_inside
        ([[2, 2]], [[True, False]])
    """

    coordinates: tuple[Any, ...]
    sides: tuple[Any, ...]

    @property
    def index(self):
        """Numbers of the cells in row-major order, int32 `(n, size)`; any where one is outside."""
        index = 0
        for place, side in zip(self.coordinates, self.sides, strict=True):
            index = index * side + place
        return index

    @property
    def is_inside(self):
        """Which cells are on the map, bool `(n, size)`."""
        inside = True
        for place, side in zip(self.coordinates, self.sides, strict=True):
            inside = ops.logical_and(inside, ops.logical_and(place >= 0, place < side))
        return inside

    def along(self, axis):
        """The numbers of the cells, shaped to broadcast along one axis of the scores.

        Args:
            axis: -2 for the axis of queries, -1 for the axis of keys.

        Returns:
            int32, `(n, 1, 1, size, 1)` for queries or `(n, 1, 1, 1, size)` for keys.
        """
        return _along(self.index, axis)

    def coordinates_along(self, axis):
        """The coordinates on each axis of the map, shaped as `along` shapes the numbers.

        Args:
            axis: -2 for the axis of queries, -1 for the axis of keys.

        Returns:
            Tuple of int32 tensors.
        """
        return tuple(_along(place, axis) for place in self.coordinates)

    def cut(self, array, axis):
        """The entries of an array at these cells.

        Args:
            array: Array with an axis of cells that is not its first axis.
            axis: That axis, negative.

        Returns:
            The array with `size` entries on the axis and a leading axis of size n. Cells outside
            of the map give any entry.
        """
        axis %= len(array.shape)
        index = ops.clip(self.index, 0, ops.shape(array)[axis] - 1)
        return ops.moveaxis(ops.take(array, index, axis=axis), axis, 0)


def coordinates(steps, grid, axis):
    """The coordinates of steps that are cells of a grid.

    Args:
        steps: `Span` or `Places` of the numbers of the cells, or `Cells`.
        grid: `kattn.grid.Grid` that the steps are cells of.
        axis: -2 for the axis of queries, -1 for the axis of keys.

    Returns:
        Tuple of int32 tensors, one for each axis of the grid, which broadcast along that axis of
        the scores.

    Example:
        >>> grid = kattn.grid.Grid((2, 3))
        >>> kattn.spans.coordinates(kattn.spans.Span(2, 2), grid, -1)
        ([[[[0, 1]]]], [[[[2, 0]]]])
    """
    if isinstance(steps, Cells):
        return steps.coordinates_along(axis)
    return grid.unravel(steps.along(axis))


def cut_block(array, queries, keys):
    """The block of an array that has an axis of queries and an axis of keys.

    Args:
        array: Array `(..., T or 1, S or 1)`. An axis of length 1 stays as it is.
        queries: `Span` or `Places`, the rows of the block.
        keys: `Span` or `Places`, the columns of the block.

    Returns:
        `(..., queries.size or 1, keys.size or 1)`.

    Example:
        >>> array = np.arange(6).reshape(1, 2, 3)
        >>> kattn.spans.cut_block(array, kattn.spans.Span(1, 1), kattn.spans.Span(0, 2))
        [[[3, 4]]]
    """
    for axis, steps in ((-2, queries), (-1, keys)):
        if array.shape[axis] != 1:
            array = steps.cut(array, axis)
    return array


def pad_block(array, queries, keys):
    """An array with zeros (False) added behind its axis of queries and its axis of keys.

    Args:
        array: Array `(..., T or 1, S or 1)`. An axis of length 1 stays as it is.
        queries: Number of rows to add.
        keys: Number of columns to add.

    Returns:
        `(..., T + queries or 1, S + keys or 1)`.

    Example:
        >>> kattn.spans.pad_block(np.array([[1, 2], [3, 4]]), 1, 2)
        [[1, 2, 0, 0], [3, 4, 0, 0], [0, 0, 0, 0]]
    """
    ends = [(0, 0)] * (len(array.shape) - 2)
    for axis, more in ((-2, queries), (-1, keys)):
        ends.append((0, 0) if array.shape[axis] == 1 else (0, more))
    return backend.pad(array, ends)


def _along(positions, axis):
    """`(n, size)` or `(size,)`, shaped to broadcast along one axis of the scores."""
    # Not by `[..., None]`: tf2onnx mistakes an ellipsis that stands for no axis.
    return ops.expand_dims(positions, (-4, -3, -1 if axis == -2 else -2))
