"""A gate for each channel of a map, from the means of its neighbours (Wang et al., 2019)."""

import math

import keras
from keras import ops

from kattn import arguments
from kattn.layers.spatial.map_layer import MapLayer


@keras.saving.register_keras_serializable("kattn")
class EfficientChannelAttention(MapLayer):
    """x * sigmoid(conv_k(z)), where z is the mean of the cells of the map x: the gates of ECA-Net.

    Each channel of a map is multiplied by a number between 0 and 1. It is decided by the means of
    the k channels around that channel, with the same k weights everywhere and no bias. The map is a
    sequence, an image or a volume.

    Shapes: B batch, sides of the map (one, two or three), C channels.

    Args:
        kernel_size: Number of channels that a gate sees, k, an odd integer. None for a number that
            grows with the channels: the integer part of (log2(C) + b) / gamma, plus 1 if it is
            even.
        gamma: Number that the paper calls gamma. Without `kernel_size` it decides about k.
        b: Number that the paper calls b. Without `kernel_size` it decides about k.
        data_format: `"channels_last"` or `"channels_first"`. None for Keras's default.
        kernel_initializer: Initializer of the k weights.
        kernel_regularizer: Regularizer of the k weights, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Map, float, shape `(B, *sides, C)`, or `(B, C, *sides)` for `"channels_first"`. The
            number of sides is fixed when the layer is built; their lengths may be unknown.
        mask: Padding, bool, shape `(B, *sides)`, True = real cell. The mean is over real cells. It
            is combined with the Keras mask of `x`. What `x` holds at padding changes nothing.

    Returns:
        The same shape as `x`, with zeros at padding. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range; when built, if the map has no side or more than
            three, or if its channels are unknown; when called, if `x` has other channels than the
            layer was built for, or if `mask` has a wrong dtype or other sides than the map.

    Example:
        >>> layer = kattn.layers.EfficientChannelAttention()
        >>> layer(keras.random.normal((2, 7, 5, 32))).shape
        (2, 7, 5, 32)
        >>> layer.count_params()
        3

    Reference:
        Wang et al. 2019, sec. 3.2 and eq. 12, https://arxiv.org/abs/1910.03151; k is rounded as in
        the authors' code. Masks and maps other than images are ours.
    """

    def __init__(
        self,
        kernel_size=None,
        *,
        gamma=2.0,
        b=1.0,
        data_format=None,
        kernel_initializer="glorot_uniform",
        kernel_regularizer=None,
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        arguments.check_optional_integers(1, kernel_size=kernel_size)
        if kernel_size is not None and kernel_size % 2 == 0:
            raise arguments.error("`kernel_size` must be odd", kernel_size=kernel_size)
        arguments.check_positive(gamma=gamma)
        arguments.check_rates(b=b)
        self.kernel_size = kernel_size
        self.gamma = gamma
        self.b = b
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)

    def build(self, x_shape):
        self._axes = self.axes_of(x_shape)
        size = self.kernel_size
        if size is None:
            size = int((math.log2(max(self._axes.channels, 1)) + self.b) / self.gamma)
            size += size % 2 == 0
        self._convolution = keras.layers.Conv1D(
            1,
            size,
            padding="same",
            data_format="channels_last",
            use_bias=False,
            kernel_initializer=self.kernel_initializer,
            kernel_regularizer=self.kernel_regularizer,
            dtype=self.dtype_policy,
            name="convolution",
        )
        self._convolution.build((None, self._axes.channels, 1))
        self.built = True

    def call(self, x, mask=None):
        x, padding = self._axes.read(x, mask)
        z = ops.cast(self._axes.mean(x, padding), self.compute_dtype)  # (B, C)
        gate = ops.sigmoid(self._convolution(z[..., None])[..., 0])
        return x * self._axes.of_channels(gate)

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "gamma": self.gamma,
            "b": self.b,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
        }
