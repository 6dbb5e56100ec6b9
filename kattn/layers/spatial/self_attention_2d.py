"""Self-attention over the positions of a feature map (SAGAN; Zhang et al., 2018)."""

import keras
from keras import ops

from kattn import arguments
from kattn.grid import Grid
from kattn.layers.attention.head_sizes import (
    HeadSizes,
    check_heads,
    merge_heads,
)
from kattn.layers.attention.positions import (
    attach,
    embed,
    read_position,
    rotate,
    score_bias,
)
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.attention.quantizable_layer import QuantizableLayer
from kattn.layers.nested_layers import layer_config
from kattn.ops.attention import KERNELS, attention, attention_weights

ARGUMENTS = (
    "num_heads",
    "key_dim",
    "value_dim",
    "key_stride",
    "dropout",
    "data_format",
    "implementation",
    "seed",
)


@keras.saving.register_keras_serializable("kattn")
class SelfAttention2D(QuantizableLayer):
    """x + gamma * softmax(Q K^T / sqrt(D)) V W, over the H * W positions of an image.

    Q, K and V are linear maps of the channels at each position; K and V are then max-pooled over
    `key_stride` x `key_stride` windows. The scalar weight gamma starts at 0, so a new layer is the
    identity and learns how much of the attention to let in.

    Shapes: B batch, H and W image sides, C channels, N heads, D and Dv head widths, T = H * W
    queries, S = ceil(H / `key_stride`) * ceil(W / `key_stride`) keys.

    Args:
        num_heads: Number of attention heads, N.
        key_dim: Width of the queries and keys of one head, D. None for C // 8 // N, at least 1.
        value_dim: Width of the values of one head, Dv. None for C // 2 // N, at least 1.
        key_stride: Downsampling factor of the key grid relative to the query grid: keys and values
            are max-pooled over windows of so many cells a side. 1 for no pooling. Sides that it
            does not divide are padded; the padding is never a maximum.
        position: Position layer for the cells of the map, such as `RotaryEmbedding(axes=2)`,
            `SinusoidalPositions(axes=2)` or `RelativeTable((H, W))`. A pooled key stands at the
            middle of its window. None for no positions.
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
        x: Feature map, float, shape `(B, H, W, C)`, or `(B, C, H, W)` for `"channels_first"`. H
            and W may be unknown when the layer is built.
        training: Whether dropout is applied.

    Returns:
        The same shape as `x`.

    Raises:
        ValueError: If an argument is out of range; when built, if the input does not have rank 4
            or its number of channels is unknown.

    Example:
        >>> x = keras.random.normal((2, 8, 8, 32))
        >>> layer = kattn.layers.SelfAttention2D(num_heads=2, key_stride=2)
        >>> layer(x).shape
        (2, 8, 8, 32)

    Reference:
        Zhang et al. 2018, sec. 3, https://arxiv.org/abs/1805.08318; pooled keys and the widths
        of projections are those of the authors' code. They have one head, no scale and no biases:
        heads, 1 / sqrt(D) and biases are ours.
    """

    def __init__(
        self,
        num_heads=1,
        key_dim=None,
        *,
        value_dim=None,
        key_stride=1,
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
        super().__init__(**kwargs)
        data_format = data_format or keras.config.image_data_format()
        check_heads(num_heads, key_dim, value_dim)
        arguments.check_integers(1, key_stride=key_stride)
        arguments.check_fractions(dropout=dropout)
        arguments.check_choice(("channels_last", "channels_first"), data_format=data_format)
        arguments.check_choice(("auto", *KERNELS), implementation=implementation)
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.key_stride = key_stride
        self.position = read_position(position)
        self.dropout = dropout
        self.data_format = data_format
        self.implementation = implementation
        self.seed = seed
        self._projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )
        self._seed_generator = keras.random.SeedGenerator(seed) if dropout else None

    def build(self, x_shape):
        if len(x_shape) != 4:
            raise ValueError(
                "`x` must have rank 4, a batch of feature maps; for one map write x[None]; "
                f"received: x.shape={tuple(x_shape)}"
            )
        channels = x_shape[-1 if self.data_format == "channels_last" else 1]
        if channels is None:
            raise ValueError(
                "`x` must have a known number of channels; "
                f"received: x.shape={tuple(x_shape)}, data_format={self.data_format!r}"
            )
        heads = self.num_heads
        key_dim = self.key_dim or max(channels // 8 // heads, 1)
        value_dim = self.value_dim or max(channels // 2 // heads, 1)
        self.head_sizes = sizes = HeadSizes(heads, heads, key_dim, value_dim)
        parts = sizes.query_width, sizes.key_width, sizes.value_width
        self._qkv = self._projections.dense("qkv", channels, *parts, dtype=self.dtype_policy)
        self._output = self._projections.dense(
            "output", sizes.output_width, channels, dtype=self.dtype_policy
        )
        attach(self.position, channels, sizes)
        self.gamma = self.add_weight(name="gamma", shape=(), initializer="zeros")

    def call(self, x, training=None):
        q, k, v, bias, grid = self._project(x)
        y = attention(
            q,
            k,
            v,
            bias=bias,
            dropout_rate=self.dropout if training else 0.0,
            seed=self._seed_generator,
            implementation=self.implementation,
        )  # (B, T, N, Dv)
        y = grid.unflatten(self._output(merge_heads(y)))  # (B, H, W, C)
        if self.data_format == "channels_first":
            y = ops.transpose(y, (0, 3, 1, 2))
        return x + self.gamma * y

    def attention_weights(self, x):
        """Where each position looks: softmax(Q K^T / sqrt(D)), without dropout.

        Args:
            x: Feature map, float, shape `(B, H, W, C)`, or `(B, C, H, W)` for `"channels_first"`.

        Returns:
            `(B, N, T, S)` float32. Queries and keys are in row-major order; rows sum to 1.
        """
        if not self.built:
            self.build(x.shape)
        q, k, _, bias, _ = self._project(ops.convert_to_tensor(x, dtype=self.compute_dtype))
        return attention_weights(q, k, bias=bias)

    def compute_output_shape(self, x_shape):
        return x_shape

    def get_config(self):
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ARGUMENTS},
            **self._projections.get_config(),
            "position": layer_config(self.position),
        }

    def _project(self, x):
        """Queries `(B, T, N, D)`, pooled keys and values, the bias of scores, and the grid."""
        # Channels last: a projection is a matmul then, and TensorFlow on CPU pools such maps only.
        x = x if self.data_format == "channels_last" else ops.transpose(x, (0, 2, 3, 1))
        grid = Grid.of_map(x, self.key_stride)
        x = grid.flatten(x)  # (B, T, C)
        if self.position is None:
            q, k, v = self.head_sizes.split_qkv(self._qkv(x))
            return q, self._pool(k, grid), self._pool(v, grid), None, grid
        cells = grid.cells()
        q, k, v = self.head_sizes.split_qkv(self._qkv(embed(self.position, x, cells)))
        q = rotate(self.position, q, cells)
        k = rotate(self.position, self._pool(k, grid), grid.key_positions())
        bias = score_bias(self.position, q, grid)
        return q, k, self._pool(v, grid), bias, grid

    def _pool(self, x, grid):
        """`(B, T, N, D)` to `(B, S, N, D)`: the maximum of each window, channel by channel."""
        is_empty = grid.is_static and grid.size == 0  # which PyTorch cannot pool
        if self.key_stride == 1 or is_empty:
            return x
        batch, _, heads, width = ops.shape(x)
        x, stride = ops.reshape(x, (batch, *grid.sides, heads * width)), self.key_stride
        x = ops.max_pool(x, stride, stride, padding="same", data_format="channels_last")
        # One reshape: of two, tf2onnx leaves the first out and gets the sizes of the second wrong.
        return ops.reshape(x, (batch, grid.keys.size, heads, width))
