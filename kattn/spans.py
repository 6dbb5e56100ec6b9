"""Which queries and which keys a block of scores is about, and what arrays say of them.

A mask or a bias is a rule over positions. `Span` are a run of positions (a block of a kernel), or
a batch of runs of one length (all blocks at once); `Places` are positions that differ from item to
item (a cache). Masks and biases are written once, in terms of `along` and `cut`.
"""

from typing import Any, NamedTuple

from keras import ops


class Span(NamedTuple):
    """A run of steps; a vector of starts gives n runs, which come as a leading axis.

    Args:
        start: The first step, an integer or a scalar tensor, or `(n,)` of them.
        size: The number of steps.
    """

    start: Any
    size: Any

    @property
    def is_several(self):
        """Whether these are n runs."""
        return len(getattr(self.start, "shape", ())) == 1

    def positions(self):
        """int32, `(size,)`, or `(n, size)` for n runs."""
        index = ops.arange(self.size, dtype="int32")
        return (ops.expand_dims(self.start, -1) if self.is_several else self.start) + index

    def along(self, axis):
        """Positions along an axis of the scores, -2 or -1: `(1, 1, size, 1)` or so, n in front."""
        index = self.positions()[..., None, None, :]
        return index[..., None] if axis == -2 else index[..., None, :]

    def shift(self, offset):
        """The steps `offset` later."""
        return Span(self.start + offset, self.size)

    def cut(self, array, axis):
        """The entries of `array` at these steps of `axis`, n in front; clipped to what there is.

        Args:
            array: `(B, ..., S, ...)`.
            axis: The axis of S, negative.
        """
        axis %= len(array.shape)
        if self.is_several:
            index = ops.clip(self.positions(), 0, ops.shape(array)[axis] - 1)
            return ops.moveaxis(ops.take(array, index, axis=axis), axis, 0)
        starts, sizes = [0] * len(array.shape), list(ops.shape(array))
        starts[axis], sizes[axis] = self
        return ops.slice(array, starts, sizes)


class Places(NamedTuple):
    """Positions item by item.

    Args:
        index: `(B, size)` int32; negative for a place that holds nothing.
    """

    index: Any

    def along(self, axis):
        """As `Span.along`: `(B, 1, size, 1)` or `(B, 1, 1, size)`."""
        return self.index[:, None, :, None] if axis == -2 else self.index[:, None, None, :]

    def shift(self, offset):
        """The places `offset` later."""
        return Places(self.index + offset)

    def cut(self, array, axis):
        """As `Span.cut`, item by item: `(B, ..., size, ...)`."""
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
    """The block of an array with an axis of queries and an axis of keys.

    Args:
        array: `(..., T or 1, S or 1)`; an axis of length 1 stays as it is.
        queries: The rows of the block.
        keys: Its columns.

    Returns:
        `(..., queries.size or 1, keys.size or 1)`.

    Example:
        >>> cut_block(keras.ops.ones((2, 1, 9)), Span(0, 4), Span(3, 5)).shape
        (2, 1, 5)
    """
    for axis, steps in ((-2, queries), (-1, keys)):
        if array.shape[axis] != 1:
            array = steps.cut(array, axis)
    return array


def pad_block(array, queries, keys):
    """An array with zeros (False) behind its axes of queries and of keys.

    Args:
        array: `(..., T or 1, S or 1)`; an axis of length 1 stays as it is.
        queries: How many more rows.
        keys: How many more columns.

    Returns:
        `(..., T + queries or 1, S + keys or 1)`.

    Example:
        >>> pad_block(keras.ops.ones((2, 1, 9)), 3, 3).shape
        (2, 1, 12)
    """
    ends = [(0, 0)] * (len(array.shape) - 2)
    for axis, more in ((-2, queries), (-1, keys)):
        ends.append((0, 0) if array.shape[axis] == 1 else (0, more))
    return ops.pad(array, ends)
