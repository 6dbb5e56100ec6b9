"""Scores of several heads: scaled products of projected states and memory."""

import keras
from keras import ops

from kattn.layers.attention.head_sizes import HeadSizes, check_heads
from kattn.layers.recurrent.attention_score import AttentionScore
from kattn.ops.alignment import score_products


@keras.saving.register_keras_serializable("kattn")
class MultiHeadScore(AttentionScore):
    """e^n_ts = (s_t W^n_q + b) . (h_s W^n_k + b) / sqrt(D) for heads n, each with its own values.

    Keys and values are computed once. The context is that of all heads side by side; there is no
    matrix behind it, as the one that reads it, of the cell or of the output, serves for that.

    Shapes: B batch, T steps and U channels of the state, S steps and E channels of the memory, N
    heads, D and Dv head widths.

    Args:
        num_heads: Number of heads, N.
        key_dim: Width of the queries and keys of one head, D. None for U / N, which must then be
            whole.
        value_dim: Width of the values of one head, Dv. None for `key_dim`.
        use_bias: Whether the projections add a bias.
        kernel_initializer: Initializer of the matrices.
        kernel_regularizer: Regularizer of the matrices, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        query: States that ask, float, shape `(B, T, U)`.
        memory: Sequence that is attended to, float, shape `(B, S, E)`.

    Returns:
        Scores `(B, N, T, S)`, before the softmax.

    Raises:
        ValueError: If a size is not an integer >= 1; when built, if U is not divisible by
            `num_heads` while `key_dim` is None.

    Example:
        >>> score = kattn.layers.MultiHeadScore(4)
        >>> score(keras.ops.ones((2, 3, 8)), keras.ops.ones((2, 5, 6))).shape
        (2, 4, 3, 5)

    Reference:
        Vaswani et al. 2017, sec. 3.2.2, https://arxiv.org/abs/1706.03762
    """

    is_product = True

    def __init__(self, num_heads, key_dim=None, *, value_dim=None, use_bias=True, **kwargs):
        super().__init__(**kwargs)
        check_heads(num_heads, key_dim, value_dim)
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.use_bias = use_bias

    def check_widths(self, units, width):
        HeadSizes.of(self, units)

    def build_projections(self, units, width):
        self._sizes = sizes = HeadSizes.of(self, units)
        self._query = self._dense("query", units, sizes.query_width, use_bias=self.use_bias)
        self._key_value = self._dense(
            "key_value", width, sizes.key_width, sizes.value_width, use_bias=self.use_bias
        )

    def context_width(self, width):
        return self._sizes.output_width

    def project(self, memory):
        keys, values = self._sizes.split_key_value(self._key_value(memory))
        return tuple(ops.swapaxes(ops.cast(x, "float32"), 1, 2) for x in (keys, values))

    def score(self, query, keys, weights=None):
        query = ops.cast(self.split_query(query), "float32")
        return score_products(ops.swapaxes(query, 1, 2), keys)

    def split_query(self, query):
        return self._sizes.split_query(self._query(query)) * self._sizes.key_dim**-0.5

    def get_config(self):
        names = ("num_heads", "key_dim", "value_dim", "use_bias")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
