"""Learned tables over differences of coordinates (Swin; Liu et al., 2021; BoTNet)."""

import functools
import math
import operator

import keras
from keras import ops

from kattn import biases
from kattn.arguments import check_integers, error, is_integer
from kattn.biases.grid_table import numbers_of
from kattn.grid import Grid
from kattn.layers.initializers import numbered
from kattn.layers.position.learned_table import add_table, read_initializer, read_table
from kattn.layers.position.query_products import check_query, query_products, require_query
from kattn.layers.position.score_bias import ScoreBias
from kattn.ops.scores import add_bias
from kattn.ops.sizes import at_least_one


@keras.saving.register_keras_serializable("kattn")
class RelativeTable(ScoreBias):
    """Adds a learned number for the difference of key and query on a grid of 1, 2 or 3 axes.

    There is one number for each head and difference (Swin). With `by_query`, the number is the
    query's product with a learned vector for each axis and difference,
    q . (r_y + r_x) / sqrt(D) (BoTNet). On a grid of other sides the table is interpolated, so
    that a model for inputs of another size can load the same weights.

    Shapes: B batch, N heads, T query steps, S key steps, D head width. The steps are the cells
    of the grid in row-major order.

    Args:
        sides: Sides of the grid that the table is made for: `(T,)`, `(H, W)` or
            `(depth, H, W)`. On one axis T and S may be any; steps farther away than the table
            reaches count as the farthest.
        by_query: If True, there is a weight `table_<axis>` of shape `(2 * side - 1, D)` for each
            axis, which all heads share. If False, there is one weight `table` of shape
            `(N, product of all 2 * side - 1)`.
        initializer: Initializer of each table. None gives a truncated normal of standard
            deviation 0.02, as in Swin.
        regularizer: Regularizer of each table, or None.
        **kwargs: Arguments that every Keras layer takes: `name`, `dtype` and `trainable`.

    Call args:
        scores: Scores q . k / sqrt(D), float, shape `(B, N, T, S)`.
        query: Queries that the scores were made from, float, shape `(B, T, N, D)`. It must be
            given with `by_query`; without, None will do.
        sides: Sides of the grid of the queries at hand, as many integers as the table has axes.
            None stands for the sides of the table.
        key_stride: Downsampling factor of the grid of keys relative to the grid of queries, an
            integer >= 1.

    Returns:
        `(B, N, T, S)`, the scores with their bias, of the dtype of `scores`. The bias and the
        sum are computed in float32.

    Raises:
        ValueError: If `sides` are not 1 to 3 integers >= 1; when called, if `scores`, `query`,
            `sides` or `key_stride` does not fit; if a bias is asked for before there are weights,
            or if the layer is shared with layers of another number of heads (with `by_query`: of
            another head width).

    Example:
        >>> position = kattn.layers.RelativeTable((7, 7))
        >>> tuple(position(keras.random.normal((2, 4, 49, 49))).shape)
        (2, 4, 49, 49)
        >>> tuple(position(keras.random.normal((2, 4, 144, 144)), sides=(12, 12)).shape)
        (2, 4, 144, 144)

    Reference:
        Liu et al. 2021 (Swin), sec. 3.2, https://arxiv.org/abs/2103.14030. They interpolate with
        cubics; here the interpolation is linear.
        With `by_query`: Srinivas et al. 2021 (BoTNet), sec. 3, https://arxiv.org/abs/2101.11605,
        after Bello et al. 2019, sec. 3.2, https://arxiv.org/abs/1904.09925
    """

    def __init__(self, sides, *, by_query=False, initializer=None, regularizer=None, **kwargs):
        super().__init__(**kwargs)
        _check_sides(sides)
        self.sides = tuple(sides)
        self.by_query = by_query
        self.initializer = read_initializer(initializer)
        self.regularizer = keras.regularizers.get(regularizer)
        self.tables = None

    def build(self, scores_shape, query_shape=None):
        if self.by_query:
            require_query(query_shape)
        super().build(scores_shape, query_shape)

    def attach(self, *, width, num_heads, key_dim):
        sizes = {"key_dim": key_dim} if self.by_query else {"num_heads": num_heads}
        check_integers(1, **sizes)
        if self.remember_sizes(**sizes):
            self.tables = self._make_tables(**sizes)

    def call(self, scores, query=None, sides=None, key_stride=1):
        if query is not None:
            check_query(query, scores)
        if sides is not None:
            _check_sides(sides)
        grid = Grid(self.sides if sides is None else tuple(sides), key_stride)
        return add_bias(scores, self.bias(query, grid))

    def bias(self, query, grid=None):
        """What is added to the scores.

        Args:
            query: Queries, float, shape `(B, T, N, D)`. None will do without `by_query`.
            grid: `kattn.grid.Grid` of the queries at hand, whose `key_stride` is the downsampling
                factor of the grid of keys. None stands for the grid that the table is made for,
                or for a sequence of any length where that has one axis.

        Returns:
            A `kattn.biases.Bias`.

        Raises:
            ValueError: If `grid` has another number of axes than the table, or sides that are
                not known; if there are no weights yet; if `query` is needed and does not fit.
        """
        grid = Grid(self.sides) if grid is None else grid
        self._check_grid(grid)
        tables = [read_table(self, table) for table in self.tables or [None]]
        axes = tuple(range(len(grid.sides)))
        if not self.by_query:
            return _rule(_resize(tables[0], self.sides, grid.sides), grid, axes)
        rules = []
        for axis in axes:
            old, new = (self.sides[axis],), (grid.sides[axis],)
            table = ops.transpose(_resize(ops.transpose(tables[axis]), old, new))
            rules.append(_rule(query_products(query, table), grid, (axis,)))
        return functools.reduce(operator.add, rules)

    def get_config(self):
        return {
            **super().get_config(),
            "sides": self.sides,
            "by_query": self.by_query,
            "initializer": keras.initializers.serialize(self.initializer),
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }

    def _make_tables(self, num_heads=None, key_dim=None):
        differences = [2 * side - 1 for side in self.sides]
        if not self.by_query:
            shape = (num_heads, math.prod(differences))
            return [add_table(self, "table", shape, self.initializer)]
        return [
            add_table(self, f"table_{axis}", (count, key_dim), numbered(self.initializer, axis))
            for axis, count in enumerate(differences)
        ]

    def _check_grid(self, grid):
        if any(side is None for side in grid.sides):
            _check_sides(grid.sides)
        if len(grid.sides) != len(self.sides):
            raise ValueError(
                "The grid at hand must have as many sides as that of the table; "
                f"received: sides={grid.sides}, sides of the table={self.sides}"
            )


def _check_sides(sides):
    fits = isinstance(sides, tuple | list) and 1 <= len(sides) <= 3
    if not fits or not all(is_integer(side) and side >= 1 for side in sides):
        raise error("`sides` must be 1 to 3 integers >= 1", sides=sides)


def _rule(values, grid, axes):
    # On one axis there is a rule that also serves T unlike S, and either unlike the table.
    if len(grid.sides) == 1 and grid.key_stride == 1:
        return biases.Clipped(values)
    return biases.GridTable(values, grid.sides, axes, grid.key_stride)


def _resize(table, old, new):
    """A table of shape `(A, R)` for a grid of sides `old`, interpolated for sides `new`."""
    if all(map(is_integer, new)) and old == new:
        return table
    values = ops.reshape(table, (table.shape[0], *(2 * side - 1 for side in old)))
    for axis, sides in enumerate(zip(old, new, strict=True), start=1):
        values = ops.swapaxes(values, axis, -1)
        values = ops.swapaxes(ops.matmul(values, _interpolation(*sides)), axis, -1)
    return ops.reshape(values, (table.shape[0], -1))


def _interpolation(old, new):
    """The share of each old number in each new one, float32, by `numbers_of` each.

    `new` may be a scalar tensor or a symbol. The farthest difference stays the farthest: difference
    d of the new side stands where d * (old - 1) / (new - 1) is on the old side.
    """
    new = at_least_one(new)
    differences = (ops.arange(numbers_of(side), dtype="int32") - (side - 1) for side in (old, new))
    at_old, at_new = (ops.cast(difference, "float32") for difference in differences)
    at_new = at_new * (old - 1) / ops.maximum(ops.cast(new - 1, "float32"), 1.0)
    return ops.maximum(0.0, 1.0 - ops.abs(at_new - at_old[:, None]))
