"""A learned number for each bucket of distances (T5; Raffel et al., 2019)."""

import keras

from kattn import biases
from kattn.layers.position.position import Position
from kattn.layers.position.tables import (
    add_table,
    check_count,
    check_same,
    read_initializer,
    read_table,
)
from kattn.ops.scores import add_bias, check_scores


@keras.saving.register_keras_serializable("kattn")
class T5RelativeBias(Position):
    """Score + table[n, bucket(j - i)]: near distances have buckets of their own, far ones share.

    T5 gives all layers of a stack one table; so may you: pass one instance to all of them.

    Shapes: B batch, N heads, T query steps, S key steps, R = `num_buckets`.

    Args:
        num_buckets: R. Half of a side's buckets are for one distance each, the other half for
            ranges that grow with their logarithm up to `max_distance`.
        max_distance: Span from which on all distances share the last bucket; more than there
            are buckets for one distance.
        bidirectional: If True, half of the buckets, an even number of at least 4, are for keys
            after the query; if False, as in a decoder, these share the bucket of distance 0.
        initializer: Of the table; None for a truncated normal of deviation 0.02.
        regularizer: Of the table.
        **kwargs: `name`, `dtype`, `trainable`, as for any Keras layer.

    Call args:
        scores: `(B, N, T, S)` float, already scaled. Query i stands at key i + (S - T).

    Returns:
        `(B, N, T, S)`, the scores with their bias, which is kept and added in float32.

    Raises:
        ValueError: For arguments out of range; when called, if `scores` has another rank or
            unknown heads; if a bias is asked for before there are weights, or heads are other
            than theirs.

    Example:
        >>> position = kattn.layers.T5RelativeBias(16, 64, bidirectional=False)
        >>> position(keras.random.normal((2, 8, 128, 128))).shape
        (2, 8, 128, 128)

    Reference:
        Raffel et al. 2019, sec. 2.1, https://arxiv.org/abs/1910.10683; the buckets are those of
        the authors' code. T5 does not scale its scores by 1 / sqrt(D), and kattn does.
    """

    def __init__(
        self,
        num_buckets=32,
        max_distance=128,
        *,
        bidirectional=True,
        initializer=None,
        regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        _check_buckets(num_buckets, max_distance, bidirectional)
        self.supports_masking = True
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.initializer = read_initializer(initializer)
        self.regularizer = keras.regularizers.get(regularizer)
        self.table = None

    def build(self, scores_shape):
        self.attach(num_heads=check_scores(scores_shape))

    def attach(self, *, width=None, num_heads, key_dim=None):
        if self.table is not None:
            check_same("num_heads", num_heads, self.table.shape[0])
            return
        self.table = add_table(self, "table", (num_heads, self.num_buckets), self.initializer)
        self.built = True

    def call(self, scores):
        return add_bias(scores, self._rule())

    def bias(self, query):
        return self._rule()

    def compute_output_shape(self, scores_shape):
        return scores_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_buckets": self.num_buckets,
            "max_distance": self.max_distance,
            "bidirectional": self.bidirectional,
            "initializer": keras.initializers.serialize(self.initializer),
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }

    def _rule(self):
        table = read_table(self, self.table)
        return biases.T5(table, self.max_distance, self.bidirectional)


def _check_buckets(num_buckets, max_distance, bidirectional):
    check_count("num_buckets", num_buckets, 4 if bidirectional else 2)
    check_count("max_distance", max_distance, 1)
    if bidirectional and num_buckets % 2:
        raise ValueError(
            "`num_buckets` must be even where half are for keys after the query; "
            f"received: num_buckets={num_buckets}, bidirectional={bidirectional}"
        )
    exact = num_buckets // (4 if bidirectional else 2)
    if max_distance <= exact:
        raise ValueError(
            f"`max_distance` must be more than the {exact} buckets for one distance each; "
            f"received: max_distance={max_distance}, num_buckets={num_buckets}, "
            f"bidirectional={bidirectional}"
        )
