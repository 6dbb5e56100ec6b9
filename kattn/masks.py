"""Masks as objects: which key a query may attend to, without a T x S array.

A mask is a rule. It can say what it allows for any block of queries and keys, and how far a
query can reach at all, so that a kernel visits only the blocks that matter. Rules combine:

    Causal() & Window(256)              the last 256 steps
    Padding(keys) & ~Dense(array)       real keys, but for those that `array` names

T query steps, S key steps. Query i stands at position i + (S - T) on the key axis: the last
query and the last key are aligned, so one query against a cache sees the whole cache.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import keras
from keras import ops

UNBOUNDED = math.inf


class Steps(NamedTuple):
    """A run of steps; a vector of starts gives a batch of runs.

    Args:
        start: The first step, an integer or a scalar tensor, or `(n,)` of them.
        size: The number of steps.
    """

    start: Any
    size: Any

    def positions(self):
        """int32, `(size,)`, or `(n, size)` for n starts."""
        index = ops.arange(self.size, dtype="int32")
        if len(getattr(self.start, "shape", ())) == 1:
            return ops.expand_dims(self.start, -1) + index
        return self.start + index


class Mask:
    """The rule by which a query may attend to a key (True = may attend).

    Combine with `&`, `|`, `~`. `mask[q0:q1, k0:k1]` is the block for these queries and keys of
    two sequences of equal length, as a bool tensor that broadcasts to `(B, N, q1-q0, k1-k0)`.
    """

    def __and__(self, other: "Mask") -> "Mask":
        return And(self, _mask(other, "&"))

    def __or__(self, other: "Mask") -> "Mask":
        return Or(self, _mask(other, "|"))

    def __invert__(self) -> "Mask":
        return Not(self)

    def __getitem__(self, block):
        queries, keys = block
        rows, columns = (Steps(part.start or 0, part.stop - (part.start or 0)) for part in block)
        if queries.step not in (None, 1) or keys.step not in (None, 1):
            raise ValueError(f"A block of a mask has no step; received: {queries=}, {keys=}")
        return self.block(rows, columns)

    def block(self, queries: Steps, keys: Steps, offset=0):
        """What is visible of `keys` to `queries`.

        Args:
            queries: The rows of the block.
            keys: Its columns.
            offset: S - T, the position of query 0 on the key axis.

        Returns:
            bool, broadcasts to `(B, N, queries.size, keys.size)`, with a leading axis where
            the starts are vectors.
        """
        raise NotImplementedError

    @property
    def reach(self) -> tuple[float, float]:
        """How many keys (before, after) its own position a query can see at most."""
        return UNBOUNDED, UNBOUNDED

    @property
    def is_band(self) -> bool:
        """Whether everything within `reach` is visible, for all items and heads alike."""
        return False

    @property
    def holds_scores(self) -> bool:
        """Whether the mask holds an array with both a query and a key axis."""
        return False

    def map_arrays(self, function: Callable[[Any], Any]) -> "Mask":
        """The same rule with `function` applied to each array that it holds."""
        return self

    def padded(self, queries, keys) -> "Mask":
        """The same rule for this many more queries and keys, which see and show nothing new."""
        return self

    def check(self, batch, heads, queries, keys) -> None:
        """Raises ValueError if an array in the mask does not broadcast to (B, N, T, S)."""


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Causal(Mask):
    """Query i sees key j iff j <= i + (S - T).

    Example:
        >>> Causal()[0:3, 0:3]
        [[[[True, False, False], [True, True, False], [True, True, True]]]]
    """

    def block(self, queries: Steps, keys: Steps, offset=0):
        return _distance(queries, keys, offset) >= 0

    @property
    def reach(self):
        return UNBOUNDED, 0

    @property
    def is_band(self):
        return True

    def get_config(self):
        return {}

    @classmethod
    def from_config(cls, config):
        return cls()


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Window(Mask):
    """Query i sees key j iff |i + (S - T) - j| < size; `Causal() & Window(size)` sees `size` keys.

    Args:
        size: Steps, >= 1; a query's own step counts, so `Window(1)` is the diagonal.

    Raises:
        ValueError: If `size` is not a positive integer.

    Reference:
        Beltagy et al. 2020 (Longformer), sec. 3.1, https://arxiv.org/abs/2004.05150; their w is
        both sides together, w = 2 * size - 1.
    """

    size: int

    def __post_init__(self):
        if not isinstance(self.size, int) or isinstance(self.size, bool) or self.size < 1:
            raise ValueError(f"`size` of a window must be an integer >= 1; received: {self.size!r}")

    def block(self, queries: Steps, keys: Steps, offset=0):
        return ops.abs(_distance(queries, keys, offset)) < self.size

    @property
    def reach(self):
        return self.size - 1, self.size - 1

    @property
    def is_band(self):
        return True

    def get_config(self):
        return {"size": self.size}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Padding(Mask):
    """Key j of item b is visible iff `keys[b, j]`.

    Args:
        keys: `(B, S)` bool, True = real step, False = padding.

    Raises:
        ValueError: If `keys` is not boolean or not of rank 2.
    """

    keys: Any

    def __post_init__(self):
        object.__setattr__(self, "keys", _boolean(self.keys, "keys", ranks=(2,)))

    def block(self, queries: Steps, keys: Steps, offset=0):
        index = keys.positions()
        if len(index.shape) == 2:  # a batch of runs, some of which start before key 0
            index = ops.clip(index, 0, ops.shape(self.keys)[1] - 1)
            visible = ops.moveaxis(ops.take(self.keys, index, axis=1), 1, 0)  # (n, B, size)
            return visible[:, :, None, None, :]
        return _cut(self.keys, 1, keys)[:, None, None, :]

    def map_arrays(self, function):
        return _bare(Padding, keys=function(self.keys))

    def padded(self, queries, keys):
        return _bare(Padding, keys=ops.pad(self.keys, ((0, 0), (0, keys))))

    def check(self, batch, heads, queries, keys):
        _check_broadcast(self.keys.shape, (batch, keys), "keys", "(B, S)")

    def get_config(self):
        return {"keys": self.keys}

    @classmethod
    def from_config(cls, config):
        return _bare(cls, **config)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Dense(Mask):
    """Query i of item b sees key j in head n iff `array[b, n, i, j]`.

    Args:
        array: bool, `(T, S)` or `(B, N, T, S)`, where B, N, T and S may be 1; True = visible.

    Raises:
        ValueError: If `array` is not boolean or not of rank 2 or 4.
    """

    array: Any

    def __post_init__(self):
        object.__setattr__(self, "array", _boolean(self.array, "array", ranks=(2, 4)))

    def block(self, queries: Steps, keys: Steps, offset=0):
        array = self.array if len(self.array.shape) == 4 else self.array[None, None]
        return cut_block(array, queries, keys)

    @property
    def holds_scores(self):
        return True

    def map_arrays(self, function):
        return _bare(Dense, array=function(self.array))

    def padded(self, queries, keys):
        return _bare(Dense, array=pad_block(self.array, queries, keys))

    def check(self, batch, heads, queries, keys):
        want = (batch, heads, queries, keys)
        _check_broadcast(self.array.shape, want[-len(self.array.shape) :], "mask", "(B, N, T, S)")

    def get_config(self):
        return {"array": self.array}

    @classmethod
    def from_config(cls, config):
        return _bare(cls, **config)


@dataclasses.dataclass(frozen=True)
class _Pair(Mask):
    left: Mask
    right: Mask

    @property
    def holds_scores(self):
        return self.left.holds_scores or self.right.holds_scores

    def map_arrays(self, function):
        return type(self)(self.left.map_arrays(function), self.right.map_arrays(function))

    def padded(self, queries, keys):
        return type(self)(self.left.padded(queries, keys), self.right.padded(queries, keys))

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


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class And(_Pair):
    """Visible iff visible in both: what `left & right` makes.

    Args:
        left: A mask.
        right: A mask.
    """

    def block(self, queries: Steps, keys: Steps, offset=0):
        left = self.left.block(queries, keys, offset)
        return ops.logical_and(left, self.right.block(queries, keys, offset))

    @property
    def reach(self):
        return tuple(min(pair) for pair in zip(self.left.reach, self.right.reach, strict=True))

    @property
    def is_band(self):
        return self.left.is_band and self.right.is_band


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Or(_Pair):
    """Visible iff visible in either: what `left | right` makes.

    Args:
        left: A mask.
        right: A mask.
    """

    def block(self, queries: Steps, keys: Steps, offset=0):
        left = self.left.block(queries, keys, offset)
        return ops.logical_or(left, self.right.block(queries, keys, offset))

    @property
    def reach(self):
        return tuple(max(pair) for pair in zip(self.left.reach, self.right.reach, strict=True))


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Not(Mask):
    """Visible iff not visible in `mask`: what `~mask` makes.

    Args:
        mask: A mask.
    """

    mask: Mask

    def block(self, queries: Steps, keys: Steps, offset=0):
        return ops.logical_not(self.mask.block(queries, keys, offset))

    @property
    def holds_scores(self):
        return self.mask.holds_scores

    def map_arrays(self, function):
        return Not(self.mask.map_arrays(function))

    def padded(self, queries, keys):
        return Not(self.mask.padded(queries, keys))

    def check(self, batch, heads, queries, keys):
        self.mask.check(batch, heads, queries, keys)

    def get_config(self):
        return {"mask": keras.saving.serialize_keras_object(self.mask)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["mask"]))


def cut_block(array, queries: Steps, keys: Steps):
    """The block of an array with an axis of queries and an axis of keys.

    Args:
        array: `(..., T or 1, S or 1)`; an axis of length 1 stays as it is.
        queries: The rows of the block.
        keys: Its columns.

    Returns:
        `(..., queries.size or 1, keys.size or 1)`.

    Example:
        >>> cut_block(keras.ops.ones((2, 1, 9)), Steps(0, 4), Steps(3, 5)).shape
        (2, 1, 5)
    """
    for axis, steps in ((-2, queries), (-1, keys)):
        if array.shape[axis] != 1:
            array = _cut(array, axis, steps)
    return array


def pad_block(array, queries, keys):
    """An array with zeros (False) behind its axes of queries and of keys.

    Args:
        array: `(..., T or 1, S or 1)`; an axis of length 1 stays as it is.
        queries: How many more rows.
        keys: How many more columns.

    Returns:
        `(..., T + queries or 1, S + keys or 1)`.

    Example:
        >>> pad_block(keras.ops.ones((2, 1, 9)), 3, 3).shape
        (2, 1, 12)
    """
    ends = [(0, 0)] * (len(array.shape) - 2)
    for axis, more in ((-2, queries), (-1, keys)):
        ends.append((0, 0) if array.shape[axis] == 1 else (0, more))
    return ops.pad(array, ends)


def _cut(array, axis, steps: Steps):
    axis %= len(array.shape)
    starts, sizes = [0] * len(array.shape), list(ops.shape(array))
    starts[axis], sizes[axis] = steps
    return ops.slice(array, starts, sizes)


def _distance(queries: Steps, keys: Steps, offset):
    """Positions of queries minus positions of keys, `(..., 1, 1, q, k)`."""
    rows, columns = queries.positions() + offset, keys.positions()
    return rows[..., None, None, :, None] - columns[..., None, None, None, :]


def _mask(value, operator):
    if not isinstance(value, Mask):
        raise ValueError(
            f"Both sides of `{operator}` must be masks (wrap an array in Dense or Padding); "
            f"received: {type(value).__name__}"
        )
    return value


def _boolean(array, name, ranks):
    if not isinstance(array, keras.KerasTensor):
        array = ops.convert_to_tensor(array)
    if keras.backend.standardize_dtype(array.dtype) != "bool":
        raise ValueError(
            f"`{name}` of a mask must be boolean (True = may attend); "
            f"received: dtype={keras.backend.standardize_dtype(array.dtype)}"
        )
    if len(array.shape) not in ranks:
        raise ValueError(
            f"`{name}` of a mask must have rank {' or '.join(map(str, ranks))}; "
            f"received: shape={tuple(array.shape)}"
        )
    return array


def _bare(cls, **fields):
    """A mask made without its checks: from arrays that passed them, or from placeholders."""
    mask = object.__new__(cls)
    for name, value in fields.items():
        object.__setattr__(mask, name, value)
    return mask


def _check_broadcast(shape, want, name, axes):
    for have, need in zip(shape, want, strict=True):
        if have not in (1, None, need) and isinstance(have, int) and isinstance(need, int):
            raise ValueError(
                f"`{name}` of a mask must broadcast to {axes}={tuple(want)}; "
                f"received: shape={tuple(shape)}"
            )
