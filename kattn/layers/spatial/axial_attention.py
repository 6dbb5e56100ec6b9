"""Self-attention along each side of a map in turn (Ho et al., 2019; Axial-DeepLab)."""

import math

import keras
from keras import ops

from kattn import arguments, masks
from kattn.grid import Grid
from kattn.layers.attention.head_sizes import HeadSizes, merge_heads
from kattn.layers.attention.mask_reader import silence_weights
from kattn.layers.attention.patterns import pattern_config, read_pattern
from kattn.layers.attention.positions import attach, embed, read_position, rotate, score_bias
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.spatial.map_attention import MapAttention
from kattn.ops.attention import attention, attention_weights

COMBINATIONS = ("sequence", "sum")


class AxialAttentionND(MapAttention):
    """Axial attention of maps with `rank` sides; `AxialAttention2D` describes its arguments."""

    rank: int

    def __init__(
        self,
        num_heads=1,
        key_dim=None,
        *,
        value_dim=None,
        combine="sequence",
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
            position=None,
            dropout=dropout,
            data_format=data_format,
            implementation=implementation,
            seed=seed,
            **kwargs,
        )
        arguments.check_choice(COMBINATIONS, combine=combine)
        self.combine = combine
        self.position = _read_positions(position, self.rank)
        self.pattern = read_pattern(pattern)

    def build(self, x_shape):
        self._axes = self.axes_of(x_shape)
        channels = self._axes.channels
        self.head_sizes = sizes = HeadSizes.of(self, channels)
        later = sizes.output_width if self.combine == "sequence" else channels
        widths = [channels, *[later] * (self.rank - 1)]
        parts = sizes.query_width, sizes.key_width, sizes.value_width
        self._qkv = [self._dense(f"qkv_{i}", width, *parts) for i, width in enumerate(widths)]
        self._output = self._dense("output", sizes.output_width, channels)
        for position, width in zip(self._positions, widths, strict=True):
            attach(position, width, sizes)
        self.built = True

    def attention_weights(self, x, mask=None):
        """Where each cell looks along each side, without dropout.

        Args:
            x: Map, float, shape `(B, *sides, C)`, or `(B, C, *sides)` for `"channels_first"`.
            mask: Padding, bool, shape `(B, *sides)`, True = real cell.

        Returns:
            Tuple of one array for each side, `(B * lines, N, L, L)` float32 for a side of L cells:
            the lines of the first item, then those of the next. The lines of an item are in
            row-major order of the other sides. Rows sum to 1, or are 0 for a query that is padding
            or sees no key.
        """
        x, padding = self._read(x, mask)
        found = []
        for side in range(self.rank):
            q, k, v, scores = self._project(x, padding, side)
            weights = attention_weights(q, k, **scores)
            found.append(silence_weights(weights, _lines_of(padding, side)))
            if self.combine == "sequence":
                mixed = ops.einsum("bnts,bsnd->btnd", ops.cast(weights, v.dtype), v)
                x = _map(merge_heads(mixed), x, side)
        return tuple(found)

    def get_config(self):
        return {
            **super().get_config(),
            "combine": self.combine,
            "pattern": pattern_config(self.pattern),
        }

    @property
    def _positions(self):
        """The position layer of each side."""
        if isinstance(self.position, tuple):
            return self.position
        return (self.position,) * self.rank

    def _attend(self, x, padding, weighting):
        mixed = []
        for side in range(self.rank):
            q, k, v, scores = self._project(x, padding, side)
            heads = attention(q, k, v, **scores, **weighting)  # (B * lines, L, N, Dv)
            mixed.append(_map(merge_heads(heads), x, side))
            if self.combine == "sequence":
                x = mixed[-1]
        return mixed[-1] if self.combine == "sequence" else sum(mixed)

    def _project(self, x, padding, side):
        """Queries, keys and values `(B * lines, L, N, D)` along a side, and what changes scores."""
        position = self._positions[side]
        x = embed(position, _lines(x, side), None)  # (B * lines, L, C)
        q, k, v = self.head_sizes.split_qkv(self._qkv[side](x))
        q, k = (rotate(position, heads, None) for heads in (q, k))
        mask = None if self.pattern is None else self.pattern.on_grid(Grid((ops.shape(q)[1],)))
        keys = _lines_of(padding, side)
        mask = masks.intersect(mask, None if keys is None else masks.Padding(keys))
        return q, k, v, {"mask": mask, "bias": score_bias(position, q)}


def _lines(x, side):
    """The lines of a map `(B, *sides, C)` along a side of L cells, `(B * lines, L, C)`."""
    x = ops.moveaxis(x, 1 + side, len(x.shape) - 2)  # ONNX knows no axis -2
    *others, cells, channels = ops.shape(x)
    return ops.reshape(x, (math.prod(others), cells, channels))


def _lines_of(padding, side):
    """The lines of the cells `(B, *sides)` that are real, `(B * lines, L)`, or None."""
    return None if padding is None else _lines(padding[..., None], side)[..., 0]


def _map(lines, x, side):
    """Lines `(B * lines, L, D)` along a side of the map `x` as a map `(B, *sides, D)`."""
    batch, *sides, _ = ops.shape(x)
    cells = sides.pop(side)
    y = ops.reshape(lines, (batch, *sides, cells, ops.shape(lines)[-1]))
    return ops.moveaxis(y, len(y.shape) - 2, 1 + side)


def _read_positions(position, rank):
    """The argument `position`: one position layer for all sides, or a tuple of one for each."""
    if not isinstance(position, tuple | list):
        return read_position(position)
    if len(position) != rank:
        raise arguments.error(
            f"`position` must be one position layer for all sides, or a tuple of {rank}, one for "
            "each side",
            position=position,
        )
    return tuple(map(read_position, position))


@keras.saving.register_keras_serializable("kattn")
class AxialAttention2D(AxialAttentionND):
    """Self-attention along the columns of an image, and then along its rows.

    Each cell sees those of its column; then each sees those of its row, which have seen theirs, so
    that what a cell knows has come from all over the image. The cost grows with H * W * (H + W), in
    place of the square of H * W of an attention over all cells. With combine="sum" both look at the
    image itself, and each cell sees those of its column and its row.

    Shapes: B batch, H and W image sides, C channels, N heads, D and Dv head widths, L cells of a
    side.

    Args:
        num_heads: Number of attention heads, N.
        key_dim: Width of the queries and keys of one head, D. None for C / N.
        value_dim: Width of the values of one head, Dv. None for D.
        combine: "sequence" for one side after the other, in the order of the axes: the heads of a
            side, side by side, are the input of the next. "sum" for the sum of the attentions along
            all sides. Each side has projections to queries, keys and values of its own; the one
            back to C channels is behind all of them.
        position: Position layer for the cells along a side, which are counted from 0 as the steps
            of a sequence are, or None for no positions. One layer such as `RotaryEmbedding()`,
            `ALiBi()` or `T5RelativeBias()` serves all sides, with the same weights, if it has any.
            A tuple has one layer, or None, for each side, in the order of the axes:
            `(RelativeTable((H,)), RelativeTable((W,)))`.
        pattern: Mask object without arrays that limits which cells of a line see each other, such
            as `Causal()` of `kattn.masks`, by which a cell sees itself and those before it along
            each side. None for no limit.
        dropout: Fraction of the attention weights that are dropped during training, in [0, 1).
        use_bias: Whether the projections add a bias.
        data_format: `"channels_last"` or `"channels_first"`. None for Keras's default.
        implementation: Name of the algorithm that computes the attention: "auto", or one of those
            that `kattn.ops.attention` knows. All give the same result.
        kernel_initializer: Initializer of the projection matrices. Each projection is initialised
            on its own, though those of a side are stored as one matrix.
        bias_initializer: Initializer of the biases of the projections.
        kernel_regularizer: Regularizer of the projection matrices, or None.
        bias_regularizer: Regularizer of the biases of the projections, or None.
        seed: Integer seed of the dropout, or None for a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Image, float, shape `(B, H, W, C)`, or `(B, C, H, W)` for `"channels_first"`. H and W may
            be unknown when the layer is built.
        mask: Padding, bool, shape `(B, H, W)`, True = real cell. Padding is never attended to. It
            is combined with the Keras mask of `x`. What `x` holds at padding changes nothing.
        training: Whether dropout is applied.

    Returns:
        The same shape as `x`, with zeros at padding. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range, or `position` is a tuple with another number of
            layers than there are sides; when built, if `x` is not of rank 4, if its number of
            channels is unknown, or if `num_heads` does not divide it where `key_dim` is None; when
            called, if `x` has other channels than the layer was built for, or if `mask` has a wrong
            dtype or other sides than the image.

    Example:
        >>> x = keras.random.normal((2, 12, 16, 32))
        >>> layer = kattn.layers.AxialAttention2D(2, position=kattn.layers.RotaryEmbedding())
        >>> layer(x).shape
        (2, 12, 16, 32)

    Reference:
        Wang et al. 2020 (Axial-DeepLab), sec. 3.2, https://arxiv.org/abs/2003.07853. Their
        positions are `RelativeTable((L,), by_query=True)`, and more of keys and values; the last
        projection is ours.
        Ho et al. 2019, sec. 3.1, https://arxiv.org/abs/1912.12180
        Sum: the cells are those of Huang et al. 2018 (criss-cross attention), sec. 3.2,
        https://arxiv.org/abs/1811.11721, who have one softmax over both lines.
    """

    rank = 2


@keras.saving.register_keras_serializable("kattn")
class AxialAttention3D(AxialAttentionND):
    """Self-attention along each of the three sides of a volume or a video, one after the other.

    The layer for three sides of the family of `AxialAttention2D`: of a video, each cell sees itself
    in all frames, then its column, then its row. The cost grows with F * H * W * (F + H + W).

    Shapes: B batch, F frames (or depth), H and W sides, C channels, N heads, D and Dv head widths,
    L cells of a side.

    The arguments are those of `AxialAttention2D`, which describes them.

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
        ValueError: In the cases that `AxialAttention2D` names; when built, if `x` is not of rank 5.

    Example:
        >>> layer = kattn.layers.AxialAttention3D(num_heads=2, combine="sum")
        >>> layer(keras.random.normal((2, 4, 6, 8, 32))).shape
        (2, 4, 6, 8, 32)

    Reference:
        Ho et al. 2019, sec. 3.1, https://arxiv.org/abs/1912.12180; Wang et al. 2020
        (Axial-DeepLab), sec. 3.2, https://arxiv.org/abs/2003.07853
    """

    rank = 3
