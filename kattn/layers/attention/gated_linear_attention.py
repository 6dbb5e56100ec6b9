"""Linear attention whose state decays, by a gate (Yang et al., 2023) or at fixed rates."""

import math

import keras
from keras import ops

from kattn.layers.attention import linear_parts, projections, schemes
from kattn.layers.attention.mask_reader import MaskReader, padding_of
from kattn.ops import chunks
from kattn.ops.cache import next_positions
from kattn.ops.gated_linear import (
    decode_gated_linear_attention,
    gated_linear_attention,
    initial_gated_linear_state,
)

DECAYS = ("gated", "fixed")
# Of the variance of a head's output, which is normalised in float32.
EPSILON = 1e-6
ARGUMENTS = (
    "num_heads",
    "key_dim",
    "value_dim",
    "decay",
    "gate_rank",
    "temperature",
    "use_bias",
    "implementation",
)


@keras.saving.register_keras_serializable("kattn")
class GatedLinearAttention(keras.layers.Layer):
    """(swish(x W_r + b_r) * norm(S_t^T q_t)) W_o, where S_t = diag(a_t) S_{t-1} + k_t v_t^T.

    Causal, and not normalised by a sum of weights: each head's output is normalised over its
    channels. Time and memory are O(T), and a step of decoding is O(1).

    Shapes: B batch, T steps, C width, N heads, D and Dv head widths.

    Args:
        num_heads: N.
        key_dim: D; None for C / N, which then must be whole.
        value_dim: Dv, at least 2; None for D.
        decay: "gated", a_t = sigmoid(x W_1 W_2 + b)^(1 / temperature), one for each of the N D
            channels of the keys; "fixed", 1 - 2^(-5 - n) for head n = 0, 1, ...: retention.
        position: A position layer of the inputs, or of queries and keys, such as
            `RotaryEmbedding()`. None for none.
        gate_rank: Columns of W_1.
        temperature: Positive; the larger, the slower the decay.
        use_bias: Whether queries, keys and values, the gates and the output have a bias.
        implementation: "parallel", all pairs of steps at once; "chunked"; or "auto". Results agree.
        kernel_initializer: Of each projection on its own, though stored as one matrix.
        bias_initializer: Of the biases.
        kernel_regularizer: Of the projection matrices.
        bias_regularizer: Of the biases.
        **kwargs: `name`, `dtype`, `trainable`, as for any Keras layer.

    Call args:
        x: `(B, T, C)` float.
        mask: `(B, T)` bool, True = real step; False = padding, which leaves the state as it is. It
            is combined with the Keras mask of `x`, which means the same.
        positions: `(T,)` or `(B, T)` int32 for `position`; None for 0 to T - 1, counted from the
            first real step.

    Returns:
        `(B, T, C)`; at padding steps it is the output bias. The Keras mask of `x` is set on it.

    Raises:
        ValueError: For arguments out of range; when built, if C is not divisible by `num_heads`
            while `key_dim` is None, or Dv is 1; when called, if `x` or `mask` has a wrong rank or
            dtype.

    Example:
        >>> layer = kattn.layers.GatedLinearAttention(8, 8)
        >>> layer(keras.random.normal((2, 1024, 64))).shape
        (2, 1024, 64)
        >>> y, cache = layer.decode(keras.random.normal((2, 1, 64)), layer.init_cache(2))

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
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.decay = decay
        self.position = linear_parts.read_position(position)
        self.gate_rank = gate_rank
        self.temperature = temperature
        self.use_bias = use_bias
        self.implementation = implementation
        linear_parts.set_initializers(
            self,
            kernel_initializer=kernel_initializer,
            bias_initializer=bias_initializer,
            kernel_regularizer=kernel_regularizer,
            bias_regularizer=bias_regularizer,
        )
        self._check()
        self._mask_reader = MaskReader(name="mask_reader", dtype=self.dtype_policy)

    def build(self, x_shape):
        projections.check_rank("x", x_shape)
        width = x_shape[-1]
        heads, _, self._key_dim, value_dim = projections.sizes(self, width)
        _check_value_dim(value_dim)
        self._sizes = (heads * self._key_dim, heads * self._key_dim, heads * value_dim)
        self._qkv = projections.dense(self, self._sizes, "qkv", width)
        self._gate = projections.dense(self, (heads * value_dim,), "gate", width)
        self._output = projections.dense(self, (width,), "output", heads * value_dim)
        if self.decay == "gated":
            self._decay_down = keras.layers.Dense(
                self.gate_rank,
                use_bias=False,
                kernel_initializer=self.kernel_initializer,
                kernel_regularizer=self.kernel_regularizer,
                dtype=self.dtype_policy,
                name="decay_down",
            )
            self._decay_down.build((None, width))
            sizes = (heads * self._key_dim,)
            self._decay_up = projections.dense(self, sizes, "decay_up", self.gate_rank)
        # Weights rather than a sub-layer, which would be given the sums in half precision.
        options = {"shape": (value_dim,), "autocast": False}
        self._scale = self.add_weight(initializer="ones", name="norm_scale", **options)
        self._shift = self.add_weight(initializer="zeros", name="norm_shift", **options)
        linear_parts.attach(self, width, key_dim=self._key_dim)
        self.built = True

    def call(self, x, mask=None, positions=None):
        padding = linear_parts.read_padding(self, x, mask, called=True)
        # Channels that decay apart do not turn as one: the state depends on where it began.
        shifts_matter = self.decay == "gated"
        positions = schemes.step_positions(
            self.position, positions, padding, None, shifts_matter=shifts_matter
        )
        x = linear_parts.embed(self, x, positions)
        q, k, v, log_decay = self._project(x, positions)
        y = gated_linear_attention(
            q, k, v, log_decay, mask=padding, implementation=self.implementation
        )
        return self._finish(x, y, padding)

    def init_cache(self, batch_size, length=None):
        """The state before the first step.

        Args:
            batch_size: B.
            length: Ignored: the state has one size for any number of steps. Layers that keep keys
                need it, and a model of both kinds makes all its caches alike.

        Returns:
            A `kattn.ops.GatedLinearState`.

        Raises:
            ValueError: If `key_dim` is None and the layer is not built.
        """
        key_dim = linear_parts.key_dim_of(self)
        value_dim = self.value_dim or key_dim
        return initial_gated_linear_state(batch_size, self.num_heads, key_dim, value_dim)

    def decode(self, x, cache, mask=None):
        """The call on new steps, which go on from the state of the steps before.

        Args:
            x: `(B, t, C)` float, any number of new steps.
            cache: The state of the steps before, of `init_cache` or of the last `decode`.
            mask: `(B, t)` bool, True = real step; padding leaves the state as it is.

        Returns:
            `(B, t, C)`, and the new cache.

        Raises:
            ValueError: Where the call would.
        """
        if not self.built:
            self.build(x.shape)
        padding = linear_parts.read_padding(self, x, mask, called=False)  # a cast drops a mask
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        positions = next_positions(cache, x.shape[1], padding)
        x = linear_parts.embed(self, x, positions)
        q, k, v, log_decay = self._project(x, positions)
        options = {"mask": padding, "implementation": self.implementation}
        y, cache = decode_gated_linear_attention(q, k, v, log_decay, cache, **options)
        return self._finish(x, y, padding), cache

    def compute_mask(self, x, previous_mask):
        return padding_of(previous_mask)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        fields = linear_parts.config(self, *ARGUMENTS)
        return {**super().get_config(), **fields, "position": schemes.write(self.position)}

    @property
    def num_key_value_heads(self):
        """N: each head has a state of its own."""
        return self.num_heads

    def _check(self):
        linear_parts.check_integers(self, "num_heads", "key_dim", "value_dim", "gate_rank")
        linear_parts.check_choice(self, "decay", DECAYS)
        linear_parts.check_choice(self, "implementation", chunks.IMPLEMENTATIONS)
        if not self.temperature > 0.0:
            raise ValueError(
                f"`temperature` must be positive; received: temperature={self.temperature}"
            )

    def _project(self, x, positions):
        """Queries in float32, as the sums over steps are to stay; keys, values, log decays."""
        parts = projections.split(self._qkv(x), self._sizes)
        q, k, v = (projections.split_heads(part, self.num_heads) for part in parts)
        q = ops.cast(q, "float32") * self._key_dim**-0.5
        if self.position is not None:
            q, k = (schemes.rotate(self.position, part, positions) for part in (q, k))
        return q, k, v, self._log_decay(x)

    def _log_decay(self, x):
        """`(B, T, N, D)`, or `(N,)`."""
        if self.decay == "fixed":
            rates = [math.log1p(-(2.0 ** (-5 - n))) for n in range(self.num_heads)]
            return ops.convert_to_tensor(rates, dtype="float32")
        z = ops.cast(self._decay_up(self._decay_down(x)), "float32")
        return projections.split_heads(ops.log_sigmoid(z) / self.temperature, self.num_heads)

    def _finish(self, x, y, padding):
        """Norm, gate and output of y, `(B, T, N, Dv)` float32."""
        y = y - ops.mean(y, axis=-1, keepdims=True)
        y = y * ops.rsqrt(ops.mean(y * y, axis=-1, keepdims=True) + EPSILON)
        y = y * ops.convert_to_tensor(self._scale) + ops.convert_to_tensor(self._shift)
        y = ops.reshape(y, (*ops.shape(x)[:2], self._output.kernel.shape[0]))
        y = ops.cast(y, self.compute_dtype) * ops.silu(self._gate(x))
        return self._output(projections.silence(y, padding))


def _check_value_dim(value_dim):
    if value_dim < 2:
        raise ValueError(
            "`value_dim` must be at least 2, for a head's output is normalised over it; "
            f"received: value_dim={value_dim}"
        )
