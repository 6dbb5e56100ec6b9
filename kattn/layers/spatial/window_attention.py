"""Self-attention within windows of a map of any rank (Swin, MaxViT)."""

import keras

from kattn import arguments
from kattn.grid import Grid
from kattn.layers.attention.head_sizes import merge_heads
from kattn.layers.attention.mask_reader import silence_weights
from kattn.layers.attention.positions import rotate, score_bias
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.spatial.by_side import integers_by_side
from kattn.layers.spatial.map_attention import MapAttention
from kattn.ops.attention import attention, attention_weights
from kattn.ops.windows import PARTITIONS, Windows


class WindowAttentionND(MapAttention):
    """Window attention of maps with `rank` sides; `WindowAttention2D` describes its arguments."""

    def __init__(
        self,
        num_heads=1,
        window_size=7,
        key_dim=None,
        *,
        value_dim=None,
        shift=0,
        partition="windows",
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
        arguments.check_choice(PARTITIONS, partition=partition)
        self.window_size = integers_by_side(self.rank, 1, window_size=window_size)
        self.shift = integers_by_side(self.rank, 0, shift=shift)
        self.partition = partition
        self._check_shift()

    def attention_weights(self, x, mask=None):
        """Where the cells of each window look, without dropout.

        Args:
            x: Map, float, shape `(B, *sides, C)`, or `(B, C, *sides)` for `"channels_first"`.
            mask: Padding, bool, shape `(B, *sides)`, True = real cell.

        Returns:
            `(B * windows, N, w, w)` float32 for windows of w cells: those of the first item, then
            those of the next. The windows of an item, and the queries and keys of a window, are in
            row-major order. A side with `shift` begins with the window at cell `shift`; its last
            window also holds the cells before that one. Rows sum to 1, or are 0 for a query that
            is padding.
        """
        x, padding = self._read(x, mask)
        windows = self._windows(x)
        q, k, _, scores = self._project(x, padding, windows)
        return silence_weights(attention_weights(q, k, **scores), windows.real(padding))

    def get_config(self):
        return {
            **super().get_config(),
            "window_size": self.window_size,
            "shift": self.shift,
            "partition": self.partition,
        }

    def _attend(self, x, padding, weighting):
        windows = self._windows(x)
        q, k, v, scores = self._project(x, padding, windows)
        mixed = attention(q, k, v, **scores, **weighting)  # (B * windows, w, N, Dv)
        return windows.merge(merge_heads(mixed))

    def _windows(self, x):
        return Windows.of_map(x, self.window_size, self.shift, self.partition)

    def _project(self, x, padding, windows):
        """Queries, keys and values `(B * windows, w, N, D)`, and what changes their scores."""
        x = windows.split(self._embed(x))  # (B * windows, w, C)
        q, k, v = self.head_sizes.split_qkv(self._qkv(x))
        grid = Grid(self.window_size)
        if self.position is not None:
            q, k = (rotate(self.position, heads, grid.cells()) for heads in (q, k))
        bias = score_bias(self.position, q, grid)
        return q, k, v, {"mask": windows.mask(padding), "bias": bias}

    def _check_shift(self):
        """Raises ValueError for a shift that is no part of a window, or of windows on a grid."""
        if self.partition == "grid" and any(self.shift):
            raise arguments.error(
                '`shift` must be 0 with partition="grid", whose windows span the map',
                shift=self.shift,
            )
        if any(shift >= window for shift, window in zip(self.shift, self.window_size, strict=True)):
            raise arguments.error(
                "`shift` must be less than `window_size` on each side",
                shift=self.shift,
                window_size=self.window_size,
            )


@keras.saving.register_keras_serializable("kattn")
class WindowAttention1D(WindowAttentionND):
    """softmax(Q K^T / sqrt(D)) V W, where the steps of each window of a sequence see each other.

    The layer for sequences of the family of `WindowAttention2D`: the sequence is cut into windows
    of `window_size` steps, or dealt out to them with partition="grid". For windows that move with
    the step there is `SelfAttention` with its argument `window`.

    Shapes: B batch, T steps, C channels, N heads, D and Dv head widths, w = `window_size` steps of
    a window.

    The arguments are those of `WindowAttention2D`, which describes them.

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
        ValueError: In the cases that `WindowAttention2D` names; when built, if `x` is not of rank
            3.

    Example:
        >>> layer = kattn.layers.WindowAttention1D(num_heads=2, window_size=16, shift=8)
        >>> layer(keras.random.normal((2, 100, 32))).shape
        (2, 100, 32)

    Reference:
        Liu et al. 2021 (Swin), sec. 3.2, https://arxiv.org/abs/2103.14030; Tu et al. 2022
        (MaxViT), sec. 3.2, https://arxiv.org/abs/2204.01697
    """

    rank = 1


@keras.saving.register_keras_serializable("kattn")
class WindowAttention2D(WindowAttentionND):
    """softmax(Q K^T / sqrt(D)) V W, where the cells of each window of an image see each other.

    The image is cut into windows of `window_size` x `window_size` cells, so that time and memory
    grow linearly with its area. A layer with `shift`, whose windows lie across the edges of those
    of the layer before, carries what one window knows to its neighbours (Swin); so does one with
    partition="grid", whose windows have cells from all over the image (MaxViT).

    With `position=RelativeTable((7, 7))` it has the relative position bias of Swin.

    Shapes: B batch, H and W image sides, C channels, N heads, D and Dv head widths, w cells of a
    window, the product of `window_size`.

    Args:
        num_heads: Number of attention heads, N.
        window_size: Number of cells of a window along each side, as one integer >= 1 for all sides
            or a tuple with one for each. A side that it does not divide is padded at its end; the
            padding is never attended to.
        key_dim: Width of the queries and keys of one head, D. None for C / N.
        value_dim: Width of the values of one head, Dv. None for D.
        shift: Number of cells by which the windows are displaced along each side, as one integer
            for all sides or a tuple with one for each, 0 <= shift < window_size. Swin takes half of
            a window in every second layer. The cells that this leaves at both ends of a side, which
            fill no window, are computed together, but do not see each other. A side that is not
            longer than its window is not shifted.
        partition: "windows" for windows of neighbouring cells. "grid" for windows of cells that
            are ceil(side / window_size) apart along each side, from end to end of the image;
            `shift` must be 0 then.
        position: Position layer, or None for no positions. `RelativeTable`, `RotaryEmbedding` and
            other positions of heads and scores get the cells of the window, also where these are
            apart on the image. Positions that are added to the inputs, such as
            `SinusoidalPositions(axes=2)`, get the cells of the image.
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
        mask: Padding, bool, shape `(B, H, W)`, True = real cell. Padding is never attended to. It
            is combined with the Keras mask of `x`. What `x` holds at padding changes nothing.
        training: Whether dropout is applied.

    Returns:
        The same shape as `x`, with zeros at padding. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range, has not one number for each side, or if there is
            a `shift` with partition="grid"; when built, if `x` is not of rank 4, if its number of
            channels is unknown, or if `num_heads` does not divide it where `key_dim` is None; when
            called, if `x` has other channels than the layer was built for, or if `mask` has a wrong
            dtype or other sides than the image.

    Example:
        >>> x = keras.random.normal((2, 14, 14, 32))
        >>> first = kattn.layers.WindowAttention2D(num_heads=2, window_size=7)
        >>> second = kattn.layers.WindowAttention2D(num_heads=2, window_size=7, shift=3)
        >>> second(first(x)).shape
        (2, 14, 14, 32)

    Reference:
        Liu et al. 2021 (Swin), sec. 3.2, https://arxiv.org/abs/2103.14030. They take a window as
        small as the map where the map is smaller; here it keeps its size, and is padded.
        Grid: Tu et al. 2022 (MaxViT), sec. 3.2, https://arxiv.org/abs/2204.01697. Sides that the
        grid does not divide are ours.
    """

    rank = 2


@keras.saving.register_keras_serializable("kattn")
class WindowAttention3D(WindowAttentionND):
    """softmax(Q K^T / sqrt(D)) V W, where the cells of each window of a volume see each other.

    The layer for volumes and videos of the family of `WindowAttention2D`: the volume is cut into
    boxes of `window_size` cells a side, such as (2, 7, 7) for 2 frames of 7 x 7 cells.

    Shapes: B batch, F frames (or depth), H and W sides, C channels, N heads, D and Dv head widths,
    w cells of a window, the product of `window_size`.

    The arguments are those of `WindowAttention2D`, which describes them.

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
        ValueError: In the cases that `WindowAttention2D` names; when built, if `x` is not of rank
            5.

    Example:
        >>> layer = kattn.layers.WindowAttention3D(2, (2, 4, 4), shift=(1, 2, 2))
        >>> layer(keras.random.normal((2, 4, 8, 8, 32))).shape
        (2, 4, 8, 8, 32)

    Reference:
        Liu et al. 2021 (Video Swin), sec. 3.2, https://arxiv.org/abs/2106.13230; Tu et al. 2022
        (MaxViT), sec. 3.2, https://arxiv.org/abs/2204.01697
    """

    rank = 3
