"""Scores that look at where the step before attended to (Chorowski et al., 2015)."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.initializers import numbered
from kattn.layers.recurrent.additive_score import AdditiveScore


@keras.saving.register_keras_serializable("kattn")
class LocationScore(AdditiveScore):
    """e_ts = v . tanh(s_t W + h_s U + f_ts Q + b), where f_t = a_(t-1) * F is a convolution.

    a_(t-1) are the attention weights of the step before, 0 for the first. So an alignment can move
    on from where it was, between steps of a memory that look alike.

    Shapes: B batch, T steps and U channels of the state, S steps and E channels of the memory.

    Args:
        units: Number of channels of the hidden layer. None for as many as the state has.
        filters: Number of channels of the convolution F.
        kernel_size: Number of weights that the convolution reads around a step, odd.
        use_bias: Whether there is a bias b.
        kernel_initializer: Initializer of the matrices and of F.
        kernel_regularizer: Regularizer of the matrices and of F, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        query: States that ask, float, shape `(B, T, U)`.
        memory: Sequence that is attended to, float, shape `(B, S, E)`.

    Returns:
        Scores `(B, 1, T, S)`, before the softmax, of a first step.

    Raises:
        ValueError: If a size is not an integer >= 1, or if `kernel_size` is even.

    Example:
        >>> score = kattn.layers.LocationScore(16, filters=4, kernel_size=5)
        >>> score(keras.ops.ones((2, 3, 8)), keras.ops.ones((2, 5, 6))).shape
        (2, 1, 3, 5)

    Reference:
        Chorowski et al. 2015, eq. 8 and 9, https://arxiv.org/abs/1506.07503. They take 10 filters
        of 201 frames of speech.
    """

    reads_weights = True

    def __init__(self, units=None, *, filters=10, kernel_size=31, use_bias=True, **kwargs):
        super().__init__(units, use_bias=use_bias, **kwargs)
        arguments.check_integers(1, filters=filters, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise arguments.error(
                "`kernel_size` must be odd, so that the convolution has a middle",
                kernel_size=kernel_size,
            )
        self.filters = filters
        self.kernel_size = kernel_size

    def build_projections(self, units, width):
        super().build_projections(units, width)
        self._filter = self.add_weight(
            shape=(self.kernel_size, 1, self.filters),
            initializer=numbered(self._projections.kernel_initializer, 3),
            regularizer=self._projections.kernel_regularizer,
            name="filter",
        )
        self._location = self._dense("location", self.filters, self.units or units)

    def score(self, query, keys, weights=None):
        query = ops.cast(self._query(query), "float32")[:, :, None]  # (B, T, 1, H)
        if keys.shape[2] == 0:  # a convolution over no steps is refused
            return self._scores(query + keys)
        row = ops.cast(ops.swapaxes(weights, 1, 2), self.compute_dtype)  # (B, S, 1)
        kernel = ops.cast(self._filter, self.compute_dtype)
        options = {"padding": "same", "data_format": "channels_last"}
        features = self._location(ops.conv(row, kernel, **options))  # (B, S, H)
        return self._scores(query + keys + ops.cast(features, "float32")[:, None])

    def get_config(self):
        names = ("filters", "kernel_size")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}
