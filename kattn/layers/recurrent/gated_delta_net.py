"""The delta rule with a gate, as a layer (Yang et al., 2024)."""

import functools
import math

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.attention_layer import check_sequence
from kattn.layers.attention.caches import check_decodes
from kattn.layers.attention.head_sizes import HeadSizes, check_heads, merge_heads, split_channels
from kattn.layers.attention.mask_reader import read_padded, read_padding, silence
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.layers.recurrent.causal_depthwise_conv1d import CausalDepthwiseConv1D
from kattn.ops import chunks
from kattn.ops.delta_rule import decode_gated_delta_rule, gated_delta_rule
from kattn.ops.gated_linear import initial_gated_linear_state

EPSILON = 1e-6  # added to the mean square of a head's output, and to the square of a key's length
FASTEST = 16.0  # most of what the rates of decay are drawn from, of at least 1
STEPS = 1e-3, 1e-1  # between which the factors of the rates lie at the start
ARGUMENTS = ("num_heads", "key_dim", "value_dim", "kernel_size", "implementation")


@keras.saving.register_keras_serializable("kattn")
class GatedDeltaNet(QuantizableLayer):
    """Attention by a corrected state: S_t = a_t S_{t-1} + b_t k_t (v_t - a_t S_{t-1}^T k_t)^T.

    Before a value goes in, what the state already holds under its key is taken out: so the state
    is a memory that can be overwritten, where that of linear attention can only be added to. Each
    head's output S_t^T q_t is normalised, and multiplied by swish(x W_g). Queries, keys and values
    pass a short causal convolution and a swish first; queries and keys are brought to length 1.
    b_t = sigmoid(x W_b), and a_t = exp(-exp(A) softplus(x W_a + c)), one number for each head.
    Causal; time and memory are O(T), and a step of decoding is O(1).

    Shapes: B batch, T steps, C width, N heads, D and Dv head widths.

    Args:
        num_heads: Number of heads, N.
        key_dim: Width of the queries and keys of one head, D. None for the width of the input
            divided by the number of heads, C / N, which must then be whole.
        value_dim: Width of the values of one head, Dv. None for `key_dim`.
        kernel_size: Number of steps that the convolution sees, its own included.
        use_bias: Whether the convolution, and the projections but for those of a and b, have
            biases.
        implementation: Name of the algorithm: "parallel" takes all pairs of steps at once,
            "chunked" goes through the sequence chunk by chunk, "auto" chooses. All give the same
            result.
        kernel_initializer: Initializer of the projection matrices. Each projection is initialised
            on its own, though they are stored as one matrix.
        bias_initializer: Initializer of the biases of the projections.
        kernel_regularizer: Regularizer of the projection matrices, or None.
        bias_regularizer: Regularizer of the biases of the projections, or None.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Padding, bool, shape `(B, T)`, True = real step; False = padding, which leaves the
            state as it is. It is combined with the Keras mask of `x`.

    Returns:
        `(B, T, C)`; at padding steps it is the output bias. The padding of `x` is the Keras mask of
        the output.

    Raises:
        ValueError: If an argument is out of range; when built, if C is not divisible by
            `num_heads` while `key_dim` is None; when called, if `x` or `mask` has a wrong rank or
            dtype.

    Example:
        >>> layer = kattn.layers.GatedDeltaNet(4)
        >>> layer(keras.random.normal((2, 1024, 64))).shape
        (2, 1024, 64)
        >>> cache = layer.init_cache(batch_size=2, length=1024)
        >>> y, cache = layer.decode(keras.random.normal((2, 1, 64)), cache)

    Reference:
        Yang et al. 2024, eq. 10 and sec. 3.4, https://arxiv.org/abs/2412.06464. The decay, and what
        A and c start at, are those of Mamba-2: Dao and Gu 2024, https://arxiv.org/abs/2405.21060.
        Other than there: projections and the convolution may have biases, and D and Dv are N heads'
        shares of C by default.
    """

    def __init__(
        self,
        num_heads,
        key_dim=None,
        *,
        value_dim=None,
        kernel_size=4,
        use_bias=True,
        implementation="auto",
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        check_heads(num_heads, key_dim, value_dim)
        arguments.check_integers(1, kernel_size=kernel_size)
        arguments.check_choice(chunks.IMPLEMENTATIONS, implementation=implementation)
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.kernel_size = kernel_size
        self.implementation = implementation
        self._projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )

    def build(self, x_shape):
        check_sequence("x", x_shape)
        width = x_shape[-1]
        dense = functools.partial(self._projections.dense, dtype=self.dtype_policy)
        self.head_sizes = sizes = HeadSizes.of(self, width)
        parts = sizes.query_width, sizes.key_width, sizes.value_width
        self._qkv = dense("qkv", width, *parts)
        self._gate = dense("gate", width, sizes.output_width)
        self._output = dense("output", sizes.output_width, width)
        self._rates = dense("rates", width, self.num_heads, self.num_heads, use_bias=False)
        self._convolution = CausalDepthwiseConv1D(
            self.kernel_size,
            activation="silu",
            use_bias=self._projections.use_bias,
            dtype=self.dtype_policy,
            name="convolution",
        )
        self._convolution.build((*x_shape[:-1], sum(parts)))
        heads = {"shape": (self.num_heads,), "autocast": False}
        self._speed = self.add_weight(name="speed", initializer=_speeds, **heads)
        self._shift = self.add_weight(name="shift", initializer=_shifts, **heads)
        options = {"shape": (sizes.value_dim,), "autocast": False}
        self._scale = self.add_weight(initializer="ones", name="norm_scale", **options)
        self.built = True

    def call(self, x, mask=None):
        x, padding = read_padded(x, mask)
        flat = self._convolution(self._qkv(x), mask=padding)
        q, k, v = self._heads(flat)  # (B, T, N, D), the last (B, T, N, Dv)
        log_decay, rate = self._decays(x)
        options = {"mask": padding, "implementation": self.implementation}
        y = gated_delta_rule(q, k, v, log_decay, rate, **options)  # (B, T, N, Dv)
        return self._finish(x, y, padding)

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """The state before the first step, for `decode`.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most. The state has one size for any.
            context: Must be None: the layer reads its own sequence.
            context_mask: Must be None, as there is no context.

        Returns:
            A tuple of the state of the convolution and a `kattn.ops.GatedLinearState`.

        Raises:
            ValueError: If the layer is not built, if a size is not an integer >= 1, or if there is
                a context.
        """
        check_decodes(self, batch_size, length, context, context_mask)
        sizes = self.head_sizes
        state = initial_gated_linear_state(batch_size, sizes.heads, sizes.key_dim, sizes.value_dim)
        return self._convolution.init_cache(batch_size, length), state

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
            `(y, cache)`: the output, shape `(B, t, C)`, which is the output bias at padding; and
            the state after these steps.

        Raises:
            ValueError: If `mask` is of another kind, or shapes do not fit.
        """
        before, state = cache
        x, padding = read_padded(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        flat, before = self._convolution.decode(self._qkv(x), before, mask=padding)
        options = {"mask": padding, "implementation": self.implementation}
        q, k, v = self._heads(flat)  # (B, t, N, D), the last (B, t, N, Dv)
        log_decay, rate = self._decays(x)
        y, state = decode_gated_delta_rule(q, k, v, log_decay, rate, state, **options)
        return self._finish(x, y, padding), (before, state)

    def compute_mask(self, x, previous_mask):
        return read_padding(x, previous_mask)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ARGUMENTS},
            **self._projections.get_config(),
        }

    def _heads(self, flat):
        """Queries and keys of length 1, and values; in float32, as the sums are to stay."""
        q, k, v = self.head_sizes.split_qkv(ops.cast(flat, "float32"))
        return _unit(q) * self.head_sizes.key_dim**-0.5, _unit(k), v

    def _decays(self, x):
        """The log decays and the rates of correction, `(B, T, N)`."""
        b, a = split_channels(ops.cast(self._rates(x), "float32"), [self.num_heads] * 2)
        speed, shift = (ops.cast(w, "float32") for w in (self._speed, self._shift))
        return -ops.exp(speed) * ops.softplus(a + shift), ops.sigmoid(b)

    def _finish(self, x, mixed, padding):
        """Norm, gate and output of what was read from the states, `(B, T, N, Dv)` float32."""
        y = mixed * ops.rsqrt(ops.mean(mixed * mixed, axis=-1, keepdims=True) + EPSILON)
        y = y * ops.cast(self._scale, "float32")
        y = ops.cast(merge_heads(y), self.compute_dtype) * ops.silu(self._gate(x))
        return self._output(silence(y, padding))  # (B, T, C)


def _unit(x):
    return x * ops.rsqrt(ops.sum(x * x, axis=-1, keepdims=True) + EPSILON)


def _speeds(shape, dtype=None):
    """A, as in Mamba-2: the logarithms of rates between 1 and 16."""
    return ops.log(keras.initializers.RandomUniform(1.0, FASTEST)(shape, dtype=dtype))


def _shifts(shape, dtype=None):
    """The c for which softplus(c) is spread evenly over the logarithms between `STEPS`."""
    low, high = (math.log(step) for step in STEPS)
    step = ops.exp(keras.initializers.RandomUniform(low, high)(shape, dtype=dtype))
    return ops.log(ops.expm1(step))
