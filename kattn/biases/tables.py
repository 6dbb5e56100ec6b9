"""What biases share that look their numbers up in a table, by distance or by coordinates."""

import dataclasses
from typing import Any

from keras import ops

from kattn import backend
from kattn.arguments import is_integer
from kattn.biases.bias import Bias, check_heads
from kattn.spans import Span


@dataclasses.dataclass(frozen=True, eq=False)
class Table(Bias):
    """A bias that looks up one of R numbers for each query and key.

    The numbers are the same for all queries, `(N or 1, R)`, or each query has its own,
    `(B, N, T, R)`.

    Args:
        values: The numbers, float, `(N or 1, R)` or `(B, N, T, R)`.
    """

    values: Any

    array_fields = ("values",)

    @property
    def is_by_query(self):
        return len(self.values.shape) > 2

    def at(self, queries):
        if not self.is_by_query:
            return self
        return self.map_arrays(lambda values: queries.cut(values, -2))

    def padded(self, queries, keys):
        if not self.is_by_query:
            return self
        ends = ((0, 0), (0, 0), (0, queries), (0, 0))
        return self.map_arrays(lambda values: backend.pad(values, ends))

    def check(self, batch, heads, queries, keys):
        rows = self.values.shape[-3 if self.is_by_query else 0]
        check_heads(rows, heads, values=self.values)


class DistanceTable(Table):
    """A table whose numbers go by the distance of query and key; a subclass defines `place`."""

    @property
    def is_stationary(self):
        return True

    def place(self, distance):
        """Which of the R numbers belongs to a distance.

        Args:
            distance: Position of the query minus position of the key, an int32 tensor.

        Returns:
            Index of the number, an int32 tensor of the same shape.
        """
        raise NotImplementedError

    def block(self, queries, keys, offset=0):
        values = ops.cast(self.values, "float32")
        if not (isinstance(queries, Span) and isinstance(keys, Span)):
            return look_up(values, self.place(queries.along(-2) + offset - keys.along(-1)))
        # A number for each of the q + k - 1 distances in the block, then rows of it, each shifted
        # by one: no index for each score, which takes long to look up and longer to differentiate.
        # Two numbers more let the shifted rows be cut out of one array, even where q is 0.
        start = queries.start + offset - keys.start
        start = start[0] if len(getattr(start, "shape", ())) == 1 else start
        count = queries.size + keys.size + 1
        steps = ops.arange(count, dtype="int32")
        if self.is_by_query:
            distances = start + queries.size - 1 - steps
            numbers = backend.gather(values, self.place(distances), len(values.shape) - 1)
            return _skew(numbers, queries.size, keys.size)
        # From the first query: keys after it, then, from the end, keys before it.
        distances = start - ops.where(steps <= keys.size, steps, steps - count)
        numbers = backend.gather(values, self.place(distances), len(values.shape) - 1)
        return _unroll(numbers, queries.size, keys.size)[None]


def look_up(values, index):
    """The numbers of a table at an index for each query and key.

    Args:
        values: `(N, R)` or `(..., B, N, q, R)`.
        index: int32, `(..., B or 1, 1, q, k)`.

    Returns:
        `(..., B or 1, N, q, k)`.
    """
    if len(values.shape) == 2:
        numbers = backend.gather(values, index[..., 0, :, :], 1)  # (N, ..., B, q, k)
        return ops.moveaxis(numbers, 0, len(numbers.shape) - 3)
    shape = (*ops.shape(values)[:-1], ops.shape(index)[-1])
    # Keras cannot look up nothing on TensorFlow.
    if any(is_integer(size) and size == 0 for size in shape):
        return ops.broadcast_to(values[..., :1], shape)
    return ops.take_along_axis(values, ops.broadcast_to(index, shape), axis=-1)


def _unroll(numbers, rows, columns):
    """`(N, q + k + 1)` to `(N, q, k)`: entry (i, j) is number j - i; if < 0, from the end."""
    heads, length = ops.shape(numbers)[0], rows + columns + 1
    tiled = ops.broadcast_to(numbers[:, None], (heads, rows, length))
    flat = ops.reshape(tiled, (heads, rows * length))[:, : rows * (length - 1)]
    return ops.reshape(flat, (heads, rows, length - 1))[..., :columns]


def _skew(numbers, rows, columns):
    """`(..., q, q + k + 1)` to `(..., q, k)`: entry (i, j) is number (q - 1 - i) + j of row i."""
    lead, length = ops.shape(numbers)[:-2], rows + columns + 1
    flat = ops.reshape(numbers, (*lead, rows * length))
    flat = flat[..., rows - 1 : rows - 1 + rows * (length - 1)]
    return ops.reshape(flat, (*lead, rows, length - 1))[..., :columns]
