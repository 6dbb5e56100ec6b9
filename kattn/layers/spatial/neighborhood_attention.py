"""Attention of each cell of a map to the cells around it (SASA, NAT)."""

import keras
from keras import ops

from kattn import masks
from kattn.grid import Grid
from kattn.layers.attention.head_sizes import merge_heads
from kattn.layers.attention.mask_reader import silence_weights
from kattn.layers.attention.positions import embed, rotate, score_bias
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.spatial.by_side import by_side, integers_by_side
from kattn.layers.spatial.map_attention import MapAttention
from kattn.ops.attention import attention, attention_weights


class NeighborhoodAttentionND(MapAttention):
    """Neighbourhood attention with `rank` sides; `NeighborhoodAttention2D` has its arguments."""

    def __init__(
        self,
        num_heads=1,
        kernel_size=7,
        key_dim=None,
        *,
        value_dim=None,
        dilation=1,
        causal=False,
        clamped=True,
        position=None,
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
        self.kernel_size = integers_by_side(self.rank, 1, kernel_size=kernel_size)
        self.dilation = integers_by_side(self.rank, 1, dilation=dilation)
        self.causal = by_side(self.rank, causal)
        self.clamped = clamped
        self._pattern = masks.Neighborhood(self.kernel_size, self.dilation, self.causal, clamped)

    def build(self, x_shape):
        super().build(x_shape)
        sides = tuple(x_shape[axis] for axis in self._axes.sides)
        if None not in sides:
            self._pattern.on_grid(Grid(sides))  # an error comes before the first call

    def attention_weights(self, x, mask=None):
        """Where each cell looks: softmax(Q K^T / sqrt(D)), without dropout.

        Unlike the call, it takes memory for each pair of cells.

        Args:
            x: Map, float, shape `(B, *sides, C)`, or `(B, C, *sides)` for `"channels_first"`.
            mask: Padding, bool, shape `(B, *sides)`, True = real cell.

        Returns:
            `(B, N, T, T)` float32 for the T cells of the map in row-major order. Rows sum to 1, or
            are 0 for a cell that is padding or sees none.
        """
        x, padding = self._read(x, mask)
        q, k, _, rules = self._project(x, padding)
        queries = None if padding is None else ops.reshape(padding, ops.shape(q)[:2])
        return silence_weights(attention_weights(q, k, **rules), queries)

    def get_config(self):
        return {
            **super().get_config(),
            "kernel_size": self.kernel_size,
            "dilation": self.dilation,
            "causal": self.causal,
            "clamped": self.clamped,
        }

    def _attend(self, x, padding, weighting):
        q, k, v, rules = self._project(x, padding)
        mixed = attention(q, k, v, **rules, **weighting)  # (B, T, N, Dv)
        return Grid.of_map(x).unflatten(merge_heads(mixed))

    def _project(self, x, padding):
        """Queries, keys and values `(B, T, N, D)`, and what changes the scores."""
        grid = Grid.of_map(x)
        cells = None if self.position is None else grid.cells()
        x = embed(self.position, grid.flatten(x), cells)  # (B, T, C)
        q, k, v = self.head_sizes.split_qkv(self._qkv(x))
        q, k = rotate(self.position, q, cells), rotate(self.position, k, cells)
        bias = score_bias(self.position, q, Grid(self.kernel_size))
        if bias is not None:
            bias = bias.in_windows(grid, self.dilation)
        mask = self._pattern.on_grid(grid)
        if padding is not None:
            mask = mask & masks.Padding(ops.reshape(padding, ops.shape(q)[:2]))
        return q, k, v, {"mask": mask, "bias": bias}


@keras.saving.register_keras_serializable("kattn")
class NeighborhoodAttention1D(NeighborhoodAttentionND):
    """softmax(Q K^T / sqrt(D)) V W, where each step of a sequence sees the steps around it.

    The layer for sequences of the family of `NeighborhoodAttention2D`: each step attends to the
    `kernel_size` steps around its own, and the cost is linear in the number of steps.

    Shapes: B batch, T steps, C channels, N heads, D and Dv head widths.

    The arguments are those of `NeighborhoodAttention2D`, which describes them.

    Call args:
        x: Sequence, float, shape `(B, T, C)`, or `(B, C, T)` for `"channels_first"`.
        mask: Padding, bool, shape `(B, T)`, True = real step. Padding is never attended to. It is
            combined with the Keras mask of `x`. What `x` holds at padding changes nothing.
        training: Whether dropout is applied.

    Returns:
        The same shape as `x`, with zeros at padding. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: In the cases that `NeighborhoodAttention2D` names; when built, if `x` is not of
            rank 3.

    Example:
        >>> layer = kattn.layers.NeighborhoodAttention1D(4, kernel_size=9, dilation=2)
        >>> layer(keras.random.normal((2, 100, 32))).shape
        (2, 100, 32)

    Reference:
        Hassani et al. 2023 (NAT), sec. 3.1, https://arxiv.org/abs/2204.07143
    """

    rank = 1


@keras.saving.register_keras_serializable("kattn")
class NeighborhoodAttention2D(NeighborhoodAttentionND):
    """softmax(Q K^T / sqrt(D)) V W, where each cell of an image sees the cells around it.

    Each cell attends to the window of `kernel_size` cells a side around it. The windows overlap, as
    those of a convolution do. The image is cut into blocks, each of which gets the keys around it
    once, so time and memory are linear in the number of cells, and no key is copied for each query.

    With `clamped` it is the neighbourhood attention of NAT, whose windows are moved back into the
    image at its edges; without, the stand-alone self-attention of SASA, whose windows are cut off.

    Shapes: B batch, H and W image sides, C channels, N heads, D and Dv head widths.

    Args:
        num_heads: Number of attention heads, N.
        kernel_size: Number of cells that a cell sees along each side: an integer, or a tuple of one
            for each side. Odd sizes are centred; even ones reach one cell farther back than ahead.
        key_dim: Width of the queries and keys of one head, D. None for C / N.
        value_dim: Width of the values of one head, Dv. None for D.
        dilation: Distance of neighbouring cells of a window: an integer, or a tuple of one for each
            side.
        causal: If True, no cell sees what comes after it on either side: the windows end at its own
            coordinate. Or a tuple of one bool for each side, such as `(True, False, False)` for the
            frames of a video.
        clamped: If True, windows are moved back into the map at its edges, so that every cell sees
            as many others. If False, they are cut off. Causal sides are always cut off.
        position: Position layer, such as `RelativeTable(kernel_size)`, with a tuple of as many
            sides, whose numbers go by the difference of coordinates; or `RotaryEmbedding(axes=2)`.
            None for no positions.
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
            be unknown when the layer is built. On TensorFlow, where they are unknown also when the
            model runs, the cost is quadratic in the number of cells; so it is there with
            `dilation`, for which its tensors have too few axes.
        mask: Padding, bool, shape `(B, H, W)`, True = real cell. Padding is never attended to; it
            takes places of a window as other cells do. It is combined with the Keras mask of `x`.
            What `x` holds at padding changes nothing.
        training: Whether dropout is applied.

    Returns:
        The same shape as `x`, with zeros at padding. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range, or has not one entry for each side; when built,
            if `x` is not of rank 4, if its number of channels is unknown, or if `num_heads` does
            not divide it where `key_dim` is None; when built or called, if `dilation` is as large
            as a side, so that a cell sees no other; when called, if `x` has other channels than the
            layer was built for, or if `mask` has a wrong dtype or other sides than the image.

    Example:
        >>> position = kattn.layers.RelativeTable((7, 7))
        >>> layer = kattn.layers.NeighborhoodAttention2D(4, kernel_size=7, position=position)
        >>> layer(keras.random.normal((2, 16, 20, 32))).shape
        (2, 16, 20, 32)

    Reference:
        Hassani et al. 2023 (NAT), sec. 3.1, https://arxiv.org/abs/2204.07143; dilation: Hassani
        and Shi 2022, sec. 3.1, https://arxiv.org/abs/2209.15001
        Not clamped: Ramachandran et al. 2019, sec. 3.1, https://arxiv.org/abs/1906.05909
    """

    rank = 2


@keras.saving.register_keras_serializable("kattn")
class NeighborhoodAttention3D(NeighborhoodAttentionND):
    """softmax(Q K^T / sqrt(D)) V W, where each cell of a volume sees the cells around it.

    The layer for volumes and videos of the family of `NeighborhoodAttention2D`: each cell attends
    to the window of `kernel_size` cells a side around it. On TensorFlow the cost is quadratic in
    the number of cells, as its tensors have too few axes for blocks of volumes.

    Shapes: B batch, F frames (or depth), H and W sides, C channels, N heads, D and Dv head widths.

    The arguments are those of `NeighborhoodAttention2D`, which describes them.

    Call args:
        x: Volume, float, shape `(B, F, H, W, C)`, or `(B, C, F, H, W)` for `"channels_first"`.
        mask: Padding, bool, shape `(B, F, H, W)`, True = real cell. Padding is never attended to.
            It is combined with the Keras mask of `x`. What `x` holds at padding changes nothing.
        training: Whether dropout is applied.

    Returns:
        The same shape as `x`, with zeros at padding. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: In the cases that `NeighborhoodAttention2D` names; when built, if `x` is not of
            rank 5.

    Example:
        >>> layer = kattn.layers.NeighborhoodAttention3D(2, kernel_size=(2, 3, 3))
        >>> layer(keras.random.normal((2, 4, 6, 6, 32))).shape
        (2, 4, 6, 6, 32)

    Reference:
        Hassani et al. 2023 (NAT), sec. 3.1, https://arxiv.org/abs/2204.07143
    """

    rank = 3
