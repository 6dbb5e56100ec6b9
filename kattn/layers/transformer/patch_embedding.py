"""The vectors of an image's patches with their positions, which a model's first block reads."""

import keras
from keras import ops

from kattn.layers.position.learned_positions import LearnedPositions
from kattn.layers.transformer.token_embedding import new_initializer


class PatchEmbedding(keras.layers.Layer):
    """A vector of each patch, behind that of the class if there is one; plus its position.

    Args:
        grid: Numbers of rows and columns of patches.
        patch_size: Height and width of a patch.
        channels: Number of channels of the images.
        width: Number of channels of a vector.
        use_class_token: Whether a learned vector that belongs to no patch stands before the others.
        data_format: `"channels_last"` or `"channels_first"`.
        dropout: Fraction of the channels that are dropped during training.
        seed: Integer seed of what is dropped, or None.
        **kwargs: `name` and `dtype`.

    Attributes:
        position: The `LearnedPositions` of the vectors.
    """

    def __init__(
        self,
        grid,
        patch_size,
        channels,
        width,
        *,
        use_class_token,
        data_format,
        dropout,
        seed,
        **kwargs,
    ):
        super().__init__(**kwargs)
        self._grid = grid
        self._patch_size = patch_size
        self._channels = channels
        self._data_format = data_format
        self._use_class_token = use_class_token
        rows, columns = grid
        policy = self.dtype_policy
        self._projection = keras.layers.Dense(
            width, kernel_initializer=new_initializer(), dtype=policy, name="projection"
        )
        self.position = LearnedPositions(
            rows * columns + use_class_token, dtype=policy, name="position"
        )
        self._dropout = keras.layers.Dropout(dropout, seed=seed, dtype=policy)

    def build(self, images_shape):
        (rows, columns), (height, width) = self._grid, self._patch_size
        self._projection.build((None, rows * columns, height * width * self._channels))
        shape = self.compute_output_shape(images_shape)
        self._class_token = None
        if self._use_class_token:
            self._class_token = self.add_weight(
                name="class_token", shape=(1, 1, shape[-1]), initializer=new_initializer()
            )
        self.position.build(shape)
        self._dropout.build(shape)
        self.built = True

    def call(self, images, training=None):
        h = self._projection(self._patches(images))  # (B, T, C)
        if self._class_token is not None:
            first = ops.cast(self._class_token, h.dtype)
            first = ops.broadcast_to(first, (ops.shape(h)[0], 1, h.shape[-1]))
            h = ops.concatenate([first, h], axis=1)
        return self._dropout(self.position(h), training=training)

    def compute_output_shape(self, images_shape):
        rows, columns = self._grid
        return (images_shape[0], rows * columns + self._use_class_token, self._projection.units)

    def _patches(self, images):
        """The pixels of each patch, row by row, as one vector: `(B, rows * columns, pixels)`."""
        (rows, columns), (height, width) = self._grid, self._patch_size
        if self._data_format == "channels_first":
            images = ops.transpose(images, (0, 2, 3, 1))
        x = ops.reshape(images, (-1, rows, height, columns, width, self._channels))
        x = ops.transpose(x, (0, 1, 3, 2, 4, 5))
        return ops.reshape(x, (-1, rows * columns, height * width * self._channels))
