"""Self-attention over the positions of a feature map (SAGAN; Zhang et al., 2018)."""

import keras
from keras import ops

from kattn.grid import Grid
from kattn.layers.attention import schemes
from kattn.layers.position.position import Position
from kattn.ops.attention import attention, attention_weights


@keras.saving.register_keras_serializable("kattn")
class SelfAttention2D(keras.layers.Layer):
    """x + gamma * softmax(Q K^T / sqrt(D)) V W, over the H * W positions of an image.

    Q, K and V are linear maps of the channels at each position; K and V are then max-pooled over
    `key_stride` x `key_stride` windows. The scalar weight gamma starts at 0, so a new layer is the
    identity and learns how much of the attention to let in.

    Shapes: B batch, H and W image sides, C channels, N heads, D = `key_dim`, Dv = `value_dim`,
    T = H * W queries, S = ceil(H / `key_stride`) * ceil(W / `key_stride`) keys.

    Args:
        num_heads: N.
        key_dim: D, width of one head's queries and keys. None: max(C // 8 // N, 1).
        value_dim: Dv, width of one head's values. None: max(C // 2 // N, 1).
        key_stride: Side of the windows, and stride, of the max-pooling of keys and values. 1: none.
            Sides that do not divide are padded, the padding never being a maximum.
        position: A position layer for the cells of the map: `RotaryEmbedding(axes=2)`,
            `SinusoidalPositions(axes=2)` or `RelativeTable((H, W))`; None for none. A pooled key
            stands at the middle of its window.
        dropout: Fraction of attention weights dropped in training, in [0, 1).
        use_bias: If True, the four projections have biases.
        data_format: `"channels_last"`, `"channels_first"`, or None for Keras's default.
        implementation: Kernel of `kattn.ops.attention`.
        kernel_initializer: Of the four projections' kernels.
        bias_initializer: Of their biases.
        kernel_regularizer: Of their kernels.
        bias_regularizer: Of their biases.
        seed: Of the dropout.

    Call args:
        x: `(B, H, W, C)` or, for `"channels_first"`, `(B, C, H, W)` float. H and W may be unknown
            when the layer is built.
        training: Whether dropout is applied.

    Returns:
        The same shape as `x`.

    Raises:
        ValueError: If a size is below 1, `dropout` is outside [0, 1) or `data_format` is unknown;
            when built, if the input is not of rank 4 or its channels are unknown.

    Reference:
        Zhang et al. 2018, sec. 3, https://arxiv.org/abs/1805.08318; pooled keys and the widths
        of projections are those of the authors' code. They have one head, no scale and no biases:
        heads, 1 / sqrt(D) and biases are ours.

    Example:
        >>> x = keras.random.normal((2, 8, 8, 32))
        >>> SelfAttention2D(num_heads=2, key_stride=2)(x).shape
        (2, 8, 8, 32)
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
        sizes = {"num_heads": num_heads, "key_stride": key_stride}
        sizes |= {} if key_dim is None else {"key_dim": key_dim}
        sizes |= {} if value_dim is None else {"value_dim": value_dim}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1: {name}={size}")
        if not 0 <= dropout < 1:
            raise ValueError(f"dropout must be in [0, 1): dropout={dropout}")
        data_format = data_format or keras.config.image_data_format()
        if data_format not in ("channels_last", "channels_first"):
            raise ValueError(
                f"data_format must be channels_last or channels_first: data_format={data_format!r}"
            )
        self.num_heads = num_heads
        self.key_dim = key_dim
        self.value_dim = value_dim
        self.key_stride = key_stride
        self.position = schemes.read(position, "position", Position)
        self.dropout = dropout
        self.use_bias = use_bias
        self.data_format = data_format
        self.implementation = implementation
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.kernel_regularizer = keras.regularizers.get(kernel_regularizer)
        self.bias_regularizer = keras.regularizers.get(bias_regularizer)
        self.seed = seed
        self._seed_generator = keras.random.SeedGenerator(seed) if dropout else None

    def build(self, input_shape):
        if len(input_shape) != 4:
            raise ValueError(
                f"x must be of rank 4, a batch of feature maps: x.shape={tuple(input_shape)}"
            )
        channels = input_shape[-1 if self.data_format == "channels_last" else 1]
        if channels is None:
            raise ValueError(
                "x must have a known number of channels: "
                f"x.shape={tuple(input_shape)}, data_format={self.data_format!r}"
            )
        key_width = self.num_heads * (self.key_dim or max(channels // 8 // self.num_heads, 1))
        value_width = self.num_heads * (self.value_dim or max(channels // 2 // self.num_heads, 1))
        self.query = self._projection(key_width, "query")
        self.key = self._projection(key_width, "key")
        self.value = self._projection(value_width, "value")
        self.output_projection = self._projection(channels, "output")
        for projection in (self.query, self.key, self.value):
            projection.build((None, None, None, channels))
        self.output_projection.build((None, None, None, value_width))
        if self.position is not None:
            key_dim = key_width // self.num_heads
            self.position.attach(width=channels, num_heads=self.num_heads, key_dim=key_dim)
        self.gamma = self.add_weight(name="gamma", shape=(), initializer="zeros")

    def call(self, x, training=None):
        q, k, v = self._heads(x)
        mixed = attention(
            q,
            k,
            v,
            bias=self._bias(q, x),
            dropout_rate=self.dropout if training else 0.0,
            seed=self._seed_generator,
            implementation=self.implementation,
        )  # (B, T, N, Dv)
        batch, height, width, _ = ops.shape(self._channels_last(x))
        mixed = ops.reshape(mixed, (batch, height, width, mixed.shape[2] * mixed.shape[3]))
        mixed = self.output_projection(mixed)
        if self.data_format == "channels_first":
            mixed = ops.transpose(mixed, (0, 3, 1, 2))
        return x + self.gamma * mixed

    def attention_weights(self, x):
        """Where each position looks: softmax(Q K^T / sqrt(D)), without dropout.

        Args:
            x: As in the call.

        Returns:
            `(B, N, T, S)` float32; queries and keys are in row-major order.
        """
        if not self.built:
            self.build(x.shape)
        x = ops.cast(x, self.compute_dtype)
        q, k, _ = self._heads(x)
        return attention_weights(q, k, bias=self._bias(q, x))

    def _heads(self, x):
        x = self._channels_last(x)
        sides = ops.shape(x)[1:3]
        if self.position is not None:
            batch, height, width, channels = ops.shape(x)
            flat = ops.reshape(x, (batch, height * width, channels))
            x = ops.reshape(schemes.embed(self.position, flat, _cells(sides, 1)), ops.shape(x))
        q = self._split(self.query(x))  # (B, T, N, D)
        k = self._split(self._pool(self.key(x)))  # (B, S, N, D)
        v = self._split(self._pool(self.value(x)))  # (B, S, N, Dv)
        if self.position is not None:
            q = schemes.rotate(self.position, q, _cells(sides, 1))
            k = schemes.rotate(self.position, k, _cells(sides, self.key_stride))
        return q, k, v

    def _bias(self, q, x):
        if self.position is None:
            return None
        sides = x.shape[1:3] if self.data_format == "channels_last" else x.shape[2:4]
        return schemes.bias(self.position, q, Grid(tuple(sides), self.key_stride))

    def _projection(self, width, name):
        return keras.layers.Dense(
            width,
            use_bias=self.use_bias,
            kernel_initializer=_fresh(self.kernel_initializer),
            bias_initializer=_fresh(self.bias_initializer),
            kernel_regularizer=self.kernel_regularizer,
            bias_regularizer=self.bias_regularizer,
            dtype=self.dtype_policy,
            name=name,
        )

    def _channels_last(self, x):
        # A projection is a matmul here, and TensorFlow on CPU pools channels-last maps only.
        return x if self.data_format == "channels_last" else ops.transpose(x, (0, 2, 3, 1))

    def _pool(self, x):
        if self.key_stride == 1:
            return x
        side = self.key_stride
        return ops.max_pool(x, side, side, padding="same", data_format="channels_last")

    def _split(self, x):
        batch, height, width, channels = ops.shape(x)
        heads = (self.num_heads, channels // self.num_heads)
        return ops.reshape(x, (batch, height * width, *heads))

    def compute_output_shape(self, input_shape):
        return input_shape

    def get_config(self):
        return {
            **super().get_config(),
            "num_heads": self.num_heads,
            "key_dim": self.key_dim,
            "value_dim": self.value_dim,
            "key_stride": self.key_stride,
            "position": schemes.write(self.position),
            "dropout": self.dropout,
            "use_bias": self.use_bias,
            "data_format": self.data_format,
            "implementation": self.implementation,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
            "kernel_regularizer": keras.regularizers.serialize(self.kernel_regularizer),
            "bias_regularizer": keras.regularizers.serialize(self.bias_regularizer),
            "seed": self.seed,
        }


def _cells(sides, stride):
    """`(T, 2)`: rows and columns of the cells, or of the middles of windows of `stride` cells."""
    axes = []
    for side in sides:
        count = -(-side // stride)
        first = (stride - 1) / 2 - (count * stride - side) // 2  # "same" pads half before
        index = ops.arange(count, dtype="int32")
        axes.append(index if stride == 1 else ops.cast(index * stride, "float32") + first)
    return ops.reshape(ops.stack(ops.meshgrid(*axes, indexing="ij"), axis=-1), (-1, 2))


def _fresh(initializer):
    """A copy, without which an unseeded initializer gives every projection the same numbers."""
    return initializer.clone() if isinstance(initializer, keras.Initializer) else initializer
