"""Attention between the channels of a map instead of its cells (El-Nouby et al., 2021)."""

import keras
from keras import ops

from kattn import arguments
from kattn.layers.attention.head_sizes import HeadSizes, check_heads, merge_heads, split_heads
from kattn.layers.attention.mask_reader import silence
from kattn.layers.attention.projection_options import ProjectionOptions
from kattn.layers.spatial.map_layer import MapLayer
from kattn.ops.attention import attention, attention_weights
from kattn.ops.rows import split_channels

ARGUMENTS = ("num_heads", "key_dim", "epsilon", "dropout", "seed")


@keras.saving.register_keras_serializable("kattn")
class CrossCovarianceAttention(MapLayer):
    """softmax(Q^T K / tau) V^T over channels: each channel is a mean of the channels of its head.

    Q, K and V are linear maps of the channels at each cell. The columns of Q and K, one for each
    channel and as long as there are cells, are divided by their length, so that Q^T K is a matrix
    of cosines, D by D for each head. Its size does not depend on the map: time and memory grow with
    the number of cells, not with its square. The order of the cells does not matter, so that what a
    cell knows of others it knows through these sums alone. The map is a sequence, an image or a
    volume.

    Shapes: B batch, sides of the map (one, two or three), C channels, N heads, D head width.

    Args:
        num_heads: Number of attention heads, N.
        key_dim: Number of channels of queries, keys and values of one head, D. None for the
            channels of the map divided by the number of heads, C / N, which must then be whole.
        epsilon: Positive number that is added to the squared lengths, so that a channel that is 0
            everywhere does not divide by 0.
        dropout: Fraction of the attention weights that are dropped during training, in [0, 1).
        use_bias: Whether the projections add a bias.
        data_format: `"channels_last"` or `"channels_first"`. None for Keras's default.
        kernel_initializer: Initializer of the projection matrices. Each projection is initialised
            on its own, though those of Q, K and V are stored as one matrix.
        scale_initializer: Initializer of the learned numbers 1 / tau, one for each head, by which
            the cosines are multiplied.
        bias_initializer: Initializer of the biases.
        kernel_regularizer: Regularizer of the projection matrices, or None.
        bias_regularizer: Regularizer of the biases, or None.
        seed: Integer seed of the dropout, or None for a random one.
        **kwargs: `name`, `dtype` and `trainable`, as for any Keras layer.

    Call args:
        x: Map, float, shape `(B, *sides, C)`, or `(B, C, *sides)` for `"channels_first"`. The
            number of sides is fixed when the layer is built; their lengths may be unknown.
        mask: Padding, bool, shape `(B, *sides)`, True = real cell. Lengths and cosines are over
            real cells. It is combined with the Keras mask of `x`. What `x` holds at padding changes
            nothing.
        training: Whether dropout is applied.

    Returns:
        The same shape as `x`, with zeros at padding. The padding of `x` is the Keras mask of the
        output.

    Raises:
        ValueError: If an argument is out of range; when built, if the map has no side or more than
            three, if its channels are unknown, or if `num_heads` does not divide them where
            `key_dim` is None; when called, if `x` has other channels than the layer was built for,
            or if `mask` has a wrong dtype or other sides than the map.

    Example:
        >>> layer = kattn.layers.CrossCovarianceAttention(4)
        >>> x = keras.random.normal((2, 7, 5, 32))
        >>> layer(x).shape
        (2, 7, 5, 32)
        >>> layer.attention_weights(x).shape
        (2, 4, 8, 8)

    Reference:
        El-Nouby et al. 2021, eq. 3, https://arxiv.org/abs/2106.09681. The equation is transposed
        there. As in the authors' code the learned number is 1 / tau, which starts at 1; there the
        projections of Q, K and V have no bias unless asked for, and lengths have a least value,
        where here `epsilon` is added. `key_dim`, masks and maps other than images are ours.
    """

    value_dim = None  # a query's channel takes the place of a value's

    def __init__(
        self,
        num_heads=1,
        key_dim=None,
        *,
        epsilon=1e-6,
        dropout=0.0,
        use_bias=True,
        data_format=None,
        kernel_initializer="glorot_uniform",
        scale_initializer="ones",
        bias_initializer="zeros",
        kernel_regularizer=None,
        bias_regularizer=None,
        seed=None,
        **kwargs,
    ):
        super().__init__(data_format, **kwargs)
        check_heads(num_heads, key_dim, None)
        arguments.check_positive(epsilon=epsilon)
        arguments.check_fractions(dropout=dropout)
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.epsilon = epsilon
        self.dropout = dropout
        self.seed = seed
        self.scale_initializer = keras.initializers.get(scale_initializer)
        self._projections = ProjectionOptions(
            use_bias, kernel_initializer, bias_initializer, kernel_regularizer, bias_regularizer
        )
        self._seed_generator = keras.random.SeedGenerator(seed) if dropout else None

    def build(self, x_shape):
        self._axes = self.axes_of(x_shape)
        channels, options, policy = self._axes.channels, self._projections, self.dtype_policy
        self.head_sizes = sizes = HeadSizes.of(self, channels)
        parts = sizes.query_width, sizes.key_width, sizes.value_width
        self._qkv = options.dense("qkv", channels, *parts, dtype=policy)
        self._scale = self.add_weight(
            name="scale",
            shape=(self.num_heads,),
            initializer=self.scale_initializer,
            autocast=False,
        )
        self._output = options.dense("output", sizes.output_width, channels, dtype=policy)
        self.built = True

    def call(self, x, mask=None, training=None):
        x, padding = self._axes.read(x, mask)
        q, k, v = self._project(x, padding)  # (B, D, N, S)
        y = attention(
            q,
            k,
            v,
            scale=1.0,
            dropout_rate=self.dropout if training else 0.0,
            seed=self._seed_generator,
        )
        y = self._output(merge_heads(ops.transpose(y, (0, 3, 2, 1))))  # (B, S, C)
        return silence(self._axes.of_sequence(y, x), padding, self._axes.channel)

    def attention_weights(self, x, mask=None):
        """How much of each channel the channels are made of: softmax(Q^T K / tau), no dropout.

        Args:
            x: Map, float, shape `(B, *sides, C)`, or `(B, C, *sides)` for `"channels_first"`.
            mask: Padding, bool, shape `(B, *sides)`, True = real cell.

        Returns:
            `(B, N, D, D)` float32: for each channel of the queries the weights of the channels of
            the values, of sum 1. They are all the same for an item without a real cell.
        """
        if not self.built:
            self.build(x.shape)
        x, padding = self._axes.read(x, mask)
        x = ops.convert_to_tensor(x, dtype=self.compute_dtype)
        q, k, _ = self._project(x, padding)
        return attention_weights(q, k, scale=1.0)

    def get_config(self):
        return {
            **super().get_config(),
            **{name: getattr(self, name) for name in ARGUMENTS},
            "scale_initializer": keras.initializers.serialize(self.scale_initializer),
            **self._projections.get_config(),
        }

    def _project(self, x, padding):
        """Queries, of length 1 / tau, keys, of length 1, and values: `(B, D, N, S)`.

        Channels are what attends and is attended to, and cells are the width of a head.
        """
        cells, padding = self._axes.cells(x, padding)  # (B, S, C)
        qkv = silence(self._qkv(cells), padding)  # the bias is at padding, too
        sizes = self.head_sizes
        parts = split_channels(qkv, (sizes.query_width, sizes.key_width, sizes.value_width))
        q, k, v = (ops.transpose(split_heads(x, sizes.heads), (0, 3, 2, 1)) for x in parts)
        scale = ops.cast(ops.convert_to_tensor(self._scale), "float32")[:, None]  # (N, 1)
        q = ops.cast(self._normalized(q) * scale, v.dtype)
        return q, ops.cast(self._normalized(k), v.dtype), v

    def _normalized(self, x):
        x = ops.cast(x, "float32")
        return x * ops.rsqrt(ops.sum(ops.square(x), axis=-1, keepdims=True) + self.epsilon)
