"""A learned vector for each distance, which queries are multiplied with (Shaw et al., 2018)."""

import keras

from kattn import biases
from kattn.layers.position.position import Position
from kattn.layers.position.tables import (
    add_table,
    check_count,
    check_query,
    check_same,
    numbers_by_query,
    read_initializer,
    read_table,
)
from kattn.ops.scores import add_bias, check_scores


@keras.saving.register_keras_serializable("kattn")
class ShawRelative(Position):
    """Score + q_i . table[clip(j - i, -k, k) + k] / sqrt(D).

    The products of a query and the 2k + 1 vectors are made once, `(B, N, T, 2k + 1)`, not those
    with a vector for each pair of query and key.

    Shapes: B batch, N heads, T query steps, S key steps, D head width, k = `max_distance`.

    Args:
        max_distance: k; farther keys count as k steps away. The paper finds no gain above 2
            (table 2), and uses 16 and 8.
        initializer: Of the table; None for a truncated normal of deviation 0.02.
        regularizer: Of the table.
        **kwargs: `name`, `dtype`, `trainable`, as for any Keras layer.

    Call args:
        scores: `(B, N, T, S)` float, q . k / sqrt(D). Query i stands at key i + (S - T).
        query: `(B, T, N, D)` float, that they were made from.

    Returns:
        `(B, N, T, S)`, the scores with their bias, which is made and added in float32.

    Raises:
        ValueError: If `max_distance` is no integer >= 1; when called, if `scores` or `query` do
            not fit; if a bias is asked for before there are weights, or the head width is other
            than theirs.

    Example:
        >>> position = kattn.layers.ShawRelative(16)
        >>> q = keras.random.normal((2, 100, 8, 64))
        >>> position(keras.random.normal((2, 8, 100, 100)), q).shape
        (2, 8, 100, 100)

    Reference:
        Shaw et al. 2018, eq. 4, with one table for all heads (sec. 3.3),
        https://arxiv.org/abs/1803.02155. Their second table, of vectors that are added to the
        values (eq. 3), is left out: it does not fit a kernel that takes biases, and in their own
        ablation (sec. 4.3, table 3) it changes nothing, 25.8 BLEU with and without, while
        without this one it is 25.3.
    """

    def __init__(self, max_distance, *, initializer=None, regularizer=None, **kwargs):
        super().__init__(**kwargs)
        check_count("max_distance", max_distance, 1)
        self.supports_masking = True
        self.max_distance = max_distance
        self.initializer = read_initializer(initializer)
        self.regularizer = keras.regularizers.get(regularizer)
        self.table = None

    def build(self, scores_shape, query_shape):
        check_scores(scores_shape)
        self.attach(key_dim=query_shape[-1])

    def attach(self, *, width=None, num_heads=None, key_dim):
        if self.table is not None:
            check_same("key_dim", key_dim, self.table.shape[-1])
            return
        check_count("key_dim", key_dim, 1)
        shape = (2 * self.max_distance + 1, key_dim)
        self.table = add_table(self, "table", shape, self.initializer)
        self.built = True

    def call(self, scores, query):
        check_query(query, scores)
        return add_bias(scores, self.bias(query))

    def bias(self, query):
        return biases.Clipped(numbers_by_query(query, read_table(self, self.table)))

    def compute_output_shape(self, scores_shape, query_shape):
        return scores_shape

    def get_config(self):
        return {
            **super().get_config(),
            "max_distance": self.max_distance,
            "initializer": keras.initializers.serialize(self.initializer),
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }
