"""A gate for each channel and one for each cell of a map (Woo et al., 2018)."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.initializers import numbered
from kattn.layers.spatial.map_layer import MapLayer

CONVOLUTIONS = {1: keras.layers.Conv1D, 2: keras.layers.Conv2D, 3: keras.layers.Conv3D}


@keras.saving.register_keras_serializable("kattn")
class CBAM(MapLayer):
    """The convolutional block attention module: a gate for each channel, then one for each cell.

    First y = x * sigmoid(f(mean) + f(max)), where mean and max are over the cells of the map x and
    f(z) = W_1 relu(W_0 z). Then y * sigmoid(conv(m)), where m is, at each cell, the mean and the
    maximum of the channels of y. The map is a sequence, an image or a volume.

    Shapes: B batch, sides of the map (one, two or three), C channels, hidden width C // `ratio`.

    Args:
        ratio: Factor by which the hidden layer of f is narrower than the map. It has C // `ratio`
            units, and at least 1.
        kernel_size: Number of cells a side that the gate of a cell sees, an odd integer.
        use_bias: Whether the two dense layers of f and the convolution add a bias.
        data_format: `"channels_last"` or `"channels_first"`. None for Keras's default.
        kernel_initializer: Initializer of W_0, W_1 and of the weights of the convolution.
        bias_initializer: Initializer of the biases.
        kernel_regularizer: Regularizer of W_0, W_1 and of the weights of the convolution, or None.
        bias_regularizer: Regularizer of the biases, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Map, float, shape `(B, *sides, C)`, or `(B, C, *sides)` for `"channels_first"`. The
            number of sides is fixed when the layer is built; their lengths may be unknown.
        mask: Padding, bool, shape `(B, *sides)`, True = real cell. Mean and maximum are over real
            cells, and the convolution reads zeros at the others, as it does beyond the edges. It is
            combined with the Keras mask of `x`. What `x` holds at padding changes nothing.

    Returns:
        The same shape as `x`, with zeros at padding. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range; when built, if the map has no side or more than
            three, or if its channels are unknown; when called, if `x` has other channels than the
            layer was built for, or if `mask` has a wrong dtype or other sides than the map.

    Example:
        >>> layer = kattn.layers.CBAM(ratio=4)
        >>> layer(keras.random.normal((2, 7, 5, 32))).shape
        (2, 7, 5, 32)

    Reference:
        Woo et al. 2018, eq. 1 to 3, https://arxiv.org/abs/1807.06521. In the authors' code the
        convolution has no bias and is followed by a batch normalisation, of which the paper says
        nothing; here it has a bias and no normalisation. Masks and maps other than images are ours.
    """

    def __init__(
        self,
        ratio=16,
        kernel_size=7,
        *,
        use_bias=True,
        data_format=None,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        arguments.check_integers(1, ratio=ratio, kernel_size=kernel_size)
        if kernel_size % 2 == 0:
            raise arguments.error("`kernel_size` must be odd", kernel_size=kernel_size)
        self.ratio = ratio
        self.kernel_size = kernel_size
        self._projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )

    def build(self, x_shape):
        self._axes = self.axes_of(x_shape)
        channels, options = self._axes.channels, self._projections
        hidden = max(channels // self.ratio, 1)
        self._reduction = options.dense("reduction", channels, hidden, dtype=self.dtype_policy)
        self._expansion = options.dense("expansion", hidden, channels, dtype=self.dtype_policy)
        self._convolution = CONVOLUTIONS[self._axes.rank](
            1,
            self.kernel_size,
            padding="same",
            data_format="channels_last",
            use_bias=options.use_bias,
            kernel_initializer=numbered(options.kernel_initializer, 1),
            bias_initializer=numbered(options.bias_initializer, 0),
            kernel_regularizer=options.kernel_regularizer,
            bias_regularizer=options.bias_regularizer,
            dtype=self.dtype_policy,
            name="convolution",
        )
        self._convolution.build((None,) * (self._axes.rank + 1) + (2,))
        self.built = True

    def call(self, x, mask=None):
        x, padding = self._axes.read(x, mask)
        return self._gate_cells(self._gate_channels(x, padding))

    def get_config(self):
        return {
            **super().get_config(),
            "ratio": self.ratio,
            "kernel_size": self.kernel_size,
            **self._projections.get_config(),
        }

    def _gate_channels(self, x, padding):
        mean = ops.cast(self._axes.mean(x, padding), self.compute_dtype)
        both = ops.stack([mean, self._axes.max(x, padding)], axis=1)  # (B, 2, C)
        both = self._expansion(ops.relu(self._reduction(both)))
        return x * self._axes.of_channels(ops.sigmoid(both[:, 0] + both[:, 1]))

    def _gate_cells(self, y):
        if 0 in tuple(y.shape):
            return y  # the maximum of nothing is an error, and so is a convolution over it
        channel = self._axes.channel
        mean = ops.cast(ops.mean(ops.cast(y, "float32"), axis=channel), y.dtype)
        both = ops.stack([mean, ops.max(y, axis=channel)], axis=-1)  # (B, *sides, 2)
        return y * self._axes.of_cells(ops.sigmoid(self._convolution(both)[..., 0]))
