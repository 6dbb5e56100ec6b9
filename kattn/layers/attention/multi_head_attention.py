"""A drop-in for `keras.layers.MultiHeadAttention` on kattn's attention core."""

import functools

import keras
from keras import ops

from kattn import arguments, masks
from kattn.layers.attention.caches import check_decodes, empty_cache_of
from kattn.layers.attention.einsum_projection import einsum_projection, einsum_projection_config
from kattn.layers.attention.flattened_axes import FlattenedAxes, check_axes
from kattn.layers.attention.head_sizes import HeadSizes
from kattn.layers.attention.keras_names import KerasNames
from kattn.layers.attention.key_value_masks import (
    joined_padding,
    read_attention_mask,
    read_paddings,
    silence_inputs,
)
from kattn.layers.attention.mask_object_layer import MaskObjectLayer
from kattn.layers.attention.mask_reader import (
    read_new_masks,
    set_keras_mask,
    silence,
    silence_weights,
)
from kattn.layers.attention.multi_head_checks import (
    check_arguments,
    check_shapes,
    read_integers,
)
from kattn.layers.attention.positions import (
    aligned_positions,
    attach,
    read_position,
    rotate,
    score_bias,
)
from kattn.layers.nested_layers import layer_config
from kattn.layers.position.head_position import HeadPosition
from kattn.masks import intersect
from kattn.ops.attention import attention, attention_weights
from kattn.ops.cache import next_positions
from kattn.ops.decoding import decode

NOT_FUSED = ("banded", "chunked", "dense")


@keras.saving.register_keras_serializable("kattn")
class MultiHeadAttention(KerasNames, MaskObjectLayer):
    """softmax(Q K^T / sqrt(D)) V in `num_heads` subspaces, for any rank and any axes.

    Constructor, call and weights are those of `keras.layers.MultiHeadAttention`: replace the
    import, or move weights over with `set_weights`. What differs is the contract: a query
    that sees no key mixes nothing (exactly 0 before the output projection); causal masks are
    aligned to the end; a Keras mask of an input stays where it is and joins an explicit one;
    masks hold for any `attention_axes`; and no mask, bias or dropout costs a T x S array
    where a kernel of kattn's own can do without.

    A subclass may override `_compute_attention`, as one of Keras's layer may. It is given the
    mask as an array then, and cannot `decode`. The sub-layers and arguments have the private
    names that they have in Keras, such as `_query_dense` and `_sliding_window`.

    Shapes: B batch, T and S steps of query and value, N heads, D `key_dim`, Dv `value_dim`.

    Args:
        num_heads: Number of attention heads, N.
        key_dim: Width of the queries and keys of one head, D.
        value_dim: Width of the values of one head, Dv. None for `key_dim`.
        dropout: Fraction of the attention weights that are dropped during training, in [0, 1).
        use_bias: Whether the projections add a bias.
        output_shape: Shape of a step of the output, an integer or several. None for the width of
            the query.
        attention_axes: Axes, without batch and width, over which steps attend to each other; the
            other axes are treated as batch. None for all of them.
        sliding_window: Number W; a step attends to those less than W steps away. None for no limit.
        flash_attention: True for the framework's own kernel, or an error that says why it cannot
            be used; False for any other kernel; None to let `kattn.ops.explain` and
            `keras.config.disable_flash_attention` decide.
        kernel_initializer: Initializer of the projection kernels.
        bias_initializer: Initializer of the biases of the projections.
        kernel_regularizer: Regularizer of the projection kernels, or None.
        bias_regularizer: Regularizer of the biases of the projections, or None.
        activity_regularizer: Regularizer of the outputs of the projections, or None.
        kernel_constraint: Constraint of the projection kernels, or None.
        bias_constraint: Constraint of the biases of the projections, or None.
        use_gate: If True, each head's output is multiplied by sigmoid(query W_g + b_g).
        seed: Integer seed of the dropout, or None for a random one.
        position: Position layer for queries and keys, such as `RotaryEmbedding()` or a bias, over
            flattened steps; query and key are aligned to the end, as causal masks are. None for
            no positions. Keras's layer has no such argument.
        num_key_value_heads: Number K of key and value heads, each of which serves N / K query
            heads. None for N. Keras has a layer of its own for it, `GroupQueryAttention`, whose
            weights and weight files fit, too.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        query: Input that asks, float, shape `(B, T, C)` or `(B, <axes>, C)`.
        value: Input that provides values, float, shape `(B, S, E)` or `(B, <axes>, E)`.
        key: Input that provides keys, float, of the shape of `value`, but for the width. None for
            `value`.
        query_mask: Padding of the query, bool, shape `(B, T)`, True = real step. It is combined
            with the Keras mask of `query`.
        value_mask: Padding of the value, bool, shape `(B, S)`, True = real step. It is combined
            with the Keras mask of `value`.
        key_mask: Padding of the key, bool, shape `(B, S)`, True = real step. It is combined with
            the Keras mask of `key`.
        attention_mask: Mask of query by key, bool, True = may attend: shape `(B, T, S)` or
            `(B, N, T, S)`, where T and S are several axes each if `attention_axes` are several; or
            a `kattn.masks.Mask` over flattened steps. As in Keras, an array of numbers stands for
            booleans, 0 = may not attend, and so it does in the other masks. What inputs hold at
            padding, be it NaN, changes nothing; at steps that this mask hides they must be finite.
        return_attention_scores: Whether to return the attention weights, too.
        training: Whether dropout is applied.
        use_causal_mask: Whether a step attends to steps up to its own only. Several axes count
            as one, the last running fastest.
        mask_arrays: Arrays of a mask object, which a functional model keeps apart from it. Leave it
            None.

    Returns:
        `(B, T, C)` or `(B, T, *output_shape)`; at padding steps it is the output bias. With
        `return_attention_scores` a pair, the second `(B, N, T, S)`, before dropout.

    Raises:
        ValueError: If an argument is out of range; when called, if the rank or size of an input
            or a mask does not fit, or if `flash_attention=True` cannot be had.
        TypeError: When a subclass is made that overrides a private method of Keras's layer which
            this layer does not call, such as `_masked_softmax`.

    Example:
        >>> layer = kattn.layers.MultiHeadAttention(num_heads=4, key_dim=16)
        >>> x = keras.random.normal((2, 128, 64))
        >>> layer(x, x, use_causal_mask=True).shape
        (2, 128, 64)

    Reference:
        Vaswani et al. 2017, sec. 3.2.2, https://arxiv.org/abs/1706.03762
        Gate: Qiu et al. 2025, https://arxiv.org/abs/2505.06708
    """

    def __init__(
        self,
        num_heads,
        key_dim,
        value_dim=None,
        dropout=0.0,
        use_bias=True,  # noqa: FBT002, as Keras has it
        output_shape=None,
        attention_axes=None,
        sliding_window=None,
        flash_attention=None,
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        activity_regularizer=None,
        kernel_constraint=None,
        bias_constraint=None,
        use_gate=False,  # noqa: FBT002, as Keras has it
        seed=None,
        *,
        position=None,
        num_key_value_heads=None,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = key_dim if value_dim is None else value_dim
        self.num_key_value_heads = num_key_value_heads
        self.dropout = dropout
        self.use_bias = use_bias
        # Not `output_shape`, which Keras's own layers define.
        self._output_shape = read_integers("Invalid `output_shape`: it", output_shape=output_shape)
        self.attention_axes = read_integers("`attention_axes`", attention_axes=attention_axes)
        self.sliding_window = sliding_window
        self.flash_attention = flash_attention
        self.use_gate = use_gate
        self.seed = seed
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        # Not `activity_regularizer`: Keras would apply that to the output of this layer, too.
        self._activity_regularizer = keras.regularizers.get(activity_regularizer)
        self.kernel_constraint = keras.constraints.get(kernel_constraint)
        self.bias_constraint = keras.constraints.get(bias_constraint)
        self.position = read_position(position)
        check_arguments(self)
        self._seed_generator = keras.random.SeedGenerator(seed) if dropout else None

    def build(self, query_shape, value_shape, key_shape=None):
        key_shape = value_shape if key_shape is None else key_shape
        check_axes(self.attention_axes, query_shape, value_shape, key_shape)
        heads, key_size, value_size = self.num_heads, self.key_dim, self.value_dim
        key_heads = self.num_key_value_heads or heads
        project = functools.partial(einsum_projection, self)
        # Order and attribute names are those of Keras: its weights and weight files fit.
        self._query_dense = project("query", query_shape, (heads, key_size))
        self._key_dense = project("key", key_shape, (key_heads, key_size))
        if self.use_gate:
            of_gate = heads, value_size
            self._gate_dense = project("gate", query_shape, of_gate, activation="sigmoid")
        self._value_dense = project("value", value_shape, (key_heads, value_size))
        mixed_shape = (*query_shape[:-1], heads, value_size)
        sizes = self._output_shape or (query_shape[-1],)
        self._output_dense = project("attention_output", mixed_shape, sizes, summed=2)
        self._input_sizes = len(query_shape), query_shape[-1], value_shape[-1], key_shape[-1]
        self.head_sizes = HeadSizes(heads, key_heads, key_size, value_size)
        attach(self.position, query_shape[-1], self.head_sizes)
        self.built = True

    def call(
        self,
        query,
        value,
        key=None,
        query_mask=None,
        value_mask=None,
        key_mask=None,
        attention_mask=None,
        return_attention_scores=False,  # noqa: FBT002, as Keras has it
        training=None,
        use_causal_mask=False,  # noqa: FBT002, as Keras has it
        mask_arrays=None,
    ):
        key = value if key is None else key
        check_shapes(self, query.shape, value.shape, key.shape)
        axes = FlattenedAxes(self.attention_axes, ops.shape(query), ops.shape(value))
        explicit = query_mask, value_mask, key_mask
        output_mask = joined_padding(query, query_mask)
        padding, of_keys = read_paddings(axes, (query, value, key), explicit)
        query, value, key = silence_inputs(axes, (query, value, key), (padding, of_keys))
        allowed = self._allowed(axes, of_keys, attention_mask, causal=use_causal_mask)
        if self._has_own_attention and allowed is not None:
            allowed = axes.mask_array(allowed)
        q, k, bias = self._queries_and_keys(axes, query, key, (padding, of_keys))
        y, weights = self._compute_attention(
            q,
            k,
            self._value_dense(value),
            attention_mask=allowed,
            training=training,
            return_attention_scores=return_attention_scores,
            **({} if bias is None else {"bias": bias}),
        )  # (B, <axes>, N, Dv)
        if padding is not None:
            y = silence(y, axes.unflatten(padding, axes.queries, 0)[..., None])
        if self.use_gate:
            y = y * self._gate_dense(query)
        y = set_keras_mask(self._output_dense(y), output_mask)
        if not return_attention_scores:
            return y
        if padding is not None and weights is not None:
            weights = silence_weights(axes.flatten_scores(weights), padding)
            weights = axes.unflatten_scores(weights)
        return y, weights

    def _compute_attention(
        self,
        query,
        key,
        value,
        attention_mask=None,
        training=None,
        return_attention_scores=False,  # noqa: FBT002, as Keras has it
        use_causal_mask=False,  # noqa: FBT002, as Keras has it
        *,
        bias=None,
    ):
        """The values, mixed by queries and keys: the part that a subclass may override.

        Args:
            query: Projected queries, float, shape `(B, T, N, D)` or `(B, <axes>, N, D)`.
            key: Projected keys, float, shape `(B, S, K, D)` or `(B, <axes>, K, D)`.
            value: Projected values, float, shape `(B, S, K, Dv)` or `(B, <axes>, K, Dv)`.
            attention_mask: All masks of the call in one, padding and window included: a
                `kattn.masks.Mask`, or, in a subclass that overrides this method, an array.
            training: Whether dropout is applied.
            return_attention_scores: Whether to return the attention weights, too.
            use_causal_mask: Whether a step attends to steps up to its own only. The call has put
                that into `attention_mask`.
            bias: Bias of the scores, if `position` is one. It is not given otherwise.

        Returns:
            A pair: the mixed values, shape `(B, T, N, Dv)` or `(B, <axes>, N, Dv)`, and the
            weights `(B, N, T, S)` before dropout, or None.
        """
        query, key, value = (ops.convert_to_tensor(x) for x in (query, key, value))
        # The axis of heads is in the place of the width of the inputs.
        axes = FlattenedAxes(self.attention_axes, ops.shape(query)[:-1], ops.shape(key)[:-1])
        q, k, v = (axes.flatten(x, 2) for x in (query, key, value))
        allowed = read_attention_mask(axes, attention_mask)
        allowed = intersect(masks.Causal() if use_causal_mask else None, allowed)
        y = attention(
            q,
            k,
            v,
            mask=allowed,
            bias=bias,
            dropout_rate=self.dropout if training else 0.0,
            seed=self._seed_generator,
            implementation=self._implementation,
        )  # (B', T', N, Dv)
        y = axes.unflatten(y, axes.queries)
        if not return_attention_scores:
            return y, None
        weights = axes.unflatten_scores(attention_weights(q, k, mask=allowed, bias=bias))
        return y, ops.cast(weights, self.compute_dtype)

    def attention_weights(
        self,
        query,
        value,
        key=None,
        *,
        query_mask=None,
        value_mask=None,
        key_mask=None,
        attention_mask=None,
        use_causal_mask=False,
    ):
        """The attention weights that the call mixes values with, whatever kernel it takes.

        Args:
            query: Input that asks, float, shape `(B, T, C)` or `(B, <axes>, C)`.
            value: Input that provides values, float, shape `(B, S, E)` or `(B, <axes>, E)`.
            key: Input that provides keys, float, of the shape of `value`, but for the width. None
                for `value`.
            query_mask: Padding of the query, bool, shape `(B, T)`, True = real step.
            value_mask: Padding of the value, bool, shape `(B, S)`, True = real step.
            key_mask: Padding of the key, bool, shape `(B, S)`, True = real step.
            attention_mask: Mask of query by key, bool, True = may attend, of any kind that the
                call takes.
            use_causal_mask: Whether a step attends to steps up to its own only.

        Returns:
            `(B, N, T, S)` float32, or with several axes for each of T and S. Rows sum to 1, or
            are 0 at padding steps and where a query may attend to nothing. Dropout is not
            applied.
        """
        key = value if key is None else key
        if self._has_own_attention:
            _, weights = self(
                query,
                value,
                key,
                query_mask=query_mask,
                value_mask=value_mask,
                key_mask=key_mask,
                attention_mask=attention_mask,
                return_attention_scores=True,
                use_causal_mask=use_causal_mask,
            )
            return ops.cast(weights, "float32")
        if not self.built:
            self.build(query.shape, value.shape, key.shape)
        axes = FlattenedAxes(self.attention_axes, ops.shape(query), ops.shape(key))
        explicit = query_mask, value_mask, key_mask
        padding, of_keys = read_paddings(axes, (query, value, key), explicit)
        query, value, key = silence_inputs(axes, (query, value, key), (padding, of_keys))
        allowed = self._allowed(axes, of_keys, attention_mask, causal=use_causal_mask)
        query, key = (ops.convert_to_tensor(x, dtype=self.compute_dtype) for x in (query, key))
        q, k, bias = self._queries_and_keys(axes, query, key, (padding, of_keys))
        q, k = axes.flatten(q, 2), axes.flatten(k, 2)
        weights = silence_weights(attention_weights(q, k, mask=allowed, bias=bias), padding)
        return axes.unflatten_scores(weights)

    def init_cache(self, batch_size, length, context=None, context_mask=None):
        """An empty cache for `decode`, which Keras's layer does not have.

        Args:
            batch_size: Number of sequences that are decoded, B.
            length: Number of steps that are decoded at most.
            context: Must be None: `decode` is causal self-attention. For cross-attention use
                `kattn.layers.CrossAttention`.
            context_mask: Must be None, as there is no context.

        Returns:
            A `kattn.ops.KVCache` with room for `length` steps, or, if `sliding_window` is shorter,
            a `kattn.ops.RingCache` of its size.

        Raises:
            ValueError: If the layer is not built or not for sequences `(B, T, C)`, if it overrides
                `_compute_attention`, if a size is not an integer >= 1, or if there is a context.
        """
        check_decodes(self, batch_size, length, context, context_mask)
        if self._input_sizes[0] != 3 or self.attention_axes not in (None, (1,), (-2,)):
            raise arguments.error(
                "Only a layer for sequences (B, T, C) can decode step by step",
                attention_axes=self.attention_axes,
            )
        if self._has_own_attention:
            raise arguments.error(
                "A layer that overrides `_compute_attention` cannot decode step by step, as a "
                "cache has attention of its own",
                layer=type(self).__name__,
            )
        pattern = intersect(masks.Causal(), self._window)
        return empty_cache_of(pattern, batch_size, length, self.head_sizes, self.compute_dtype)

    def decode(self, x, cache, mask=None):
        """Causal self-attention of new steps, of which the cache holds the steps before.

        Piece by piece it gives what `layer(x, x, use_causal_mask=True)` gives for the whole
        sequence without its padding. Keras's layer does not have this method.

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
        q, k, v = self._query_dense(x), self._key_dense(x), self._value_dense(x)
        positions = next_positions(cache, x.shape[1], padding)
        query_at = functools.partial(rotate, self.position, q)
        q, k = query_at(positions), rotate(self.position, k, positions)
        allowed = intersect(intersect(masks.Causal(), self._window), allowed)
        options = {"mask": allowed, "bias": score_bias(self.position, q), "query_at": query_at}
        y, cache = decode(q, k, v, cache, real=padding, **options)  # (B, t, N, Dv)
        if self.use_gate:
            y = y * self._gate_dense(x)
        return self._output_dense(y), cache

    @property
    def _has_own_attention(self):
        """Whether a subclass overrides `_compute_attention`."""
        return type(self)._compute_attention is not MultiHeadAttention._compute_attention

    @property
    def _window(self):
        return None if self.sliding_window is None else masks.Window(self.sliding_window)

    def _queries_and_keys(self, axes, query, key, paddings):
        """Queries and keys at their positions, `(B, <axes>, heads, D)`, and their scores' bias."""
        q, k = self._query_dense(query), self._key_dense(key)
        if self.position is None:
            return q, k, None
        q, k = axes.flatten(q, 2), axes.flatten(k, 2)
        at_q = at_k = None  # over several axes the position layer knows its grid
        if len(axes.axes) == 1 and isinstance(self.position, HeadPosition):
            at_q, at_k = aligned_positions(ops.shape(q)[1], ops.shape(k)[1], *paddings)
        q, k = rotate(self.position, q, at_q), rotate(self.position, k, at_k)
        bias = score_bias(self.position, q)
        return axes.unflatten(q, axes.queries), axes.unflatten(k, axes.keys), bias

    def _allowed(self, axes, of_keys, attention_mask, *, causal):
        """All that limits which keys a query may attend to, as a mask object or None."""
        allowed = intersect(masks.Causal() if causal else None, self._window)
        allowed = intersect(allowed, None if of_keys is None else masks.Padding(of_keys))
        return intersect(allowed, read_attention_mask(axes, attention_mask))

    @property
    def _implementation(self):
        wanted = self.flash_attention
        if wanted is None and keras.config.is_flash_attention_enabled() is False:
            wanted = False
        return {None: "auto", True: "fused", False: NOT_FUSED}[wanted]

    def compute_output_shape(self, query_shape, value_shape, key_shape=None):
        check_shapes(
            self, query_shape, value_shape, value_shape if key_shape is None else key_shape
        )
        return (*query_shape[:-1], *(self._output_shape or query_shape[-1:]))

    def compute_output_spec(
        self,
        query,
        value,
        key=None,
        query_mask=None,
        value_mask=None,
        key_mask=None,
        attention_mask=None,
        return_attention_scores=False,  # noqa: FBT002, as Keras has it
        training=None,
        use_causal_mask=False,  # noqa: FBT002, as Keras has it
        mask_arrays=None,
    ):
        shape = self.compute_output_shape(
            query.shape, value.shape, None if key is None else key.shape
        )
        output = keras.KerasTensor(shape, dtype=self.compute_dtype)
        output._keras_mask = joined_padding(query, query_mask)
        if not return_attention_scores:
            return output
        axes = FlattenedAxes(self.attention_axes, query.shape, value.shape)
        shape = (*axes.batch, self.num_heads, *axes.queries, *axes.keys)
        return output, keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "output_shape": self._output_shape,
            "attention_axes": self.attention_axes,
            "sliding_window": self.sliding_window,
            "flash_attention": self.flash_attention,
            **einsum_projection_config(self),
            "use_gate": self.use_gate,
            "seed": self.seed,
            # Keras has no such fields, and takes a config without them.
            **({} if self.position is None else {"position": layer_config(self.position)}),
            **(
                {}
                if self.num_key_value_heads is None
                else {"num_key_value_heads": self.num_key_value_heads}
            ),
        }
