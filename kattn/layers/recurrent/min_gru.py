"""The minimal gated recurrent unit (Feng et al., 2024)."""

import keras
from keras import ops

from kattn.layers.recurrent.gated_average import GatedAverage


@keras.saving.register_keras_serializable("kattn")
class MinGRU(GatedAverage):
    """h_t = (1 - z_t) h_{t-1} + z_t g(x_t W_h + b_h) with z_t = sigmoid(x_t W_z + b_z).

    A GRU whose gate and candidate see the input alone, and so all steps are projected at once;
    what is left of the recurrence is a multiplication and an addition for each channel, of which
    `kattn.ops.linear_recurrence` has forms that take few steps one after the other.

    Shapes: B batch, T steps, C width of the input.

    Args:
        units: Number of channels of the state and of the output.
        activation: What g is: "positive" for x + 1/2 where x >= 0 and sigmoid(x) where x < 0, as in
            the paper's form in log space; or any activation of Keras. None for no activation, as in
            the paper's first form.
        use_bias: Whether the projections have a bias.
        implementation: How the recurrence is computed: "step", "chunked", "associative" or "auto",
            see `kattn.ops.linear_recurrence`. All give the same result.
        kernel_initializer: Initializer of the projection matrices. Each projection is initialised
            on its own, though they are stored as one matrix, W_z first.
        bias_initializer: Initializer of the biases.
        kernel_regularizer: Regularizer of the projection matrices, or None.
        bias_regularizer: Regularizer of the biases, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Padding, bool, shape `(B, T)`, True = real step; False = padding, which leaves the
            state as it is. It is combined with the Keras mask of `x`.
        starts: Bool, shape `(B, T)`; True at the first real step of a segment, which does not see
            the steps before it, as where texts are packed into one sequence; at padding it has no
            effect. None for one segment.

    Returns:
        `(B, T, units)`; at padding steps it is the state of the last real step. The padding of `x`
        is the Keras mask of the output.

    Raises:
        ValueError: If an argument is out of range; when called, if `x`, `mask` or `starts` has a
            wrong rank, shape or dtype.

    Example:
        >>> layer = kattn.layers.MinGRU(64)
        >>> layer(keras.random.normal((2, 1024, 32))).shape
        (2, 1024, 64)
        >>> cache = layer.init_cache(batch_size=2, length=1024)
        >>> y, cache = layer.decode(keras.random.normal((2, 1, 32)), cache)

    Reference:
        Feng et al. 2024, sec. 3.1 and app. B, https://arxiv.org/abs/2410.01201. Their form in log
        space needs g > 0; the one here does not.
    """

    gates = ("update",)

    def _weights(self, update):
        return ops.sigmoid(-update), ops.sigmoid(update)
