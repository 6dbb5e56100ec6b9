"""A learned gain for each channel of a residual branch (Touvron et al., 2021)."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.rematerialized_layer import RematerializedLayer


@keras.saving.register_keras_serializable("kattn")
class LayerScale(RematerializedLayer):
    """x times a learned vector, which starts near 0.

    It stands at the end of a residual branch, so that a deep network starts near the identity.

    Args:
        init_value: Number that every gain starts at. The paper takes 0.1 for networks of up to 18
            blocks, 1e-5 up to 24, and 1e-6 above.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Output of a branch, float, shape `(B, ..., C)`.

    Returns:
        A tensor of the shape of `x`. The Keras mask of `x` is that of the output.

    Raises:
        ValueError: If `init_value` is not a finite number above 0; when built, if the width of `x`
            is not known.

    Example:
        >>> layer = kattn.layers.LayerScale(0.1)
        >>> layer(keras.ops.ones((1, 3)))
        [[0.1, 0.1, 0.1]]

    Reference:
        Touvron et al. 2021, eq. 4, https://arxiv.org/abs/2103.17239
    """

    acts_on_each_step = True  # so that generation knows that a call decodes new steps

    def __init__(self, init_value=1e-5, **kwargs):
        super().__init__(**kwargs)
        self.supports_masking = True
        arguments.check_positive(init_value=init_value)
        self.init_value = init_value

    def build(self, x_shape):
        if x_shape[-1] is None:
            raise ValueError(
                f"`x` must have a known width, its last axis; received: x.shape={tuple(x_shape)}"
            )
        initializer = keras.initializers.Constant(self.init_value)
        self._scale = self.add_weight(name="scale", shape=(x_shape[-1],), initializer=initializer)
        self.built = True

    def call(self, x):
        return x * ops.convert_to_tensor(self._scale, x.dtype)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {**super().get_config(), "init_value": self.init_value}
