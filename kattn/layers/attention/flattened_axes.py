"""Inputs of any rank as sequences: attention axes become one of steps, the rest one of batch."""

import math

from keras import ops

from kattn import arguments
from kattn.ops import masking


class FlattenedAxes:
    """How inputs `(B, <axes>, C)` become sequences `(B', T', C)`, and outputs go back.

    Args:
        axes: The axes over which steps attend to each other, or None for all between the batch
            and the width. They become the axis of steps, the last one running fastest.
        query_shape: Shape of the input that asks.
        value_shape: Shape of the input that provides values, of the same rank.
    """

    def __init__(self, axes, query_shape, value_shape):
        rank = len(query_shape)
        self.axes = tuple(range(1, rank - 1)) if axes is None else tuple(a % rank for a in axes)
        self.others = tuple(a for a in range(rank - 1) if a not in self.axes)
        self.batch = tuple(query_shape[a] for a in self.others)
        self.queries = tuple(query_shape[a] for a in self.axes)
        self.keys = tuple(value_shape[a] for a in self.axes)
        self._is_sequence = len(self.others) == len(self.axes) == 1

    def flatten(self, x, kept):
        """`(B, <axes>, <kept>)`, of which `kept` axes stay, to `(B', T', <kept>)`."""
        if self._is_sequence:
            return x
        order = (*self.others, *self.axes)
        x = ops.transpose(x, (*order, *range(len(order), len(order) + kept)))
        shape = ops.shape(x)
        split, end = len(self.others), len(order)
        return ops.reshape(x, (math.prod(shape[:split]), math.prod(shape[split:end]), *shape[end:]))

    def unflatten(self, y, steps, kept=2):
        """The way back: `(B', T', <kept>)`, of `steps`, which is `queries` or `keys`."""
        if self._is_sequence:
            return y
        y = ops.reshape(y, (*self.batch, *steps, *ops.shape(y)[2:]))
        order = (*self.others, *self.axes)
        back = [order.index(axis) for axis in range(len(order))]
        return ops.transpose(y, (*back, *range(len(order), len(order) + kept)))

    def flatten_scores(self, weights):
        """`(<batch>, N, <query axes>, <key axes>)` to `(B', N, T', S')`."""
        if self._is_sequence:
            return weights
        sizes = (self.batch, (ops.shape(weights)[len(self.batch)],), self.queries, self.keys)
        return ops.reshape(weights, tuple(math.prod(part) for part in sizes))

    def unflatten_scores(self, weights):
        """`(B', N, T', S')` to `(<batch>, N, <query axes>, <key axes>)`."""
        if self._is_sequence:
            return weights
        heads = ops.shape(weights)[1]
        return ops.reshape(weights, (*self.batch, heads, *self.queries, *self.keys))

    def mask_array(self, mask):
        """A mask object over flattened steps as a bool array over axes, as Keras has it.

        Its shape is `(B, T, S)`, or `(<batch>, N, <query axes>, <key axes>)` if there are other
        axes or if the mask differs between heads.
        """
        array = masking.array_of(mask, math.prod(self.queries), math.prod(self.keys))
        if self._is_sequence:
            return array[:, 0] if array.shape[1] == 1 else array
        batch = math.prod(self.batch)
        return self.unflatten_scores(ops.broadcast_to(array, (batch, *ops.shape(array)[1:])))

    def flatten_mask(self, mask):
        """A mask over axes, as Keras has it, to `(B', N or 1, T', S')`."""
        full = len(self.batch) + 1 + 2 * len(self.axes)
        least = 2 * len(self.axes)
        if not least <= len(mask.shape) <= full:
            raise arguments.error(
                f"`attention_mask` must have rank {least} to {full}, ([batch, [heads,]] query "
                "axes, key axes)",
                attention_mask=mask,
            )
        head_axis = len(mask.shape) - least
        while len(mask.shape) < full:
            mask = ops.expand_dims(mask, head_axis)
        if self._is_sequence:
            return mask
        mask_heads = mask.shape[len(self.batch)]
        mask = ops.broadcast_to(mask, (*self.batch, mask_heads, *self.queries, *self.keys))
        sizes = (self.batch, (mask_heads,), self.queries, self.keys)
        return ops.reshape(mask, tuple(math.prod(part) for part in sizes))

    def flatten_padding(self, keep, x):
        """A padding mask of `x`, of its first axes at least, to `(B', T')`."""
        steps, rank = ops.shape(x)[:-1], len(keep.shape)
        pairs = zip(keep.shape, x.shape, strict=False)
        fits = all(have in (1, want) or None in (have, want) for have, want in pairs)
        if not 2 <= rank <= len(steps) or not fits:
            raise arguments.error(
                "A padding mask must have the first axes of its input, two or more, without the "
                "width",
                mask=keep,
                input=x,
            )
        if len(steps) > 2:
            keep = ops.broadcast_to(with_rank(keep, len(steps)), steps)
        return self.flatten(keep, 0)


def check_axes(axes, query_shape, value_shape, key_shape):
    """Raises ValueError unless inputs of these shapes can attend over these axes."""
    shapes = {"query.shape": query_shape, "value.shape": value_shape, "key.shape": key_shape}
    shapes = {name: tuple(shape) for name, shape in shapes.items()}
    query_shape, value_shape, key_shape = shapes.values()
    # Those of `value` and `key` come first, and "must be equal": so says Keras.
    if len(value_shape) != len(key_shape) or _differ(value_shape[1:-1], key_shape[1:-1]):
        raise arguments.error(
            "All axes of `value` and `key` must be equal, except the batch and the last", **shapes
        )
    rank = len(query_shape)
    if rank != len(value_shape) or rank < 3:
        raise arguments.error(
            "`query`, `value` and `key` must have the same rank, 3 or more", **shapes
        )
    batches = {shape[0] for shape in shapes.values() if isinstance(shape[0], int)}
    if len(batches) > 1:
        raise arguments.error("`query`, `value` and `key` must have the same batch size", **shapes)
    if axes is None:
        return
    inside = all(-rank <= axis < rank and 1 <= axis % rank < rank - 1 for axis in axes)
    if not inside or len({axis % rank for axis in axes}) < len(axes):
        raise arguments.error(
            "`attention_axes` must lie between the batch and the width, each once",
            attention_axes=axes,
            **shapes,
        )
    for axis in {*range(1, rank - 1)} - {axis % rank for axis in axes}:
        if _differ(query_shape[axis : axis + 1], value_shape[axis : axis + 1]):
            raise arguments.error(
                f"Axes that are not among `attention_axes` must be alike; axis {axis} is not",
                attention_axes=axes,
                **shapes,
            )


def _differ(sizes, others):
    """Whether sizes that are known, and so no None and no symbol of a tracer, are not equal."""
    pairs = zip(sizes, others, strict=True)
    return any(a != b for a, b in pairs if isinstance(a, int) and isinstance(b, int))


def with_rank(x, rank):
    """`x` with axes of size 1 at its end, so that it has this rank."""
    for _ in range(rank - len(x.shape)):
        x = ops.expand_dims(x, -1)
    return x
