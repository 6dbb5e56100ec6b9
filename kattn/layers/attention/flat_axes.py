"""Attention over any axes of a tensor, as attention over one axis of steps.

`(B, axes, C)` becomes `(B', T, C)`: the axes attended over become one axis of T steps, in the order
given, and the other axes join the batch.
"""

import dataclasses
import math

from keras import ops


@dataclasses.dataclass(frozen=True)
class FlatAxes:
    """Which axes of a tensor `(B, axes, C)` are steps, and the way there and back.

    Args:
        rank: Of the tensor.
        steps: The axes attended over, each in [1, rank - 2].
    """

    rank: int
    steps: tuple[int, ...]

    @classmethod
    def make(cls, rank, axes):
        """From Keras's `attention_axes`: None for all of them; negative ones count from the end."""
        if axes is None:
            return cls(rank, tuple(range(1, rank - 1)))
        steps = tuple(axis % rank if -rank <= axis < rank else axis for axis in axes)
        if not all(1 <= axis <= rank - 2 for axis in steps) or len(set(steps)) < len(steps):
            raise ValueError(
                "`attention_axes` must name axes between the batch and the last axis, each once; "
                f"received: attention_axes={tuple(axes)} for inputs of rank {rank}"
            )
        return cls(rank, steps)

    @property
    def others(self):
        """The axes that join the batch."""
        return tuple(axis for axis in range(1, self.rank - 1) if axis not in self.steps)

    def flatten(self, x):
        """`(B, axes, ...)` to `(B', T, ...)`."""
        if self.rank == 3:
            return x
        sizes = ops.shape(x)
        batch = self._sizes(sizes, (0, *self.others))
        steps = self._sizes(sizes, self.steps)
        x = ops.transpose(x, (*self._order, *range(self.rank - 1, len(sizes))))
        return ops.reshape(x, (math.prod(batch), math.prod(steps), *sizes[self.rank - 1 :]))

    def restore(self, y, sizes):
        """`(B', T, ...)` to `(B, axes, ...)`, where `sizes` is `(B, axes)`."""
        if self.rank == 3:
            return y
        tail = ops.shape(y)[2:]
        y = ops.reshape(y, (*(sizes[axis] for axis in self._order), *tail))
        places = [self._order.index(axis) for axis in range(self.rank - 1)]
        return ops.transpose(y, (*places, *range(self.rank - 1, self.rank - 1 + len(tail))))

    def flatten_padding(self, keep, sizes):
        """A mask of the leading axes of `(B, axes)`, whose sizes are given, to `(B', T)`."""
        if self.rank == 3:
            return keep
        keep = ops.reshape(keep, (*ops.shape(keep), *[1] * (self.rank - 1 - len(keep.shape))))
        return self.flatten(ops.broadcast_to(keep, sizes))

    def flatten_scores(self, mask, query_sizes, key_sizes):
        """A mask `(B, others, N, <query axes>, <key axes>)` to `(B', N, T, S)`.

        Axes missing between the batch and the query axes, or all before these, count as 1, and
        each axis may be 1, as in Keras.
        """
        count = len(self.steps)
        lead = len(mask.shape) - 2 * count
        shape = ops.shape(mask)
        full = [1] * (2 + len(self.others) - lead)
        mask = ops.reshape(mask, (*shape[:lead], *full, *shape[lead:]))
        batch = self._sizes(query_sizes, (0, *self.others))
        queries, keys = self._sizes(query_sizes, self.steps), self._sizes(key_sizes, self.steps)
        start = len(batch)
        mask = _merge(mask, start + 1 + count, keys)
        mask = _merge(mask, start + 1, queries)
        return _merge(mask, 0, batch)

    def restore_scores(self, weights, query_sizes, key_sizes):
        """`(B', N, T, S)` to `(B, others, N, <query axes>, <key axes>)`."""
        if self.rank == 3:
            return weights
        return ops.reshape(weights, self.scores_shape(query_sizes, key_sizes, weights.shape[1]))

    def scores_shape(self, query_sizes, key_sizes, heads):
        """The shape that `restore_scores` gives, from the sizes of `(B, axes)`."""
        batch = self._sizes(query_sizes, (0, *self.others))
        queries, keys = self._sizes(query_sizes, self.steps), self._sizes(key_sizes, self.steps)
        return (*batch, heads, *queries, *keys)

    @property
    def _order(self):
        return (0, *self.others, *self.steps)

    @staticmethod
    def _sizes(sizes, axes):
        return tuple(sizes[axis] for axis in axes)


def _merge(array, axis, sizes):
    """The axes from `axis` on that stand for `sizes`, as one; they stay 1 if all are 1."""
    if len(sizes) == 1:
        return array
    shape = list(ops.shape(array))
    group = slice(axis, axis + len(sizes))
    if all(size == 1 for size in array.shape[group]):
        return ops.reshape(array, (*shape[:axis], 1, *shape[group.stop :]))
    shape[group] = sizes
    array = ops.broadcast_to(array, shape)
    return ops.reshape(array, (*shape[:axis], math.prod(sizes), *shape[group.stop :]))
