"""A map as one vector or a few, by queries that attend to its cells (Lee et al., 2018)."""

import keras
from keras import ops

from kattn import arguments, masks
from kattn.layers.attention.head_sizes import HeadSizes, check_heads, merge_heads, split_heads
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.initializers import numbered
from kattn.layers.spatial.map_layer import MapLayer
from kattn.ops.attention import attention, attention_weights

QUERIES = ("learned", "mean")
ARGUMENTS = ("num_heads", "num_queries", "key_dim", "value_dim", "query", "dropout", "seed")


@keras.saving.register_keras_serializable("kattn")
class AttentionPooling(MapLayer):
    """softmax(Q K^T / sqrt(D)) V W: learned queries attend to the cells of a map.

    It takes the place of the mean over all cells in front of a classifier. The map is a sequence,
    an image or a volume.

    Shapes: B batch, sides of the map (one, two or three) with S cells, C channels, N heads, D and
    Dv head widths, Q queries.

    Args:
        num_heads: Number of attention heads, N.
        num_queries: Number of queries, Q. None for one query, whose vector comes without an axis of
            queries.
        key_dim: Width of the queries and keys of one head, D. None for C / N.
        value_dim: Width of the values of one head, Dv. None for D.
        query: "learned" for learned vectors of C channels; "mean" for the mean of the real cells,
            as in the attention pool of CLIP, which needs `num_queries` None. Both are projected.
        dropout: Fraction of the attention weights that are dropped during training, in [0, 1).
        use_bias: Whether the projections add a bias.
        data_format: `"channels_last"` or `"channels_first"`. None for Keras's default.
        kernel_initializer: Initializer of the projection matrices and of the learned queries.
        bias_initializer: Initializer of the biases.
        kernel_regularizer: Regularizer of the projection matrices, or None.
        bias_regularizer: Regularizer of the biases, or None.
        seed: Integer seed of the dropout, or None for a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Map, float, shape `(B, *sides, C)`, or `(B, C, *sides)` for `"channels_first"`. The
            number of sides is fixed when the layer is built; their lengths may be unknown.
        mask: Padding, bool, shape `(B, *sides)`, True = real cell. Padding is never attended to. It
            is combined with the Keras mask of `x`. What `x` holds at padding changes nothing.
        training: Whether dropout is applied.

    Returns:
        `(B, C)` where `num_queries` is None, else `(B, Q, C)`, without a Keras mask; 0 for an item
        without a real cell.

    Raises:
        ValueError: If an argument is out of range; when built, if the map has no side or more than
            three, if its channels are unknown, or if `num_heads` does not divide them where
            `key_dim` is None; when called, if `x` has other channels than the layer was built for,
            or if `mask` has a wrong dtype or other sides than the map.

    Example:
        >>> x = keras.random.normal((2, 7, 5, 32))
        >>> kattn.layers.AttentionPooling(4)(x).shape
        (2, 32)
        >>> kattn.layers.AttentionPooling(4, num_queries=3)(x).shape
        (2, 3, 32)

    Reference:
        Lee et al. 2018, sec. 3.2 (pooling by multi-head attention, without the residual connections
        and the feed-forward networks around it), https://arxiv.org/abs/1810.00825; Radford et al.
        2021, sec. 2.4 (the mean as the query; there it is also one of the keys, and cells have
        positions), https://arxiv.org/abs/2103.00020
    """

    def __init__(
        self,
        num_heads=1,
        num_queries=None,
        *,
        key_dim=None,
        value_dim=None,
        query="learned",
        dropout=0.0,
        use_bias=True,
        data_format=None,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        check_heads(num_heads, key_dim, value_dim)
        arguments.check_optional_integers(1, num_queries=num_queries)
        arguments.check_choice(QUERIES, query=query)
        arguments.check_fractions(dropout=dropout)
        if query == "mean" and num_queries is not None:
            raise arguments.error(
                "`num_queries` must be None where the query is the mean of the cells",
                num_queries=num_queries,
                query=query,
            )
        self.num_heads = num_heads
        self.num_queries = num_queries
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.query = query
        self.dropout = dropout
        self.seed = seed
        self._projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )
        self._seed_generator = keras.random.SeedGenerator(seed) if dropout else None

    def build(self, x_shape):
        self._axes = self.axes_of(x_shape)
        channels, options, policy = self._axes.channels, self._projections, self.dtype_policy
        self.head_sizes = sizes = HeadSizes.of(self, channels)
        self._queries = None
        if self.query == "learned":
            self._queries = self.add_weight(
                name="queries",
                shape=(self.num_queries or 1, channels),
                initializer=numbered(options.kernel_initializer, 3),
            )
        key_value = sizes.key_width, sizes.value_width
        self._query = options.dense("query", channels, sizes.query_width, dtype=policy)
        self._key_value = options.dense("key_value", channels, *key_value, dtype=policy)
        self._output = options.dense("output", sizes.output_width, channels, dtype=policy)
        self.built = True

    def call(self, x, mask=None, training=None):
        x, padding = self._axes.read(x, mask)
        q, k, v, keys = self._project(x, padding)
        y = attention(
            q,
            k,
            v,
            mask=keys,
            dropout_rate=self.dropout if training else 0.0,
            seed=self._seed_generator,
        )  # (B, Q, N, Dv)
        y = self._of_real_items(self._output(merge_heads(y)), x, padding)  # (B, Q, C)
        return y[:, 0] if self.num_queries is None else y

    def attention_weights(self, x, mask=None):
        """Where each query looks: softmax(Q K^T / sqrt(D)), without dropout.

        Args:
            x: Map, float, shape `(B, *sides, C)`, or `(B, C, *sides)` for `"channels_first"`.
            mask: Padding, bool, shape `(B, *sides)`, True = real cell.

        Returns:
            `(B, N, Q, S)` float32, the cells in row-major order. Rows sum to 1, or are 0 for an
            item without a real cell.
        """
        if not self.built:
            self.build(x.shape)
        x, padding = self._axes.read(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        q, k, _, keys = self._project(x, padding)
        return attention_weights(q, k, mask=keys)

    def compute_mask(self, x, previous_mask):
        """None: queries are no cells."""
        return

    def compute_output_shape(self, x_shape):
        channels = self.axes_of(x_shape).channels
        if self.num_queries is None:
            return (x_shape[0], channels)
        return (x_shape[0], self.num_queries, channels)

    def get_config(self):
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ARGUMENTS},
            **self._projections.get_config(),
        }

    def _project(self, x, padding):
        """Queries, keys and values by head, and the mask of the keys."""
        sizes = self.head_sizes
        cells, flat = self._axes.cells(x, padding)  # (B, S, C)
        k, v = sizes.split_key_value(self._key_value(cells))
        if self._queries is None:
            mean = self._axes.mean(x, padding)[:, None]
            q = self._query(ops.cast(mean, x.dtype))  # (B, 1, N * D)
        else:
            learned = ops.cast(ops.convert_to_tensor(self._queries), x.dtype)
            q = self._query(learned)[None]
            q = ops.broadcast_to(q, (ops.shape(x)[0], *q.shape[1:]))  # (B, Q, N * D)
        mask = None if flat is None else masks.Padding(flat)
        return split_heads(q, sizes.heads), k, v, mask

    def _of_real_items(self, y, x, padding):
        """The vectors with exact zeros for items without a real cell."""
        if padding is None and self._axes.has_cells(x):
            return y
        cells = tuple(range(1, self._axes.rank + 1))
        has_cell = ops.any(self._axes.real(x, padding), axis=cells)
        return ops.where(has_cell[:, None, None], y, ops.zeros_like(y))
