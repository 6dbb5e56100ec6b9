"""Self-attention with one fused projection (Vaswani et al., 2017)."""

import keras
from keras import ops

from kattn import masks
from kattn.layers.attention import projections
from kattn.layers.attention.mask_reader import MaskReader, padding_of, score_mask
from kattn.ops import masking
from kattn.ops.attention import attention, attention_weights


@keras.saving.register_keras_serializable("kattn")
class SelfAttention(keras.layers.Layer):
    """softmax(Q K^T / sqrt(D)) V in `num_heads` subspaces of one sequence.

    Q, K and V come from one matrix product. Causal and windowed attention visit only the keys
    they can see.

    Shapes: B batch, T steps, C width, N heads, K key/value heads, D and Dv head widths.

    Args:
        num_heads: N.
        key_dim: D; None for C / N, which then must be whole.
        value_dim: Dv; None for D.
        num_key_value_heads: K, a divisor of N: each serves N / K query heads (grouped-query
            attention; 1 is multi-query). None for N.
        causal: If True, step t attends to steps <= t only.
        window: If W, step t attends to itself and the W - 1 steps before it, and, if not
            causal, the W - 1 after it. None for no limit.
        qk_norm: If True, queries and keys pass an RMS norm over D with learned scales.
        softcap: If c, the scores s become c * tanh(s / c).
        gate: If True, each head's output is multiplied by sigmoid(x W_g + b_g), per channel.
        dropout: Fraction of attention weights dropped in training, in [0, 1).
        use_bias: Whether the projections add a bias.
        kernel: Which algorithm computes it: "auto" or a name `kattn.ops.attention` knows.
        kernel_initializer: Of each projection on its own, though stored as one matrix.
        bias_initializer: Of the biases.
        kernel_regularizer: Of the projection matrices.
        bias_regularizer: Of the biases.
        seed: Integer seed of the dropout.
        **kwargs: `name`, `dtype`, `trainable`, as for any Keras layer.

    Call args:
        x: `(B, T, C)` float.
        mask: True = may attend. `(B, T)` bool padding, True = real step; or `(B, T, T)` or
            `(B, N, T, T)` bool, query by key; or a `kattn.masks.Mask`. It is combined with the
            Keras mask of `x`, which is of the first kind and means the same.
        training: Whether dropout applies.

    Returns:
        `(B, T, C)`; at padding steps it is the output bias. A `(B, T)` mask is set on it.

    Raises:
        ValueError: For arguments out of range; when built, if C is not divisible by `num_heads`
            while `key_dim` is None; when called, if `x` or `mask` has a wrong rank or dtype.

    Example:
        >>> layer = kattn.layers.SelfAttention(8, causal=True, window=256)
        >>> layer(keras.random.normal((2, 1024, 64))).shape
        (2, 1024, 64)

    Reference:
        Vaswani et al. 2017, sec. 3.2.2, https://arxiv.org/abs/1706.03762
        Grouped queries: Ainslie et al. 2023, https://arxiv.org/abs/2305.13245
        Query/key norm: Henry et al. 2020, https://arxiv.org/abs/2010.04245, with the RMS norm
        of Zhang and Sennrich 2019, https://arxiv.org/abs/1910.07467, in place of their L2 norm
        and its learned scale in place of theirs.
        Gate: Qiu et al. 2025, sec. 2.2, position G1, https://arxiv.org/abs/2505.06708
    """

    def __init__(
        self,
        num_heads,
        key_dim=None,
        *,
        value_dim=None,
        num_key_value_heads=None,
        causal=False,
        window=None,
        qk_norm=False,
        softcap=None,
        gate=False,
        dropout=0.0,
        use_bias=True,
        kernel="auto",
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.num_key_value_heads = num_key_value_heads
        self.causal = causal
        self.window = window
        self.qk_norm = qk_norm
        self.softcap = softcap
        self.gate = gate
        self.dropout = dropout
        self.use_bias = use_bias
        self.kernel = kernel
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.seed = seed
        projections.check(self)
        self._pattern = masking.both(
            masks.Causal() if causal else None,
            None if window is None else masks.Window(window),
        )
        self._mask_reader = MaskReader(name="mask_reader", dtype=self.dtype_policy)
        self._seed_generator = keras.random.SeedGenerator(seed) if dropout else None

    def build(self, x_shape):
        projections.check_rank("x", x_shape)
        width = x_shape[-1]
        heads, key_heads, key_dim, value_dim = projections.sizes(self, width)
        sizes = (heads * key_dim, key_heads * key_dim, key_heads * value_dim)
        self._qkv = projections.dense(self, sizes, "qkv", width)
        self._output = projections.dense(self, (width,), "output", heads * value_dim)
        if self.gate:
            self._gate = projections.dense(self, (heads * value_dim,), "gate", width)
        if self.qk_norm:
            self._query_norm = projections.norm(self, "query_norm", key_dim)
            self._key_norm = projections.norm(self, "key_norm", key_dim)
        self.built = True

    def call(self, x, mask=None, training=None):
        q, k, v = self._project(x)
        padding, mask = self._masks(x, mask)
        rate = self.dropout if training else 0.0
        options = {"mask": mask, "softcap": self.softcap, "kernel": self.kernel}
        y = attention(q, k, v, dropout_rate=rate, seed=self._seed_generator, **options)
        y = ops.reshape(y, (*ops.shape(x)[:2], self._output.kernel.shape[0]))
        if self.gate:
            y = y * ops.sigmoid(self._gate(x))
        return self._output(projections.silence(y, padding))

    def attention_weights(self, x, mask=None):
        """The weights that the call mixes values with, whatever kernel it takes.

        Args:
            x: As in the call.
            mask: As in the call.

        Returns:
            `(B, N, T, T)` float32, query by key; rows sum to 1, or are 0 at padding steps and
            where a query may attend to nothing. Dropout is not applied.
        """
        if not self.built:
            self.build(x.shape)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        q, k, _ = self._project(x)
        padding, mask = self._masks(x, mask)
        weights = attention_weights(q, k, mask=mask, softcap=self.softcap)
        return weights if padding is None else ops.where(padding[:, None, :, None], weights, 0.0)

    def compute_mask(self, x, previous_mask):
        return padding_of(previous_mask)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {**super().get_config(), **projections.config(self), "causal": self.causal,
                "window": self.window}  # fmt: skip

    def _project(self, x):
        heads, key_heads, key_dim, value_dim = projections.sizes(self, x.shape[-1])
        sizes = (heads * key_dim, key_heads * key_dim, key_heads * value_dim)
        q, k, v = projections.split(self._qkv(x), sizes)
        q = projections.split_heads(q, heads)
        k, v = projections.split_heads(k, key_heads), projections.split_heads(v, key_heads)
        if self.qk_norm:
            q, k = self._query_norm(q), self._key_norm(k)
        return q, k, v

    def _masks(self, x, mask):
        """The padding of x, `(B, T)` or None, and the mask of the scores."""
        implicit = self._mask_reader.read(x) if mask is not None else None
        padding = padding_of(mask)
        if implicit is not None:
            padding = implicit if padding is None else ops.logical_and(padding, implicit)
        allowed = score_mask(mask, "mask", "(B, T), (B, T, T) or (B, N, T, T)")
        if implicit is not None:
            allowed = masking.both(allowed, masks.Padding(implicit))
        return padding, masking.both(self._pattern, allowed)
