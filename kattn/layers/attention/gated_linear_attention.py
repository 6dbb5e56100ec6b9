"""Linear attention whose state decays, by a gate (Yang et al., 2023) or at fixed rates."""

import functools
import math

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.attention_layer import check_sequence
from kattn.layers.attention.caches import check_decodes
from kattn.layers.attention.head_sizes import HeadSizes, check_heads, merge_heads
from kattn.layers.attention.mask_reader import read_padded, read_padding, silence
from kattn.layers.attention.positions import (
    attach,
    embed,
    read_position,
    rotate,
    step_positions,
)
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.layers.nested_layers import layer_config
from kattn.ops import chunks
from kattn.ops.cache import next_positions
from kattn.ops.gated_linear import (
    decode_gated_linear_attention,
    gated_linear_attention,
    initial_gated_linear_state,
)

DECAYS = ("gated", "fixed")
# Added to the variance of a head's output, which is normalised in float32.
EPSILON = 1e-6
ARGUMENTS = (
    "num_heads",
    "key_dim",
    "value_dim",
    "decay",
    "gate_rank",
    "temperature",
    "implementation",
)


@keras.saving.register_keras_serializable("kattn")
class GatedLinearAttention(QuantizableLayer):
    """(swish(x W_r + b_r) * norm(S_t^T q_t)) W_o, where S_t = diag(a_t) S_{t-1} + k_t v_t^T.

    Causal, and not normalised by a sum of weights: each head's output is normalised over its
    channels. Time and memory are O(T), and a step of decoding is O(1).

    Shapes: B batch, T steps, C width, N heads, D and Dv head widths.

    Args:
        num_heads: Number of attention heads, N.
        key_dim: Width of the queries and keys of one head, D. None for the width of the input
            divided by the number of heads, C / N, which must then be whole.
        value_dim: Width of the values of one head, Dv, at least 2. None for `key_dim`.
        decay: How the state decays: "gated" by a_t = sigmoid(x W_1 W_2 + b)^(1 / temperature), one
            number for each of the N D channels of the keys; "fixed" by 1 - 2^(-5 - n) for head
            n = 0, 1, ..., which is retention.
        position: Position layer that is added to the inputs, or one that turns queries and keys,
            such as `RotaryEmbedding()`. None for no positions.
        gate_rank: Number of columns of W_1.
        temperature: Positive number; the larger it is, the slower the state decays.
        use_bias: Whether queries, keys and values, the gates and the output have a bias.
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
        mask: Padding, bool, shape `(B, T)`, True = real step; False = padding, which leaves
            the state as it is. It is combined with the Keras mask of `x`.
        positions: Positions of the steps for `position`, integers, shape `(T,)` or `(B, T)`. None
            to count from 0 at the first real step.

    Returns:
        `(B, T, C)`; at padding steps it is the output bias. The padding of `x`, by its Keras mask
        and by `mask`, is the Keras mask of the output.

    Raises:
        ValueError: If an argument is out of range; when built, if C is not divisible by
            `num_heads` while `key_dim` is None, or Dv is 1; when called, if `x` or `mask` has a
            wrong rank or dtype.

    Example:
        >>> layer = kattn.layers.GatedLinearAttention(8, 8)
        >>> layer(keras.random.normal((2, 1024, 64))).shape
        (2, 1024, 64)
        >>> cache = layer.init_cache(batch_size=2, length=1024)
        >>> y, cache = layer.decode(keras.random.normal((2, 1, 64)), cache)

    Reference:
        "gated": Yang et al. 2023, sec. 4.4, https://arxiv.org/abs/2312.06635. From the paper: the
        decay, its rank 16 and temperature 16, the layer norm of each head, the swish gate. Other
        than there: queries are divided by sqrt(D), which the norm takes out again but for its
        epsilon; queries, keys, values and output may have biases; D and Dv are N heads' shares of C
        by default, where they take half of that for D.
        "fixed": Sun et al. 2023, eq. 5 to 8, https://arxiv.org/abs/2307.08621. From the paper: the
        decay, the norm of each head, the swish gate. Other than there: queries and keys are
        rotated only if `position` says so, and then without xPos's decay; the norm's scales and
        shifts are shared by the heads; Dv is not 2 D by default.
    """

    def __init__(
        self,
        num_heads,
        key_dim=None,
        *,
        value_dim=None,
        decay="gated",
        position=None,
        gate_rank=16,
        temperature=16.0,
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
        arguments.check_choice(DECAYS, decay=decay)
        arguments.check_integers(1, gate_rank=gate_rank)
        arguments.check_positive(temperature=temperature)
        arguments.check_choice(chunks.IMPLEMENTATIONS, implementation=implementation)
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.decay = decay
        self.position = read_position(position, scores=False)
        self.gate_rank = gate_rank
        self.temperature = temperature
        self.implementation = implementation
        self._projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )

    def build(self, x_shape):
        check_sequence("x", x_shape)
        width = x_shape[-1]
        dense = functools.partial(self._projections.dense, dtype=self.dtype_policy)
        self.head_sizes = sizes = HeadSizes.of(self, width)
        arguments.check_integers(2, value_dim=sizes.value_dim)  # its heads are normalised over it
        self._qkv = dense("qkv", width, sizes.query_width, sizes.key_width, sizes.value_width)
        self._gate = dense("gate", width, sizes.output_width)
        self._output = dense("output", sizes.output_width, width)
        if self.decay == "gated":
            self._decay_down = dense("decay_down", width, self.gate_rank, use_bias=False)
            self._decay_up = dense("decay_up", self.gate_rank, sizes.query_width)
        # Weights rather than a sub-layer, which would be given the sums in half precision.
        options = {"shape": (sizes.value_dim,), "autocast": False}
        self._scale = self.add_weight(initializer="ones", name="norm_scale", **options)
        self._shift = self.add_weight(initializer="zeros", name="norm_shift", **options)
        attach(self.position, width, sizes)
        self.built = True

    def call(self, x, mask=None, positions=None):
        x, padding = read_padded(x, mask)
        # Channels that decay apart do not turn as one: the state depends on where it began.
        shifts_matter = self.decay == "gated"
        positions = step_positions(self.position, positions, padding, shifts_matter=shifts_matter)
        x = embed(self.position, x, positions)  # (B, T, C)
        q, k, v, log_decay = self._project(x, positions)
        options = {"mask": padding, "implementation": self.implementation}
        y = gated_linear_attention(q, k, v, log_decay, **options)  # (B, T, N, Dv)
        return self._finish(x, y, padding)

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """The state before the first step, for `decode`.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most. The state has one size for any.
            context: Must be None: the layer attends to its own sequence.
            context_mask: Must be None, as there is no context.

        Returns:
            A `kattn.ops.GatedLinearState`.

        Raises:
            ValueError: If the layer is not built, if a size is not an integer >= 1, or if there is
                a context.
        """
        check_decodes(self, batch_size, length, context, context_mask)
        sizes = self.head_sizes
        return initial_gated_linear_state(batch_size, sizes.heads, sizes.key_dim, sizes.value_dim)

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
        x, padding = read_padded(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        positions = next_positions(cache, x.shape[1], padding)
        x = embed(self.position, x, positions)  # (B, t, C)
        q, k, v, log_decay = self._project(x, positions)
        options = {"mask": padding, "implementation": self.implementation}
        y, cache = decode_gated_linear_attention(q, k, v, log_decay, cache, **options)
        return self._finish(x, y, padding), cache

    def compute_mask(self, x, previous_mask):
        return read_padding(x, previous_mask)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ARGUMENTS},
            **self._projections.get_config(),
            "position": layer_config(self.position),
        }

    def _project(self, x, positions):
        """Queries in float32, as the sums over steps are to stay; keys, values, log decays."""
        q, k, v = self.head_sizes.split_qkv(self._qkv(x))
        q = ops.cast(q, "float32") * self.head_sizes.key_dim**-0.5
        q, k = rotate(self.position, q, positions), rotate(self.position, k, positions)
        return q, k, v, self._log_decay(x)

    def _log_decay(self, x):
        """`(B, T, N, D)`, or `(N,)`."""
        if self.decay == "fixed":
            rates = [math.log1p(-(2.0 ** (-5 - n))) for n in range(self.num_heads)]
            return ops.convert_to_tensor(rates, dtype="float32")
        z = ops.cast(self._decay_up(self._decay_down(x)), "float32")
        return self.head_sizes.split_query(ops.log_sigmoid(z) / self.temperature)

    def _finish(self, x, mixed, padding):
        """Norm, gate and output of the mixed values, `(B, T, N, Dv)` float32."""
        y = mixed - ops.mean(mixed, axis=-1, keepdims=True)
        y = y * ops.rsqrt(ops.mean(y * y, axis=-1, keepdims=True) + EPSILON)
        y = y * ops.cast(self._scale, "float32") + ops.cast(self._shift, "float32")
        y = ops.cast(merge_heads(y), self.compute_dtype) * ops.silu(self._gate(x))
        return self._output(silence(y, padding))  # (B, T, C)
