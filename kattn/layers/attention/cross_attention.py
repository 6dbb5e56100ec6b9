"""Attention of one sequence to another (Vaswani et al., 2017)."""

import keras
from keras import ops

from kattn import masks
from kattn.layers.attention import projections, schemes
from kattn.layers.attention.mask_reader import MaskReader, padding_of, score_mask
from kattn.layers.position.position import Position
from kattn.ops import masking
from kattn.ops.attention import attention, attention_weights


@keras.saving.register_keras_serializable("kattn")
class CrossAttention(keras.layers.Layer):
    """softmax(Q K^T / sqrt(D)) V in `num_heads` subspaces, Q of one sequence, K and V of another.

    K and V come from one matrix product.

    Shapes: B batch, T steps and C width of the sequence, S steps and E width of its context, N
    heads, K key/value heads, D and Dv head widths.

    Args:
        num_heads: N.
        key_dim: D; None for C / N, which then must be whole.
        value_dim: Dv; None for D.
        num_key_value_heads: K, a divisor of N: each serves N / K query heads. None for N.
        position: A position layer for queries and keys, such as `RotaryEmbedding()` or a bias; one
            of absolute positions is added to `x` and to `context`. None for none. Each sequence
            counts from its own first step, but a bias takes their last steps for one position.
        use_qk_norm: If True, queries and keys pass an RMS norm over D with learned scales.
        softcap: If c, the scores s become c * tanh(s / c).
        use_sinks: If True, each head learns a score that takes part in the softmax and has no value.
        use_gate: If True, each head's output is multiplied by sigmoid(x W_g + b_g), per channel.
        dropout: Fraction of attention weights dropped in training, in [0, 1).
        use_bias: Whether the projections add a bias.
        implementation: Which algorithm computes it: "auto" or a name `kattn.ops.attention` knows.
        kernel_initializer: Of each projection on its own, though K and V share a matrix.
        bias_initializer: Of the biases.
        kernel_regularizer: Of the projection matrices.
        bias_regularizer: Of the biases.
        seed: Integer seed of the dropout.
        **kwargs: `name`, `dtype`, `trainable`, as for any Keras layer.

    Call args:
        x: `(B, T, C)` float: the sequence that asks.
        context: `(B, S, E)` float: the sequence that answers.
        mask: `(B, T)` bool, True = real step of `x`, combined with the Keras mask of `x`.
        context_mask: True = may be attended to. `(B, S)` bool padding, True = real step; or
            `(B, T, S)` or `(B, N, T, S)` bool, query by key; or a `kattn.masks.Mask`. It is
            combined with the Keras mask of `context`.
        positions: `(T,)` or `(B, T)` int32, of `x`, for `position`; None for the default.
        context_positions: `(S,)` or `(B, S)` int32, of `context`.
        training: Whether dropout applies.

    Returns:
        `(B, T, C)`; at padding steps of `x` it is the output bias. The mask of `x` is set on it.

    Raises:
        ValueError: For arguments out of range; when built, if C is not divisible by `num_heads`
            while `key_dim` is None; when called, if an input or a mask has a wrong rank or dtype.

    Example:
        >>> layer = kattn.layers.CrossAttention(4)
        >>> layer(keras.random.normal((2, 5, 64)), keras.random.normal((2, 9, 32))).shape
        (2, 5, 64)

    Reference:
        Vaswani et al. 2017, sec. 3.2.3, https://arxiv.org/abs/1706.03762; for the options see
        `SelfAttention`.
    """

    def __init__(
        self,
        num_heads,
        key_dim=None,
        *,
        value_dim=None,
        num_key_value_heads=None,
        position=None,
        use_qk_norm=False,
        softcap=None,
        use_sinks=False,
        use_gate=False,
        dropout=0.0,
        use_bias=True,
        implementation="auto",
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
        self.position = schemes.read(position, "position", Position)
        self.use_qk_norm = use_qk_norm
        self.softcap = softcap
        self.use_sinks = use_sinks
        self.use_gate = use_gate
        self.dropout = dropout
        self.use_bias = use_bias
        self.implementation = implementation
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.seed = seed
        projections.check(self)
        self._mask_reader = MaskReader(name="mask_reader", dtype=self.dtype_policy)
        self._seed_generator = keras.random.SeedGenerator(seed) if dropout else None

    def build(self, x_shape, context_shape):
        projections.check_rank("x", x_shape)
        projections.check_rank("context", context_shape)
        width = x_shape[-1]
        heads, key_heads, key_dim, value_dim = projections.sizes(self, width)
        self._query = projections.dense(self, (heads * key_dim,), "query", width)
        sizes = (key_heads * key_dim, key_heads * value_dim)
        self._key_value = projections.dense(self, sizes, "key_value", context_shape[-1])
        self._output = projections.dense(self, (width,), "output", heads * value_dim)
        if self.use_gate:
            self._gate = projections.dense(self, (heads * value_dim,), "gate", width)
        if self.use_qk_norm:
            self._query_norm = projections.norm(self, "query_norm", key_dim)
            self._key_norm = projections.norm(self, "key_norm", key_dim)
        self._sinks = None
        if self.use_sinks:
            self._sinks = self.add_weight(name="sinks", shape=(heads,), initializer="zeros")
        if self.position is not None:
            self.position.attach(width=width, num_heads=heads, key_dim=key_dim)
        self.built = True

    def call(
        self,
        x,
        context,
        mask=None,
        context_mask=None,
        positions=None,
        context_positions=None,
        training=None,
    ):
        padding, mask = self._masks(x, context, mask, context_mask)
        positions = self._positions(positions, context_positions)
        x, context = self._embed(x, context, positions)
        q, k, v = self._project(x, context, positions)
        y = attention(
            q, k, v, mask=mask, dropout_rate=self.dropout if training else 0.0,
            seed=self._seed_generator, implementation=self.implementation, **self._options(q),
        )  # fmt: skip
        y = ops.reshape(y, (*ops.shape(x)[:2], self._output.kernel.shape[0]))
        if self.use_gate:
            y = y * ops.sigmoid(self._gate(x))
        return self._output(projections.silence(y, padding))

    def attention_weights(
        self, x, context, mask=None, context_mask=None, positions=None, context_positions=None
    ):
        """The weights that the call mixes values with, whatever kernel it takes.

        Args:
            x: As in the call.
            context: As in the call.
            mask: As in the call.
            context_mask: As in the call.
            positions: As in the call.
            context_positions: As in the call.

        Returns:
            `(B, N, T, S)` float32, query by key; rows sum to 1, or are 0 at padding steps of `x`
            and where a query may attend to nothing. Dropout is not applied.
        """
        if not self.built:
            self.build(x.shape, context.shape)
        padding, mask = self._masks(x, context, mask, context_mask)
        x, context = (ops.convert_to_tensor(a, dtype=self.compute_dtype) for a in (x, context))
        positions = self._positions(positions, context_positions)
        x, context = self._embed(x, context, positions)
        q, k, _ = self._project(x, context, positions)
        weights = attention_weights(q, k, mask=mask, **self._options(q))
        return weights if padding is None else ops.where(padding[:, None, :, None], weights, 0.0)

    def compute_mask(self, x, previous_mask):
        return padding_of(previous_mask)

    def compute_output_shape(self, x_shape, context_shape):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            **projections.config(self),
            "position": schemes.write(self.position),
        }

    def _positions(self, *explicit):
        """Of `x` and of `context`; None for those that the scheme has of itself."""
        return [schemes.step_positions(self.position, each, None, None) for each in explicit]

    def _embed(self, x, context, positions):
        if self.position is None:
            return x, context
        pairs = zip((x, context), positions, strict=True)
        return [schemes.embed(self.position, part, where) for part, where in pairs]

    def _options(self, q):
        """What changes the scores beside the mask."""
        bias = schemes.bias(self.position, q)
        sinks = None if self._sinks is None else ops.convert_to_tensor(self._sinks)
        return {"bias": bias, "softcap": self.softcap, "sinks": sinks}

    def _project(self, x, context, positions):
        heads, key_heads, key_dim, _ = projections.sizes(self, x.shape[-1])
        q, kv = projections.split_heads(self._query(x), heads), self._key_value(context)
        k = projections.split_heads(kv[..., : key_heads * key_dim], key_heads)
        v = projections.split_heads(kv[..., key_heads * key_dim :], key_heads)
        if self.use_qk_norm:
            q, k = self._query_norm(q), self._key_norm(k)
        if self.position is not None:
            pairs = zip((q, k), positions, strict=True)
            q, k = (schemes.rotate(self.position, part, where) for part, where in pairs)
        return q, k, v

    def _masks(self, x, context, mask, context_mask):
        """The padding of x, `(B, T)` or None, and the mask of the scores."""
        if mask is not None and padding_of(mask) is None:
            received = getattr(mask, "shape", type(mask).__name__)
            raise ValueError(
                "`mask` must be a bool array (B, T), the padding of `x`; a mask of query by key is "
                f"`context_mask`. Received: mask={received}"
            )
        implicit = self._mask_reader.read(x)
        padding = mask if implicit is None or mask is None else ops.logical_and(mask, implicit)
        padding = implicit if padding is None else padding
        allowed = score_mask(context_mask, "context_mask", "(B, S), (B, T, S) or (B, N, T, S)")
        implicit = self._mask_reader.read(context)
        if implicit is not None:
            allowed = masking.intersect(allowed, masks.Padding(implicit))
        return padding, allowed
