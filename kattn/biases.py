"""Biases as objects: what is added to a score, for any block of scores, without a T x S array.

A bias is a rule over positions with a few numbers, learned or not. Biases add up: `a + b`.
Positions are those of `kattn.masks`: query i stands at position i + (S - T) on the key axis.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
from keras import ops

from kattn.spans import Places, Span, cut_block, pad_block


class Bias:
    """What is added to the score of a query and a key.

    `bias[q0:q1, k0:k1]` is the block for these queries and keys of two sequences of equal length,
    as a float32 tensor that broadcasts to `(B, N, q1-q0, k1-k0)`. `a + b` is a bias, too.
    """

    @property
    def is_stationary(self) -> bool:
        """Whether a block depends on the distance of its first key from its first query only."""
        return False

    @property
    def holds_scores(self) -> bool:
        """Whether it holds an array with a query and a key axis."""
        return False

    @property
    def is_by_query(self) -> bool:
        """Whether its arrays have an axis of queries, `(B, N, T, numbers)`."""
        return False

    def __add__(self, other: "Bias") -> "Bias":
        if not isinstance(other, Bias):
            raise ValueError(
                "Both sides of `+` must be biases (wrap an array in Dense); "
                f"received: {type(other).__name__}"
            )
        return Sum(self, other)

    def __getitem__(self, block):
        rows, columns = (Span(part.start or 0, part.stop - (part.start or 0)) for part in block)
        return self.at(rows).block(rows, columns)

    def block(self, queries, keys, offset=0):
        """The bias of `keys` for `queries`.

        Args:
            queries: `Span` or `Places`, the rows of the block. A bias that is by query holds
                the numbers of just these.
            keys: Its columns.
            offset: S - T, the position of query 0 on the key axis.

        Returns:
            float32, broadcasts to `(B, N, queries, keys)`, with a leading axis for several runs.
        """
        raise NotImplementedError

    def at(self, queries):
        """The same rule with the numbers of these queries only."""
        return self

    def map_arrays(self, function: Callable[[Any], Any]) -> "Bias":
        """The same rule with `function` applied to each array that it holds."""
        return self

    def parts(self) -> tuple["Bias", ...]:
        """The biases that it is the sum of."""
        return (self,)

    def check(self, batch, heads, queries, keys) -> None:
        """Raises ValueError if an array in the bias does not fit (B, N, T, S)."""


def _register(cls):
    return keras.saving.register_keras_serializable("kattn.biases")(cls)


@_register
@dataclasses.dataclass(frozen=True)
class Sum(Bias):
    """What `left + right` makes.

    Args:
        left: A bias.
        right: A bias.
    """

    left: Bias
    right: Bias

    @property
    def is_stationary(self):
        return self.left.is_stationary and self.right.is_stationary

    @property
    def holds_scores(self):
        return self.left.holds_scores or self.right.holds_scores

    @property
    def is_by_query(self):
        return self.left.is_by_query or self.right.is_by_query

    def block(self, queries, keys, offset=0):
        return self.left.block(queries, keys, offset) + self.right.block(queries, keys, offset)

    def at(self, queries):
        return Sum(self.left.at(queries), self.right.at(queries))

    def map_arrays(self, function):
        return Sum(self.left.map_arrays(function), self.right.map_arrays(function))

    def parts(self):
        return (*self.left.parts(), *self.right.parts())

    def check(self, batch, heads, queries, keys):
        self.left.check(batch, heads, queries, keys)
        self.right.check(batch, heads, queries, keys)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        return {"left": serialize(self.left), "right": serialize(self.right)}

    @classmethod
    def from_config(cls, config):
        deserialize = keras.saving.deserialize_keras_object
        return cls(deserialize(config["left"]), deserialize(config["right"]))


@_register
@dataclasses.dataclass(frozen=True)
class Dense(Bias):
    """An array of biases.

    Args:
        array: float, `(T, S)` or `(B, N, T, S)`, any of whose axes may be 1. -inf masks.

    Raises:
        ValueError: If `array` is not float or not of rank 2 or 4.
    """

    array: Any

    @property
    def holds_scores(self):
        return True

    def __post_init__(self):
        array = _float(self.array, "bias")
        if len(array.shape) not in (2, 4):
            raise ValueError(
                "`bias` must have rank 2, (T, S), or rank 4, (B, N, T, S); "
                f"received: bias.shape={tuple(array.shape)}"
            )
        array = array if len(array.shape) == 4 else ops.reshape(array, (1, 1, *array.shape))
        object.__setattr__(self, "array", array)

    def block(self, queries, keys, offset=0):
        return ops.cast(cut_block(self.array, queries, keys), "float32")

    def map_arrays(self, function):
        return _bare(Dense, array=function(self.array))

    def padded(self, queries, keys):
        """The same with zeros for this many more queries and keys."""
        return _bare(Dense, array=pad_block(self.array, queries, keys))

    def check(self, batch, heads, queries, keys):
        want, have = (batch, heads, queries, keys), tuple(self.array.shape)
        for size, need in zip(have, want, strict=True):
            if size not in (1, None, need) and need is not None:
                raise ValueError(
                    f"`bias` must broadcast to (B, N, T, S)={want}; received: shape={have}"
                )

    def get_config(self):
        return {"array": self.array}

    @classmethod
    def from_config(cls, config):
        return _bare(cls, **_read(config))


@_register
@dataclasses.dataclass(frozen=True)
class ALiBi(Bias):
    """-slope[n] * |i + (S - T) - j|: the farther, the less.

    Args:
        slopes: One for each head, N numbers >= 0, or a `(N,)` float tensor, which is learned.

    Raises:
        ValueError: If `slopes` has no axis, or more than one.

    Reference:
        Press et al. 2021, sec. 3, https://arxiv.org/abs/2108.12409
    """

    slopes: Any

    @property
    def is_stationary(self):
        return True

    def __post_init__(self):
        if isinstance(self.slopes, tuple | list | np.ndarray):
            object.__setattr__(self, "slopes", tuple(float(x) for x in self.slopes))
        elif len(getattr(self.slopes, "shape", ())) != 1:
            raise ValueError(f"`slopes` must be numbers (N,), one a head; received: {self.slopes}")

    def block(self, queries, keys, offset=0):
        distance = queries.along(-2) + offset - keys.along(-1)
        slopes = ops.convert_to_tensor(self.slopes, "float32") if self._is_fixed else self.slopes
        return -ops.reshape(slopes, (-1, 1, 1)) * ops.cast(ops.abs(distance), "float32")

    @property
    def _is_fixed(self):
        return isinstance(self.slopes, tuple)

    def map_arrays(self, function):
        return self if self._is_fixed else _bare(ALiBi, slopes=function(self.slopes))

    def check(self, batch, heads, queries, keys):
        count = len(self.slopes) if self._is_fixed else self.slopes.shape[0]
        _check_heads("slopes", count, heads)

    def get_config(self):
        return {"slopes": self.slopes}

    @classmethod
    def from_config(cls, config):
        slopes = _read(config)["slopes"]
        return _bare(cls, slopes=tuple(slopes) if isinstance(slopes, list) else slopes)


@dataclasses.dataclass(frozen=True)
class _Looked(Bias):
    """Numbers looked up by the distance of query and key; a subclass says which by `_place`.

    `values` are `(N or 1, R)`, the same for all queries, or `(B, N, T, R)`.
    """

    values: Any

    @property
    def is_stationary(self):
        return True

    def _place(self, distance):
        """Which of the R numbers belongs to a distance (query - key), int32."""
        raise NotImplementedError

    @property
    def is_by_query(self):
        return len(self.values.shape) > 2

    def block(self, queries, keys, offset=0):
        values = ops.cast(self.values, "float32")
        if isinstance(queries, Places) or isinstance(keys, Places):
            return _look_up(values, self._place(queries.along(-2) + offset - keys.along(-1)))
        # A number for each of the q + k - 1 distances in the block, then rows of it, each shifted
        # by one: no index for each score, which takes long to look up and longer to differentiate.
        start = queries.start + offset - keys.start
        start = start[0] if len(getattr(start, "shape", ())) == 1 else start
        count = queries.size + keys.size - 1
        distances = start + queries.size - 1 - ops.arange(count, dtype="int32")
        numbers = ops.take(values, self._place(distances), axis=-1)
        if self.is_by_query:
            return _skew(numbers, queries.size, keys.size)
        return _unroll(numbers, queries.size, keys.size)[None]

    def at(self, queries):
        if not self.is_by_query:
            return self
        return self.map_arrays(lambda values: queries.cut(values, -2))

    def map_arrays(self, function):
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return _bare(type(self), **{**fields, "values": function(self.values)})

    def check(self, batch, heads, queries, keys):
        _check_heads("values", self.values.shape[-3 if self.is_by_query else 0], heads)

    def get_config(self):
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config):
        return _bare(cls, **_read(config))


@_register
@dataclasses.dataclass(frozen=True)
class Clipped(_Looked):
    """A number for each distance from -limit to limit; farther ones count as the farthest.

    Args:
        values: `(N or 1, R)` float, or `(B, N, T, R)`, each query's own (Shaw's, whose number is
            q . w). R = 2 * limit + 1: number r is of a key r - limit steps after the query.
    """

    def _place(self, distance):
        limit = self.values.shape[-1] // 2
        return ops.clip(-distance, -limit, limit) + limit


@_register
@dataclasses.dataclass(frozen=True)
class T5(_Looked):
    """A number for each bucket of distances: near ones apart, far ones by their logarithm.

    Args:
        values: `(N, R)` float, one for each head and each of R buckets.
        max_distance: Span from which on all distances share the last bucket.
        bidirectional: Whether half of the buckets are for keys after the query; else these share
            the bucket of distance 0.

    Reference:
        Raffel et al. 2019, sec. 2.1, https://arxiv.org/abs/1910.10683; the buckets are those of
        the authors' code.
    """

    max_distance: int = 128
    bidirectional: bool = True

    def _place(self, distance):
        buckets = self.values.shape[-1]
        first = 0
        if self.bidirectional:
            buckets //= 2
            first = ops.where(distance < 0, buckets, 0)
            distance = ops.abs(distance)
        else:
            distance = ops.maximum(distance, 0)
        exact = buckets // 2
        ratio = ops.cast(ops.maximum(distance, 1), "float32") / exact
        # The hair keeps a distance that begins a bucket from falling below it by rounding.
        steps = ops.log(ratio) / math.log(self.max_distance / exact) * (buckets - exact) + 1e-5
        far = ops.minimum(exact + ops.cast(steps, "int32"), buckets - 1)
        return first + ops.where(distance < exact, distance, far)


@_register
@dataclasses.dataclass(frozen=True)
class Grid(Bias):
    """A number for each difference of coordinates on a grid whose cells are the steps, row-major.

    Args:
        values: `(N or 1, R)` float, or `(B, N, T, R)`, each query's own. R is the product over
            `axes` of 2 * side - 1: coordinate differences (key - query + side - 1), row-major.
        sides: Of the grid of queries, 1 to 3 integers.
        axes: The axes of the grid on which the number depends.
        stride: A cell of the grid of keys is this many cells of that of the queries wide.

    Reference:
        Liu et al. 2021 (Swin), sec. 3.2, https://arxiv.org/abs/2103.14030; Srinivas et al. 2021
        (BoTNet), sec. 3, https://arxiv.org/abs/2101.11605, whose numbers are each query's own
        and one table for each axis.
    """

    values: Any
    sides: tuple[int, ...]
    axes: tuple[int, ...]
    stride: int = 1

    @property
    def is_by_query(self):
        return len(self.values.shape) > 2

    def block(self, queries, keys, offset=0):
        del offset  # a cell of the map of queries is no step of that of the keys
        rows, columns = queries.along(-2), keys.along(-1)
        row_sides, column_sides = self.sides, tuple(-(-n // self.stride) for n in self.sides)
        index = 0
        for axis in self.axes:
            side = self.sides[axis]
            row = rows // math.prod(row_sides[axis + 1 :]) % side
            column = columns // math.prod(column_sides[axis + 1 :]) % column_sides[axis]
            # Past the last cell, where a block is filled up, any number will do.
            place = ops.clip(column * self.stride - row + side - 1, 0, 2 * side - 2)
            index = index * (2 * side - 1) + place
        return _look_up(ops.cast(self.values, "float32"), ops.cast(index, "int32"))

    def at(self, queries):
        if not self.is_by_query:
            return self
        return self.map_arrays(lambda values: queries.cut(values, -2))

    def map_arrays(self, function):
        fields = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return _bare(Grid, **{**fields, "values": function(self.values)})

    def check(self, batch, heads, queries, keys):
        _check_heads("values", self.values.shape[-3 if self.is_by_query else 0], heads)
        cells = math.prod(self.sides), math.prod(-(-n // self.stride) for n in self.sides)
        for name, have, want in (("T", queries, cells[0]), ("S", keys, cells[1])):
            if isinstance(have, int) and have != want:
                raise ValueError(
                    f"A grid of {self.sides} with stride {self.stride} has {want} steps; "
                    f"received: {name}={have}"
                )

    def get_config(self):
        return {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}

    @classmethod
    def from_config(cls, config):
        fields = _read(config)
        return _bare(
            cls, **{**fields, "sides": tuple(fields["sides"]), "axes": tuple(fields["axes"])}
        )


def _look_up(values, index):
    """`(N, R)` or `(..., B, N, q, R)` at index `(..., B or 1, 1, q, k)`."""
    if len(values.shape) == 2:
        found = ops.take(values, index[..., 0, :, :], axis=1)  # (N, ..., B, q, k)
        return ops.moveaxis(found, 0, -3)
    shape = (*ops.shape(values)[:-1], ops.shape(index)[-1])
    return ops.take_along_axis(values, ops.broadcast_to(index, shape), axis=-1)


def _unroll(numbers, rows, columns):
    """`(N, q + k - 1)` to `(N, q, k)`: entry (i, j) is number (q - 1 - i) + j."""
    length = rows + columns
    numbers = ops.pad(numbers, ((0, 0), (0, 1)))
    numbers = ops.concatenate([numbers[:, rows - 1 :], numbers[:, : rows - 1]], axis=1)
    heads = ops.shape(numbers)[0]
    tiled = ops.broadcast_to(numbers[:, None], (heads, rows, length))
    flat = ops.reshape(tiled, (heads, rows * length))[:, : rows * (length - 1)]
    return ops.reshape(flat, (heads, rows, length - 1))[..., :columns]


def _skew(numbers, rows, columns):
    """`(..., q, q + k - 1)` to `(..., q, k)`: entry (i, j) is number (q - 1 - i) + j of row i."""
    lead, length = ops.shape(numbers)[:-2], rows + columns
    numbers = ops.pad(numbers, [*[(0, 0)] * (len(lead) + 1), (0, 1)])
    flat = ops.reshape(numbers, (*lead, rows * length))
    flat = flat[..., rows - 1 : rows - 1 + rows * (length - 1)]
    return ops.reshape(flat, (*lead, rows, length - 1))[..., :columns]


def _float(array, name):
    if not isinstance(array, keras.KerasTensor):
        array = ops.convert_to_tensor(array)
    dtype = keras.backend.standardize_dtype(array.dtype)
    if "float" not in dtype:
        raise ValueError(
            f"`{name}` must be float (a boolean array is a `mask`); received: dtype={dtype}"
        )
    return array


def _check_heads(name, count, heads):
    if count not in (1, None, heads):
        raise ValueError(
            f"`{name}` of a bias must have a row for each head, N={heads}, or one for all; "
            f"received: {count}"
        )


def _read(config):
    return {name: keras.saving.deserialize_keras_object(x) for name, x in config.items()}


def _bare(cls, **fields):
    """A bias made without its checks: from arrays that passed them, or from placeholders."""
    bias = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(bias, name, value)
    return bias
