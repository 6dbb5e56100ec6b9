"""Attention with linear biases (Press et al., 2021)."""

import keras
from keras import ops

from kattn import biases
from kattn.layers.position.position import Position
from kattn.layers.position.tables import check_same, read_table
from kattn.ops.scores import add_bias, check_scores


@keras.saving.register_keras_serializable("kattn")
class ALiBi(Position):
    """Score - slope[n] * |i - j|: each head forgets with distance, at a rate of its own.

    Nothing depends on the length, so a model can be tested on longer sequences than it saw.

    Shapes: B batch, N heads, T query steps, S key steps, D head width.

    Args:
        learned: If True, the slopes are weights, which begin as those of the paper and may take
            any sign. The paper found no gain in it (sec. 3).
        **kwargs: `name`, `dtype`, `trainable`, as for any Keras layer.

    Call args:
        scores: `(B, N, T, S)` float, already scaled. Query i stands at key i + (S - T).

    Returns:
        `(B, N, T, S)`, the scores with their bias. Slopes, distances and the sum are in float32.

    Raises:
        ValueError: When called, if `scores` has another rank or unknown heads; with `learned`,
            if a bias is asked for before there are weights, or heads are other than theirs.

    Example:
        >>> layer = kattn.layers.ALiBi()
        >>> layer(keras.ops.zeros((1, 8, 1, 3)))[0, 0]
        [[-1.0, -0.5, 0.0]]

    Reference:
        Press et al. 2021, sec. 3, https://arxiv.org/abs/2108.12409: slopes 2^(-8n / N) for N a
        power of two; for other N, as in the authors' code, those of the next lower power P and
        then every second one of 2P. The paper's model is causal; here keys after the query are
        penalised alike.
    """

    def __init__(self, *, learned=False, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.learned = learned
        self.slopes = None

    def build(self, scores_shape):
        self.attach(num_heads=check_scores(scores_shape))

    def attach(self, *, width=None, num_heads, key_dim=None):
        if not self.learned:
            return
        if self.slopes is not None:
            check_same("num_heads", num_heads, self.slopes.shape[0])
            return
        self.slopes = self.add_weight(
            name="slopes",
            shape=(num_heads,),
            initializer=lambda shape, dtype: ops.convert_to_tensor(_slopes(*shape), dtype),
            autocast=False,
        )
        self.built = True

    def call(self, scores):
        return add_bias(scores, self._rule(scores.shape[1]))

    def bias(self, query):
        return self._rule(query.shape[2])

    def compute_output_shape(self, scores_shape):
        return scores_shape

    def get_config(self):
        return {**super().get_config(), "learned": self.learned}

    def _rule(self, num_heads):
        slopes = read_table(self, self.slopes) if self.learned else _slopes(num_heads)
        return biases.ALiBi(slopes)


def _slopes(num_heads):
    """One for each head, in (0, 1)."""
    power = 2 ** (num_heads.bit_length() - 1)
    first = [2.0 ** (-8.0 * n / power) for n in range(1, power + 1)]
    between = [2.0 ** (-8.0 * n / (2 * power)) for n in range(1, 2 * power, 2)]
    return first + between[: num_heads - power]
