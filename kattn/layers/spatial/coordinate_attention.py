"""A gate along each side of a map, from means over the other sides (Hou et al., 2021)."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.spatial.map_layer import MapLayer


@keras.saving.register_keras_serializable("kattn")
class CoordinateAttention(MapLayer):
    """x * g_1 * ... * g_n for a map with n sides, where g_i depends on the coordinate along side i.

    For each side there is a mean over all other sides: of an image one vector for each row and one
    for each column. All of them go through one dense layer, batch normalisation and hard swish,
    and then those of each side through a dense layer of that side and a sigmoid, which makes the
    gates g_i. The map is a sequence, an image or a volume; a sequence has no other sides, and its
    steps are gated by themselves alone.

    Shapes: B batch, sides of the map (one, two or three), C channels.

    Args:
        ratio: Factor by which the hidden layer is narrower than the map. It has C // `ratio` units,
            but at least `min_hidden`.
        min_hidden: Smallest number of units of the hidden layer.
        momentum: Momentum of the moving statistics of the batch normalisation, in [0, 1).
        use_bias: Whether the dense layers add a bias.
        data_format: `"channels_last"` or `"channels_first"`. None for Keras's default.
        kernel_initializer: Initializer of the matrices of the dense layers.
        bias_initializer: Initializer of the biases.
        kernel_regularizer: Regularizer of the matrices, or None.
        bias_regularizer: Regularizer of the biases, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Map, float, shape `(B, *sides, C)`, or `(B, C, *sides)` for `"channels_first"`. The
            number of sides is fixed when the layer is built; their lengths may be unknown.
        mask: Padding, bool, shape `(B, *sides)`, True = real cell. Means and the statistics of the
            normalisation are over real cells. It is combined with the Keras mask of `x`. What `x`
            holds at padding changes nothing.
        training: Whether the batch normalisation uses the statistics of the batch.

    Returns:
        The same shape as `x`, with zeros at padding. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range; when built, if the map has no side or more than
            three, or if its channels are unknown; when called, if `x` has other channels than the
            layer was built for, or if `mask` has a wrong dtype or other sides than the map.

    Example:
        >>> layer = kattn.layers.CoordinateAttention(ratio=4)
        >>> layer(keras.random.normal((2, 7, 5, 32))).shape
        (2, 7, 5, 32)

    Reference:
        Hou et al. 2021, eq. 4 to 9, https://arxiv.org/abs/2103.02907; batch normalisation, hard
        swish, biases and the smallest width of 8 are those of the authors' code. The paper has
        images; sequences, volumes and masks are ours.
    """

    def __init__(
        self,
        ratio=32,
        *,
        min_hidden=8,
        momentum=0.9,
        use_bias=True,
        data_format=None,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        arguments.check_integers(1, ratio=ratio, min_hidden=min_hidden)
        arguments.check_fractions(momentum=momentum)
        self.ratio = ratio
        self.min_hidden = min_hidden
        self.momentum = momentum
        self._projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )

    def build(self, x_shape):
        self._axes = self.axes_of(x_shape)
        channels, options, policy = self._axes.channels, self._projections, self.dtype_policy
        hidden = max(channels // self.ratio, self.min_hidden)
        self._reduction = options.dense("reduction", channels, hidden, dtype=policy)
        self._norm = keras.layers.BatchNormalization(
            momentum=self.momentum, epsilon=1e-5, dtype=policy, name="norm"
        )
        self._norm.build((None, None, hidden))
        self._expansions = [
            options.dense(f"expansion_{i}", hidden, channels, dtype=policy)
            for i in range(self._axes.rank)
        ]
        self.built = True

    def call(self, x, mask=None, training=None):
        x, padding = self._axes.read(x, mask)
        sides = range(self._axes.rank)
        lines = [self._axes.lines(x, padding, side) for side in sides]
        means, real = ops.concatenate(lines, axis=1), None
        if padding is not None:
            parts = [self._axes.real_lines(padding, side) for side in sides]
            real = ops.concatenate(parts, axis=1)
        hidden = self._reduction(ops.cast(means, self.compute_dtype))  # (B, sum of sides, hidden)
        hidden = ops.hard_silu(self._norm(hidden, training=training, mask=real))
        first, y = 0, x
        for side in sides:
            last = first + ops.shape(lines[side])[1]
            gate = ops.sigmoid(self._expansions[side](hidden[:, first:last]))
            y, first = y * self._axes.along(gate, side), last
        return y

    def get_config(self):
        return {
            **super().get_config(),
            "ratio": self.ratio,
            "min_hidden": self.min_hidden,
            "momentum": self.momentum,
            **self._projections.get_config(),
        }
