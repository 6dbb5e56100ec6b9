"""The queries and keys that a block of scores is about, and what arrays say of them.

A mask or a bias is a rule over positions. A `Span` is a run of positions (one block of a kernel),
or several runs of one length (all blocks at once). `Places` are positions that differ from item to
item (those of a cache). Masks and biases are written once, in terms of `along` and `cut`, which
the two classes share.
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
        # Not by `[..., None]`: tf2onnx mistakes an ellipsis that stands for no axis.
        return ops.expand_dims(self.positions(), (-4, -3, -1 if axis == -2 else -2))

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
