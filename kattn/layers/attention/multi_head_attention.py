"""A drop-in for `keras.layers.MultiHeadAttention` on kattn's attention core."""

import string

import keras
from keras import ops

from kattn import masks
from kattn.layers.attention import schemes
from kattn.layers.attention.mask_reader import MaskReader, MaskWriter
from kattn.layers.attention.projections import silence
from kattn.layers.position.input_position import InputPosition
from kattn.layers.position.position import Position
from kattn.ops import masking
from kattn.ops.attention import attention, attention_weights
from kattn.ops.cache import next_positions
from kattn.ops.decoding import decode

NOT_FUSED = ("banded", "chunked", "dense")


@keras.saving.register_keras_serializable("kattn")
class MultiHeadAttention(keras.layers.Layer):
    """softmax(Q K^T / sqrt(D)) V in `num_heads` subspaces, for any rank and any axes.

    Constructor, call and weights are those of `keras.layers.MultiHeadAttention`: replace the
    import, or move weights over with `set_weights`. What differs is the contract: a query
    that sees no key mixes nothing (exactly 0 before the output projection); causal masks are
    aligned to the end; a Keras mask of an input stays where it is and joins an explicit one;
    masks hold for any `attention_axes`; and no mask, bias or dropout costs a T x S array
    where a kernel of kattn's own can do without.

    Shapes: B batch, T and S steps of query and value, N heads, D `key_dim`, Dv `value_dim`.

    Args:
        num_heads: N.
        key_dim: D.
        value_dim: Dv; None for D.
        dropout: Fraction of attention weights dropped in training, in [0, 1).
        use_bias: Whether the projections add a bias.
        output_shape: Of an output step, an integer or several; None for the query's width.
        attention_axes: The axes, without batch and width, over which steps attend to each
            other; the rest are batch. None for all of them.
        sliding_window: If W, a step attends to those less than W steps away. None for no limit.
        flash_attention: True for the framework's own kernel or an error that says why not,
            False for any other, None to let `kattn.ops.explain` and
            `keras.config.disable_flash_attention` decide.
        kernel_initializer: Of the projection kernels.
        bias_initializer: Of the biases.
        kernel_regularizer: Of the projection kernels.
        bias_regularizer: Of the biases.
        activity_regularizer: Of the projections' outputs.
        kernel_constraint: Of the projection kernels.
        bias_constraint: Of the biases.
        use_gate: Whether each head's output is multiplied by sigmoid(query W_g + b_g).
        seed: Integer seed of the dropout.
        position: Not in Keras: a position layer for queries and keys, `RotaryEmbedding()` or a
            bias, over flattened steps; query and key are aligned to the end, as causal masks are.
            None for none.
        **kwargs: `name`, `dtype`, `trainable`, as for any Keras layer.

    Call args:
        query: `(B, T, C)` float, or `(B, <axes>, C)`.
        value: `(B, S, E)` float, or `(B, <axes>, E)`.
        key: Of the shape of `value`, but for the width; None for `value`.
        query_mask: `(B, T)` bool, True = real step; joined with the Keras mask of `query`.
        value_mask: `(B, S)` bool, True = real step; joined with the Keras mask of `value`.
        key_mask: `(B, S)` bool, True = real step; joined with the Keras mask of `key`.
        attention_mask: True = may attend. `(B, T, S)` or `(B, N, T, S)` bool, T and S each
            several axes where `attention_axes` are several; or a `kattn.masks.Mask` over
            flattened steps.
        return_attention_scores: Whether to return the weights, too.
        training: Whether dropout applies.
        use_causal_mask: Whether a step attends to steps up to its own only. Several axes count
            as one, the last running fastest.

    Returns:
        `(B, T, C)` or `(B, T, *output_shape)`; at padding steps it is the output bias. With
        `return_attention_scores` a pair, the second `(B, N, T, S)`, before dropout.

    Raises:
        ValueError: For arguments out of range; when called, for inputs or masks whose rank, size
            or dtype do not fit, and where `flash_attention=True` cannot be had.

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
        **kwargs,
    ):
        super().__init__(**kwargs)
        self.supports_masking = True
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = key_dim if value_dim is None else value_dim
        self.dropout = dropout
        self.use_bias = use_bias
        # Not `output_shape`, which Keras's own layers define.
        self._output_sizes = _integers("output_shape", output_shape)
        self.attention_axes = _integers("attention_axes", attention_axes)
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
        self.position = schemes.read(position, "position", Position)
        self._check()
        self._window = None if sliding_window is None else masks.Window(sliding_window)
        self._mask_reader = MaskReader(name="mask_reader", dtype=self.dtype_policy)
        self._mask_writer = MaskWriter(name="mask_writer", dtype=self.dtype_policy)
        self._seed_generator = keras.random.SeedGenerator(seed) if dropout else None

    def _check(self):
        for name in ("num_heads", "key_dim", "value_dim", "sliding_window"):
            value = getattr(self, name)
            if name == "sliding_window" and value is None:
                continue
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise ValueError(f"`{name}` must be an integer >= 1; received: {name}={value!r}")
        if not 0.0 <= self.dropout < 1.0:
            raise ValueError(f"`dropout` must be in [0, 1); received: dropout={self.dropout}")
        if self.flash_attention not in (None, True, False):
            raise ValueError(
                "`flash_attention` must be True, False or None; "
                f"received: flash_attention={self.flash_attention!r}"
            )
        if isinstance(self.position, InputPosition):
            raise ValueError(
                "`position` must be of queries and keys or a bias; absolute positions are added "
                f"to the inputs, before the layer. Received: position={self.position!r}"
            )

    def build(self, query_shape, value_shape, key_shape=None):
        key_shape = value_shape if key_shape is None else key_shape
        self._check_shapes(query_shape, value_shape, key_shape)
        heads, key_size, value_size = self.num_heads, self.key_dim, self.value_dim
        # Order and attribute names are those of Keras: its weights and weight files fit.
        self.query_dense = self._project("query", query_shape, 1, (heads, key_size))
        self.key_dense = self._project("key", key_shape, 1, (heads, key_size))
        if self.use_gate:
            self._gate_dense = self._project("gate", query_shape, 1, (heads, value_size), "sigmoid")
        self.value_dense = self._project("value", value_shape, 1, (heads, value_size))
        mixed_shape = (*query_shape[:-1], heads, value_size)
        sizes = self._output_sizes or (query_shape[-1],)
        self.output_dense = self._project("attention_output", mixed_shape, 2, sizes)
        if self.position is not None:
            sizes = {"width": query_shape[-1], "num_heads": heads, "key_dim": key_size}
            self.position.attach(**sizes)
        self.built = True

    def _check_shapes(self, query_shape, value_shape, key_shape):
        received = f"query.shape={query_shape}, value.shape={value_shape}, key.shape={key_shape}"
        ranks = {len(shape) for shape in (query_shape, value_shape, key_shape)}
        if len(ranks) > 1 or min(ranks) < 3:
            raise ValueError(
                f"`query`, `value` and `key` must have one rank, 3 or more; received: {received}"
            )
        if tuple(value_shape[1:-1]) != tuple(key_shape[1:-1]):
            raise ValueError(f"`value` and `key` must have the same steps; received: {received}")
        rank, axes = len(query_shape), self.attention_axes
        if axes is None:
            return
        inside = all(-rank <= axis < rank and 1 <= axis % rank < rank - 1 for axis in axes)
        if not inside or len({axis % rank for axis in axes}) < len(axes):
            raise ValueError(
                "`attention_axes` must lie between the batch and the width, each once; received: "
                f"attention_axes={axes}, {received}"
            )
        for axis in {*range(1, rank - 1)} - {axis % rank for axis in axes}:
            if query_shape[axis] != value_shape[axis] and None not in (
                query_shape[axis],
                value_shape[axis],
            ):
                raise ValueError(
                    f"Axes that are not among `attention_axes` must be alike; axis {axis} is not: "
                    f"attention_axes={axes}, {received}"
                )

    def _project(self, name, shape, summed, sizes, activation=None):
        """A built EinsumDense from the last `summed` axes of `shape` to `sizes`."""
        letters = iter(string.ascii_lowercase)
        free, inner, outer = (
            "".join(next(letters) for _ in range(count))
            for count in (len(shape) - summed, summed, len(sizes))
        )
        layer = keras.layers.EinsumDense(
            f"{free}{inner},{inner}{outer}->{free}{outer}",
            output_shape=(*(None for _ in free[1:]), *sizes),
            bias_axes=outer if self.use_bias else None,
            activation=activation,
            kernel_initializer=_copy(self.kernel_initializer),
            bias_initializer=_copy(self.bias_initializer),
            kernel_regularizer=self.kernel_regularizer,
            bias_regularizer=self.bias_regularizer,
            activity_regularizer=self._activity_regularizer,
            kernel_constraint=self.kernel_constraint,
            bias_constraint=self.bias_constraint,
            dtype=self.dtype_policy,
            name=name,
        )
        layer.supports_masking = True  # or it warns that it drops the mask of what it is given
        layer.build(shape)
        return layer

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
    ):
        key = value if key is None else key
        steps = _Steps(self.attention_axes, ops.shape(query), ops.shape(value))
        q, k, bias = self._queries_and_keys(steps, query, key)
        v = steps.flatten(self.value_dense(value), 2)
        padding, mask = self._masks(
            steps, (query, value, key), (query_mask, value_mask, key_mask),
            attention_mask, use_causal_mask,
        )  # fmt: skip
        rate = self.dropout if training else 0.0
        y = attention(
            q, k, v, mask=mask, bias=bias, dropout_rate=rate, seed=self._seed_generator,
            implementation=self._implementation,
        )  # fmt: skip
        y = steps.unflatten(silence(y, None if padding is None else padding[..., None]))
        if self.use_gate:
            y = y * self._gate_dense(query)
        y = self._mask_writer.write(self.output_dense(y), self._padding(query, query_mask))
        if not return_attention_scores:
            return y
        scores = self._scores(steps, q, k, padding, mask, bias)
        return y, ops.cast(scores, self.compute_dtype)

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
        """The weights that the call mixes values with, whatever kernel it takes.

        Args:
            query: As in the call.
            value: As in the call.
            key: As in the call.
            query_mask: As in the call.
            value_mask: As in the call.
            key_mask: As in the call.
            attention_mask: As in the call.
            use_causal_mask: As in the call.

        Returns:
            `(B, N, T, S)` float32, or with several axes for each of T and S; rows sum to 1, or
            are 0 at padding steps and where a query may attend to nothing. Dropout is not
            applied.
        """
        key = value if key is None else key
        if not self.built:
            self.build(query.shape, value.shape, key.shape)
        steps = _Steps(self.attention_axes, ops.shape(query), ops.shape(key))
        padding, mask = self._masks(  # of the inputs as they are: a cast drops a Keras mask
            steps, (query, value, key), (query_mask, value_mask, key_mask),
            attention_mask, use_causal_mask,
        )  # fmt: skip
        dtype = self.compute_dtype
        query, key = (ops.convert_to_tensor(x, dtype=dtype) for x in (query, key))
        q, k, bias = self._queries_and_keys(steps, query, key)
        return self._scores(steps, q, k, padding, mask, bias)

    def init_cache(self, batch_size, length):
        """Not in Keras: an empty cache for `decode`.

        Args:
            batch_size: B.
            length: The most steps that will be decoded.

        Returns:
            A `kattn.ops.KVCache`, or a `kattn.ops.RingCache` if `sliding_window` is shorter.

        Raises:
            ValueError: If the layer is not built, or not for sequences `(B, T, C)`.
        """
        if not self.built or len(self.query_dense.kernel.shape) != 3 or self.attention_axes not in (
            None, (1,), (-2,)
        ):  # fmt: skip
            raise ValueError(
                "Only a built layer for sequences can make a cache; received: "
                f"built={self.built}, attention_axes={self.attention_axes}"
            )
        sizes = {"heads": self.num_heads, "key_dim": self.key_dim, "value_dim": self.value_dim}
        pattern = masking.intersect(masks.Causal(), self._window)
        dtype = self.compute_dtype
        return schemes.make_cache(pattern, batch_size, length, dtype=dtype, **sizes)

    def decode(self, x, cache, mask=None):
        """Not in Keras: causal self-attention of new steps, of which the cache holds the rest.

        Piece by piece it gives what `layer(x, x, use_causal_mask=True)` gives for the whole.

        Args:
            x: `(B, t, C)` float, the new steps.
            cache: From `init_cache`, or the last call of `decode`.
            mask: `(B, t)` bool, True = real step, False = padding, which is not kept; or a
                `kattn.masks.Mask` over the positions of the whole sequence.

        Returns:
            `(y, cache)`, see `SelfAttention.decode`.

        Raises:
            ValueError: If the steps do not fit into the cache, and that can be seen.
        """
        real, mask = schemes.split_mask(mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        q, k, v = self.query_dense(x), self.key_dense(x), self.value_dense(x)
        bias = None
        if self.position is not None:
            positions = next_positions(cache, x.shape[1], real)
            q, k = (schemes.rotate(self.position, part, positions) for part in (q, k))
            bias = schemes.bias(self.position, q)
        allowed = masking.intersect(masking.intersect(masks.Causal(), self._window), mask)
        y, cache = decode(q, k, v, cache, real=real, mask=allowed, bias=bias)
        if self.use_gate:
            y = y * self._gate_dense(x)
        return self.output_dense(y), cache

    def _queries_and_keys(self, steps, query, key):
        """Both over flattened steps, and the bias of their scores."""
        q, k = steps.flatten(self.query_dense(query), 2), steps.flatten(self.key_dense(key), 2)
        if self.position is None:
            return q, k, None
        index = [ops.arange(ops.shape(x)[1], dtype="int32") for x in (q, k)]
        index[0] = index[0] + (ops.shape(k)[1] - ops.shape(q)[1])
        default = len(self.attention_axes or query.shape[1:-1]) > 1  # the scheme knows its grid
        q, k = (
            schemes.rotate(self.position, x, None if default else i)
            for x, i in zip((q, k), index, strict=True)
        )
        return q, k, schemes.bias(self.position, q)

    def _scores(self, steps, q, k, padding, mask, bias):
        weights = attention_weights(q, k, mask=mask, bias=bias)
        if padding is not None:
            weights = ops.where(padding[:, None, :, None], weights, 0.0)
        return steps.unflatten_scores(weights, self.num_heads)

    def _masks(self, steps, inputs, explicit, attention_mask, use_causal_mask):
        """The padding of the queries, `(B', T')` or None, and the mask of the scores."""
        query, value, key = inputs
        found = [self._padding(x, mask) for x, mask in zip(inputs, explicit, strict=True)]
        padding = None if found[0] is None else steps.flatten(_stretch(found[0], query), 0)
        allowed = masking.intersect(masks.Causal() if use_causal_mask else None, self._window)
        has_key_mask = key is not value or explicit[2] is not None
        for x, keep in ((value, found[1]), (key, found[2] if has_key_mask else None)):
            if keep is not None:
                keep = steps.flatten(_stretch(keep, x), 0)
                allowed = masking.intersect(allowed, masks.Padding(keep))
        if attention_mask is not None and not isinstance(attention_mask, masks.Mask):
            attention_mask = _boolean(attention_mask, "attention_mask")
            attention_mask = masks.Dense(steps.flatten_mask(attention_mask))
        return padding, masking.intersect(allowed, attention_mask)

    def _padding(self, x, explicit):
        """The Keras mask of `x` and an explicit one, joined."""
        implicit = self._mask_reader.read(x)
        explicit = _boolean(explicit, "a padding mask")
        if implicit is None or explicit is None:
            return explicit if implicit is None else implicit
        rank = max(len(explicit.shape), len(implicit.shape))
        return ops.logical_and(_with_rank(explicit, rank), _with_rank(implicit, rank))

    @property
    def _implementation(self):
        wanted = self.flash_attention
        if wanted is None and keras.config.is_flash_attention_enabled() is False:
            wanted = False
        return {None: "auto", True: "fused", False: NOT_FUSED}[wanted]

    def compute_output_shape(self, query_shape, value_shape, key_shape=None):
        return (*query_shape[:-1], *(self._output_sizes or query_shape[-1:]))

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
    ):
        shape = self.compute_output_shape(query.shape, value.shape)
        output = keras.KerasTensor(shape, dtype=self.compute_dtype)
        output._keras_mask = self._padding(query, query_mask)
        if not return_attention_scores:
            return output
        steps = _Steps(self.attention_axes, query.shape, value.shape)
        shape = (*steps.batch, self.num_heads, *steps.queries, *steps.keys)
        return output, keras.KerasTensor(shape, dtype=self.compute_dtype)

    def get_config(self):
        initializer, regularizer = keras.initializers.serialize, keras.regularizers.serialize
        constraint = keras.constraints.serialize
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "output_shape": self._output_sizes,
            "attention_axes": self.attention_axes,
            "sliding_window": self.sliding_window,
            "flash_attention": self.flash_attention,
            "kernel_initializer": initializer(self.kernel_initializer),
            "bias_initializer": initializer(self.bias_initializer),
            "kernel_regularizer": regularizer(self.kernel_regularizer),
            "bias_regularizer": regularizer(self.bias_regularizer),
            "activity_regularizer": regularizer(self._activity_regularizer),
            "kernel_constraint": constraint(self.kernel_constraint),
            "bias_constraint": constraint(self.bias_constraint),
            "use_gate": self.use_gate,
            "seed": self.seed,
            # Keras has no such field, and takes a config without it.
            **({} if self.position is None else {"position": schemes.write(self.position)}),
        }


class _Steps:
    """The attention axes of an input as one axis of steps, the others as one of batch."""

    def __init__(self, axes, query_shape, value_shape):
        rank = len(query_shape)
        self.axes = tuple(range(1, rank - 1)) if axes is None else tuple(a % rank for a in axes)
        self.others = tuple(a for a in range(rank - 1) if a not in self.axes)
        self.batch = tuple(query_shape[a] for a in self.others)
        self.queries = tuple(query_shape[a] for a in self.axes)
        self.keys = tuple(value_shape[a] for a in self.axes)

    def flatten(self, x, kept):
        """`(B, <axes>, <kept>)` to `(B', T', <kept>)`."""
        order = (*self.others, *self.axes)
        x = ops.transpose(x, (*order, *range(len(order), len(order) + kept)))
        shape = ops.shape(x)
        split, end = len(self.others), len(order)
        return ops.reshape(x, (_product(shape[:split]), _product(shape[split:end]), *shape[end:]))

    def unflatten(self, y):
        """The way back for the output `(B', T', N, Dv)`."""
        y = ops.reshape(y, (*self.batch, *self.queries, *ops.shape(y)[2:]))
        order = (*self.others, *self.axes)
        back = [order.index(axis) for axis in range(len(order))]
        return ops.transpose(y, (*back, len(order), len(order) + 1))

    def unflatten_scores(self, weights, heads):
        """`(B', N, T', S')` to `(<batch>, N, <query axes>, <key axes>)`."""
        return ops.reshape(weights, (*self.batch, heads, *self.queries, *self.keys))

    def flatten_mask(self, mask):
        """A mask over axes as Keras has it to `(B', N or 1, T', S')`."""
        full = len(self.batch) + 1 + 2 * len(self.axes)
        least = 2 * len(self.axes)
        if not least <= len(mask.shape) <= full:
            raise ValueError(
                f"`attention_mask` must have rank {least} to {full}, ([batch, [heads,]] query "
                f"axes, key axes); received: attention_mask.shape={tuple(mask.shape)}"
            )
        head_axis = len(mask.shape) - least
        while len(mask.shape) < full:
            mask = ops.expand_dims(mask, head_axis)
        if len(self.batch) == len(self.axes) == 1:
            return mask
        mask_heads = mask.shape[len(self.batch)]
        mask = ops.broadcast_to(mask, (*self.batch, mask_heads, *self.queries, *self.keys))
        sizes = (self.batch, (mask_heads,), self.queries, self.keys)
        return ops.reshape(mask, tuple(_product(part) for part in sizes))


def _boolean(mask, name):
    """A mask of booleans, or of integers, which Keras takes and Keras code passes."""
    if mask is None:
        return None
    dtype = keras.backend.standardize_dtype(mask.dtype)
    if "float" in dtype:
        raise ValueError(f"{name} must be boolean, True = may attend; received: dtype={dtype}")
    return ops.cast(mask, "bool")


def _stretch(keep, x):
    """A padding mask with an entry for each step of x, `(B, <axes>)`."""
    steps = ops.shape(x)[:-1]
    shape = tuple(keep.shape)
    pairs = list(zip(shape, x.shape, strict=False))
    alike = all(a in (1, b) or None in (a, b) for a, b in pairs)
    if not 2 <= len(shape) <= len(steps) or not alike:
        raise ValueError(
            "A padding mask must have the first axes of its input, two or more, without the width; "
            f"received: a mask of shape {shape} for an input of shape {tuple(x.shape)}"
        )
    return keep if len(steps) == 2 else ops.broadcast_to(_with_rank(keep, len(steps)), steps)


def _with_rank(x, rank):
    """`x` with axes of 1 at its end."""
    for _ in range(rank - len(x.shape)):
        x = ops.expand_dims(x, -1)
    return x


def _product(sizes):
    total = 1
    for size in sizes:
        total = total * size
    return total


def _integers(name, value):
    """None, or a tuple of integers from one or several."""
    if value is None:
        return None
    found = value if isinstance(value, list | tuple) else (value,)
    if not all(isinstance(part, int) for part in found):
        raise ValueError(f"`{name}` must be an integer or several; received: {name}={value!r}")
    return tuple(found)


def _copy(initializer):
    """Another instance: one and the same draws the same numbers twice."""
    if not isinstance(initializer, keras.initializers.Initializer):
        return initializer
    return type(initializer).from_config(initializer.get_config())
