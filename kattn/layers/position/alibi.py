"""Attention with linear biases (Press et al., 2021)."""

import keras
from keras import ops

from kattn import biases
from kattn.layers.position.learned_table import read_table
from kattn.layers.position.score_bias import ScoreBias
from kattn.ops.scores import add_bias


@keras.saving.register_keras_serializable("kattn")
class ALiBi(ScoreBias):
    """Subtracts slope[n] * |i - j| from the scores, so that each head forgets at its own rate.

    Nothing depends on the length of the sequence, so a model can be tested on longer sequences
    than those it was trained on.

    Shapes: B batch, N heads, T query steps, S key steps, D head width.

    Args:
        learned: If True, the slopes are weights, which begin as those of the paper and may take
            any sign. The paper found no gain in it (sec. 3).
        **kwargs: Arguments that every Keras layer takes: `name`, `dtype` and `trainable`.

    Call args:
        scores: Scores q . k / sqrt(D), float, shape `(B, N, T, S)`. Query i stands at the
            position of key i + (S - T).
        query: Queries that the scores were made from, float, shape `(B, T, N, D)`. This layer
            does not need them; None will do.

    Returns:
        `(B, N, T, S)`, the scores with their bias, of the dtype of `scores`. Slopes, distances
        and the sum are in float32.

    Raises:
        ValueError: When called, if `scores` is not of rank 4 or its number of heads is unknown.
            With `learned`: if a bias is asked for before there are weights, or if the layer is
            shared with layers of another number of heads.

    Example:
        >>> layer = kattn.layers.ALiBi()
        >>> y = layer(keras.ops.zeros((1, 8, 1, 3)))
        >>> keras.ops.convert_to_numpy(y)[0, 0].tolist()
        [[-1.0, -0.5, 0.0]]

    Reference:
        Press et al. 2021, sec. 3, https://arxiv.org/abs/2108.12409. The slopes are 2^(-8n / N)
        where N is a power of two. For another N they are, as in the authors' code, those of the
        next lower power P followed by every second one of 2P. The paper's model is causal; here
        keys after the query are penalised in the same way.
    """

    def __init__(self, *, learned=False, **kwargs):
        super().__init__(**kwargs)
        self.learned = learned
        self.slopes = None

    def attach(self, *, width, num_heads, key_dim):
        if self.learned and self.remember_sizes(num_heads=num_heads):
            self.slopes = self.add_weight(
                name="slopes",
                shape=(num_heads,),
                initializer=lambda shape, dtype: ops.convert_to_tensor(_slopes(*shape), dtype),
                autocast=False,
            )

    def call(self, scores, query=None):
        return add_bias(scores, self._rule(scores.shape[1]))

    def bias(self, query, grid=None):
        self.check_sequence(grid)
        return self._rule(query.shape[2])

    def get_config(self):
        return {**super().get_config(), "learned": self.learned}

    def _rule(self, num_heads):
        slopes = read_table(self, self.slopes) if self.learned else _slopes(int(num_heads))
        return biases.ALiBi(slopes)


def _slopes(num_heads):
    """The slopes of the paper, one for each head, in (0, 1)."""
    power = 2 ** (num_heads.bit_length() - 1)
    first = [2.0 ** (-8.0 * n / power) for n in range(1, power + 1)]
    between = [2.0 ** (-8.0 * n / (2 * power)) for n in range(1, 2 * power, 2)]
    return first + between[: num_heads - power]
