"""Multi-head self-attention with one fused projection (Vaswani et al., 2017)."""

import keras
from keras import ops

from kattn.layers.attention.attention_layer import AttentionLayer, check_sequence
from kattn.layers.attention.caches import check_decodes, empty_cache_of
from kattn.layers.attention.head_sizes import HeadSizes
from kattn.layers.attention.mask_reader import read_masks, read_new_masks, silence_weights
from kattn.layers.attention.patterns import (
    is_causal,
    join_patterns,
    pattern_config,
    read_pattern,
)
from kattn.layers.attention.positions import embed, new_positions, rotate, step_positions
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.masks import intersect
from kattn.ops.attention import attention, attention_weights
from kattn.ops.cache import next_positions
from kattn.ops.decoding import decode


@keras.saving.register_keras_serializable("kattn")
class SelfAttention(AttentionLayer):
    """softmax(Q K^T / sqrt(D)) V in `num_heads` subspaces of one sequence.

    Q, K and V come from one matrix product. Causal and windowed attention visit only the keys
    that they can see.

    Shapes: B batch, T steps, C width, N heads, K key/value heads, D and Dv head widths.

    Args:
        num_heads: Number of attention heads, N.
        key_dim: Width of the queries and keys of one head, D. None for the width of the input
            divided by the number of heads, C / N, which must then be whole.
        value_dim: Width of the values of one head, Dv. None for `key_dim`.
        num_key_value_heads: Number of key/value heads, K, a divisor of `num_heads`; each serves
            N / K query heads (grouped-query attention; 1 is multi-query attention). None for
            `num_heads`.
        causal: If True, step t attends to steps <= t only.
        window: Number of steps W that a step attends to: itself and the W - 1 steps before it,
            and, if not `causal`, the W - 1 steps after it. None for no limit.
        pattern: Mask object without arrays that limits which steps see each other, such as
            `Window(256) | Global([0])` or `Causal() | Prefix(16)` of `kattn.masks`. It is combined
            with `causal` and `window`. None for no limit.
        position: Position layer, such as `RotaryEmbedding()`, `ALiBi()` or `LearnedPositions(512)`.
            None for no positions.
        use_qk_norm: If True, queries and keys pass an RMS normalisation over the head width, with
            learned scales.
        qk_norm_epsilon: Positive number that is added to the mean squares in this normalisation.
        softcap: Positive number c; the scores s become c * tanh(s / c). None for no cap.
        use_sinks: If True, each head learns a score that takes part in the softmax and has no
            value, so that a head can attend to nothing.
        use_gate: If True, each head's output is multiplied by sigmoid(x W_g + b_g), channel by
            channel.
        dropout: Fraction of the attention weights that are dropped during training, in [0, 1).
        use_bias: Whether the projections add a bias.
        use_output_bias: Whether the last projection adds a bias. None for `use_bias`.
        implementation: Name of the algorithm that computes the attention: "auto", or one of those
            that `kattn.ops.attention` knows. All give the same result.
        kernel_initializer: Initializer of the projection matrices. Each projection is initialised
            on its own, though they are stored as one matrix.
        output_initializer: Initializer of the matrix of the last projection. None for
            `kernel_initializer`.
        bias_initializer: Initializer of the biases of the projections.
        kernel_regularizer: Regularizer of the projection matrices, or None.
        bias_regularizer: Regularizer of the biases of the projections, or None.
        seed: Integer seed of the dropout, or None for a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Mask, bool, True = may attend: padding `(B, T)` (True = real step), or query by key
            `(B, T, T)` or `(B, N, T, T)`, or a `kattn.masks.Mask`. A mask of rank 2 is always taken
            for padding, also where B == T; write `mask[None]` for one of query by key, `(T, T)`. It
            is combined with the Keras mask of `x`. What `x` holds at padding, be it NaN, changes
            nothing; at steps that another mask hides, `x` must be finite.
        positions: Positions of the steps for `position`, integers, shape `(T,)` or `(B, T)`. None
            to count from 0 at the first real step, and anew in each segment of `masks.Segments`.
        training: Whether dropout is applied.
        mask_arrays: Arrays of a mask object, which a functional model keeps apart from it. Leave it
            None.

    Returns:
        `(B, T, C)`; at padding steps it is the output bias. The padding of `x`, by its Keras mask
        and by a `mask` of shape `(B, T)`, is the Keras mask of the output.

    Raises:
        ValueError: If an argument is out of range; when built, if C is not divisible by
            `num_heads` while `key_dim` is None; when called, if `x` or `mask` has a wrong rank or
            dtype.

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
        qk_norm_epsilon=1e-6,
        softcap=None,
        use_sinks=False,
        use_gate=False,
        dropout=0.0,
        use_bias=True,
        use_output_bias=None,
        implementation="auto",
        kernel_initializer="glorot_uniform",
        output_initializer=None,
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(
            num_heads=num_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            num_key_value_heads=num_key_value_heads,
            position=position,
            use_qk_norm=use_qk_norm,
            qk_norm_epsilon=qk_norm_epsilon,
            softcap=softcap,
            use_sinks=use_sinks,
            use_gate=use_gate,
            use_output_bias=use_output_bias,
            dropout=dropout,
            implementation=implementation,
            seed=seed,
            output_initializer=output_initializer,
            projections=ProjectionOptions(
                use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
            ),
            **kwargs,
        )
        self.causal = causal
        self.window = window
        self.pattern = read_pattern(pattern)
        self._pattern = join_patterns(causal, window, self.pattern)

    def build(self, x_shape):
        check_sequence("x", x_shape)
        width = x_shape[-1]
        sizes = HeadSizes.of(self, width)
        parts = sizes.query_width, sizes.key_width, sizes.value_width
        self._qkv = self._dense("qkv", width, *parts)
        self._build_around_core(sizes, width)

    def call(self, x, mask=None, positions=None, training=None, mask_arrays=None):
        x, padding, allowed = read_masks(x, mask)
        positions = step_positions(self.position, positions, padding, allowed)
        x = embed(self.position, x, positions)  # (B, T, C)
        q, k, v = self._project(x, positions)  # (B, T, N, D), (B, T, K, D), (B, T, K, Dv)
        allowed = intersect(self._pattern, allowed)
        options = {**self._scores(q), **self._weighting(training)}
        y = attention(q, k, v, mask=allowed, **options)  # (B, T, N, Dv)
        return self._finish(x, y, padding)

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """An empty cache for `decode`.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most.
            context: Must be None: the layer attends to its own sequence.
            context_mask: Must be None, as there is no context.

        Returns:
            A `kattn.ops.KVCache` with room for `length` steps, or, if the layer has a window that
            is shorter, a `kattn.ops.RingCache` of the size of this window.

        Raises:
            ValueError: If the layer is not causal or not built, if a size is not an integer >= 1,
                or if there is a context.
        """
        check_decodes(
            self, batch_size, length, context, context_mask, causal=is_causal(self._pattern)
        )
        return empty_cache_of(
            self._pattern, batch_size, length, self.head_sizes, self.compute_dtype
        )

    def decode(self, x, cache, mask=None):
        """The output for new steps of a sequence, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole sequence without its padding.

        Args:
            x: New steps, float, shape `(B, t, C)`, for any t.
            cache: Cache that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side, which is not kept. Or a `kattn.masks.Mask` over the positions of
                the whole sequence. It is combined with the Keras mask of `x`.

        Returns:
            `(y, cache)`: the output, shape `(B, t, C)`, which is the output bias at padding; and
            the cache with the new steps. The old cache must not be used any more: on PyTorch it is
            written in place, unless gradients are recorded (`torch.no_grad` saves the copy).

        Raises:
            ValueError: If the steps do not fit into the cache, where that can be seen.
        """
        x, padding, allowed = read_new_masks(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        positions = next_positions(cache, x.shape[1], padding)
        positions = new_positions(self.position, positions, allowed)
        x = embed(self.position, x, positions)  # (B, t, C)
        q, k, v = self._project(x, positions)  # (B, t, N, D), (B, t, K, D), (B, t, K, Dv)
        allowed = intersect(self._pattern, allowed)
        options = {**self._scores(q), "query_at": lambda places: self._project(x, places)[0]}
        y, cache = decode(q, k, v, cache, real=padding, mask=allowed, **options)
        return self._finish(x, y, padding), cache

    def attention_weights(self, x, mask=None, positions=None):
        """The attention weights that the call mixes values with, whatever algorithm it takes.

        Args:
            x: Input sequence, float, shape `(B, T, C)`.
            mask: Mask, bool, True = may attend, of any kind that the call takes.
            positions: Positions of the steps for `position`, integers, shape `(T,)` or `(B, T)`.

        Returns:
            `(B, N, T, T)` float32, query by key. Rows sum to 1, or are 0 at padding steps and where
            a query may attend to nothing. Dropout is not applied.
        """
        if not self.built:
            self.build(x.shape)
        x, padding, allowed = read_masks(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        positions = step_positions(self.position, positions, padding, allowed)
        q, k, _ = self._project(embed(self.position, x, positions), positions)
        allowed = intersect(self._pattern, allowed)
        weights = attention_weights(q, k, mask=allowed, **self._scores(q))  # (B, N, T, T)
        return silence_weights(weights, padding)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            "causal": self.causal,
            "window": self.window,
            "pattern": pattern_config(self.pattern),
        }

    def _project(self, x, positions):
        """Queries `(B, T, N, D)`, keys `(B, T, K, D)` and values `(B, T, K, Dv)` at positions."""
        q, k, v = self.head_sizes.split_qkv(self._qkv(x))
        q, k = self._normalize(q, k)
        return rotate(self.position, q, positions), rotate(self.position, k, positions), v
