"""The network that moves the points of deformable attention (Xia et al., 2022)."""

import keras
from keras import ops

from kattn.layers.initializers import numbered


class PointOffsets(keras.layers.Layer):
    """tanh(W GELU(LN(depthwise(q)))): a number in (-1, 1) for each side and window of an image.

    Args:
        stride: Number of cells a side of a window.
        kernel_size: Number of cells a side that the depthwise convolution reads.
        options: `ProjectionOptions` of the layer that has the points.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.
    """

    def __init__(self, stride, kernel_size, options, **kwargs):
        super().__init__(**kwargs)
        self.stride = stride
        self.kernel_size = kernel_size
        self.options = options

    def build(self, q_shape):
        options, policy = self.options, self.dtype_policy
        self._convolution = keras.layers.DepthwiseConv2D(
            self.kernel_size,
            self.stride,
            padding="same",
            data_format="channels_last",
            use_bias=options.use_bias,
            depthwise_initializer=numbered(options.kernel_initializer, 1),
            bias_initializer=numbered(options.bias_initializer, 0),
            depthwise_regularizer=options.kernel_regularizer,
            bias_regularizer=options.bias_regularizer,
            dtype=policy,
            name="convolution",
        )
        self._convolution.build(q_shape)
        self._norm = keras.layers.LayerNormalization(epsilon=1e-5, dtype=policy, name="norm")
        self._norm.build(q_shape)
        self._output = options.dense("offset", q_shape[-1], 2, dtype=policy, use_bias=False)
        self.built = True

    def call(self, q):
        """`(B, H, W, c)` to `(B, ceil(H / stride), ceil(W / stride), 2)`, float32."""
        hidden = self._norm(self._convolution(q))
        offsets = self._output(ops.gelu(hidden, approximate=False))
        return ops.tanh(ops.cast(offsets, "float32"))

    def compute_output_shape(self, q_shape):
        batch, *sides, _ = q_shape
        windows = (None if n is None else -(-n // self.stride) for n in sides)
        return (batch, *windows, 2)
