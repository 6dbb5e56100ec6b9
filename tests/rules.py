"""Masks and biases beside what they mean, one query and one key at a time.

Positions: b item, n head, i number of the query, p = i + S - T its position on the key axis, j key.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np

from kattn import biases, masks
from tests import oracle


@dataclasses.dataclass(frozen=True)
class Rule:
    """A mask, and whether a query sees a key: `sees(b, n, i, p, j)`."""

    mask: Any
    sees: Callable = dataclasses.field(repr=False)

    def table(self, batch, heads, queries, keys):
        """`(B, N, T, S)` bool."""
        shape = (batch, heads, queries, keys)
        found = [self.sees(b, n, i, i + keys - queries, j) for b, n, i, j in np.ndindex(shape)]
        return np.array(found, bool).reshape(shape)


def everything():
    return Rule(None, lambda b, n, i, p, j: True)


def causal():
    return Rule(masks.Causal(), lambda b, n, i, p, j: j <= p)


def window(size):
    return Rule(masks.Window(size), lambda b, n, i, p, j: abs(p - j) < size)


def dilated(size, step):
    seen = {step * k for k in range(size)}
    return Rule(masks.Dilated(size, step), lambda b, n, i, p, j: abs(p - j) in seen)


def prefix(length):
    if isinstance(length, int):
        return Rule(masks.Prefix(length), lambda b, n, i, p, j: j < length)
    return Rule(masks.Prefix(length), lambda b, n, i, p, j: j < length[b])


def global_tokens(tokens):
    return Rule(masks.Global(tokens), lambda b, n, i, p, j: p in tokens or j in tokens)


def segments(ids):
    return Rule(masks.Segments(ids), lambda b, n, i, p, j: ids[b, p] == ids[b, j] >= 0)


def padding(keys):
    return Rule(masks.Padding(keys), lambda b, n, i, p, j: keys[b, j])


def dense(array):
    return Rule(masks.Dense(array), lambda *at: _at(array, *at))


def both(left, right):
    return Rule(left.mask & right.mask, lambda *at: left.sees(*at) and right.sees(*at))


def either(left, right):
    return Rule(left.mask | right.mask, lambda *at: left.sees(*at) or right.sees(*at))


def opposite(rule):
    return Rule(~rule.mask, lambda *at: not rule.sees(*at))


@dataclasses.dataclass(frozen=True)
class Score:
    """A bias made of arrays, and what it adds to a score: `adds(arrays, b, n, i, p, j)`."""

    make: Callable
    arrays: tuple
    adds: Callable = dataclasses.field(repr=False)

    @property
    def bias(self):
        return self.make(*self.arrays)

    def table(self, batch, heads, queries, keys, arrays=None):
        """`(B, N, T, S)` float64, of other arrays than its own where these are given."""
        shape, arrays = (batch, heads, queries, keys), self.arrays if arrays is None else arrays
        found = [
            self.adds(arrays, b, n, i, i + keys - queries, j) for b, n, i, j in np.ndindex(shape)
        ]
        return np.array(found, np.float64).reshape(shape)


def alibi(slopes):
    return Score(
        biases.ALiBi, (slopes,), lambda arrays, b, n, i, p, j: -_head(arrays[0], n) * abs(p - j)
    )


def fixed_alibi(slopes):
    bias = biases.ALiBi(tuple(float(x) for x in slopes))
    return Score(lambda: bias, (), lambda arrays, b, n, i, p, j: -_head(slopes, n) * abs(p - j))


def clipped(values):
    limit = values.shape[-1] // 2

    def adds(arrays, b, n, i, p, j):
        return _row(arrays[0], b, n, i)[min(max(j - p, -limit), limit) + limit]

    return Score(biases.Clipped, (values,), adds)


def t5(values, max_distance, *, bidirectional):
    def adds(arrays, b, n, i, p, j):
        count = arrays[0].shape[1]
        return arrays[0][n, oracle.t5_bucket(j - p, count, max_distance, bidirectional)]

    make = functools.partial(biases.T5, max_distance=max_distance, bidirectional=bidirectional)
    return Score(make, (values,), adds)


def grid(values, sides, axes):
    """For as many queries as keys, cells of a grid of `sides`."""

    def adds(arrays, b, n, i, p, j):
        query, key = np.unravel_index(i, sides), np.unravel_index(j, sides)
        place = [key[a] - query[a] + sides[a] - 1 for a in axes]
        ranges = [2 * sides[a] - 1 for a in axes]
        return _row(arrays[0], b, n, i)[np.ravel_multi_index(place, ranges)]

    return Score(functools.partial(biases.GridTable, sides=sides, axes=axes), (values,), adds)


def array(values):
    return Score(biases.Dense, (values,), lambda arrays, *at: _at(arrays[0], *at))


def total(*scores):
    """The sum of biases."""
    ends = np.cumsum([0, *(len(score.arrays) for score in scores)])

    def pieces(arrays):
        return [arrays[a:b] for a, b in itertools.pairwise(ends)]

    def make(*arrays):
        made = [s.make(*its) for s, its in zip(scores, pieces(arrays), strict=True)]
        return functools.reduce(lambda left, right: left + right, made)

    def adds(arrays, *at):
        return sum(s.adds(its, *at) for s, its in zip(scores, pieces(arrays), strict=True))

    return Score(make, sum((score.arrays for score in scores), ()), adds)


def _at(array, b, n, i, p, j):
    """The entry of `(T, S)` or `(B, N, T, S)`, any of whose axes may be 1."""
    places = (b, n, i, j)[4 - array.ndim :]
    return array[
        tuple(0 if size == 1 else at for size, at in zip(array.shape, places, strict=True))
    ]


def _head(array, n):
    return array[0 if len(array) == 1 else n]


def _row(values, b, n, i):
    """The numbers of a query: `(N or 1, R)` or `(B, N, T, R)`."""
    return _head(values, n) if values.ndim == 2 else values[b, n, i]
