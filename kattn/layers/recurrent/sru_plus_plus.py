"""A simple recurrent unit whose inputs come from attention (Lei, 2021)."""

import keras
from keras import ops

from kattn import arguments, masks
from kattn.layers.attention.caches import check_decodes, empty_cache_of
from kattn.layers.attention.head_sizes import HeadSizes, merge_heads
from kattn.layers.attention.mask_reader import read_padded
from kattn.layers.attention.patterns import join_patterns
from kattn.layers.recurrent.sru import SRU
from kattn.layers.transformer.norms import new_norm
from kattn.ops.attention import attention
from kattn.ops.cache import count_steps
from kattn.ops.decoding import decode
from kattn.ops.recurrence import RecurrentState, initial_recurrent_state


@keras.saving.register_keras_serializable("kattn")
class SRUPlusPlus(SRU):
    """An SRU whose product x W is U = norm(z + alpha attention(z)) W_3, where z = x W_1.

    Keys and values are z W_2 and queries z itself, in `attention_dim` channels, fewer than the
    recurrence has; alpha is a learned number that starts at 0. Attention is causal.

    Shapes: B batch, T steps, C width of the input.

    Args:
        units: Number of channels of the state and of the output. If it is not C, what stands for x
            in the highway r_t c_t + (1 - r_t) x_t is a fourth part of U.
        attention_dim: Number of channels of the queries, keys and values. The paper has a quarter
            to an eighth of `units`.
        num_heads: Number of attention heads, which must divide `attention_dim`.
        window: Number of steps that attention looks at, the step's own included. None for all
            steps so far.
        dropout: Fraction of the channels in front of W_3 that are dropped during training, in
            [0, 1).
        attention_dropout: Fraction of the attention weights that are dropped during training, in
            [0, 1).
        seed: Integer seed of what is dropped, or None for a random one.
        **kwargs: The other arguments of `SRU`, and `name`, `dtype` and `trainable`, as for any
            Keras layer.

    Call args:
        x: Input sequence, float, shape `(B, T, C)`.
        mask: Padding, bool, shape `(B, T)`, True = real step; False = padding, which leaves the
            state as it is, and is never attended to. It is combined with the Keras mask of `x`.
        training: Whether anything is dropped.

    Returns:
        `(B, T, units)`; at padding steps it means nothing. The padding of `x` is the Keras mask of
        the output.

    Raises:
        ValueError: If an argument is out of range; when called, if `x` or `mask` has a wrong rank,
            shape or dtype.

    Example:
        >>> layer = kattn.layers.SRUPlusPlus(64, 16)
        >>> layer(keras.random.normal((2, 128, 64))).shape
        (2, 128, 64)
        >>> cache = layer.init_cache(batch_size=2, length=128)
        >>> y, cache = layer.decode(keras.random.normal((2, 1, 64)), cache)

    Reference:
        Lei 2021, sec. 3, https://arxiv.org/abs/2102.12459. There one head attends, whose dropout
        is that of the layer.
    """

    def __init__(
        self,
        units,
        attention_dim,
        *,
        num_heads=1,
        window=None,
        dropout=0.0,
        attention_dropout=0.0,
        seed=None,
        **kwargs,
    ):
        super().__init__(units, **kwargs)
        arguments.check_integers(1, attention_dim=attention_dim, num_heads=num_heads)
        arguments.check_fractions(dropout=dropout, attention_dropout=attention_dropout)
        if attention_dim % num_heads:
            rule = "`attention_dim` must be divisible by `num_heads`"
            raise arguments.error(rule, attention_dim=attention_dim, num_heads=num_heads)
        self.attention_dim = attention_dim
        self.num_heads = num_heads
        self.window = window
        self.dropout = dropout
        self.attention_dropout = attention_dropout
        self.seed = seed
        self._pattern = join_patterns(causal=True, window=window, pattern=None)
        width = attention_dim // num_heads
        self.head_sizes = HeadSizes(num_heads, num_heads, width, width)
        self._seed_generator = keras.random.SeedGenerator(seed) if attention_dropout else None
        self._drop = keras.layers.Dropout(dropout, seed=seed, dtype=self.dtype_policy, name="drop")

    def call(self, x, mask=None, training=None):
        x, padding = read_padded(x, mask)
        z, q, k, v = self._project(x)
        allowed = self._pattern
        if padding is not None:
            allowed = masks.intersect(allowed, masks.Padding(padding))
        rate = self.attention_dropout if training else 0.0
        mixed = attention(q, k, v, mask=allowed, dropout_rate=rate, seed=self._seed_generator)
        inputs = self._mix(z, mixed, training=training)
        state = initial_recurrent_state(ops.shape(x)[0], self.units).state
        return self._recur(x, inputs, state, padding, None)[0]  # (B, T, units)

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """The state before the first step, for `decode`.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most.
            context: Must be None: the layer reads its own sequence.
            context_mask: Must be None, as there is no context.

        Returns:
            A tuple of a `kattn.ops.RecurrentState`, and a `kattn.ops.KVCache` or, if the window is
            shorter than `length`, a `kattn.ops.RingCache`.

        Raises:
            ValueError: If the layer is not built, if a size is not an integer >= 1, or if there is
                a context.
        """
        check_decodes(self, batch_size, length, context, context_mask)
        options = self._pattern, batch_size, length, self.head_sizes, self.compute_dtype
        return initial_recurrent_state(batch_size, self.units), empty_cache_of(*options)

    def decode(self, x, cache, mask=None):
        """The output for new steps of a sequence, of which the cache holds the steps before.

        Piece by piece it gives what the call gives for the whole sequence without its padding.

        Args:
            x: New steps, float, shape `(B, t, C)`, for any t.
            cache: Cache that `init_cache` or the last `decode` returned.
            mask: Padding of the new steps, bool, shape `(B, t)`: True = real step, False = padding,
                at either side, which leaves the state as it is. It is combined with the Keras mask
                of `x`.

        Returns:
            `(y, cache)`: the output, shape `(B, t, units)`; and the cache after these steps. The
            old cache must not be used any more.

        Raises:
            ValueError: If `mask` is of another kind, or the steps do not fit into the cache, where
                that can be seen.
        """
        state, attended = cache
        x, padding = read_padded(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        z, q, k, v = self._project(x)
        mixed, attended = decode(q, k, v, attended, real=padding, mask=self._pattern)
        y, last = self._recur(x, self._mix(z, mixed, training=False), state.state, padding, None)
        length = state.length + count_steps(ops.shape(x)[1], padding)
        return y, (RecurrentState(last, length), attended)

    def get_config(self):
        names = ("attention_dim", "num_heads", "window", "dropout", "attention_dropout", "seed")
        return {**super().get_config(), **{name: getattr(self, name) for name in names}}

    def _build(self, width):
        narrow, dense = self.attention_dim, self._projections.dense
        options = {"use_bias": False, "dtype": self.dtype_policy}
        self._down = dense("down", width, narrow, **options)
        self._key_value = dense("key_value", narrow, narrow, narrow, **options)
        self._alpha = self.add_weight(name="alpha", shape=(), initializer="zeros", autocast=False)
        self._norm = new_norm("layer", "norm", self.dtype_policy)
        self._norm.build((None, None, narrow))
        self._build_recurrence(width, self._build_inputs("expansion", narrow, width))

    def _project(self, x):
        """What W_1 makes of x; and queries, keys and values of it, `(B, T, N, D)`."""
        z = self._down(x)
        k, v = self.head_sizes.split_key_value(self._key_value(z))
        return z, self.head_sizes.split_query(z), k, v

    def _mix(self, z, mixed, *, training):
        """The inputs of the recurrence, `(B, T, 3 units)` or 4."""
        alpha = ops.cast(self._alpha, self.compute_dtype)
        z = self._norm(z + alpha * merge_heads(mixed))
        return self._inputs(self._drop(z, training=training))
