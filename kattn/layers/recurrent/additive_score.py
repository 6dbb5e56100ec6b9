"""Scores by a small network of state and memory (Bahdanau et al., 2014)."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.recurrent.attention_score import AttentionScore


@keras.saving.register_keras_serializable("kattn")
class AdditiveScore(AttentionScore):
    """e_ts = v . tanh(s_t W + h_s U + b), for a memory h. The keys h U + b are computed once.

    The hidden layer, of which there is one for each pair of steps, is kept for the gradient: memory
    is O(T * S * H) for H units. Other scores take O(T * S), or less in the kernels of attention.

    Shapes: B batch, T steps and U channels of the state, S steps and E channels of the memory.

    Args:
        units: Number of channels of the hidden layer. None for as many as the state has.
        use_bias: Whether there is a bias b.
        kernel_initializer: Initializer of W, U and v.
        kernel_regularizer: Regularizer of W, U and v, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        query: States that ask, float, shape `(B, T, U)`.
        memory: Sequence that is attended to, float, shape `(B, S, E)`.

    Returns:
        Scores `(B, 1, T, S)`, before the softmax.

    Raises:
        ValueError: If `units` is neither None nor an integer >= 1.

    Example:
        >>> score = kattn.layers.AdditiveScore(16)
        >>> score(keras.ops.ones((2, 3, 8)), keras.ops.ones((2, 5, 6))).shape
        (2, 1, 3, 5)

    Reference:
        Bahdanau et al. 2014, sec. A.1.2, https://arxiv.org/abs/1409.0473. They have no bias b.
    """

    def __init__(self, units=None, *, use_bias=True, **kwargs):
        super().__init__(**kwargs)
        arguments.check_optional_integers(1, units=units)
        self.units = units
        self.use_bias = use_bias

    def build_projections(self, units, width):
        hidden = self.units or units
        self._query = self._dense("query", units, hidden)
        self._key = self._dense("key", width, hidden, use_bias=self.use_bias)
        self._energy = self._dense("energy", hidden, 1)

    def project(self, memory):
        keys = ops.cast(self._key(memory), "float32")[:, None]
        return keys, ops.cast(memory, "float32")[:, None]

    def score(self, query, keys, weights=None):
        query = ops.cast(self._query(query), "float32")[:, :, None]  # (B, T, 1, H)
        return self._scores(query + keys)

    def _scores(self, hidden):
        """`(B, 1, T, S)` of what goes into the tanh, `(B, T, S, H)` float32."""
        energy = self._energy(ops.cast(ops.tanh(hidden), self.compute_dtype))  # (B, T, S, 1)
        return ops.cast(energy[..., 0], "float32")[:, None]

    def get_config(self):
        return {**super().get_config(), "units": self.units, "use_bias": self.use_bias}
