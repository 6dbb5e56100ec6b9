"""Self-attention over all cells of a map of any rank (non-local blocks, SAGAN, BoTNet)."""

import keras
from keras import ops

from kattn import arguments, masks
from kattn.grid import Grid
from kattn.layers.attention.head_sizes import HeadSizes, merge_heads, split_heads
from kattn.layers.attention.mask_reader import silence, silence_weights
from kattn.layers.attention.patterns import pattern_config, read_pattern
from kattn.layers.attention.positions import embed, rotate, score_bias
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.position.score_bias import ScoreBias
from kattn.layers.spatial.map_attention import MapAttention
from kattn.ops.attention import attention, attention_weights

FORMS = ("embedded_gaussian", "gaussian", "dot_product")


class SelfAttentionND(MapAttention):
    """Self-attention of maps with `rank` sides; `SelfAttention2D` describes its arguments."""

    def __init__(
        self,
        num_heads=1,
        key_dim=None,
        *,
        value_dim=None,
        key_stride=1,
        form="embedded_gaussian",
        use_residual=True,
        position=None,
        pattern=None,
        dropout=0.0,
        use_bias=True,
        data_format=None,
        implementation="auto",
        kernel_initializer="glorot_uniform",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(
            projections=ProjectionOptions(
                use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
            ),
            num_heads=num_heads,
            key_dim=key_dim,
            value_dim=value_dim,
            position=position,
            dropout=dropout,
            data_format=data_format,
            implementation=implementation,
            seed=seed,
            **kwargs,
        )
        arguments.check_integers(1, key_stride=key_stride)
        arguments.check_choice(FORMS, form=form)
        self.key_stride = key_stride
        self.form = form
        self.use_residual = use_residual
        self.pattern = read_pattern(pattern)
        self._check_form()

    def build(self, x_shape):
        self._axes = self.axes_of(x_shape)
        channels, heads = self._axes.channels, self.num_heads
        value_dim = self.value_dim or max(channels // 2 // heads, 1)
        if self.form == "gaussian":
            key_dim = HeadSizes.of(self, channels).key_dim
        else:
            key_dim = self.key_dim or max(channels // 8 // heads, 1)
        self.head_sizes = sizes = HeadSizes(heads, heads, key_dim, value_dim)
        if self.form == "gaussian":
            self._value = self._dense("value", channels, sizes.value_width)
        else:
            parts = sizes.query_width, sizes.key_width, sizes.value_width
            self._qkv = self._dense("qkv", channels, *parts)
        if self.use_residual:
            self.gamma = self.add_weight(name="gamma", shape=(), initializer="zeros")
        self._build_output(sizes)

    def call(self, x, mask=None, training=None):
        x, padding = self._axes.read(x, mask)
        mixed = self._attend(self._axes.channels_last(x), padding, self._weighting(training))
        y = self._finish(mixed, padding)
        return x + self.gamma * y if self.use_residual else y

    def attention_weights(self, x, mask=None):
        """Where each cell looks, without dropout.

        Args:
            x: Map, float, shape `(B, *sides, C)`, or `(B, C, *sides)` for `"channels_first"`.
            mask: Padding, bool, shape `(B, *sides)`, True = real cell.

        Returns:
            `(B, N, T, S)` float32. Queries and keys are in row-major order. Rows sum to 1, or are 0
            for a query that is padding or sees no key. With the form "dot_product" they are
            products of any sign, whose sum is not 1.
        """
        x, padding = self._read(x, mask)
        q, k, _, scores, keys = self._project(x, padding)
        if self.form == "dot_product":
            q, k = (ops.cast(x, "float32") for x in (q, k))
            weights = ops.einsum("btnd,bsnd->bnts", q, k) / _count(k, keys)[..., None, None]
        else:
            weights = attention_weights(q, k, **scores)
        queries = None if padding is None else ops.reshape(padding, ops.shape(q)[:2])
        return silence_weights(weights, queries)

    def get_config(self):
        return {
            **super().get_config(),
            "key_stride": self.key_stride,
            "form": self.form,
            "use_residual": self.use_residual,
            "pattern": pattern_config(self.pattern),
        }

    def _attend(self, x, padding, weighting):
        q, k, v, scores, keys = self._project(x, padding)
        if self.form == "dot_product":
            mixed = _dot_products(q, k, v, keys)
        else:
            mixed = attention(q, k, v, **scores, **weighting)  # (B, T, N, Dv)
        return Grid.of_map(x).unflatten(merge_heads(mixed))

    def _project(self, x, padding):
        """Queries `(B, T, N, D)`, pooled keys and values, what changes the scores, real keys."""
        grid = Grid.of_map(x, self.key_stride)
        cells = None if self.position is None else grid.cells()
        x = embed(self.position, grid.flatten(x), cells)  # (B, T, C)
        if self.form == "gaussian":
            q = k = split_heads(x, self.num_heads)
            v = self.head_sizes.split_value(self._value(x))
        else:
            q, k, v = self.head_sizes.split_qkv(self._qkv(x))
        k, v = (_pool(x, padding, grid) for x in (k, v))
        if self.position is not None:
            q, k = rotate(self.position, q, cells), rotate(self.position, k, grid.key_positions())
        keys = None if padding is None else _pool_padding(padding, grid)
        mask = None if self.pattern is None else self.pattern.on_grid(grid)
        mask = masks.intersect(mask, None if keys is None else masks.Padding(keys))
        return q, k, v, {"mask": mask, "bias": score_bias(self.position, q, grid)}, keys

    def _check_form(self):
        """Raises ValueError for arguments that the form of the scores, or pooled keys, exclude."""
        if self.form == "gaussian" and self.key_dim is not None:
            raise arguments.error(
                '`key_dim` must be None with form="gaussian", which compares the channels of the '
                "map themselves",
                key_dim=self.key_dim,
            )
        if self.form == "dot_product":
            for name, is_given in (
                ("pattern", self.pattern is not None),
                ("dropout", self.dropout),
            ):
                if is_given:
                    raise arguments.error(
                        f'`{name}` must not be given with form="dot_product", which has no softmax '
                        "and does not compute the scores one by one",
                        **{name: getattr(self, name)},
                    )
            if isinstance(self.position, ScoreBias):
                raise arguments.error(
                    '`position` must not be a bias of the scores with form="dot_product"',
                    position=self.position,
                )
        if self.pattern is not None and self.key_stride > 1:
            raise arguments.error(
                "`key_stride` must be 1 where a `pattern` says which cells see each other",
                key_stride=self.key_stride,
                pattern=self.pattern,
            )


def _pool(x, padding, grid):
    """`(B, T, N, D)` to `(B, S, N, D)`: the maximum of the real cells of each window, or 0."""
    stride = grid.key_stride
    is_empty = grid.is_static and grid.size == 0  # which PyTorch cannot pool
    if stride == 1 or is_empty:
        return x
    batch, _, heads, width = ops.shape(x)
    x = ops.reshape(x, (batch, *grid.sides, heads * width))
    if padding is not None:
        lowest = ops.convert_to_tensor(-float("inf"), x.dtype)
        x = ops.where(padding[..., None], x, lowest)
    dtype = x.dtype
    if grid.rank == 3:  # TensorFlow on CPU pools no volumes of float16
        x = ops.cast(x, "float32")
    x = ops.max_pool(x, stride, stride, padding="same", data_format="channels_last")
    # One reshape: of two, tf2onnx leaves the first out and gets the sizes of the second wrong.
    x = ops.cast(ops.reshape(x, (batch, grid.keys.size, heads, width)), dtype)
    if padding is None:
        return x
    return silence(x, _pool_padding(padding, grid)[..., None])


def _pool_padding(padding, grid):
    """`(B, *sides)` to `(B, S)`: which windows have a real cell."""
    stride, batch = grid.key_stride, ops.shape(padding)[0]
    is_empty = grid.is_static and grid.size == 0
    if stride > 1 and not is_empty:
        real = ops.cast(padding, "float32")[..., None]
        padding = ops.max_pool(real, stride, stride, padding="same", data_format="channels_last")
    return ops.reshape(ops.cast(padding, "bool"), (batch, grid.keys.size))


def _dot_products(q, k, v, keys):
    """sum_j (q_i . k_j) v_j / S over the S real keys: `(B, T, N, Dv)`, linear in T and S."""
    dtype = v.dtype
    q, k, v = (ops.cast(x, "float32") for x in (q, k, v))
    if keys is not None:
        k = silence(k, keys[..., None])
    count = _count(k, keys)[..., None, None]
    products = ops.einsum("bsnd,bsne->bnde", k, v) / count
    return ops.cast(ops.einsum("btnd,bnde->btne", q, products), dtype)


def _count(k, keys):
    """The number of real keys, at least 1, `(B or 1, 1)` float32."""
    if keys is None:
        count = ops.reshape(ops.cast(ops.shape(k)[1], "float32"), (1, 1))
    else:
        count = ops.sum(ops.cast(keys, "float32"), axis=1, keepdims=True)
    return ops.maximum(count, 1.0)


@keras.saving.register_keras_serializable("kattn")
class SelfAttention1D(SelfAttentionND):
    """x + gamma * softmax(Q K^T / sqrt(D)) V W, over all steps of a sequence.

    The layer for sequences of the family of `SelfAttention2D`: Q, K and V are linear maps of the
    channels at each step, keys and values can be pooled, and a new layer is the identity. For
    language models and other decoders there is `SelfAttention`.

    Shapes: B batch, T steps, C channels, N heads, D and Dv head widths, S = ceil(T / `key_stride`)
    keys.

    The arguments are those of `SelfAttention2D`, which describes them.

    Call args:
        x: Sequence, float, shape `(B, T, C)`, or `(B, C, T)` for `"channels_first"`. T may be
            unknown when the layer is built.
        mask: Padding, bool, shape `(B, T)`, True = real step. Padding is never attended to. It is
            combined with the Keras mask of `x`. What `x` holds at padding changes nothing.
        training: Whether dropout is applied.

    Returns:
        The same shape as `x`, with zeros at padding. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: In the cases that `SelfAttention2D` names; when built, if `x` is not of rank 3.

    Example:
        >>> layer = kattn.layers.SelfAttention1D(num_heads=2, key_stride=4)
        >>> layer(keras.random.normal((2, 100, 32))).shape
        (2, 100, 32)

    Reference:
        Zhang et al. 2018, sec. 3, https://arxiv.org/abs/1805.08318; Wang et al. 2018 (non-local
        networks), sec. 3, https://arxiv.org/abs/1711.07971
    """

    rank = 1


@keras.saving.register_keras_serializable("kattn")
class SelfAttention2D(SelfAttentionND):
    """x + gamma * softmax(Q K^T / sqrt(D)) V W, over the H * W cells of an image.

    Q, K and V are linear maps of the channels at each cell; K and V are then max-pooled over
    `key_stride` x `key_stride` windows. The scalar weight gamma starts at 0, so a new layer is the
    identity and learns how much of the attention to let in.

    With `position=RelativeTable((H, W), by_query=True)` and `use_residual=False` it is the
    attention of BoTNet. With `form` it is one of the non-local blocks.

    Shapes: B batch, H and W image sides, C channels, N heads, D and Dv head widths, T = H * W
    queries, S = ceil(H / `key_stride`) * ceil(W / `key_stride`) keys.

    Args:
        num_heads: Number of attention heads, N.
        key_dim: Width of the queries and keys of one head, D. None for C // 8 // N, at least 1.
        value_dim: Width of the values of one head, Dv. None for C // 2 // N, at least 1.
        key_stride: Downsampling factor of the key grid relative to the query grid: keys and values
            are max-pooled over windows of so many cells a side. 1 for no pooling. Sides that it
            does not divide are padded; the padding is never a maximum.
        form: How cells are compared. "embedded_gaussian" is the softmax of scaled products of
            queries and keys. "gaussian" is the softmax of scaled products of the cells themselves,
            C / N channels for each head, without projections to queries and keys. "dot_product"
            takes the products of queries and keys, divided by the number of keys, in place of a
            softmax; its cost is linear in the number of cells.
        use_residual: If True, the output is x + gamma * y, where y is the attention and gamma
            starts at 0. If False, it is y alone, and there is no gamma.
        position: Position layer for the cells of the map, such as `RotaryEmbedding(axes=2)`,
            `SinusoidalPositions(axes=2)` or `RelativeTable((H, W))`. A pooled key stands at the
            middle of its window. None for no positions.
        pattern: Mask object without arrays that limits which cells see each other, such as
            `Causal()` of `kattn.masks`, by which a cell sees those before it in row-major order.
            None for no limit.
        dropout: Fraction of the attention weights that are dropped during training, in [0, 1).
        use_bias: Whether the projections add a bias.
        data_format: `"channels_last"` or `"channels_first"`. None for Keras's default.
        implementation: Name of the algorithm that computes the attention: "auto", or one of those
            that `kattn.ops.attention` knows. All give the same result.
        kernel_initializer: Initializer of the projection matrices. Each projection is initialised
            on its own, though they are stored as one matrix.
        bias_initializer: Initializer of the biases of the projections.
        kernel_regularizer: Regularizer of the projection matrices, or None.
        bias_regularizer: Regularizer of the biases of the projections, or None.
        seed: Integer seed of the dropout, or None for a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Image, float, shape `(B, H, W, C)`, or `(B, C, H, W)` for `"channels_first"`. H and W may
            be unknown when the layer is built.
        mask: Padding, bool, shape `(B, H, W)`, True = real cell. Padding is never attended to, and
            never the maximum of a window. It is combined with the Keras mask of `x`. What `x` holds
            at padding changes nothing.
        training: Whether dropout is applied.

    Returns:
        The same shape as `x`, with zeros at padding. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range, or excluded by `form`; when built, if `x` is not
            of rank 4, if its number of channels is unknown, or if `num_heads` does not divide it
            where `form` is "gaussian"; when called, if `x` has other channels than the layer was
            built for, or if `mask` has a wrong dtype or other sides than the image.

    Example:
        >>> x = keras.random.normal((2, 8, 8, 32))
        >>> layer = kattn.layers.SelfAttention2D(num_heads=2, key_stride=2)
        >>> layer(x).shape
        (2, 8, 8, 32)

    Reference:
        Zhang et al. 2018, sec. 3, https://arxiv.org/abs/1805.08318; pooled keys and the widths
        of projections are those of the authors' code. They have one head, no scale and no biases:
        heads, 1 / sqrt(D) and biases are ours.
        Forms: Wang et al. 2018 (non-local networks), sec. 3.2, https://arxiv.org/abs/1711.07971
        BoTNet: Srinivas et al. 2021, sec. 3, https://arxiv.org/abs/2101.11605
    """

    rank = 2


@keras.saving.register_keras_serializable("kattn")
class SelfAttention3D(SelfAttentionND):
    """x + gamma * softmax(Q K^T / sqrt(D)) V W, over all cells of a volume or a video.

    The layer for three sides of the family of `SelfAttention2D`: Q, K and V are linear maps of the
    channels at each cell, keys and values can be pooled over cubes of `key_stride` cells a side,
    and a new layer is the identity.

    Shapes: B batch, F frames (or depth), H and W sides, C channels, N heads, D and Dv head widths,
    T = F * H * W queries.

    The arguments are those of `SelfAttention2D`, which describes them.

    Call args:
        x: Volume, float, shape `(B, F, H, W, C)`, or `(B, C, F, H, W)` for `"channels_first"`. The
            sides may be unknown when the layer is built.
        mask: Padding, bool, shape `(B, F, H, W)`, True = real cell. Padding is never attended to.
            It is combined with the Keras mask of `x`. What `x` holds at padding changes nothing.
        training: Whether dropout is applied.

    Returns:
        The same shape as `x`, with zeros at padding. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: In the cases that `SelfAttention2D` names; when built, if `x` is not of rank 5.

    Example:
        >>> layer = kattn.layers.SelfAttention3D(num_heads=2, key_stride=2)
        >>> layer(keras.random.normal((2, 4, 6, 6, 32))).shape
        (2, 4, 6, 6, 32)

    Reference:
        Wang et al. 2018 (non-local networks), sec. 3, https://arxiv.org/abs/1711.07971; Zhang et
        al. 2018, sec. 3, https://arxiv.org/abs/1805.08318
    """

    rank = 3
