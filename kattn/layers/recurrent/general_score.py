"""Scores by a matrix between state and memory (Luong et al., 2015)."""

import keras
from keras import ops

from kattn.layers.recurrent.attention_score import AttentionScore
from kattn.ops.alignment import score_products


@keras.saving.register_keras_serializable("kattn")
class GeneralScore(AttentionScore):
    """e_ts = s_t . (h_s W), for a memory h of any width. The keys h W are computed once.

    Shapes: B batch, T steps and U channels of the state, S steps and E channels of the memory.

    Args:
        kernel_initializer: Initializer of W.
        kernel_regularizer: Regularizer of W, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        query: States that ask, float, shape `(B, T, U)`.
        memory: Sequence that is attended to, float, shape `(B, S, E)`.

    Returns:
        Scores `(B, 1, T, S)`, before the softmax.

    Raises:
        ValueError: If an argument is no initializer or regularizer.

    Example:
        >>> score = kattn.layers.GeneralScore()
        >>> score(keras.ops.ones((2, 3, 8)), keras.ops.ones((2, 5, 6))).shape
        (2, 1, 3, 5)

    Reference:
        Luong et al. 2015, eq. 8, "general", https://arxiv.org/abs/1508.04025
    """

    is_product = True

    def build_projections(self, units, width):
        self._key = self._dense("key", width, units)

    def project(self, memory):
        keys = ops.cast(self._key(memory), "float32")[:, None]
        return keys, ops.cast(memory, "float32")[:, None]

    def score(self, query, keys, weights=None):
        return score_products(ops.cast(query, "float32")[:, None], keys)

    def split_query(self, query):
        return query[:, :, None]
