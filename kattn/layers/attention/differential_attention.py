"""Differential self-attention (Ye et al., 2024)."""

import math

import keras
from keras import ops

from kattn import arguments
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
from kattn.ops.attention import Call, attention, attention_weights
from kattn.ops.cache import next_positions
from kattn.ops.decoding import decode_maps


@keras.saving.register_keras_serializable("kattn")
class DifferentialAttention(AttentionLayer):
    """(softmax(Q1 K1^T / sqrt(D)) - lambda softmax(Q2 K2^T / sqrt(D))) V in `num_heads` subspaces.

    What both maps give to irrelevant keys cancels. lambda is learned, one number for all heads:
    exp(l_q1 . l_k1) - exp(l_q2 . l_k2) + `lambda_init`. Each head's output passes an RMS norm
    over Dv and is multiplied by 1 - `lambda_init`.

    Shapes: B batch, T steps, C width, N heads, K key/value heads, D width of a query or key of
    either map, Dv width of a value.

    Args:
        num_heads: Number of attention heads, N.
        key_dim: Width of the queries and keys of one head, D. None for half of the
            width of the input divided by the number of heads, C / N / 2, which must then be whole.
        value_dim: Width of the values of one head, Dv. None for 2 * `key_dim`.
        num_key_value_heads: Number of key/value heads, K, a divisor of `num_heads`; each serves
            N / K query heads (grouped-query attention; 1 is multi-query attention). None for
            `num_heads`.
        lambda_init: Constant part of lambda, in (0, 1). Use 0.8, or for layer l = 1, 2, ... of a
            stack the paper's `DifferentialAttention.lambda_of(l)`.
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
        dropout: Fraction of the attention weights that are dropped during training, in [0, 1). Each
            map has its own.
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
            2 * `num_heads` while `key_dim` is None; when called, if `x` or `mask` has a wrong rank
            or dtype.

    Example:
        >>> layer = kattn.layers.DifferentialAttention(4, causal=True)
        >>> layer(keras.random.normal((2, 128, 64))).shape
        (2, 128, 64)

    Reference:
        Ye et al. 2024, eq. 1 to 3, https://arxiv.org/abs/2410.05258; for the options that this
        layer shares with `SelfAttention` see there.
    """

    def __init__(
        self,
        num_heads,
        key_dim=None,
        *,
        value_dim=None,
        num_key_value_heads=None,
        lambda_init=0.8,
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
        arguments.check_numbers("in (0, 1)", lambda x: 0 < x < 1, lambda_init=lambda_init)
        self.lambda_init = lambda_init

    @staticmethod
    def lambda_of(layer):
        """The `lambda_init` of a layer of a stack: 0.8 - 0.6 exp(-0.3 (l - 1)).

        Args:
            layer: Number l of the layer, counted from 1.

        Returns:
            A float in (0, 1).
        """
        return 0.8 - 0.6 * math.exp(-0.3 * (layer - 1))

    def build(self, x_shape):
        check_sequence("x", x_shape)
        width = x_shape[-1]
        sizes = HeadSizes.of(self, width, maps=2)
        parts = sizes.query_width, sizes.key_width, sizes.value_width
        self._qkv = self._dense("qkv", width, *parts)
        self._build_around_core(sizes, width)
        self._norm_of_difference = self._norm("norm", sizes.value_dim)
        initializer = keras.initializers.RandomNormal(stddev=0.1)
        self._lambdas = [
            self.add_weight(
                name=f"lambda_{name}", shape=(sizes.key_dim,), initializer=initializer.clone()
            )
            for name in ("q1", "k1", "q2", "k2")
        ]

    def call(self, x, mask=None, positions=None, training=None, mask_arrays=None):
        x, padding, allowed = read_masks(x, mask)
        positions = step_positions(self.position, positions, padding, allowed)
        x = embed(self.position, x, positions)  # (B, T, C)
        (q1, q2), (k1, k2), v = self._project(x, positions)
        allowed, options = intersect(self._pattern, allowed), self._weighting(training)
        y1 = attention(q1, k1, v, mask=allowed, **options, **self._scores(q1))  # (B, T, N, Dv)
        y2 = attention(q2, k2, v, mask=allowed, **options, **self._scores(q2))
        return self._finish(x, self._difference(y1, y2), padding)

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
        (q1, q2), (k1, k2), v = self._project(x, positions)
        calls = [Call.make(q, k, v, **self._scores(q)) for q, k in ((q1, k1), (q2, k2))]
        allowed = intersect(self._pattern, allowed)
        options = {"real": padding, "queries_at": lambda places: self._project(x, places)[0]}
        (y1, y2), cache = decode_maps(calls, cache, mask=allowed, **options)
        return self._finish(x, self._difference(y1, y2), padding), cache

    def attention_weights(self, x, mask=None, positions=None):
        """The attention weights that the call mixes values with, whatever algorithm it takes.

        Args:
            x: Input sequence, float, shape `(B, T, C)`.
            mask: Mask, bool, True = may attend, of any kind that the call takes.
            positions: Positions of the steps for `position`, integers, shape `(T,)` or `(B, T)`.

        Returns:
            `(B, N, T, T)` float32, query by key, some of them negative: one map minus lambda times
            the other. Rows sum to 1 - lambda, or are 0 at padding steps and where a query may
            attend to nothing. Dropout is not applied.
        """
        if not self.built:
            self.build(x.shape)
        x, padding, allowed = read_masks(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        positions = step_positions(self.position, positions, padding, allowed)
        (q1, q2), (k1, k2), _ = self._project(embed(self.position, x, positions), positions)
        allowed = intersect(self._pattern, allowed)
        first = attention_weights(q1, k1, mask=allowed, **self._scores(q1))  # (B, N, T, T)
        second = attention_weights(q2, k2, mask=allowed, **self._scores(q2))
        return silence_weights(first - self._lambda() * second, padding)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            "lambda_init": self.lambda_init,
            "causal": self.causal,
            "window": self.window,
            "pattern": pattern_config(self.pattern),
        }

    def _project(self, x, positions):
        """Queries and keys of each map, `(B, T, N, D)` and `(B, T, K, D)`, and the values."""
        q, k, v = self.head_sizes.split_qkv(self._qkv(x))
        q, k = self._normalize(q, k)
        q, k = rotate(self.position, q, positions), rotate(self.position, k, positions)
        return ops.split(q, 2, axis=2), ops.split(k, 2, axis=2), v

    def _difference(self, first, second):
        """The outputs `(B, T, N, Dv)` of both maps as one, normalised by head."""
        y = first - ops.cast(self._lambda(), first.dtype) * second
        return self._norm_of_difference(y) * (1.0 - self.lambda_init)

    def _lambda(self):
        q1, k1, q2, k2 = (ops.cast(weight, "float32") for weight in self._lambdas)
        return ops.exp(ops.sum(q1 * k1)) - ops.exp(ops.sum(q2 * k2)) + self.lambda_init
