"""The recurrent half of Griffin (De et al., 2024): an RG-LRU behind a short convolution."""

import functools

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.attention_layer import check_sequence
from kattn.layers.attention.caches import check_decodes
from kattn.layers.attention.mask_reader import read_padded, read_padding
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.layers.recurrent.causal_depthwise_conv1d import CausalDepthwiseConv1D
from kattn.layers.recurrent.rglru import RGLRU


@keras.saving.register_keras_serializable("kattn")
class GriffinRecurrence(QuantizableLayer):
    """(RGLRU(conv(x W_x)) * gelu(x W_y)) W_o: what mixes steps in a recurrent block of Griffin.

    It has the calls of a causal attention layer, and may stand in the place of one, as in
    `TransformerEncoderBlock(GriffinRecurrence(8))`. Time and memory are O(T), and a step of
    decoding is O(1).

    Shapes: B batch, T steps, C width.

    Args:
        num_heads: Number of blocks of the gates of the RG-LRU, which must divide `units`.
        units: Number of channels of the recurrence. None for the width of the input, C.
        kernel_size: Number of steps that the convolution sees, its own included.
        use_bias: Whether the projections, the convolution and the gates of the RG-LRU have biases.
        implementation: How the recurrence is computed: "step", "chunked", "associative" or "auto",
            see `kattn.ops.linear_recurrence`. All give the same result.
        kernel_initializer: Initializer of the projection matrices. Each projection is initialised
            on its own, though W_x and W_y are stored as one matrix.
        bias_initializer: Initializer of the biases of the projections.
        kernel_regularizer: Regularizer of the projection matrices, or None.
        bias_regularizer: Regularizer of the biases of the projections, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Padding, bool, shape `(B, T)`, True = real step; False = padding, which leaves the
            state as it is. It is combined with the Keras mask of `x`.

    Returns:
        `(B, T, C)`; at padding steps it means nothing. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range; when built, if `units`, or C in its place, is
            not divisible by `num_heads`; when called, if `x` or `mask` has a wrong rank or dtype.

    Example:
        >>> layer = kattn.layers.GriffinRecurrence(4, units=96)
        >>> layer(keras.random.normal((2, 128, 64))).shape
        (2, 128, 64)
        >>> cache = layer.init_cache(batch_size=2, length=128)
        >>> y, cache = layer.decode(keras.random.normal((2, 1, 64)), cache)

    Reference:
        De et al. 2024, sec. 2.3, https://arxiv.org/abs/2402.19427
    """

    def __init__(
        self,
        num_heads,
        units=None,
        *,
        kernel_size=4,
        use_bias=True,
        implementation="auto",
        kernel_initializer="lecun_normal",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        arguments.check_integers(1, num_heads=num_heads, kernel_size=kernel_size)
        arguments.check_optional_integers(1, units=units)
        self.num_heads = num_heads
        self.units = units
        self.kernel_size = kernel_size
        self._projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )
        self._recurrence = RGLRU(
            num_heads,
            implementation=implementation,
            use_bias=use_bias,
            dtype=self.dtype_policy,
            name="recurrence",
        )
        self._convolution = CausalDepthwiseConv1D(
            kernel_size, use_bias=use_bias, dtype=self.dtype_policy, name="convolution"
        )

    def build(self, x_shape):
        check_sequence("x", x_shape)
        width = x_shape[-1]
        units = self.units or width
        dense = functools.partial(self._projections.dense, dtype=self.dtype_policy)
        self._inputs = dense("inputs", width, units, units)
        self._output = dense("output", units, width)
        self._convolution.build((*x_shape[:-1], units))
        self._recurrence.build((*x_shape[:-1], units))
        self.built = True

    def call(self, x, mask=None):
        x, padding = read_padded(x, mask)
        h, gate = ops.split(self._inputs(x), 2, axis=-1)
        h = self._recurrence(self._convolution(h, mask=padding), mask=padding)
        return self._output(h * _gelu(gate))  # (B, T, C)

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """The state before the first step, for `decode`.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most. The state has one size for any.
            context: Must be None: the layer reads its own sequence.
            context_mask: Must be None, as there is no context.

        Returns:
            A tuple of the state of the convolution and a `kattn.ops.RecurrentState`.

        Raises:
            ValueError: If the layer is not built, if a size is not an integer >= 1, or if there is
                a context.
        """
        check_decodes(self, batch_size, length, context, context_mask)
        parts = self._convolution, self._recurrence
        return tuple(part.init_cache(batch_size, length) for part in parts)

    def decode(self, x, cache, mask=None):
        """The output for new steps of a sequence, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole sequence without its padding.

        Args:
            x: New steps, float, shape `(B, t, C)`, for any t.
            cache: State that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side, which leaves the state as it is. It is combined with the Keras mask
                of `x`.

        Returns:
            `(y, cache)`: the output, shape `(B, t, C)`, which means nothing at padding; and the
            state after these steps.

        Raises:
            ValueError: If `mask` is of another kind, or shapes do not fit.
        """
        before, state = cache
        x, padding = read_padded(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        h, gate = ops.split(self._inputs(x), 2, axis=-1)
        h, before = self._convolution.decode(h, before, mask=padding)
        h, state = self._recurrence.decode(h, state, mask=padding)
        return self._output(h * _gelu(gate)), (before, state)

    def compute_mask(self, x, previous_mask):
        return read_padding(x, previous_mask)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            **self._projections.get_config(),
            "num_heads": self.num_heads,
            "units": self.units,
            "kernel_size": self.kernel_size,
            "implementation": self._recurrence.implementation,
        }


def _gelu(x):
    return keras.activations.gelu(x, approximate=True)
