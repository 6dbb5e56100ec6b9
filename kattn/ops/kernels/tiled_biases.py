"""The biases of a call, one block of scores at a time, and the gradients of their arrays.

The gradient of an array of scores is written one block at a time. Those of other arrays are sums
over all blocks, or over the blocks of one row where each query has numbers of its own.
"""

from keras import ops

from kattn import backend, biases
from kattn.ops import masking
from kattn.ops.kernels import block
from kattn.ops.kernels.tiles import to_blocks


def cut(part, tiles, more_queries, more_keys):
    """A bias whose arrays are float32, filled up, and in blocks of queries where it has queries.

    Args:
        part: A bias that is no sum.
        tiles: The `Tiles` of the call.
        more_queries: How many queries fill the last block.
        more_keys: How many keys fill the last block.
    """
    if isinstance(part, biases.Dense):
        part = part.padded(more_queries, more_keys)
        return part.map_arrays(lambda x: ops.cast(x, "float32"))
    if part.is_by_query:
        return part.map_arrays(lambda x: to_blocks(ops.cast(x, "float32"), tiles.rows))
    return part


class TiledBiases:
    """The biases of one call with their arrays, as `cut` has made them.

    Args:
        tiles: The `Tiles` of the call.
        parts: The biases without their arrays.
        arrays: A list of arrays for each of them.
        heads: Number of key heads, K.
        groups: Number of query heads for each key head, G.
    """

    def __init__(self, tiles, parts, arrays, heads, groups):
        self.tiles, self.heads, self.groups = tiles, heads, groups
        pairs = zip(parts, arrays, strict=True)
        self.parts = [masking.with_arrays(part, own) for part, own in pairs]

    def block(self, i, j):
        """The sum of all biases for block (i, j), or None if there is none."""
        total = None
        for part in self.parts:
            local = _of_row(part, masking.arrays_of(part), i)
            bias = self._one(masking.with_arrays(part, local), i, j)
            total = bias if total is None else total + bias
        return total

    def zero_gradients(self):
        """A tuple of zeros for each bias, to which `add` adds."""
        return tuple(self._zeros(part) for part in self.parts)

    def add(self, gradients, dz, i, j):
        """The gradients with those of block (i, j), given the gradient `dz` of its logits."""
        pairs = zip(gradients, self.parts, strict=True)
        return tuple(self._add_one(gradient, part, dz, i, j) for gradient, part in pairs)

    def join(self, gradients):
        """The gradients of all blocks in the layout of the arrays."""
        pairs = zip(gradients, self.parts, strict=True)
        return tuple(
            (self._join_blocks(part, gradient[0]),) if part.holds_scores else gradient
            for gradient, part in pairs
        )

    def _one(self, part, i, j):
        array = part.block(*self.tiles.steps(i, j), self.tiles.offset)
        return block.group_heads(array, self.heads, self.groups)

    def _zeros(self, part):
        if not part.holds_scores:
            return tuple(ops.zeros_like(x) for x in masking.arrays_of(part))
        (row_blocks, rows), (column_blocks, columns) = self._sizes(part)
        lead = ops.shape(part.array)[:-2]
        shape = (row_blocks * column_blocks, *lead, rows, columns)
        return (ops.zeros(shape, "float32"),)

    def _add_one(self, gradients, part, dz, i, j):
        if part.holds_scores:
            return (self._add_scores(gradients[0], part, dz, i, j),)
        arrays = masking.arrays_of(part)
        if not arrays:
            return gradients

        def spread(*arrays):
            bias = self._one(masking.with_arrays(part, arrays), i, j)
            return ops.broadcast_to(bias, ops.shape(dz))

        more = backend.vjp(spread, _of_row(part, arrays, i), dz)
        if part.is_by_query:
            return tuple(backend.add_at(x, i, y) for x, y in zip(gradients, more, strict=True))
        return tuple(x + y for x, y in zip(gradients, more, strict=True))

    def _add_scores(self, gradient, part, dz, i, j):
        _, (column_blocks, _) = self._sizes(part)
        shape = part.array.shape
        batch, heads, groups, rows, columns = ops.shape(dz)
        dz = ops.reshape(dz, (batch, heads * groups, rows, columns))
        axes = [a for a, n in enumerate(shape) if n == 1]
        dz = ops.sum(dz, axis=axes, keepdims=True) if axes else dz
        number = (0 if shape[-2] == 1 else i) * column_blocks + (0 if shape[-1] == 1 else j)
        return backend.add_at(gradient, number, dz)

    def _sizes(self, part):
        """(blocks, steps in a block) along T and S; an axis of length 1 is one block."""
        tiles, (queries, keys) = self.tiles, part.array.shape[-2:]
        rows = (1, 1) if queries == 1 else (tiles.row_blocks, tiles.rows)
        columns = (1, 1) if keys == 1 else (tiles.column_blocks, tiles.columns)
        return rows, columns

    def _join_blocks(self, part, gradient):
        (row_blocks, rows), (column_blocks, columns) = self._sizes(part)
        lead = ops.shape(part.array)[:-2]
        gradient = ops.reshape(gradient, (row_blocks, column_blocks, *lead, rows, columns))
        gradient = ops.transpose(gradient, (2, 3, 0, 4, 1, 5))
        return ops.reshape(gradient, (*lead, row_blocks * rows, column_blocks * columns))


def _of_row(part, arrays, i):
    """The arrays of a bias for block i of queries."""
    return [backend.take(x, i) for x in arrays] if part.is_by_query else arrays
