"""A gate for each channel of a map, from the mean of its cells (Hu et al., 2017)."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.spatial.map_layer import MapLayer


@keras.saving.register_keras_serializable("kattn")
class SqueezeExcite(MapLayer):
    """x * sigmoid(W_2 relu(W_1 z)), where z is the mean of the cells of the map x.

    Each channel of a map is multiplied by a number between 0 and 1, which the means of all channels
    decide. The map is a sequence, an image or a volume.

    Shapes: B batch, sides of the map (one, two or three), C channels, hidden width C // `ratio`.

    Args:
        ratio: Factor by which the hidden layer is narrower than the map. The hidden layer has
            C // `ratio` units, and at least 1.
        activation: Activation of the hidden layer, as Keras names it.
        gate_activation: Activation that makes the gates, as Keras names it. MobileNetV3 takes
            "hard_sigmoid".
        use_bias: Whether the two dense layers add a bias.
        data_format: `"channels_last"` or `"channels_first"`. None for Keras's default.
        kernel_initializer: Initializer of W_1 and W_2.
        bias_initializer: Initializer of the biases.
        kernel_regularizer: Regularizer of W_1 and W_2, or None.
        bias_regularizer: Regularizer of the biases, or None.
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
        >>> layer = kattn.layers.SqueezeExcite(ratio=4)
        >>> layer(keras.random.normal((2, 7, 5, 32))).shape
        (2, 7, 5, 32)

    Reference:
        Hu et al. 2017, eq. 2 to 4, https://arxiv.org/abs/1709.01507; the biases are those of the
        authors' code. Masks and maps other than images are ours.
    """

    def __init__(
        self,
        ratio=16,
        *,
        activation="relu",
        gate_activation="sigmoid",
        use_bias=True,
        data_format=None,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        arguments.check_integers(1, ratio=ratio)
        self.ratio = ratio
        self.activation = keras.activations.get(activation)
        self.gate_activation = keras.activations.get(gate_activation)
        self._projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )

    def build(self, x_shape):
        self._axes = self.axes_of(x_shape)
        channels, options = self._axes.channels, self._projections
        hidden = max(channels // self.ratio, 1)
        self._reduction = options.dense("reduction", channels, hidden, dtype=self.dtype_policy)
        self._expansion = options.dense("expansion", hidden, channels, dtype=self.dtype_policy)
        self.built = True

    def call(self, x, mask=None):
        x, padding = self._axes.read(x, mask)
        z = ops.cast(self._axes.mean(x, padding), self.compute_dtype)  # (B, C)
        hidden = self.activation(self._reduction(z))
        gate = self.gate_activation(self._expansion(hidden))
        return x * self._axes.of_channels(gate)

    def get_config(self):
        return {
            **super().get_config(),
            "ratio": self.ratio,
            "activation": keras.activations.serialize(self.activation),
            "gate_activation": keras.activations.serialize(self.gate_activation),
            **self._projections.get_config(),
        }
