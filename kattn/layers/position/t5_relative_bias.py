"""A learned number for each bucket of distances (T5; Raffel et al., 2019)."""

import keras

from kattn import biases
from kattn.arguments import check_integers, error
from kattn.layers.position.learned_table import add_table, read_initializer, read_table
from kattn.layers.position.score_bias import ScoreBias


@keras.saving.register_keras_serializable("kattn")
class T5RelativeBias(ScoreBias):
    """Adds table[n, bucket(j - i)] to the scores; each near distance has a bucket, far ones share.

    T5 has one table for all layers of a stack. To do the same, pass one instance to all of them.

    Shapes: B batch, N heads, T query steps, S key steps, D head width, R = `num_buckets`.

    Args:
        num_buckets: Number of buckets R for each head. Half of the buckets of a side hold one
            distance each, the other half hold ranges of distances that grow with the logarithm
            up to `max_distance`.
        max_distance: Distance in steps from which on all distances share the last bucket. It
            must be more than the number of buckets that hold one distance each.
        bidirectional: If True, half of the buckets are for keys after the query; `num_buckets`
            must then be even and at least 4. If False, as in a decoder, keys after the query
            share the bucket of distance 0.
        initializer: Initializer of the table. None gives a truncated normal of standard
            deviation 0.02.
        regularizer: Regularizer of the table, or None.
        **kwargs: Arguments that every Keras layer takes: `name`, `dtype` and `trainable`.

    Call args:
        scores: Scores q . k / sqrt(D), float, shape `(B, N, T, S)`. Query i stands at the
            position of key i + (S - T).
        query: Queries that the scores were made from, float, shape `(B, T, N, D)`. This layer
            does not need them; None will do.

    Returns:
        `(B, N, T, S)`, the scores with their bias, of the dtype of `scores`. The table and the
        sum are in float32.

    Raises:
        ValueError: If `num_buckets` or `max_distance` is out of range; when called, if `scores`
            is not of rank 4 or its number of heads is unknown; if a bias is asked for before
            there are weights, or if the layer is shared with layers of another number of heads.

    Example:
        >>> position = kattn.layers.T5RelativeBias(16, 64, bidirectional=False)
        >>> tuple(position(keras.random.normal((2, 8, 128, 128))).shape)
        (2, 8, 128, 128)

    Reference:
        Raffel et al. 2019, sec. 2.1, https://arxiv.org/abs/1910.10683. The buckets are those of
        the authors' code. T5 does not scale its scores by 1 / sqrt(D); kattn does.
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
        self.num_buckets = num_buckets
        self.max_distance = max_distance
        self.bidirectional = bidirectional
        self.initializer = read_initializer(initializer)
        self.regularizer = keras.regularizers.get(regularizer)
        self.table = None

    def attach(self, *, width, num_heads, key_dim):
        if self.remember_sizes(num_heads=num_heads):
            shape = (num_heads, self.num_buckets)
            self.table = add_table(self, "table", shape, self.initializer)

    def bias(self, query, grid=None):
        self.check_sequence(grid)
        table = read_table(self, self.table)
        return biases.T5(table, self.max_distance, self.bidirectional)

    def get_config(self):
        return {
            **super().get_config(),
            "num_buckets": self.num_buckets,
            "max_distance": self.max_distance,
            "bidirectional": self.bidirectional,
            "initializer": keras.initializers.serialize(self.initializer),
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }


def _check_buckets(num_buckets, max_distance, bidirectional):
    check_integers(4 if bidirectional else 2, num_buckets=num_buckets)
    check_integers(1, max_distance=max_distance)
    if bidirectional and num_buckets % 2:
        raise error(
            "`num_buckets` must be even where half of them are for keys after the query",
            num_buckets=num_buckets,
            bidirectional=bidirectional,
        )
    exact = num_buckets // (4 if bidirectional else 2)
    if max_distance <= exact:
        raise error(
            f"`max_distance` must be more than the {exact} buckets that hold one distance each",
            max_distance=max_distance,
            num_buckets=num_buckets,
            bidirectional=bidirectional,
        )
