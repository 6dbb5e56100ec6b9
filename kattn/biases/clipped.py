"""A number for each distance up to a limit (Shaw et al., 2018)."""

from keras import ops

from kattn.biases.grid_table import GridTable
from kattn.biases.tables import DistanceTable
from kattn.block_rule import registered_rule


@registered_rule("kattn.biases")
class Clipped(DistanceTable):
    """A number for each distance from -limit to limit; farther keys count as the farthest.

    Args:
        values: Float, `(N or 1, R)`, the same numbers for all queries; or `(B, N, T, R)`, numbers
            of each query's own. R = 2 * limit + 1, and number r is that of a key which is
            r - limit steps after the query. (In Shaw's relative positions, number r of a query is
            its product with the r-th learned vector.)

    Example:
        >>> values = np.array([[1.0, 2.0, 3.0]], "float32")  # one step before, same step, after
        >>> kattn.biases.Clipped(values)[0:3, 0:3]
        [[[[2.0, 3.0, 3.0], [1.0, 2.0, 3.0], [1.0, 1.0, 2.0]]]]

    Reference:
        Shaw et al. 2018, eq. 4, https://arxiv.org/abs/1803.02155
    """

    def in_windows(self, grid, dilation):
        return GridTable(self.values, grid.sides, (0,), 1, (self._limit + 1,), tuple(dilation))

    @property
    def _limit(self):
        return self.values.shape[-1] // 2

    def place(self, distance):
        limit = self._limit
        return ops.clip(-distance, -limit, limit) + limit
