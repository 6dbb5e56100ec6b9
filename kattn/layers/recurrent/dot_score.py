"""Scores that are products of state and memory (Luong et al., 2015)."""

import keras
from keras import ops

from kattn.layers.recurrent.attention_score import AttentionScore, check_equal_widths
from kattn.ops.alignment import score_products


@keras.saving.register_keras_serializable("kattn")
class DotScore(AttentionScore):
    """e_ts = s_t . h_s, for a memory h that is as wide as the state s.

    It has no weights.

    Shapes: B batch, T steps of the state, S steps of the memory, U channels of both.

    Args:
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        query: States that ask, float, shape `(B, T, U)`.
        memory: Sequence that is attended to, float, shape `(B, S, U)`.

    Returns:
        Scores `(B, 1, T, S)`, before the softmax.

    Raises:
        ValueError: When built, if state and memory are not of the same width.

    Example:
        >>> score = kattn.layers.DotScore()
        >>> score(keras.ops.ones((2, 3, 8)), keras.ops.ones((2, 5, 8))).shape
        (2, 1, 3, 5)
        >>> layer = kattn.layers.AttentionRNN(keras.layers.GRUCell(8), score)

    Reference:
        Luong et al. 2015, eq. 8, "dot", https://arxiv.org/abs/1508.04025
    """

    is_product = True

    def __init__(self, **kwargs):
        super().__init__(**kwargs)

    def check_widths(self, units, width):
        check_equal_widths(units, width)

    def score(self, query, keys, weights=None):
        return score_products(ops.cast(query, "float32")[:, None], keys)

    def split_query(self, query):
        return query[:, :, None]

    def get_config(self):
        return keras.layers.Layer.get_config(self)
