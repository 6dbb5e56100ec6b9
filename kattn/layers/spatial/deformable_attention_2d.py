"""Attention to points of an image that the image itself chooses (Xia et al., 2022)."""

import keras
from keras import ops

from kattn import arguments
from kattn.grid import Grid
from kattn.layers.attention.head_sizes import HeadSizes, check_heads, merge_heads, split_heads
from kattn.layers.attention.mask_reader import silence, silence_weights
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.spatial.map_layer import MapLayer
from kattn.layers.spatial.point_offsets import PointOffsets
from kattn.ops.attention import attention, attention_weights
from kattn.ops.bilinear_sampling import sample_bilinear

ARGUMENTS = (
    "num_heads",
    "key_dim",
    "value_dim",
    "num_groups",
    "key_stride",
    "kernel_size",
    "offset_range",
    "dropout",
    "seed",
)
LEAST_SHARE = 1e-6  # of real cells in the mean that a point is


@keras.saving.register_keras_serializable("kattn")
class DeformableAttention2D(MapLayer):
    """softmax(Q K^T / sqrt(D) + bias) V W, with K and V of the image at points that it chooses.

    A grid of points lies over the image, one for each window of `key_stride` by `key_stride` cells.
    A small network (a depthwise convolution, layer normalisation, GELU, and a dense layer with
    tanh) reads the queries around each point and moves it by up to `offset_range` windows along
    each side. The image is read at the moved points by bilinear interpolation, and keys and values
    are projections of what is found there. Each group of channels has points of its own.

    Shapes: B batch, H and W sides of the image, C channels, N heads, D and Dv head widths, G
    groups, T = H * W queries, S = ceil(H / `key_stride`) * ceil(W / `key_stride`) points.

    Args:
        num_heads: Number of attention heads, N.
        key_dim: Width of the queries and keys of one head, D. None for C / N, which must then be
            whole.
        value_dim: Width of the values of one head, Dv. None for D.
        num_groups: Number of groups of channels, G, each with its own points: a divisor of
            `num_heads` and of C. One network, which reads N * D / G channels of the queries, moves
            the points of all groups.
        key_stride: Number of cells a side that there is one point for. Sides that it does not
            divide are padded, as for a pooling with "same" padding.
        kernel_size: Number of cells a side of the depthwise convolution.
        offset_range: Farthest that a point moves along each side, as a multiple of `key_stride`
            cells. A point stays inside of the image.
        bias_sides: `(h, w)` for a learned relative position bias: each head has a table of
            (2h - 1) x (2w - 1) numbers, one for each difference in rows and columns of a point and
            a query, between which it is interpolated. For images of other sides than h x w it works
            as well; differences beyond the table count as its edge. None for no bias.
        dropout: Fraction of the attention weights that are dropped during training, in [0, 1).
        use_bias: Whether the projections and the convolution add a bias. The last layer of the
            network has none.
        data_format: `"channels_last"` or `"channels_first"`. None for Keras's default.
        kernel_initializer: Initializer of the projection matrices and of the convolution.
        table_initializer: Initializer of the tables of the relative position bias.
        bias_initializer: Initializer of the biases of the projections and of the convolution.
        kernel_regularizer: Regularizer of these matrices and of the convolution, or None.
        bias_regularizer: Regularizer of the biases, or None.
        seed: Integer seed of the dropout, or None for a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Image, float, shape `(B, H, W, C)`, or `(B, C, H, W)` for `"channels_first"`. H and W may
            be unknown when the layer is built.
        mask: Padding, bool, shape `(B, H, W)`, True = real cell. A point is a mean of the real
            cells around it, with their weights divided by the sum of them; where there are none, it
            is not attended to by the heads of its group. It is combined with the Keras mask of `x`.
            What `x` holds at padding changes nothing.
        training: Whether dropout is applied.

    Returns:
        The same shape as `x`, with zeros at padding. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range; when built, if the input does not have rank 4,
            if its channels are unknown, if `num_heads` does not divide them where `key_dim` is
            None, if `num_groups` does not, or if a group has less than two channels of queries;
            when called, if `x` has other channels than the layer was built for, or if `mask` has a
            wrong dtype or other sides than the image.

    Example:
        >>> layer = kattn.layers.DeformableAttention2D(4, num_groups=2, bias_sides=(14, 14))
        >>> x = keras.random.normal((2, 14, 14, 32))
        >>> layer(x).shape
        (2, 14, 14, 32)
        >>> layer.attention_weights(x).shape, layer.points(x).shape
        ((2, 4, 196, 49), (2, 2, 49, 2))

    Reference:
        Xia et al. 2022, sec. 3.2, https://arxiv.org/abs/2201.00520. The authors' range factor of 2
        is an `offset_range` of 1. Here points are counted in cells and stay inside of the image,
        where there they may leave it and read zeros; the grid has points for sides that
        `key_stride` does not divide; the table is not stretched to the sides of the image; and
        differences are those of point and query, not of query and point. Masks are ours.
    """

    rank = 2

    def __init__(
        self,
        num_heads=1,
        key_dim=None,
        *,
        value_dim=None,
        num_groups=1,
        key_stride=2,
        kernel_size=5,
        offset_range=1.0,
        bias_sides=None,
        dropout=0.0,
        use_bias=True,
        data_format=None,
        kernel_initializer="glorot_uniform",
        table_initializer="zeros",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        check_heads(num_heads, key_dim, value_dim)
        arguments.check_integers(
            1, num_groups=num_groups, key_stride=key_stride, kernel_size=kernel_size
        )
        arguments.check_positive(offset_range=offset_range)
        arguments.check_fractions(dropout=dropout)
        if num_heads % num_groups:
            rule = "`num_groups` must divide `num_heads`"
            raise arguments.error(rule, num_groups=num_groups, num_heads=num_heads)
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.num_groups = num_groups
        self.key_stride = key_stride
        self.kernel_size = kernel_size
        self.offset_range = offset_range
        self.bias_sides = _read_sides(bias_sides)
        self.dropout = dropout
        self.seed = seed
        self.table_initializer = keras.initializers.get(table_initializer)
        self._projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )
        self._seed_generator = keras.random.SeedGenerator(seed) if dropout else None

    def build(self, x_shape):
        self._axes = self.axes_of(x_shape)
        channels, options, policy = self._axes.channels, self._projections, self.dtype_policy
        self.head_sizes = sizes = HeadSizes.of(self, channels)
        if channels % self.num_groups:
            rule = "`num_groups` must divide the channels of the image"
            raise arguments.error(rule, num_groups=self.num_groups, channels=channels)
        self._query = options.dense("query", channels, sizes.query_width, dtype=policy)
        self._build_offsets(sizes.query_width // self.num_groups)
        parts = sizes.key_width, sizes.value_width
        self._key_value = options.dense("key_value", channels, *parts, dtype=policy)
        self._output = options.dense("output", sizes.output_width, channels, dtype=policy)
        if self.bias_sides is not None:
            height, width = (2 * side - 1 for side in self.bias_sides)
            self._table = self.add_weight(
                name="table",
                shape=(height, width, self.num_heads),
                initializer=self.table_initializer,
                autocast=False,  # biases are float32, whatever the queries are
            )
        self.built = True

    def call(self, x, mask=None, training=None):
        x, padding = self._axes.read(x, mask)
        if 0 in tuple(x.shape):
            return x  # no cell that a point could lie at
        q, k, v, scores = self._project(x, padding)
        y = attention(
            q,
            k,
            v,
            **scores,
            dropout_rate=self.dropout if training else 0.0,
            seed=self._seed_generator,
        )  # (B, T, N, Dv)
        y = self._axes.of_sequence(self._output(merge_heads(y)), x)
        return silence(y, padding, self._axes.channel)

    def attention_weights(self, x, mask=None):
        """Which points each cell attends to: softmax(Q K^T / sqrt(D) + bias), without dropout.

        Args:
            x: Image, float, shape `(B, H, W, C)`, or `(B, C, H, W)` for `"channels_first"`.
            mask: Padding, bool, shape `(B, H, W)`, True = real cell.

        Returns:
            `(B, N, T, S)` float32. Cells and the windows of points are in row-major order. Rows sum
            to 1, or are 0 at padding.
        """
        x, padding = self._read(x, mask)
        q, k, _, scores = self._project(x, padding)
        weights = attention_weights(q, k, **scores)
        _, padding = self._axes.cells(x, padding)
        return silence_weights(weights, padding)

    def points(self, x, mask=None):
        """Where in the image keys and values are read.

        Args:
            x: Image, float, shape `(B, H, W, C)`, or `(B, C, H, W)` for `"channels_first"`.
            mask: Padding, bool, shape `(B, H, W)`, True = real cell.

        Returns:
            `(B, G, S, 2)` float32, row and column of each point of each group, in row-major order
            of the windows; 0.0 is the middle of the first cell and 1.0 that of the second.
        """
        x, padding = self._read(x, mask)
        x = self._axes.channels_last(x)
        found = self._points(self._query(x), padding, Grid.of_map(x))
        return ops.reshape(found, (-1, self.num_groups, *ops.shape(found)[1:]))

    def get_config(self):
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ARGUMENTS},
            "bias_sides": self.bias_sides,
            "table_initializer": keras.initializers.serialize(self.table_initializer),
            **self._projections.get_config(),
        }

    def _build_offsets(self, width):
        if width < 2:
            raise arguments.error(
                "`num_groups` must leave each group two channels of the queries or more, as one "
                "channel is 0 once it is normalised",
                num_groups=self.num_groups,
                channels=width,
            )
        self._offsets = PointOffsets(
            self.key_stride,
            self.kernel_size,
            self._projections,
            dtype=self.dtype_policy,
            name="offsets",
        )
        self._offsets.build((None, None, None, width))

    def _read(self, x, mask):
        if not self.built:
            self.build(x.shape)
        x, padding = self._axes.read(x, mask)
        return ops.convert_to_tensor(x, dtype=self.compute_dtype), padding

    def _project(self, x, padding):
        """Queries `(B, T, N, D)`, keys and values of the points, and mask and bias of scores."""
        x = self._axes.channels_last(x)
        grid = Grid.of_map(x)
        q = self._query(x)  # (B, H, W, N * D)
        points = self._points(q, padding, grid)  # (B * G, S, 2)
        sampled, seen = self._sampled(x, padding, points)  # (B, S, C)
        k, v = self.head_sizes.split_key_value(self._key_value(sampled))
        bias = None if self.bias_sides is None else self._bias(points, grid)
        q = split_heads(grid.flatten(q), self.num_heads)
        return q, k, v, {"mask": seen, "bias": bias}

    def _points(self, q, padding, grid):
        """The middles of windows, moved by the network, `(B * G, S, 2)`, in cells."""
        offsets = self._offsets(self._by_group(silence(q, padding)))  # (B * G, H / r, W / r, 2)
        sides = list(zip(grid.sides, ops.shape(offsets)[1:3], strict=True))
        middles = [self._middles(side, windows) for side, windows in sides]
        middles = ops.stack(ops.meshgrid(*middles, indexing="ij"), axis=-1)
        last = [ops.zeros((), "int32") + (side - 1) for side in grid.sides]
        points = middles + self.offset_range * self.key_stride * offsets
        points = ops.minimum(ops.maximum(points, 0.0), ops.cast(ops.stack(last), "float32"))
        return Grid.of_map(points).flatten(points)

    def _middles(self, side, windows):
        """The middles of the windows of one side, as those of a pooling with "same" padding."""
        stride = self.key_stride
        before = (windows * stride - side) // 2
        first = ops.arange(windows, dtype="int32") * stride - before
        return ops.cast(first, "float32") + (stride - 1) / 2

    def _sampled(self, x, padding, points):
        """The image at the points, `(B, S, C)`; and which of them are real, `(B, N, 1, S)`."""
        groups, x = self.num_groups, self._by_group(x)
        if padding is None:
            return self._beside(sample_bilinear(x, points)), None
        real = ops.repeat(ops.cast(padding, "float32")[..., None], groups, axis=0)
        share = sample_bilinear(real, points)  # (B * G, S, 1)
        mean = sample_bilinear(ops.cast(x, "float32"), points) / ops.maximum(share, LEAST_SHARE)
        seen = ops.reshape(share > LEAST_SHARE, (-1, groups, 1, ops.shape(points)[1]))
        seen = ops.repeat(seen, self.num_heads // groups, axis=1)
        return self._beside(ops.cast(mean, x.dtype)), seen

    def _bias(self, points, grid):
        """The tables at the differences of points and queries, `(B, N, T, S)`."""
        height, width, heads = self._table.shape
        groups, per_group = self.num_groups, heads // self.num_groups
        table = ops.cast(ops.convert_to_tensor(self._table), "float32")
        table = ops.reshape(table, (height, width, groups, per_group))
        table = ops.transpose(table, (2, 0, 1, 3))
        batch = ops.shape(points)[0] // groups
        table = ops.reshape(
            ops.broadcast_to(table[None], (batch, *table.shape)), (-1, height, width, per_group)
        )
        cells = ops.cast(grid.cells(), "float32")[:, None]  # (T, 1, 2)
        middle = ops.convert_to_tensor([side - 1.0 for side in self.bias_sides], "float32")
        places = points[:, None] - cells + middle  # (B * G, T, S, 2)
        queries, keys = ops.shape(places)[1:3]
        bias = sample_bilinear(table, ops.reshape(places, (-1, queries * keys, 2)))
        bias = ops.reshape(bias, (batch, groups, queries, keys, per_group))
        return ops.reshape(ops.transpose(bias, (0, 1, 4, 2, 3)), (batch, heads, queries, keys))

    def _by_group(self, x):
        """`(B, H, W, G * c)` to `(B * G, H, W, c)`."""
        batch, height, width, channels = ops.shape(x)
        groups = self.num_groups
        x = ops.reshape(x, (batch, height, width, groups, channels // groups))
        x = ops.transpose(x, (0, 3, 1, 2, 4))
        return ops.reshape(x, (batch * groups, height, width, channels // groups))

    def _beside(self, x):
        """`(B * G, S, c)` to `(B, S, G * c)`."""
        batch, points, width = ops.shape(x)
        x = ops.reshape(x, (batch // self.num_groups, self.num_groups, points, width))
        x = ops.transpose(x, (0, 2, 1, 3))
        return ops.reshape(x, (batch // self.num_groups, points, self.num_groups * width))


def _read_sides(sides):
    """`bias_sides` as a tuple of two integers, or None."""
    if sides is None:
        return None
    fits = isinstance(sides, tuple | list) and len(sides) == 2
    if not fits or not all(arguments.is_integer(side) and side >= 1 for side in sides):
        rule = "`bias_sides` must be two integers >= 1, (height, width), or None"
        raise arguments.error(rule, bias_sides=sides)
    return tuple(sides)
