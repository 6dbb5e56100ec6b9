"""Attention of one sequence to another (Vaswani et al., 2017)."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.attention_layer import AttentionLayer, check_sequence
from kattn.layers.attention.caches import check_built
from kattn.layers.attention.head_sizes import HeadSizes
from kattn.layers.attention.mask_reader import read_masks, read_padded, silence_weights
from kattn.layers.attention.positions import embed, rotate, step_positions
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.position.score_bias import ScoreBias
from kattn.ops.attention import attention, attention_weights
from kattn.ops.cache import next_positions
from kattn.ops.context_cache import context_cache, decode_context


@keras.saving.register_keras_serializable("kattn")
class CrossAttention(AttentionLayer):
    """softmax(Q K^T / sqrt(D)) V in `num_heads` subspaces, Q of one sequence, K and V of another.

    K and V come from one matrix product.

    Shapes: B batch, T steps and C width of the sequence, S steps and E width of its context, N
    heads, K key/value heads, D and Dv head widths.

    Args:
        num_heads: Number of attention heads, N.
        key_dim: Width of the queries and keys of one head, D. None for the width of the input
            divided by the number of heads, C / N, which must then be whole.
        value_dim: Width of the values of one head, Dv. None for `key_dim`.
        num_key_value_heads: Number of key/value heads, K, a divisor of `num_heads`; each serves
            N / K query heads (grouped-query attention; 1 is multi-query attention). None for
            `num_heads`.
        position: Position layer, such as `RotaryEmbedding()`. Each sequence counts from its own
            first real step; one that is added to inputs is added to `x` and to `context`, which
            must then be as wide. A bias takes the last step of `x` and the last of `context` for
            one position. None for no positions.
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
        x: Sequence that asks, float, shape `(B, T, C)`.
        context: Sequence that provides keys and values, float, shape `(B, S, E)`.
        mask: Padding of `x`, bool, shape `(B, T)`, True = real step. It is combined with the Keras
            mask of `x`.
        context_mask: Mask of the context, bool, True = may be attended to: padding `(B, S)`
            (True = real step), or query by key `(B, T, S)` or `(B, N, T, S)`, or a
            `kattn.masks.Mask`. A mask of rank 2 is always taken for padding, also where B == T;
            write `context_mask[None]` for one of query by key, `(T, S)`. It is combined with the
            Keras mask of `context`. What `context` holds at padding, be it NaN, changes nothing; at
            steps that another mask hides, it must be finite.
        positions: Positions of the steps of `x` for `position`, integers, shape `(T,)` or
            `(B, T)`. None to count from 0 at the first real step.
        context_positions: Positions of the steps of `context`, integers, shape `(S,)` or `(B, S)`.
            None to count from 0 at its first real step.
        training: Whether dropout is applied.
        mask_arrays: Arrays of a mask object, which a functional model keeps apart from it. Leave it
            None.

    Returns:
        `(B, T, C)`; at padding steps of `x` it is the output bias. The padding of `x` is the Keras
        mask of the output.

    Raises:
        ValueError: If an argument is out of range; when built, if C is not divisible by
            `num_heads` while `key_dim` is None; when called, if an input or a mask has a wrong
            rank or dtype.

    Example:
        >>> layer = kattn.layers.CrossAttention(4)
        >>> layer(keras.random.normal((2, 5, 64)), keras.random.normal((2, 9, 32))).shape
        (2, 5, 64)

    Reference:
        Vaswani et al. 2017, sec. 3.2.3, https://arxiv.org/abs/1706.03762; for the options that
        this layer shares with `SelfAttention` see there.
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

    def build(self, x_shape, context_shape):
        check_sequence("x", x_shape)
        check_sequence("context", context_shape)
        width, context_width = x_shape[-1], context_shape[-1]
        sizes = HeadSizes.of(self, width)
        self._query = self._dense("query", width, sizes.query_width)
        self._key_value = self._dense(
            "key_value", context_width, sizes.key_width, sizes.value_width
        )
        self._build_around_core(sizes, width)

    def call(
        self,
        x,
        context,
        mask=None,
        context_mask=None,
        positions=None,
        context_positions=None,
        training=None,
        mask_arrays=None,
    ):
        x, padding = read_padded(x, mask)
        context, real_keys, allowed = read_masks(context, context_mask, "context_mask")
        x, q = self._project_query(x, self._positions(positions, padding))
        k, v = self._project_context(context, self._positions(context_positions, real_keys))
        options = {**self._scores(q), **self._weighting(training)}
        y = attention(q, k, v, mask=allowed, **options)  # (B, T, N, Dv)
        return self._finish(x, y, padding)

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """A cache for `decode` that holds the keys and values of a context, projected once.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most. The cache has one size for any.
            context: Sequence that provides keys and values, float, shape `(B, S, E)`.
            context_mask: Padding of the context, bool, shape `(B, S)`, True = real step. It is
                combined with the Keras mask of `context`.

        Returns:
            A `kattn.ops.ContextCache`.

        Raises:
            ValueError: If the layer is not built, if there is no context or it is of another batch
                size, if the mask is of another kind, or if `position` is a bias, which depends on
                the number of steps that are decoded in all.
        """
        check_built(self)
        arguments.check_integers(1, batch_size=batch_size, length=length)
        if context is None or context.shape[0] not in (None, batch_size):
            raise arguments.error(
                "`context` must be an array (B, S, E) with one sequence for each of the "
                "B=`batch_size` sequences that are decoded",
                batch_size=batch_size,
                context=context,
            )
        if isinstance(self.position, ScoreBias):
            raise arguments.error(
                "Cross-attention with a bias cannot decode step by step: the bias aligns the last "
                "steps of both sequences, and the last is not known yet",
                position=self.position,
            )
        context, padding = read_padded(context, context_mask, "context_mask")
        context = ops.convert_to_tensor(context, dtype=self.compute_dtype)
        k, v = self._project_context(context, self._positions(None, padding))
        return context_cache(k, v, padding)

    def decode(self, x, cache, mask=None):
        """The output for new steps of a sequence, of which all attend to the cached context.

        Piece by piece it gives what the call gives for the whole sequence without its padding.

        Args:
            x: New steps, float, shape `(B, t, C)`, for any t.
            cache: Cache that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side. It is combined with the Keras mask of `x`.

        Returns:
            `(y, cache)`: the output, shape `(B, t, C)`, which is the output bias at padding; and
            the cache for the next steps.

        Raises:
            ValueError: If `mask` is of another kind, or shapes do not fit.
        """
        x, padding = read_padded(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        x, q = self._project_query(x, next_positions(cache, x.shape[1], padding))
        scores = self._scores(q)
        scores.pop("bias")
        y, cache = decode_context(q, cache, real=padding, **scores)  # (B, t, N, Dv)
        return self._finish(x, y, padding), cache

    def attention_weights(
        self, x, context, mask=None, context_mask=None, positions=None, context_positions=None
    ):
        """The attention weights that the call mixes values with, whatever algorithm it takes.

        Args:
            x: Sequence that asks, float, shape `(B, T, C)`.
            context: Sequence that provides keys and values, float, shape `(B, S, E)`.
            mask: Padding of `x`, bool, shape `(B, T)`, True = real step.
            context_mask: Mask of the context, bool, True = may be attended to, of any kind that
                the call takes.
            positions: Positions of the steps of `x`, integers, shape `(T,)` or `(B, T)`.
            context_positions: Positions of the steps of `context`, integers, shape `(S,)` or
                `(B, S)`.

        Returns:
            `(B, N, T, S)` float32, query by key. Rows sum to 1, or are 0 at padding steps of `x`
            and where a query may attend to nothing. Dropout is not applied.
        """
        if not self.built:
            self.build(x.shape, context.shape)
        x, padding = read_padded(x, mask)
        context, real_keys, allowed = read_masks(context, context_mask, "context_mask")
        x, context = (ops.convert_to_tensor(a, dtype=self.compute_dtype) for a in (x, context))
        _, q = self._project_query(x, self._positions(positions, padding))
        k, _ = self._project_context(context, self._positions(context_positions, real_keys))
        weights = attention_weights(q, k, mask=allowed, **self._scores(q))  # (B, N, T, S)
        return silence_weights(weights, padding)

    def compute_output_shape(self, x_shape, context_shape):
        return x_shape

    def _positions(self, explicit, padding):
        # A shift of one sequence only changes how far its steps are from those of the other.
        return step_positions(self.position, explicit, padding, shifts_matter=True)

    def _project_query(self, x, positions):
        """The input `(B, T, C)` with its positions, and the queries `(B, T, N, D)`."""
        x = embed(self.position, x, positions)
        q = self.head_sizes.split_query(self._query(x))
        q = self._query_norm(q) if self.use_qk_norm else q
        return x, rotate(self.position, q, positions)

    def _project_context(self, context, positions):
        """Keys `(B, S, K, D)` and values `(B, S, K, Dv)` of a context."""
        context = embed(self.position, context, positions)
        k, v = self.head_sizes.split_key_value(self._key_value(context))
        k = self._key_norm(k) if self.use_qk_norm else k
        return rotate(self.position, k, positions), v
