"""A learned vector for each distance, which queries are multiplied with (Shaw et al., 2018)."""

import keras

from kattn import biases
from kattn.arguments import check_integers
from kattn.layers.position.learned_table import add_table, read_initializer, read_table
from kattn.layers.position.query_products import query_products, require_query
from kattn.layers.position.score_bias import ScoreBias


@keras.saving.register_keras_serializable("kattn")
class ShawRelative(ScoreBias):
    """Adds q_i . table[clip(j - i, -k, k) + k] / sqrt(D) to the scores.

    The products of a query with the 2k + 1 vectors are computed once, `(B, N, T, 2k + 1)`, and
    not anew for each pair of query and key.

    Shapes: B batch, N heads, T query steps, S key steps, D head width, k = `max_distance`.

    Args:
        max_distance: Largest distance k in steps that has a vector of its own. Keys that are
            farther away count as k steps away. The paper finds no gain above 2 (table 2), and
            uses 16 and 8.
        initializer: Initializer of the table. None gives a truncated normal of standard
            deviation 0.02.
        regularizer: Regularizer of the table, or None.
        **kwargs: Arguments that every Keras layer takes: `name`, `dtype` and `trainable`.

    Call args:
        scores: Scores q . k / sqrt(D), float, shape `(B, N, T, S)`. Query i stands at the
            position of key i + (S - T).
        query: Queries that the scores were made from, float, shape `(B, T, N, D)`. It must be
            given.

    Returns:
        `(B, N, T, S)`, the scores with their bias, of the dtype of `scores`. The bias and the
        sum are computed in float32.

    Raises:
        ValueError: If `max_distance` is not an integer >= 1; when called, if `query` is missing
            or `scores` or `query` does not fit; if a bias is asked for before there are weights,
            or if the layer is shared with layers of another head width.

    Example:
        >>> position = kattn.layers.ShawRelative(16)
        >>> query = keras.random.normal((2, 100, 8, 64))
        >>> tuple(position(keras.random.normal((2, 8, 100, 100)), query).shape)
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
        check_integers(1, max_distance=max_distance)
        self.max_distance = max_distance
        self.initializer = read_initializer(initializer)
        self.regularizer = keras.regularizers.get(regularizer)
        self.table = None

    def build(self, scores_shape, query_shape=None):
        require_query(query_shape)
        super().build(scores_shape, query_shape)

    def attach(self, *, width, num_heads, key_dim):
        check_integers(1, key_dim=key_dim)
        if self.remember_sizes(key_dim=key_dim):
            shape = (2 * self.max_distance + 1, key_dim)
            self.table = add_table(self, "table", shape, self.initializer)

    def bias(self, query, grid=None):
        self.check_sequence(grid)
        return biases.Clipped(query_products(query, read_table(self, self.table)))

    def get_config(self):
        return {
            **super().get_config(),
            "max_distance": self.max_distance,
            "initializer": keras.initializers.serialize(self.initializer),
            "regularizer": keras.regularizers.serialize(self.regularizer),
        }
