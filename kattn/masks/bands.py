"""Masks that depend on the distance of query and key only."""

from keras import ops

from kattn.arguments import check_integers
from kattn.block_rule import registered_rule
from kattn.masks.mask import UNBOUNDED, Mask, summarized


@registered_rule("kattn")
class Causal(Mask):
    """Query i sees key j if j <= i + (S - T): no query sees what comes after it.

    T queries and S keys are aligned at their ends, so that the last query sees all keys.

    Example:
        >>> kattn.masks.Causal()[0:3, 0:3]
        [[[[True, False, False], [True, True, False], [True, True, True]]]]
    """

    def block(self, queries, keys, offset=0):
        return _distance(queries, keys, offset) >= 0

    @property
    def reach(self):
        return UNBOUNDED, 0

    @property
    def is_band(self):
        return True

    def coverage(self, rows, columns):
        nearest, farthest = _distances(rows, columns)
        return summarized(nothing=farthest < 0, everything=nearest >= 0)


@registered_rule("kattn")
class Window(Mask):
    """Query i sees key j if |i + (S - T) - j| < size: the keys near its own position.

    `Causal() & Window(size)` is the window of a causal model: it sees `size` keys.

    Args:
        size: Number of keys that a query sees on one side, its own position included, an integer
            >= 1. `Window(1)` is the diagonal.

    Raises:
        ValueError: If `size` is not an integer >= 1.

    Example:
        >>> kattn.masks.Window(2)[0:3, 0:3]
        [[[[True, True, False], [True, True, True], [False, True, True]]]]

    Reference:
        Beltagy et al. 2020 (Longformer), sec. 3.1, https://arxiv.org/abs/2004.05150; their w
        counts both sides together, w = 2 * size - 1.
    """

    size: int

    def __post_init__(self):
        check_integers(1, size=self.size)

    def block(self, queries, keys, offset=0):
        return ops.abs(_distance(queries, keys, offset)) < self.size

    @property
    def reach(self):
        return self.size - 1, self.size - 1

    @property
    def is_band(self):
        return True

    def coverage(self, rows, columns):
        nearest, farthest = _distances(rows, columns)
        return summarized(
            nothing=nearest >= self.size or farthest <= -self.size,
            everything=nearest > -self.size and farthest < self.size,
        )


@registered_rule("kattn")
class Dilated(Mask):
    """Query i sees every `step`-th key near its own position, in both directions.

    Key j is visible if i + (S - T) - j is a multiple of `step` and at most (window - 1) * step
    away. `Causal() & Dilated(window, step)` sees `window` keys, the query's own included.

    Args:
        window: Number of keys that a query sees on one side, its own position included, an
            integer >= 1.
        step: Distance in steps from one visible key to the next, an integer >= 1.
            `Dilated(window, 1)` is `Window(window)`.

    Raises:
        ValueError: If `window` or `step` is not an integer >= 1.

    Example:
        >>> kattn.masks.Dilated(2, step=2)[0:3, 0:3]
        [[[[True, False, True], [False, True, False], [True, False, True]]]]

    Reference:
        Beltagy et al. 2020 (Longformer), sec. 3.1, https://arxiv.org/abs/2004.05150
    """

    window: int
    step: int

    def __post_init__(self):
        check_integers(1, window=self.window, step=self.step)

    def block(self, queries, keys, offset=0):
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
        first_seen = -(-max(nearest, -far) // self.step) * self.step
        is_near = nearest >= -far and farthest <= far
        return summarized(
            nothing=first_seen > min(farthest, far),
            everything=is_near and (self.step == 1 or nearest == farthest),
        )


def _distance(queries, keys, offset):
    """Positions of queries minus positions of keys, `(..., 1, 1, q, k)`."""
    return queries.along(-2) + offset - keys.along(-1)


def _distances(rows, columns):
    """The smallest and the largest distance of a query from a key, for blocks [first, last]."""
    return rows[0] - columns[1], rows[1] - columns[0]
