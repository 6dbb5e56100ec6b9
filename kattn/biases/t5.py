"""Numbers for buckets of distances (T5; Raffel et al., 2019)."""

import math

from keras import ops

from kattn.biases.tables import DistanceTable
from kattn.block_rule import registered_rule


@registered_rule("kattn.biases")
class T5(DistanceTable):
    """A number for each bucket of distances: near distances have one each, far ones share.

    Half of the buckets (of each direction) hold one distance each; the others grow with the
    logarithm of the distance up to `max_distance`.

    Args:
        values: Float, `(N or 1, R)`, one number for each head and each of R buckets; or
            `(B, N, T, R)`, numbers of each query's own.
        max_distance: Distance in steps from which on all keys share the last bucket.
        bidirectional: If True, half of the buckets are for keys after the query. If False, all
            keys after the query share the bucket of distance 0.

    Example:
        >>> values = np.arange(8, dtype="float32")[None]
        >>> kattn.biases.T5(values, max_distance=4)[0:3, 0:3]
        [[[[0.0, 5.0, 6.0], [1.0, 0.0, 5.0], [2.0, 1.0, 0.0]]]]

    Reference:
        Raffel et al. 2019, sec. 2.1, https://arxiv.org/abs/1910.10683; the buckets are those of
        the authors' code.
    """

    max_distance: int = 128
    bidirectional: bool = True

    def place(self, distance):
        buckets = self.values.shape[-1]
        first = 0
        if self.bidirectional:
            buckets //= 2
            first = buckets * ops.cast(distance < 0, "int32")
            distance = ops.abs(distance)
        else:
            distance = ops.maximum(distance, ops.zeros_like(distance))
        exact = buckets // 2
        ratio = ops.cast(ops.maximum(distance, 1), "float32") / exact
        # The hair keeps a distance that begins a bucket from falling below it by rounding.
        steps = ops.log(ratio) / math.log(self.max_distance / exact) * (buckets - exact) + 1e-5
        far = ops.cast(ops.minimum(exact + steps, buckets - 1.0), "int32")
        return first + ops.where(distance < exact, distance, far)
