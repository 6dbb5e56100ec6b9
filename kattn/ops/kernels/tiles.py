"""How the scores of T queries and S keys are cut into blocks, and which blocks are visited.

Blocks that the mask rules out are never visited: half of them under a causal mask, all but
T * W / block^2 under a window of W. Blocks that it does not cut are visited without it.
"""

import dataclasses
import functools
from typing import Any

from keras import ops

from kattn import backend, masks
from kattn.masks import Mask
from kattn.ops.kernels.block import move_axis
from kattn.ops.sizes import at_least_one, ceil_divide
from kattn.spans import Span

# Measured on two CPU cores at T = 4096, D = 64: 512 beats 256 by 1.2x and 128 by 1.3x.
BLOCK = 512


@dataclasses.dataclass(frozen=True)
class Tiles:
    """The blocks of the scores of one call. Sizes may be tensors where T or S is unknown.

    Args:
        rows: Number of queries in a block.
        columns: Number of keys in a block.
        row_blocks: Number of blocks along the queries.
        column_blocks: Number of blocks along the keys.
        offset: Position of query 0 on the key axis, S - T.
        mask: The mask, or None; where it decides on whole blocks, it may lack its arrays.
        coverage: What the mask says of each block: a list for each block of queries. None where
            there is no mask or where the number of blocks is unknown.
    """

    rows: Any
    columns: Any
    row_blocks: Any
    column_blocks: Any
    offset: Any
    mask: Mask | None = None
    coverage: Any = dataclasses.field(default=None, init=False, compare=False)

    def __post_init__(self):
        # Not a cached property, which takes a lock: TorchDynamo cannot.
        object.__setattr__(self, "coverage", self._coverage())

    @classmethod
    def make(cls, queries, keys, mask=None):
        """The blocks of T = `queries` and S = `keys` steps, of at most BLOCK steps each."""
        (rows, row_blocks), (columns, column_blocks) = _cut(queries), _cut(keys)
        return cls(rows, columns, row_blocks, column_blocks, keys - queries, mask)

    def steps(self, i, j):
        """The queries and the keys of block (i, j)."""
        return Span(i * self.rows, self.rows), Span(j * self.columns, self.columns)

    @property
    def reach(self):
        """How many keys (before, after) its own position a query can see."""
        return (masks.UNBOUNDED, masks.UNBOUNDED) if self.mask is None else self.mask.reach

    def over_columns(self, i, body, state):
        """State = body(j, state, masked) for the blocks j of keys that block i of queries sees."""
        if self.coverage is not None:
            return _visit_listed(self.coverage, i, body, state)
        before, after = self.reach
        first = i * self.rows + self.offset
        limits = _limits(first, self.rows, self.columns, self.column_blocks, before, after, 0)
        return self._visit_run(limits, body, state)

    def over_rows(self, j, body, state):
        """State = body(i, state, masked) for the blocks i of queries that see block j of keys."""
        if self.coverage is not None:
            return _visit_listed(list(zip(*self.coverage, strict=True)), j, body, state)
        before, after = self.reach
        limits = _limits(
            j * self.columns, self.columns, self.rows, self.row_blocks, after, before, self.offset
        )
        return self._visit_run(limits, body, state)

    def _coverage(self):
        sizes = self.row_blocks, self.column_blocks, self.offset
        if self.mask is None or not all(isinstance(size, int) for size in sizes):
            return None
        starts = range(0, self.column_blocks * self.columns, self.columns)
        columns = [(start, start + self.columns - 1) for start in starts]
        firsts = (i * self.rows + self.offset for i in range(self.row_blocks))
        rows = [(first, first + self.rows - 1) for first in firsts]
        return [[self.mask.coverage(row, column) for column in columns] for row in rows]

    def _visit_run(self, limits, body, state):
        """Visits a run of blocks, split into those that the mask cuts and those it does not."""
        lower, clear_from, clear_to, upper = limits
        cut = functools.partial(body, masked=True)
        if self.mask is None:
            return backend.loop(lower, upper, functools.partial(body, masked=False), state)
        if not self.mask.is_band:
            return backend.loop(lower, upper, cut, state)
        if clear_from is not lower:
            state = backend.loop(lower, clear_from, cut, state)
        state = backend.loop(clear_from, clear_to, functools.partial(body, masked=False), state)
        return state if clear_to is upper else backend.loop(clear_to, upper, cut, state)


def to_blocks(x, size):
    """`(B, ..., T, D)` to `(blocks, B, ..., size, D)`, filled with zeros behind the last step."""
    *lead, steps, width = ops.shape(x)
    count = ceil_divide(steps, size)
    x = backend.pad(x, [(0, 0)] * len(lead) + [(0, count * size - steps), (0, 0)])
    return move_axis(ops.reshape(x, (*lead, count, size, width)), len(lead), 0)


def from_blocks(x):
    """The way back from `to_blocks`, still filled."""
    count, *lead, size, width = ops.shape(x)
    return ops.reshape(move_axis(x, 0, len(lead)), (*lead, count * size, width))


def _cut(steps):
    """The steps of a block, and the number of blocks; they fill `steps` as well as they can."""
    if not isinstance(steps, int):
        size = at_least_one(ops.minimum(steps, BLOCK))
        return size, ceil_divide(steps, size)
    count = at_least_one(ceil_divide(steps, BLOCK))
    return at_least_one(ceil_divide(steps, count)), count


def _visit_listed(coverage, i, body, state):
    """Visits the blocks that row i of `coverage` does not rule out."""
    for kind in (masks.SOME, masks.ALL):
        rows = [[j for j, each in enumerate(row) if each == kind] for row in coverage]
        if any(rows):
            visit = functools.partial(body, masked=kind == masks.SOME)
            state = backend.loop_over(rows, i, visit, state)
    return state


def _limits(first, size, other, count, before, after, shift):
    """Which blocks of the other axis meet the block [first, first + size): four indices.

    Blocks [lower, upper) meet it, [clear_from, clear_to) are visible whole. Positions are on
    the key axis; block b of the other axis begins at b * other + shift.
    """
    last, lower, upper = first + size - 1, 0, count
    clear_from, clear_to = lower, upper
    if before != masks.UNBOUNDED:
        lower = _clip((first - before - shift) // other, 0, count)
        clear_from = ceil_divide(last - before - shift, other)
    if after != masks.UNBOUNDED:
        upper = _clip(ceil_divide(last + after - shift + 1, other), lower, count)
        clear_to = (first + after + 1 - shift) // other
    clear_from = lower if before == masks.UNBOUNDED else _clip(clear_from, lower, upper)
    clear_to = upper if after == masks.UNBOUNDED else _clip(clear_to, clear_from, upper)
    return lower, clear_from, clear_to, upper


def _clip(x, lower, upper):
    if isinstance(x, int) and isinstance(lower, int) and isinstance(upper, int):
        return max(lower, min(x, upper))
    return ops.maximum(ops.minimum(x, upper), lower)
