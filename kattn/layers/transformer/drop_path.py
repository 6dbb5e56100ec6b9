"""Stochastic depth: branches of a residual network that are skipped (Huang et al., 2016)."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.rematerialized_layer import RematerializedLayer


@keras.saving.register_keras_serializable("kattn")
class DropPath(RematerializedLayer):
    """In training, 0 for some items of a batch, and x / (1 - rate) for the others.

    It stands at the end of a residual branch: x + DropPath(rate)(f(x)) then skips f for a random
    part of the items. In inference it changes nothing.

    Args:
        rate: Fraction of the items for which the branch is skipped, in [0, 1).
        seed: Integer seed of the draws, or None for a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Output of a branch, float, shape `(B, ...)`.
        training: Whether items are dropped.

    Returns:
        A tensor of the shape of `x`. The Keras mask of `x` is that of the output.

    Raises:
        ValueError: If `rate` is out of range.

    Example:
        >>> layer = kattn.layers.DropPath(0.5, seed=0)
        >>> y = layer(keras.ops.ones((100, 2)), training=True)
        >>> sorted({float(item) for item in y[:, 0]})
        [0.0, 2.0]

    Reference:
        Huang et al. 2016, sec. 3, https://arxiv.org/abs/1603.09382; there a whole batch skips a
        branch, and what stays is made smaller in inference instead of larger in training.
    """

    acts_on_each_step = True  # so that generation knows that a call decodes new steps

    def __init__(self, rate, *, seed=None, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        arguments.check_fractions(rate=rate)
        self.rate = rate
        self.seed = seed
        self._seed_generator = keras.random.SeedGenerator(seed) if rate else None
        self.built = True

    def call(self, x, training=None):
        if not training or not self.rate:
            return x
        x = ops.convert_to_tensor(x)
        shape = (None, *(1 for _ in x.shape[1:]))  # one draw for each item
        return keras.random.dropout(x, self.rate, noise_shape=shape, seed=self._seed_generator)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {**super().get_config(), "rate": self.rate, "seed": self.seed}
