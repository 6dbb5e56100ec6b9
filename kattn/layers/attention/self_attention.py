"""Self-attention with one fused projection (Vaswani et al., 2017)."""

import keras
from keras import ops

from kattn import masks
from kattn.layers.attention import projections, schemes
from kattn.layers.attention.mask_reader import MaskReader, padding_of, score_mask
from kattn.layers.position.position import Position
from kattn.ops import masking
from kattn.ops.attention import attention, attention_weights
from kattn.ops.cache import next_positions
from kattn.ops.decoding import decode


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
        pattern: A `kattn.masks.Mask` without arrays, joined with the two above by `&`:
            `Window(256) | Global([0])`, or `Causal() | Prefix(16)`. None for none.
        position: A position layer, such as `RotaryEmbedding()` or `ALiBi()`, or None.
        use_qk_norm: If True, queries and keys pass an RMS norm over D with learned scales.
        softcap: If c, the scores s become c * tanh(s / c).
        use_sinks: If True, each head learns a score that takes part in the softmax and has no value,
            so that a head can attend to nothing.
        use_gate: If True, each head's output is multiplied by sigmoid(x W_g + b_g), per channel.
        dropout: Fraction of attention weights dropped in training, in [0, 1).
        use_bias: Whether the projections add a bias.
        implementation: Which algorithm computes it: "auto" or a name `kattn.ops.attention` knows.
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
        positions: `(T,)` or `(B, T)` int32 for `position`; None for 0 to T - 1, counted from the
            first real step, or from the first of each segment of `masks.Segments`.
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
        Sinks: OpenAI 2025, sec. 2.2, https://arxiv.org/abs/2508.10925; they start at 0.
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
        pattern=None,
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
        self.causal = causal
        self.window = window
        self.pattern = schemes.read(pattern, "pattern", masks.Mask)
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
        schemes.check_pattern(self.pattern)
        window = None if window is None else masks.Window(window)
        self._pattern = masking.intersect(masks.Causal() if causal else None, window)
        self._pattern = masking.intersect(self._pattern, self.pattern)
        self._mask_reader = MaskReader(name="mask_reader", dtype=self.dtype_policy)
        self._seed_generator = keras.random.SeedGenerator(seed) if dropout else None

    def build(self, x_shape):
        projections.check_rank("x", x_shape)
        width = x_shape[-1]
        heads, key_heads, key_dim, value_dim = self._sizes(width)
        maps = self._maps
        sizes = (maps * heads * key_dim, maps * key_heads * key_dim, key_heads * value_dim)
        self._qkv = projections.dense(self, sizes, "qkv", width)
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

    def call(self, x, mask=None, positions=None, training=None):
        padding, mask = self._masks(x, mask)
        x = self._embed(x, positions := self._positions(positions, padding, mask))
        q, k, v = self._project(x, positions)
        rate = self.dropout if training else 0.0
        options = {
            "dropout_rate": rate,
            "seed": self._seed_generator,
            "implementation": self.implementation,
        }
        return self._finish(x, self._attend(q, k, v, mask=mask, **options), padding)

    def init_cache(self, batch_size, length):
        """An empty cache for `decode`.

        Args:
            batch_size: B.
            length: The most steps that will be decoded.

        Returns:
            A `kattn.ops.KVCache` with room for `length` steps, or, if the layer has a window that
            is shorter, a `kattn.ops.RingCache` of this window.

        Raises:
            ValueError: If the layer is neither causal nor has a `pattern`, or is not built.
        """
        schemes.check_decodes(self)
        _, key_heads, key_dim, value_dim = self._sizes(self._qkv.kernel.shape[0])
        sizes = {"heads": key_heads, "key_dim": self._maps * key_dim, "value_dim": value_dim}
        dtype = self.compute_dtype
        return schemes.make_cache(self._pattern, batch_size, length, dtype=dtype, **sizes)

    def decode(self, x, cache, mask=None):
        """The layer's output for new steps of a sequence, of which the cache holds the rest.

        Piece by piece it gives what the call gives for the whole sequence without its padding.

        Args:
            x: `(B, t, C)` float, the new steps.
            cache: From `init_cache`, or the last call of `decode`.
            mask: `(B, t)` bool, True = real step, False = padding at either side, which is not
                kept; or a `kattn.masks.Mask` over the positions of the whole sequence.

        Returns:
            `(y, cache)`: `(B, t, C)`, at padding the output bias, and the cache with these steps.
            The old cache is not valid any more: on PyTorch it is written in place, unless
            gradients are recorded (`torch.no_grad` saves the copy).

        Raises:
            ValueError: If the steps do not fit into the cache, and that can be seen.
        """
        real, mask = schemes.split_mask(mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        positions = next_positions(cache, x.shape[1], real)
        positions = schemes.new_positions(self.position, positions, mask)
        x = self._embed(x, positions)
        q, k, v = self._project(x, positions)
        mask = masking.intersect(self._pattern, mask)
        y, cache = self._decode(q, k, v, cache, real=real, mask=mask)
        return self._finish(x, y, real), cache

    def attention_weights(self, x, mask=None, positions=None):
        """The weights that the call mixes values with, whatever kernel it takes.

        Args:
            x: As in the call.
            mask: As in the call.
            positions: As in the call.

        Returns:
            `(B, N, T, T)` float32, query by key; rows sum to 1, or are 0 at padding steps and
            where a query may attend to nothing. Dropout is not applied.
        """
        if not self.built:
            self.build(x.shape)
        padding, mask = self._masks(x, mask)  # of the input as it is: a cast drops a Keras mask
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        x = self._embed(x, positions := self._positions(positions, padding, mask))
        q, k, _ = self._project(x, positions)
        weights = self._weights(q, k, mask)
        return weights if padding is None else ops.where(padding[:, None, :, None], weights, 0.0)

    def compute_mask(self, x, previous_mask):
        return padding_of(previous_mask)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            **projections.config(self),
            "causal": self.causal,
            "window": self.window,
            "pattern": schemes.write(self.pattern),
            "position": schemes.write(self.position),
        }

    # What `DifferentialAttention` does otherwise: it has two maps of weights, not one.

    _maps = 1

    def _sizes(self, width):
        return projections.sizes(self, width)

    def _attend(self, q, k, v, **options):
        return attention(q, k, v, **options, **self._options(q))

    def _weights(self, q, k, mask):
        return attention_weights(q, k, mask=mask, **self._options(q))

    def _decode(self, q, k, v, cache, **options):
        return decode(q, k, v, cache, **options, **self._options(q))

    def _positions(self, explicit, padding, mask):
        return schemes.step_positions(self.position, explicit, padding, mask)

    def _embed(self, x, positions):
        return schemes.embed(self.position, x, positions)

    def _options(self, q):
        """What changes the scores beside the mask."""
        bias = schemes.bias(self.position, q)
        sinks = None if self._sinks is None else ops.convert_to_tensor(self._sinks)
        return {"bias": bias, "softcap": self.softcap, "sinks": sinks}

    def _finish(self, x, y, padding):
        """The gated output `(B, T, N, Dv)` of the heads, projected."""
        y = ops.reshape(y, (*ops.shape(x)[:2], self._output.kernel.shape[0]))
        if self.use_gate:
            y = y * ops.sigmoid(self._gate(x))
        return self._output(projections.silence(y, padding))

    def _project(self, x, positions):
        heads, key_heads, key_dim, value_dim = self._sizes(x.shape[-1])
        heads, maps = self._maps * heads, self._maps
        sizes = (heads * key_dim, maps * key_heads * key_dim, key_heads * value_dim)
        q, k, v = projections.split(self._qkv(x), sizes)
        q, k = projections.split_heads(q, heads), projections.split_heads(k, maps * key_heads)
        v = projections.split_heads(v, key_heads)
        if self.use_qk_norm:
            q, k = self._query_norm(q), self._key_norm(k)
        if self.position is not None:
            q, k = (schemes.rotate(self.position, part, positions) for part in (q, k))
        return q, k, v

    def _masks(self, x, mask):
        """The padding of x, `(B, T)` or None, and the mask of the scores."""
        implicit = self._mask_reader.read(x) if mask is not None else None
        padding = padding_of(mask)
        if implicit is not None:
            padding = implicit if padding is None else ops.logical_and(padding, implicit)
        allowed = score_mask(mask, "mask", "(B, T), (B, T, T) or (B, N, T, T)")
        if implicit is not None:
            allowed = masking.intersect(allowed, masks.Padding(implicit))
        return padding, masking.intersect(self._pattern, allowed)
