"""Frames: the queries of a window in blocks, each with the keys around it that it can see.

Along each axis, queries are cut into blocks, and a block sees its own block of keys and as many
neighbours as the window reaches. A sequence has one axis; a map of H x W cells would have two, and
the frame of a block is then the product of its frames along the axes.
"""

import dataclasses
import math

from keras import ops

from kattn import backend
from kattn.ops.kernels.block import move_axis
from kattn.spans import Span

# Blocks narrower than this cost more in small matrix products than they save in masked scores.
NARROWEST = 64


@dataclasses.dataclass(frozen=True)
class Axis:
    """How one axis is cut: block i of the queries sees the blocks [i, i + width) of the keys.

    Args:
        queries: Number of queries along the axis.
        keys: Number of keys along the axis.
        size: Number of steps in a block.
        blocks: Number of blocks of queries.
        behind: Number of blocks of keys in front of a query's own.
        width: Number of blocks of keys in a frame.
    """

    queries: int
    keys: int
    size: int
    blocks: int
    behind: int
    width: int

    @classmethod
    def make(cls, queries, keys, reach, *, parts):
        """The axis for a window.

        Args:
            queries: Number of queries along the axis.
            keys: Number of keys along the axis.
            reach: How many keys (before, after) its own position a query can see.
            parts: Into how many blocks the longer side of the window is cut. More of them
                make frames that hold fewer keys outside of the window, but smaller products.
        """
        before, after = (int(x) for x in reach)
        size = max(NARROWEST, math.ceil((max(before, after) + 1) / parts))
        size = min(size, max(1, -(-queries // 8)) * 8)
        behind, ahead = -(-before // size), -(-after // size)
        return cls(queries, keys, size, -(-queries // size), behind, behind + 1 + ahead)

    @property
    def frame(self):
        """Number of keys in a frame."""
        return self.width * self.size

    @property
    def offset(self):
        """Position of query 0 among the keys."""
        return self.keys - self.queries

    @property
    def first_key(self):
        """Key at which the first frame begins, often negative."""
        return self.offset - self.behind * self.size

    def steps(self):
        """The queries and the keys of all frames, as two `Span` of `blocks` runs each."""
        starts = ops.arange(self.blocks, dtype="int32") * self.size
        return Span(starts, self.size), Span(starts + self.first_key, self.frame)

    def first_steps(self):
        """The queries and the keys of the first frame."""
        return Span(0, self.size), Span(self.first_key, self.frame)

    def cut_queries(self, x, axis):
        """`(..., T, ...)` to `(..., blocks, size, ...)` at `axis`, which is not negative."""
        return self._cut(_fit(x, axis, 0, self.blocks * self.size), axis, self.blocks)

    def join_queries(self, x, axis):
        """The way back from `cut_queries`."""
        shape = ops.shape(x)
        x = ops.reshape(x, (*shape[:axis], self.blocks * self.size, *shape[axis + 2 :]))
        return x[(*[slice(None)] * axis, slice(0, self.queries))]

    def cut_keys(self, x, axis):
        """`(..., S, ...)` to `(..., blocks + width - 1, size, ...)` at `axis`."""
        count = self.blocks + self.width - 1
        x = _fit(x, axis, self.first_key, self.first_key + count * self.size)
        return self._cut(x, axis, count)

    def gather(self, x, blocks_axis, steps_axis):
        """Blocks of keys to frames: `blocks` and `frame` entries along the two axes."""
        lead = [slice(None)] * blocks_axis
        parts = [x[(*lead, slice(i, i + self.blocks))] for i in range(self.width)]
        return ops.concatenate(parts, axis=steps_axis)

    def scatter(self, x, blocks_axis, steps_axis):
        """Frames to blocks of keys, overlaps summed: the transpose of `gather`."""
        lead, ends, total = [slice(None)] * steps_axis, [(0, 0)] * len(x.shape), 0.0
        for i in range(self.width):
            part = x[(*lead, slice(i * self.size, (i + 1) * self.size))]
            ends[blocks_axis] = (i, self.width - 1 - i)
            total = total + backend.pad(part, ends)
        return total

    def _cut(self, x, axis, count):
        shape = ops.shape(x)
        return ops.reshape(x, (*shape[:axis], count, self.size, *shape[axis + 1 :]))


@dataclasses.dataclass(frozen=True)
class Frames:
    """Queries in blocks and keys in frames, along one axis or several.

    Args:
        axes: An `Axis` for each axis of the sequence or map.
    """

    axes: tuple[Axis, ...]

    @property
    def blocks(self):
        """Number of blocks of queries, and so of frames."""
        return math.prod([axis.blocks for axis in self.axes])

    @property
    def size(self):
        """Number of queries in a block."""
        return math.prod(axis.size for axis in self.axes)

    @property
    def frame(self):
        """Number of keys in a frame."""
        return math.prod([axis.frame for axis in self.axes])

    def cut_queries(self, x):
        """`(B, ..., *queries, D)` to `(blocks, B, ..., size, D)`."""
        x = self._cut(x, Axis.cut_queries)
        return self._merge(x, [axis.blocks for axis in self.axes])

    def join_queries(self, x):
        """The way back from `cut_queries`."""
        rank, (_, *lead, _, width) = len(self.axes), ops.shape(x)
        blocks, sizes = ([getattr(axis, n) for axis in self.axes] for n in ("blocks", "size"))
        x = ops.reshape(x, (*blocks, *lead, *sizes, width))
        for i, axis in enumerate(self.axes):
            # The block axes that are left stand in front, the joined sides behind the lead.
            left, side = rank - i, len(lead) + i
            x = move_axis(x, 0, left - 1 + side)
            x = axis.join_queries(x, left - 1 + side)
        return x

    def cut_keys(self, x):
        """`(B, ..., *keys, D)` to `(*key blocks, B, ..., *sizes, D)`."""
        return self._cut(x, Axis.cut_keys)

    def gather(self, x):
        """What `cut_keys` gives, to frames: `(blocks, B, ..., frame, D)`."""
        rank = len(self.axes)
        for i, axis in enumerate(self.axes):
            x = axis.gather(x, i, len(x.shape) - 1 - rank + i)
        return self._merge(x, [axis.blocks for axis in self.axes])

    def scatter(self, x):
        """Frames to blocks of keys, overlaps summed: the transpose of `gather`."""
        rank = len(self.axes)
        if rank > 1:
            (_, *lead, _, width), frames = ops.shape(x), [axis.frame for axis in self.axes]
            x = ops.reshape(x, (*(axis.blocks for axis in self.axes), *lead, *frames, width))
        for i, axis in enumerate(self.axes):
            x = axis.scatter(x, i, len(x.shape) - 1 - rank + i)
        return x

    def _cut(self, x, cut):
        """The blocks of each axis in front, in their order."""
        rank = len(self.axes)
        for i, axis in enumerate(self.axes):
            place = len(x.shape) - 1 - rank + i
            x = move_axis(cut(axis, x, place), place, i)
        return x

    def _merge(self, x, blocks):
        """`(*blocks, B, ..., *steps, D)` with one axis of blocks and one of steps."""
        rank = len(self.axes)
        if rank == 1:
            return x
        shape = ops.shape(x)
        lead, steps = shape[rank : -1 - rank], shape[-1 - rank : -1]
        return ops.reshape(x, (math.prod(blocks), *lead, math.prod(steps), shape[-1]))


def _fit(x, axis, start, stop):
    """Steps [start, stop) of `axis`, with zeros where there are none."""
    steps = x.shape[axis]
    x = x[(*[slice(None)] * axis, slice(max(start, 0), min(stop, steps)))]
    ends = [(0, 0)] * len(x.shape)
    ends[axis] = (max(-start, 0), max(stop - steps, 0))
    return backend.pad(x, ends)
