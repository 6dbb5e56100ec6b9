"""Frames: the queries of a window in blocks, each with the keys around it that it can see.

Along each axis, queries are cut into blocks, and a block sees its own block of keys and as many
neighbours as the window reaches. A sequence has one axis; a map of H x W cells has two, and the
frame of a block is then the product of its frames along the axes.
"""

import dataclasses
import math

from keras import ops

from kattn import backend
from kattn.ops.kernels.block import move_axis
from kattn.spans import Cells, Span

# Blocks narrower than this cost more in small matrix products than they save in masked scores.
NARROWEST = 64
# What a key costs to bring into a frame, in scores: it sets how large the blocks of a map are.
KEY_COST = 16


@dataclasses.dataclass(frozen=True)
class Axis:
    """How one axis is cut: block i of the queries sees the blocks [i, i + width) of the keys.

    Where every `classes`-th step belongs to one class, and queries see keys of their own class only
    (a dilated window), blocks and frames are of one class each, those of class 0 first.

    Args:
        queries: Number of queries along the axis.
        keys: Number of keys along the axis.
        size: Number of steps in a block.
        blocks: Number of blocks of queries of each class.
        behind: Number of blocks of keys in front of a query's own.
        width: Number of blocks of keys in a frame.
        trimmed: How many keys of the first and of the last of these blocks are left out.
        classes: Number of classes of steps.
    """

    queries: int
    keys: int
    size: int
    blocks: int
    behind: int
    width: int
    trimmed: tuple[int, int] = (0, 0)
    classes: int = 1

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

    @classmethod
    def of_side(cls, neighbors, rank):
        """The axis for one side of a map of `rank` sides, for a window of cells.

        Args:
            neighbors: The `kattn.masks.grids.Neighbors` of the side.
            rank: Number of sides of the map. The blocks of more sides are narrower.
        """
        narrowest = round(NARROWEST ** (1 / rank))
        longest = max(-(-neighbors.side // neighbors.dilation), 1)  # of an empty map, too
        sizes = [*range(max(narrowest // 2, 1), min(2 * narrowest, longest) + 1), longest]
        axes = [cls._of_side(neighbors, longest, size) for size in sizes]
        return min(axes, key=lambda axis: axis.blocks * axis.frame * (axis.size + KEY_COST))

    @classmethod
    def _of_side(cls, neighbors, longest, size):
        blocks = -(-longest // size)
        before, after = neighbors.before, neighbors.after
        if blocks == 1:
            before = after = 0  # all is in the one block
        elif neighbors.moves:
            # The first and the last block of each class must hold what windows that are moved
            # back into the map see, beside what is around the block anyhow.
            shortest = neighbors.side // neighbors.dilation
            last = shortest - (blocks - 1) * size
            if size + after < neighbors.size or last + before < neighbors.size:
                before = after = neighbors.size - 1
        behind, ahead = -(-before // size), -(-after // size)
        trimmed = behind * size - before, ahead * size - after
        side, width = neighbors.side, behind + 1 + ahead
        return cls(side, side, size, blocks, behind, width, trimmed, neighbors.dilation)

    @property
    def frame(self):
        """Number of keys in a frame."""
        return self.width * self.size - sum(self.trimmed)

    @property
    def offset(self):
        """Position of query 0 among the keys."""
        return self.keys - self.queries

    @property
    def first_key(self):
        """Key at which the first frame begins, in steps of its class; often negative."""
        return self.offset - self.behind * self.size + self.trimmed[0]

    def steps(self):
        """The queries and the keys of all frames, as two `Span` of `blocks` runs each."""
        starts = ops.arange(self.blocks, dtype="int32") * self.size
        return Span(starts, self.size), Span(starts + self.first_key, self.frame)

    def first_steps(self):
        """The queries and the keys of the first frame."""
        return Span(0, self.size), Span(self.first_key, self.frame)

    def coordinates(self, *, first=False):
        """Where the queries and the keys of all frames stand, or only those of the first frame.

        Returns:
            int32 `(frames, size)` and `(frames, frame)`.
        """
        spans = self.first_steps() if first else self.steps()
        places = []
        for span in spans:
            within = ops.reshape(span.positions(), (1, -1, span.size)) * self.classes
            classes = 1 if first else self.classes
            place = within + ops.arange(classes, dtype="int32")[:, None, None]
            places.append(ops.reshape(place, (-1, span.size)))
        return places

    def cut_queries(self, x, axis):
        """`(..., T, ...)` to `(..., frames, size, ...)` at `axis`, which is not negative."""
        return self._cut(x, axis, 0, self.blocks)

    def join_queries(self, x, axis):
        """The way back from `cut_queries`."""
        if self.classes > 1:
            shape = ops.shape(x)
            x = ops.reshape(x, (*shape[:axis], self.classes, self.blocks, *shape[axis + 1 :]))
            x = move_axis(x, axis, axis + 2)
            shape = (*shape[:axis], self.blocks, self.size * self.classes, *shape[axis + 2 :])
            x = ops.reshape(x, shape)
        shape = ops.shape(x)
        steps = self.blocks * self.size * self.classes
        x = ops.reshape(x, (*shape[:axis], steps, *shape[axis + 2 :]))
        return x[(*[slice(None)] * axis, slice(0, self.queries))]

    def cut_keys(self, x, axis):
        """`(..., S, ...)` to `(..., classes * (blocks + width - 1), size, ...)` at `axis`."""
        return self._cut(x, axis, self.first_key - self.trimmed[0], self.blocks + self.width - 1)

    def gather(self, x, blocks_axis, steps_axis):
        """Blocks of keys to frames: frames and their keys along the two axes."""
        x, blocks_axis, steps_axis = self._apart(x, blocks_axis, steps_axis)
        parts = []
        for i in range(self.width):
            cut = [slice(None)] * len(x.shape)
            cut[blocks_axis], cut[steps_axis] = slice(i, i + self.blocks), self._kept(i)
            parts.append(x[tuple(cut)])
        return self._together(ops.concatenate(parts, axis=steps_axis), blocks_axis)

    def scatter(self, x, blocks_axis, steps_axis):
        """Frames to blocks of keys, overlaps summed: the transpose of `gather`."""
        x, blocks_axis, steps_axis = self._apart(x, blocks_axis, steps_axis)
        lead, total, start = [slice(None)] * steps_axis, 0.0, 0
        for i in range(self.width):
            kept = self._kept(i)
            stop = start + kept.stop - kept.start
            ends = [(0, 0)] * len(x.shape)
            ends[blocks_axis] = (i, self.width - 1 - i)
            ends[steps_axis] = (kept.start, self.size - kept.stop)
            total = total + backend.pad(x[(*lead, slice(start, stop))], ends)
            start = stop
        return self._together(total, blocks_axis)

    def _kept(self, i):
        """Which keys of block i of a frame are in the frame."""
        first = self.trimmed[0] if i == 0 else 0
        return slice(first, self.size - (self.trimmed[1] if i == self.width - 1 else 0))

    def _cut(self, x, axis, first, count):
        """`count` blocks of each class, of which the first begins at step `first` of its class."""
        steps = count * self.size
        x = _fit(x, axis, first * self.classes, (first + steps) * self.classes)
        shape = ops.shape(x)
        lead, rest = shape[:axis], shape[axis + 1 :]
        if self.classes == 1:
            return ops.reshape(x, (*lead, count, self.size, *rest))
        x = move_axis(ops.reshape(x, (*lead, steps, self.classes, *rest)), axis + 1, axis)
        return ops.reshape(x, (*lead, self.classes * count, self.size, *rest))

    def _apart(self, x, blocks_axis, steps_axis):
        """The blocks of each class apart, so that the axes move on by one."""
        if self.classes == 1:
            return x, blocks_axis, steps_axis
        shape = ops.shape(x)
        lead, rest = shape[:blocks_axis], shape[blocks_axis + 1 :]
        return ops.reshape(x, (*lead, self.classes, -1, *rest)), blocks_axis + 1, steps_axis + 1

    def _together(self, x, blocks_axis):
        """The way back from `_apart`."""
        if self.classes == 1:
            return x
        shape = ops.shape(x)
        return ops.reshape(x, (*shape[: blocks_axis - 1], -1, *shape[blocks_axis + 1 :]))


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
        return math.prod(self._counts)

    @property
    def size(self):
        """Number of queries in a block."""
        return math.prod(axis.size for axis in self.axes)

    @property
    def frame(self):
        """Number of keys in a frame."""
        return math.prod([axis.frame for axis in self.axes])

    @property
    def _counts(self):
        return [axis.classes * axis.blocks for axis in self.axes]

    def cells(self, sides, *, first=False):
        """The queries and the keys of all frames of a map, or only those of the first frame.

        Args:
            sides: Sides of the map.
            first: Whether only the first frame is wanted.

        Returns:
            Two `Cells`.
        """
        of_axes = [axis.coordinates(first=first) for axis in self.axes]
        return tuple(Cells(_product(places), tuple(sides)) for places in zip(*of_axes, strict=True))

    def cut_queries(self, x):
        """`(B, ..., T, D)` to `(blocks, B, ..., size, D)`."""
        return self._merge(self._cut(x, Axis.cut_queries, [axis.queries for axis in self.axes]))

    def join_queries(self, x):
        """The way back from `cut_queries`."""
        rank, (_, *lead, _, width) = len(self.axes), ops.shape(x)
        sizes = [axis.size for axis in self.axes]
        x = ops.reshape(x, (*self._counts, *lead, *sizes, width))
        for i, axis in enumerate(self.axes):
            # The block axes that are left stand in front, the joined sides behind the lead.
            left, side = rank - i, len(lead) + i
            x = move_axis(x, 0, left - 1 + side)
            x = axis.join_queries(x, left - 1 + side)
        return x if rank == 1 else ops.reshape(x, (*lead, -1, width))

    def cut_keys(self, x):
        """`(B, ..., S, D)` to `(*key blocks, B, ..., *sizes, D)`."""
        return self._cut(x, Axis.cut_keys, [axis.keys for axis in self.axes])

    def gather(self, x):
        """What `cut_keys` gives, to frames: `(blocks, B, ..., frame, D)`."""
        rank = len(self.axes)
        for i, axis in enumerate(self.axes):
            x = axis.gather(x, i, len(x.shape) - 1 - rank + i)
        return self._merge(x)

    def scatter(self, x):
        """Frames to blocks of keys, overlaps summed: the transpose of `gather`."""
        rank = len(self.axes)
        if rank > 1:
            (_, *lead, _, width), frames = ops.shape(x), [axis.frame for axis in self.axes]
            x = ops.reshape(x, (*self._counts, *lead, *frames, width))
        for i, axis in enumerate(self.axes):
            x = axis.scatter(x, i, len(x.shape) - 1 - rank + i)
        return x

    def _cut(self, x, cut, sides):
        """The blocks of each axis in front, in their order."""
        rank = len(self.axes)
        if rank > 1:
            *lead, _, width = ops.shape(x)
            x = ops.reshape(x, (*lead, *sides, width))
        for i, axis in enumerate(self.axes):
            place = len(x.shape) - 1 - rank + i
            x = move_axis(cut(axis, x, place), place, i)
        return x

    def _merge(self, x):
        """`(*blocks, B, ..., *steps, D)` with one axis of blocks and one of steps."""
        rank = len(self.axes)
        if rank == 1:
            return x
        shape = ops.shape(x)
        lead, steps = shape[rank : -1 - rank], shape[-1 - rank : -1]
        return ops.reshape(x, (self.blocks, *lead, math.prod(steps), shape[-1]))


def _product(places):
    """Coordinates along each axis, `(n_a, m_a)`, as those of all blocks, `(n, m)` each."""
    rank = len(places)
    shape = [place.shape[i] for i in (0, 1) for place in places]
    size = math.prod(shape[:rank]), math.prod(shape[rank:])
    spread = []
    for axis, place in enumerate(places):
        others = [i for i in range(2 * rank) if i % rank != axis]
        spread.append(ops.broadcast_to(ops.expand_dims(place, others), shape))
    return tuple(ops.reshape(place, size) for place in spread)


def _fit(x, axis, start, stop):
    """Steps [start, stop) of `axis`, with zeros where there are none."""
    steps = x.shape[axis]
    x = x[(*[slice(None)] * axis, slice(max(start, 0), min(stop, steps)))]
    ends = [(0, 0)] * len(x.shape)
    ends[axis] = (max(-start, 0), max(stop - steps, 0))
    return backend.pad(x, ends)
