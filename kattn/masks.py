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
from typing import Any

import keras
from keras import ops

from kattn.spans import Span, cut_block, pad_block

UNBOUNDED = math.inf
# What a rule says of a block of the scores, whatever the arrays in it hold: see `Mask.coverage`.
NONE, SOME, ALL = 0, 1, 2


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
        rows, columns = (Span(part.start or 0, part.stop - (part.start or 0)) for part in block)
        if queries.step not in (None, 1) or keys.step not in (None, 1):
            raise ValueError(f"A block of a mask has no step; received: {queries=}, {keys=}")
        return self.block(rows, columns)

    def block(self, queries: Span, keys: Span, offset=0):
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

    def coverage(self, rows, columns):
        """What the rule alone says of a block of the scores.

        Args:
            rows: The first and the last position of the queries on the key axis, two integers.
            columns: The same of the keys.

        Returns:
            `NONE` if no query sees a key, `ALL` if each sees all of them, `SOME` if it depends
            on the query, the key or what an array holds.
        """
        return SOME

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

    def block(self, queries: Span, keys: Span, offset=0):
        return _distance(queries, keys, offset) >= 0

    @property
    def reach(self):
        return UNBOUNDED, 0

    @property
    def is_band(self):
        return True

    def coverage(self, rows, columns):
        nearest, farthest = _distances(rows, columns)
        return _coverage(farthest < 0, nearest >= 0)

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
        size: Span, >= 1; a query's own step counts, so `Window(1)` is the diagonal.

    Raises:
        ValueError: If `size` is not a positive integer.

    Reference:
        Beltagy et al. 2020 (Longformer), sec. 3.1, https://arxiv.org/abs/2004.05150; their w is
        both sides together, w = 2 * size - 1.
    """

    size: int

    def __post_init__(self):
        _check_count("size", self.size)

    def block(self, queries: Span, keys: Span, offset=0):
        return ops.abs(_distance(queries, keys, offset)) < self.size

    @property
    def reach(self):
        return self.size - 1, self.size - 1

    @property
    def is_band(self):
        return True

    def coverage(self, rows, columns):
        nearest, farthest = _distances(rows, columns)
        outside = nearest >= self.size or farthest <= -self.size
        return _coverage(outside, nearest > -self.size and farthest < self.size)

    def get_config(self):
        return {"size": self.size}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Dilated(Mask):
    """Query i sees every `step`-th key: j iff i + (S - T) - j is a multiple of `step`, and near.

    `Causal() & Dilated(window, step)` sees `window` keys, a query's own included.

    Args:
        window: Keys on one side, >= 1, the query's own counted: the farthest is
            (window - 1) * step away.
        step: Distance between two of them, >= 1; 1 is `Window(window)`.

    Raises:
        ValueError: If `window` or `step` is not a positive integer.

    Reference:
        Beltagy et al. 2020 (Longformer), sec. 3.1, https://arxiv.org/abs/2004.05150
    """

    window: int
    step: int

    def __post_init__(self):
        _check_count("window", self.window)
        _check_count("step", self.step)

    def block(self, queries: Span, keys: Span, offset=0):
        distance = _distance(queries, keys, offset)
        near = ops.abs(distance) < self.window * self.step
        return ops.logical_and(near, distance % self.step == 0)

    @property
    def reach(self):
        return (self.window - 1) * self.step, (self.window - 1) * self.step

    @property
    def is_band(self):
        return self.step == 1

    def coverage(self, rows, columns):
        nearest, farthest = _distances(rows, columns)
        far = self.reach[0]
        first = -(-max(nearest, -far) // self.step) * self.step  # the first that is seen
        outside = first > min(farthest, far)
        inside = nearest >= -far and farthest <= far
        return _coverage(outside, inside and (self.step == 1 or nearest == farthest))

    def get_config(self):
        return {"window": self.window, "step": self.step}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Prefix(Mask):
    """Key j of item b is visible iff j < length[b].

    `Causal() | Prefix(n)` is the mask of a prefix language model. `Causal() & (Window(w) | Prefix(4))`
    keeps the first four keys in sight of every query, as attention sinks.

    Args:
        length: Span, an integer >= 1, or `(B,)` int32, one for each item.

    Raises:
        ValueError: If `length` is neither.

    Reference:
        Raffel et al. 2019 (T5), sec. 3.2.1, https://arxiv.org/abs/1910.10683
        Sinks: Xiao et al. 2023 (StreamingLLM), sec. 3.2, https://arxiv.org/abs/2309.17453
    """

    length: Any

    def __post_init__(self):
        if isinstance(self.length, int):
            _check_count("length", self.length)
        else:
            object.__setattr__(self, "length", _integers(self.length, "length", rank=1))

    def block(self, queries: Span, keys: Span, offset=0):
        length = self.length
        return keys.along(-1) < (length if self.is_static else length[:, None, None, None])

    @property
    def is_static(self):
        """Whether the length is one number for all items."""
        return isinstance(self.length, int)

    def coverage(self, rows, columns):
        if not self.is_static:
            return SOME
        return _coverage(columns[0] >= self.length, columns[1] < self.length)

    def map_arrays(self, function):
        return self if self.is_static else _bare(Prefix, length=function(self.length))

    def check(self, batch, heads, queries, keys):
        if not self.is_static:
            _check_broadcast(self.length.shape, (batch,), "length", "(B,)")

    def get_config(self):
        return {"length": self.length}

    @classmethod
    def from_config(cls, config):
        return _bare(cls, **_read(config))


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Global(Mask):
    """Query i sees key j iff one of them is a global token: these see all, and all see them.

    `Window(256) | Global([0])` is the Longformer's pattern.

    Args:
        tokens: Positions on the key axis, integers >= 0.

    Raises:
        ValueError: If `tokens` is empty, or one of them is not an integer >= 0.

    Reference:
        Beltagy et al. 2020 (Longformer), sec. 3.1, https://arxiv.org/abs/2004.05150
    """

    tokens: tuple[int, ...]

    def __post_init__(self):
        tokens = tuple(self.tokens)
        if not tokens or not all(isinstance(t, int) and t >= 0 for t in tokens):
            raise ValueError(
                "`tokens` of a global mask must be one or more integers >= 0; "
                f"received: tokens={self.tokens!r}"
            )
        object.__setattr__(self, "tokens", tuple(sorted(set(tokens))))

    def block(self, queries: Span, keys: Span, offset=0):
        rows, columns = queries.along(-2) + offset, keys.along(-1)
        return ops.logical_or(self._among(rows), self._among(columns))

    def _among(self, index):
        found = index == self.tokens[0]
        for token in self.tokens[1:]:
            found = ops.logical_or(found, index == token)
        return found

    def coverage(self, rows, columns):
        held = [
            (sum(first <= token <= last for token in self.tokens), last - first + 1)
            for first, last in (rows, columns)
        ]
        nothing = all(count == 0 for count, _ in held)
        return _coverage(nothing, any(count == size for count, size in held))

    def get_config(self):
        return {"tokens": self.tokens}

    @classmethod
    def from_config(cls, config):
        return cls(**config)


@keras.saving.register_keras_serializable("kattn")
@dataclasses.dataclass(frozen=True)
class Segments(Mask):
    """Query i of item b sees key j iff both are of one segment: several sequences in one item.

    Attention over packed sequences is then that over each apart. `positions()` restart with each
    segment; attention layers give them to their `position=`.

    Args:
        ids: `(B, S)` int32, one number for each segment; negative for padding, which sees and
            shows nothing.

    Raises:
        ValueError: If `ids` are not integers of rank 2.

    Reference:
        Krell et al. 2021, https://arxiv.org/abs/2107.02027
    """

    ids: Any

    def __post_init__(self):
        object.__setattr__(self, "ids", _integers(self.ids, "ids", rank=2))

    def block(self, queries: Span, keys: Span, offset=0):
        rows = queries.shift(offset).cut(self.ids, -1)[..., None, :, None]
        columns = keys.cut(self.ids, -1)[..., None, None, :]
        return ops.logical_and(rows == columns, columns >= 0)

    def positions(self):
        """`(B, S)` int32: how many steps of its segment precede each step, in runs of equal ids."""
        index = ops.broadcast_to(ops.arange(ops.shape(self.ids)[1]), ops.shape(self.ids))
        before = ops.pad(self.ids[:, :-1], ((0, 0), (1, 0)), constant_values=-2)
        first = ops.where(self.ids == before, 0, index)
        return ops.cast(index - ops.associative_scan(ops.maximum, first, axis=1), "int32")

    def map_arrays(self, function):
        return _bare(Segments, ids=function(self.ids))

    def padded(self, queries, keys):
        # As many ids as there are queries or keys; what the filling says is never looked at.
        more = (
            max(queries, keys)
            if isinstance(queries, int) and isinstance(keys, int)
            else (ops.maximum(queries, keys))
        )
        return _bare(Segments, ids=ops.pad(self.ids, ((0, 0), (0, more)), constant_values=-1))

    def check(self, batch, heads, queries, keys):
        _check_broadcast(self.ids.shape, (batch, keys), "ids", "(B, S)")
        if isinstance(queries, int) and isinstance(keys, int) and queries > keys:
            raise ValueError(
                "Segments are of the keys, and the queries the last of them: there must be as many "
                f"keys as queries; received: T={queries}, S={keys}"
            )

    def get_config(self):
        return {"ids": self.ids}

    @classmethod
    def from_config(cls, config):
        return _bare(cls, **_read(config))


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

    def block(self, queries: Span, keys: Span, offset=0):
        return keys.cut(self.keys, -1)[..., None, None, :]

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
        return _bare(cls, **_read(config))


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

    def block(self, queries: Span, keys: Span, offset=0):
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
        return _bare(cls, **_read(config))


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

    def block(self, queries: Span, keys: Span, offset=0):
        left = self.left.block(queries, keys, offset)
        return ops.logical_and(left, self.right.block(queries, keys, offset))

    def coverage(self, rows, columns):
        return min(self.left.coverage(rows, columns), self.right.coverage(rows, columns))

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

    def block(self, queries: Span, keys: Span, offset=0):
        left = self.left.block(queries, keys, offset)
        return ops.logical_or(left, self.right.block(queries, keys, offset))

    def coverage(self, rows, columns):
        return max(self.left.coverage(rows, columns), self.right.coverage(rows, columns))

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

    def block(self, queries: Span, keys: Span, offset=0):
        return ops.logical_not(self.mask.block(queries, keys, offset))

    def coverage(self, rows, columns):
        return ALL - self.mask.coverage(rows, columns)

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


def _distance(queries: Span, keys: Span, offset):
    """Positions of queries minus positions of keys, `(..., 1, 1, q, k)`."""
    return queries.along(-2) + offset - keys.along(-1)


def _distances(rows, columns):
    """The smallest and the largest distance of a query from a key, for blocks [first, last]."""
    return rows[0] - columns[1], rows[1] - columns[0]


def _coverage(nothing, everything):
    return NONE if nothing else ALL if everything else SOME


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


def _integers(array, name, rank):
    if not isinstance(array, keras.KerasTensor):
        array = ops.convert_to_tensor(array)
    dtype = keras.backend.standardize_dtype(array.dtype)
    if "int" not in dtype or len(array.shape) != rank:
        raise ValueError(
            f"`{name}` of a mask must be integers of rank {rank}; "
            f"received: shape={tuple(array.shape)}, dtype={dtype}"
        )
    return ops.cast(array, "int32")


def _check_count(name, value):
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ValueError(f"`{name}` of a mask must be an integer >= 1; received: {name}={value!r}")


def _read(config):
    return {name: keras.saving.deserialize_keras_object(x) for name, x in config.items()}


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
