"""Learned tables over differences of coordinates (Swin; Liu et al., 2021; BoTNet)."""

import functools
import math
import operator

import keras
import numpy as np
from keras import ops

from kattn import biases
from kattn.layers.position.position import Position
from kattn.layers.position.tables import (
    add_table,
    check_count,
    check_query,
    check_same,
    numbers_by_query,
    read_initializer,
    read_table,
)
from kattn.ops.scores import add_bias, check_scores


@keras.saving.register_keras_serializable("kattn")
class RelativeTable(Position):
    """Score + a number for the difference of key and query on a grid of 1, 2 or 3 axes.

    The number is learned, one for each head and difference (Swin), or, with `by_query`, the
    query's product with a learned vector for each axis and difference, q . (r_y + r_x) / sqrt(D)
    (BoTNet). On a grid of other sides the table is interpolated, so a model with inputs of
    another size loads the same weights.

    Shapes: B batch, N heads, T query steps, S key steps, D head width. The steps are the cells
    of the grid, row-major.

    Args:
        sides: (T,), (H, W) or (depth, H, W): of the grid that the table is made for. On one axis
            T and S may be any; steps farther away than the table reaches count as the farthest.
        by_query: If True, a weight `table_<axis>` `(2 * side - 1, D)` for each axis, shared by
            the heads; if False, one weight `table` `(N, product of all 2 * side - 1)`.
        initializer: Of a table; None for a truncated normal of deviation 0.02, as in Swin.
        regularizer: Of a table.
        **kwargs: `name`, `dtype`, `trainable`, as for any Keras layer.

    Call args:
        scores: `(B, N, T, S)` float, already scaled.
        query: `(B, T, N, D)` float, that they were made from. Needed by `by_query`.
        sides: Those of the grid at hand, integers; None for those of the table.
        stride: A cell of the keys' grid is as wide as this many of the queries'.

    Returns:
        `(B, N, T, S)`, the scores with their bias, which is made and added in float32.

    Raises:
        ValueError: For arguments out of range; when called, if `scores`, `query` or `sides` do
            not fit; if a bias is asked for before there are weights, or heads or head width are
            other than theirs.

    Example:
        >>> position = kattn.layers.RelativeTable((7, 7))
        >>> position(keras.random.normal((2, 4, 49, 49))).shape
        (2, 4, 49, 49)
        >>> position(keras.random.normal((2, 4, 144, 144)), sides=(12, 12)).shape
        (2, 4, 144, 144)

    Reference:
        Liu et al. 2021 (Swin), sec. 3.2, https://arxiv.org/abs/2103.14030, who interpolate with
        cubics where this is linear.
        By query: Srinivas et al. 2021 (BoTNet), sec. 3, https://arxiv.org/abs/2101.11605, after
        Bello et al. 2019, sec. 3.2, https://arxiv.org/abs/1904.09925
    """

    def __init__(self, sides, *, by_query=False, initializer=None, regularizer=None, **kwargs):
        super().__init__(**kwargs)
        _check_sides(sides)
        self.supports_masking = True
        self.sides = tuple(sides)
        self.by_query = by_query
        self.initializer = read_initializer(initializer)
        self.regularizer = keras.regularizers.get(regularizer)
        self.tables = None

    def build(self, scores_shape, query_shape=None):
        num_heads = check_scores(scores_shape)
        if self.by_query:
            _require_query(query_shape)
        self.attach(num_heads=num_heads, key_dim=query_shape and query_shape[-1])

    def attach(self, *, width=None, num_heads, key_dim=None):
        name, size = ("key_dim", key_dim) if self.by_query else ("num_heads", num_heads)
        if self.tables is not None:
            shape = self.tables[0].shape
            check_same(name, size, shape[1] if self.by_query else shape[0])
            return
        check_count(name, size, 1)
        self.tables = self._make_tables(size)
        self.built = True

    def call(self, scores, query=None, sides=None, stride=1):
        if self.by_query:
            _require_query(query)
            check_query(query, scores)
        return add_bias(scores, self.bias(query, sides=sides, stride=stride))

    def bias(self, query, *, sides=None, stride=1):
        """What is added to the scores.

        Args:
            query: `(B, T, N, D)` float; None will do without `by_query`.
            sides: As in the call.
            stride: As in the call.

        Returns:
            A `kattn.biases.Bias`.
        """
        sides = self._sides_at_hand(sides)
        check_count("stride", stride, 1)
        tables = [read_table(self, table) for table in self.tables or [None]]
        axes = tuple(range(len(sides)))
        if not self.by_query:
            return _rule(_resize(tables[0], self.sides, sides), sides, axes, stride)
        rules = []
        for axis in axes:
            old, new = (self.sides[axis],), (sides[axis],)
            table = ops.transpose(_resize(ops.transpose(tables[axis]), old, new))
            rules.append(_rule(numbers_by_query(query, table), sides, (axis,), stride))
        return functools.reduce(operator.add, rules)

    def map_bias(self, query, sides, stride):
        return self.bias(query, sides=sides, stride=stride)

    def compute_output_shape(self, scores_shape, query_shape=None):
        return scores_shape

    def get_config(self):
        return {
            **super().get_config(),
            "sides": self.sides,
            "by_query": self.by_query,
            "initializer": keras.initializers.serialize(self.initializer),
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }

    def _make_tables(self, size):
        differences = [2 * side - 1 for side in self.sides]
        if not self.by_query:
            return [add_table(self, "table", (size, math.prod(differences)), self.initializer)]
        return [
            add_table(self, f"table_{axis}", (count, size), _numbered(self.initializer, axis))
            for axis, count in enumerate(differences)
        ]

    def _sides_at_hand(self, sides):
        if sides is None:
            return self.sides
        _check_sides(sides)
        if len(sides) != len(self.sides):
            raise ValueError(
                "`sides` at hand must be as many as those of the table; "
                f"received: sides={tuple(sides)}, sides of the table={self.sides}"
            )
        return tuple(sides)


def _require_query(query):
    if query is None:
        raise ValueError("A bias that is `by_query` needs `query`; received: query=None")


def _check_sides(sides):
    sides = tuple(sides) if isinstance(sides, tuple | list) else sides
    fits = isinstance(sides, tuple) and 1 <= len(sides) <= 3
    if not fits or not all(type(x) is int and x >= 1 for x in sides):
        raise ValueError(f"`sides` must be 1 to 3 integers >= 1; received: sides={sides!r}")


def _rule(values, sides, axes, stride):
    """On one axis, that which also serves T unlike S, and both unlike the table."""
    if len(sides) == 1 and stride == 1:
        return biases.Clipped(values)
    return biases.GridTable(values, sides, axes, stride)


def _resize(table, old, new):
    """`(A, R)`, the R numbers those of a grid of sides `old`, to a grid of sides `new`."""
    if old == new:
        return table
    values = ops.reshape(table, (table.shape[0], *(2 * side - 1 for side in old)))
    for axis, sides in enumerate(zip(old, new, strict=True), start=1):
        weights = ops.convert_to_tensor(_interpolation(*sides))
        values = ops.moveaxis(ops.matmul(ops.moveaxis(values, axis, -1), weights), -1, axis)
    return ops.reshape(values, (table.shape[0], -1))


def _interpolation(old, new):
    """float32 `(2 * old - 1, 2 * new - 1)`: the share of each old number in each new one.

    The farthest difference stays the farthest: d of the new is d * (old - 1) / (new - 1).
    """
    scale = (old - 1) / (new - 1) if new > 1 else 0.0
    at = np.arange(1 - new, new) * scale
    return np.maximum(0.0, 1.0 - np.abs(at - np.arange(1 - old, old)[:, None])).astype("float32")


def _numbered(initializer, axis):
    """A copy of the initializer that draws other numbers for another axis."""
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    fields = initializer.get_config()
    if isinstance(fields.get("seed"), int):
        fields["seed"] += axis
    return type(initializer).from_config(fields)
