"""A short causal convolution, channel by channel, that decodes step by step."""

from typing import Any, NamedTuple

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.attention_layer import check_sequence
from kattn.layers.attention.caches import check_decodes
from kattn.layers.attention.mask_reader import read_padded, read_padding
from kattn.layers.rematerialized_layer import RematerializedLayer
from kattn.ops.convolution import decode_causal_convolution


class ConvolutionState(NamedTuple):
    """What a causal convolution knows of the steps before, batch first.

    Args:
        before: The last K - 1 real steps, for a kernel of K, shape `(B, K - 1, C)`.
    """

    before: Any


@keras.saving.register_keras_serializable("kattn")
class CausalDepthwiseConv1D(RematerializedLayer):
    """f(sum_j w_j x_{t - K + j} + b) for j = 1 to K: each channel sees its own last K real steps.

    What `keras.layers.Conv1D(C, K, groups=C, padding="causal")` computes, and beside that it passes
    over padding, wherever it stands, and decodes.

    Shapes: B batch, T steps, C width.

    Args:
        kernel_size: Number of steps that an output sees, its own included, K.
        activation: Activation f, as Keras names it. None for none.
        use_bias: Whether a bias is added for each channel.
        kernel_initializer: Initializer of the weights w, `(K, C)`. None for uniform numbers between
            -1 / sqrt(K) and 1 / sqrt(K).
        bias_initializer: Initializer of the bias.
        kernel_regularizer: Regularizer of the weights w, or None.
        bias_regularizer: Regularizer of the bias, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Padding, bool, shape `(B, T)`, True = real step; False = padding, which is passed
            over: the steps around it are neighbours. It is combined with the Keras mask of `x`.

    Returns:
        `(B, T, C)`; at padding steps it is f(b). The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range; when called, if `x` or `mask` has a wrong rank
            or dtype.

    Example:
        >>> layer = kattn.layers.CausalDepthwiseConv1D(4, activation="silu")
        >>> layer(keras.random.normal((2, 9, 16))).shape
        (2, 9, 16)
        >>> cache = layer.init_cache(batch_size=2, length=9)
        >>> y, cache = layer.decode(keras.random.normal((2, 1, 16)), cache)

    Reference:
        In front of linear attention: Fu et al. 2022, sec. 3.1, https://arxiv.org/abs/2212.14052; of
        the RG-LRU: De et al. 2024, sec. 2.3, https://arxiv.org/abs/2402.19427
    """

    def __init__(
        self,
        kernel_size,
        *,
        activation=None,
        use_bias=True,
        kernel_initializer=None,
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        arguments.check_integers(1, kernel_size=kernel_size)
        if kernel_initializer is None:
            kernel_initializer = keras.initializers.VarianceScaling(1 / 3, "fan_in", "uniform")
        self.kernel_size = kernel_size
        self.activation = keras.activations.get(activation)
        self.use_bias = use_bias
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)

    def build(self, x_shape):
        check_sequence("x", x_shape)
        self._width = width = x_shape[-1]
        self._kernel = self.add_weight(
            name="kernel",
            shape=(self.kernel_size, width),
            initializer=self.kernel_initializer,
            regularizer=self.kernel_regularizer,
        )
        self._bias = None
        if self.use_bias:
            self._bias = self.add_weight(
                name="bias",
                shape=(width,),
                initializer=self.bias_initializer,
                regularizer=self.bias_regularizer,
            )
        self.built = True

    def call(self, x, mask=None):
        x, padding = read_padded(x, mask)
        before = ops.zeros((ops.shape(x)[0], self.kernel_size - 1, self._width), self.compute_dtype)
        return self._convolve(x, before, padding)[0]

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """The state before the first step, for `decode`.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most. The state has one size for any.
            context: Must be None: the layer reads its own sequence.
            context_mask: Must be None, as there is no context.

        Returns:
            A `ConvolutionState` of zeros.

        Raises:
            ValueError: If the layer is not built, if a size is not an integer >= 1, or if there is
                a context.
        """
        check_decodes(self, batch_size, length, context, context_mask)
        shape = (batch_size, self.kernel_size - 1, self._width)
        return ConvolutionState(ops.zeros(shape, self.compute_dtype))

    def decode(self, x, cache, mask=None):
        """The output for new steps of a sequence, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole sequence without its padding.

        Args:
            x: New steps, float, shape `(B, t, C)`, for any t.
            cache: State that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side, which is passed over. It is combined with the Keras mask of `x`.

        Returns:
            `(y, cache)`: the output, shape `(B, t, C)`; and the state after these steps.

        Raises:
            ValueError: If `mask` is of another kind, or shapes do not fit.
        """
        x, padding = read_padded(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        y, before = self._convolve(x, cache.before, padding)
        return y, ConvolutionState(before)

    def compute_mask(self, x, previous_mask):
        return read_padding(x, previous_mask)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "activation": keras.activations.serialize(self.activation),
            "use_bias": self.use_bias,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
        }

    def _convolve(self, x, before, padding):
        x = ops.convert_to_tensor(x)
        kernel = ops.cast(self._kernel, x.dtype)  # in `decode` Keras does not cast it
        y, before = decode_causal_convolution(x, kernel, before, mask=padding)
        if self._bias is not None:
            y = y + ops.cast(self._bias, y.dtype)
        return self.activation(y), before
